"""A sentence is text to every tokenizer: words that spell special tokens stay words, letters keep their marks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MBart50Tokenizer, MBartConfig, MBartForConditionalGeneration, MBartTokenizer

from sage_scale.models.sage.mbart import TextEncoder, make_labels
from sage_scale.models.sign2gpt.decoder import make_texts
from sage_scale.text.languages import normal_form
from sage_scale.text.tokenizer import (
    encode_texts,
    load_tokenizer,
    train_sentencepiece,
    train_xglm_tokenizer,
    unknown_share,
)
from sage_scale.text.vocabulary import expand_tokenizer, missing_characters, trim_vocabulary
from sage_scale.training.language.noise import units

CORPUS = [
    "der wetterbericht nennt <pad> und [MASK] nicht",
    "am montag regnet es ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "xyz jkvq <>/_[],.|# „grüße“ 今天北京 ﬁ ½",
]
SPELLED = ["<s>", "</s>", "<mask>", "<unk>", "<pad>", "de_DE", "zh_CN", "en_XX", "<|endoftext|>", "[MASK]"]


def tokenizers(folder) -> dict:
    made = train_sentencepiece(CORPUS, 150)
    made.save_pretrained(folder / "mbart50")
    torch.manual_seed(0)
    config = MBartConfig(
        vocab_size=len(made), d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
        decoder_attention_heads=1, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=64,
        decoder_start_token_id=2,
    )  # fmt: skip
    MBartForConditionalGeneration(config).save_pretrained(folder / "mbart50")
    trim_vocabulary(folder / "mbart50", folder / "trimmed", [*CORPUS, " ".join(SPELLED)])
    xglm = train_xglm_tokenizer(CORPUS, 150)
    codes = [(code, 0.0) for code in ("de_DE", "zh_CN", "en_XX")]
    pieces = [(piece, -5.0) for piece in made.get_vocab() if not piece.startswith("<") and "_" not in piece]
    specials = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    cc25 = MBartTokenizer(vocab=[*specials, *pieces, ("<", -9.0), ("_", -9.0), *codes, ("<mask>", 0.0)])
    cc25.save_pretrained(folder / "cc25")
    return {
        "mbart50": load_tokenizer(folder / "mbart50", "de"),
        "trimmed": load_tokenizer(folder / "trimmed", "de"),
        "cc25": load_tokenizer(folder / "cc25", "de"),
        "xglm": xglm,
        "extended": expand_tokenizer(xglm, missing_characters(xglm, ["漢字"]), folder / "extended"),
    }


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return tokenizers(tmp_path_factory.mktemp("tokenizers"))


FORMS = ["mbart50", "trimmed", "cc25", "xglm", "extended"]


@pytest.mark.parametrize("form", FORMS)
@given(
    words=st.lists(st.sampled_from([*SPELLED, "am", "<", "s>", "„grüße“", "今天"]), min_size=1, max_size=6),
    glue=st.sampled_from([" ", "", ", "]),
)
@settings(max_examples=60, deadline=None)
def test_words_that_spell_special_tokens_come_back(known, form, words, glue):
    tokenizer, text = known[form], glue.join(words)
    [ids] = encode_texts(tokenizer, [text])
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    assert not special.intersection(ids), tokenizer.convert_ids_to_tokens(ids)
    assert normal_form(tokenizer.decode(ids, skip_special_tokens=True)) == normal_form(text)
    assert [number for unit in units(tokenizer, text) for number in unit] == ids
    labels_BL, inputs_BL = make_texts(tokenizer, [text], 512)
    assert labels_BL[0].tolist() == [*ids, tokenizer.eos_token_id]
    assert inputs_BL[0].tolist() == [tokenizer.eos_token_id, *ids]


@pytest.mark.parametrize("form", ["mbart50", "trimmed", "cc25"])
def test_labels_and_alignment_targets_hold_no_control_token(known, form):
    tokenizer = known[form]
    text = "der </s> <mask> de_DE regnet<s>"
    [ids] = encode_texts(tokenizer, [text])
    code, eos = tokenizer.convert_tokens_to_ids("de_DE"), tokenizer.eos_token_id
    labels_BL, _ = make_labels(tokenizer, [text], ["de"])
    first = form != "cc25"
    assert labels_BL[0].tolist() == ([code, *ids, eos] if first else [*ids, eos, code])
    assert tokenizer.decode(labels_BL[0], skip_special_tokens=True).strip() == text
    if form == "mbart50":
        encoder = TextEncoder(MBartForConditionalGeneration(
            MBartConfig(vocab_size=len(tokenizer), d_model=8, encoder_layers=1, decoder_layers=1,
                        encoder_attention_heads=1, decoder_attention_heads=1, encoder_ffn_dim=8,
                        decoder_ffn_dim=8, max_position_embeddings=64)), tokenizer)  # fmt: skip
        assert encoder.encode([text], ["de"]).lengths_B.tolist() == [len(ids)]


def test_ordinary_text_is_encoded_as_the_tokenizer_does(known):
    texts = ["am montag regnet es", "xyz ABC, „grüße“", "", " "]
    for form in FORMS:
        plain = known[form](texts, add_special_tokens=False)["input_ids"]
        assert encode_texts(known[form], texts) == plain
    assert isinstance(known["mbart50"], MBart50Tokenizer) and encode_texts(known["xglm"], []) == []


@pytest.mark.parametrize("text", ["カ\u3099", "ｶﾞｷﾞ", "\u1112\u1161\u11ab", "ệ", "a\u0302\u0323"])
def test_letters_with_marks_are_known_however_they_are_written(text):
    """`tokenizers` normalises what is longer than six bytes by single characters, which are in no vocabulary."""
    tokenizer = train_sentencepiece([text, f"{text} ja"], 40)
    [ids] = encode_texts(tokenizer, [text])
    assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == normal_form(text)


def test_the_share_of_unknown_tokens():
    tokenizer = train_sentencepiece(["am tag regnet es", "es regnet am abend"], 60)
    assert unknown_share(tokenizer, ["am tag", "es regnet"]) == 0 == unknown_share(tokenizer, [])
    assert unknown_share(tokenizer, ["明天", "北京 下雨"]) == 1
    assert 0 < unknown_share(tokenizer, ["am tag regnet es 明天"]) < 0.5
    assert unknown_share(tokenizer, ["", " "]) == 0
