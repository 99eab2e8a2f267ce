"""Trimming keeps what the corpus says: same encodings, same logits, loss elsewhere reported."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, MBart50Tokenizer, MBartConfig, MBartForConditionalGeneration

from sage_scale.errors import CheckpointError, RecipeError
from sage_scale.text.tokenizer import load_tokenizer, train_sentencepiece
from sage_scale.text.vocabulary import TrimReport, kept_pieces, measure_loss, trim_vocabulary

SHARED = Path(__file__).parents[3] / "shared" / "data"
TRAIN = [
    "am montag regnet es im norden und im süden bleibt es trocken",
    "morgen scheint die sonne bei zwanzig grad",
    "der wind weht schwach aus nordwest",
    "in der nacht sinken die temperaturen auf drei grad",
    "heute abend ziehen wolken auf und es wird kühler",
]
OTHER = [
    "gestern war es stürmisch und nass",
    "die straßen sind glatt, bitte fahren sie langsam",
    "viele grüße aus köln: zwölf quadratkilometer wald",
]
CHECK = ["am montag scheint die sonne", "gestern war die straße nass"]


def tiny_mbart(folder: Path, vocabulary: int, start: int) -> MBartForConditionalGeneration:
    torch.manual_seed(0)
    config = MBartConfig(
        vocab_size=vocabulary, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=128,
        decoder_start_token_id=start, forced_eos_token_id=2,
    )  # fmt: skip
    model = MBartForConditionalGeneration(config).eval()
    model.final_logits_bias.normal_()
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def mbart50(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mbart50")
    tokenizer = train_sentencepiece(TRAIN + OTHER, 120)
    tokenizer.save_pretrained(folder)
    tiny_mbart(folder, len(tokenizer), tokenizer.eos_token_id)
    return folder


@pytest.mark.parametrize("form", ["mbart50", "cc25"])
def test_training_text_and_logits_are_untouched(form, mbart50, tmp_path):
    if form == "mbart50":
        source, texts, language_first = mbart50, TRAIN, True
    else:
        if not (SHARED / "mbart_trimmed_tokenizer").is_dir():
            pytest.skip(f"{SHARED}/mbart_trimmed_tokenizer is not here: no real SentencePiece model of mBART")
        source, texts, language_first = tmp_path / "cc25", TRAIN[:3], False
        source.mkdir()
        shutil.copyfile(
            SHARED / "mbart_trimmed_tokenizer/sentencepiece.bpe.model", source / "sentencepiece.bpe.model"
        )
        tiny_mbart(source, 2427 + 1 + 25 + 1, start=2430)  # decoder starts with de_DE, as in cc25
    report = trim_vocabulary(source, tmp_path / "small", texts, ["regnen"], "de", {"dev": CHECK})

    before, after = load_tokenizer(source, "de"), load_tokenizer(tmp_path / "small", "de")
    old = MBartForConditionalGeneration.from_pretrained(source).eval()
    new = MBartForConditionalGeneration.from_pretrained(tmp_path / "small").eval()
    kept = torch.tensor(json.loads((tmp_path / "small" / "vocabulary.json").read_text())["kept_ids"])
    assert len(after) == len(kept) == new.config.vocab_size == report.pieces_after < len(before)

    x = before(texts, padding=True, return_tensors="pt")
    y = after(texts, padding=True, return_tensors="pt")
    assert torch.equal(kept[y.input_ids], x.input_ids)
    assert after.batch_decode(y.input_ids, skip_special_tokens=True) == texts
    with torch.no_grad():
        wide = old(**x, decoder_input_ids=x.input_ids).logits
        narrow = new(**y, decoder_input_ids=y.input_ids).logits
    torch.testing.assert_close(narrow, wide[..., kept], rtol=0, atol=1e-6)

    german = after.convert_tokens_to_ids("de_DE")
    assert (y.input_ids[0][0] == german) == language_first
    assert new.config.decoder_start_token_id == (after.eos_token_id if language_first else german)
    assert new.generation_config.forced_eos_token_id == after.eos_token_id
    assert new.lm_head.weight is new.model.shared.weight
    shrunk = (len(before) - len(after)) * 16
    assert report.parameters_before - report.parameters_after == shrunk


def test_unseen_words_are_spelled_and_the_report_says_so(mbart50, tmp_path):
    report = trim_vocabulary(mbart50, tmp_path / "small", TRAIN, (), "de", {"dev": CHECK})
    before, after = load_tokenizer(mbart50, "de"), load_tokenizer(tmp_path / "small", "de")
    assert after.batch_decode(after(OTHER).input_ids, skip_special_tokens=True) == OTHER
    dev, train = report.splits["dev"], report.splits["train"]
    assert (train.words_changed, train.sentences_changed) == (0, 0)
    assert dev.unknown_after == dev.unknown_before == 0
    changed = [w for text in CHECK for w in text.split() if before.tokenize(w) != after.tokenize(w)]
    assert dev.words_changed == len(changed) > 0 and dev.sentences_changed == 1
    assert dev.tokens_after > dev.tokens_before
    assert "words re-segmented" in report.lines()[-1]


def test_chinese_is_counted_in_characters(tmp_path):
    sentences = ["今天北京天气很好", "明天上海下雨"]
    tokenizer = train_sentencepiece(sentences, 40)
    loss = measure_loss(tokenizer, tokenizer, range(len(tokenizer)), sentences, "zh-CN")
    assert (loss.words, loss.unit, loss.words_changed) == (14, "characters", 0)
    report = TrimReport(40, 40, 1, 1, {"dev": loss})
    assert "0 of 14 characters re-segmented" in report.lines()[-1]


def test_every_single_character_is_kept(mbart50):
    tokenizer = load_tokenizer(mbart50, "de")
    kept = set(kept_pieces(tokenizer, ["am"]))
    assert {i for piece, i in tokenizer.get_vocab().items() if len(piece) == 1} <= kept
    assert {tokenizer.convert_tokens_to_ids(code) for code in ("de_DE", "zh_CN", "<mask>", "</s>")} <= kept


def test_a_folder_opens_with_plain_transformers(mbart50, tmp_path):
    trim_vocabulary(mbart50, tmp_path / "small", TRAIN, (), "de")
    ours, theirs = load_tokenizer(tmp_path / "small", "de"), AutoTokenizer.from_pretrained(tmp_path / "small")
    assert type(theirs) is MBart50Tokenizer
    assert ours(TRAIN).input_ids == theirs(TRAIN).input_ids  # the language is stored with it


def test_training_a_tokenizer_is_deterministic_and_round_trips(tmp_path):
    first, second = train_sentencepiece(TRAIN, 100), train_sentencepiece(TRAIN, 100)
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    first.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path, "de")
    assert loaded(TRAIN).input_ids == first(TRAIN).input_ids
    assert loaded.batch_decode(loaded(TRAIN).input_ids, skip_special_tokens=True) == TRAIN
    assert [loaded.convert_tokens_to_ids(t) for t in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    ids = loaded(TRAIN[0]).input_ids
    assert ids[0] == loaded.convert_tokens_to_ids("de_DE") and ids[-1] == loaded.eos_token_id


def test_the_real_trimmed_model_of_gfslt_reads_phoenix():
    folder, phoenix = SHARED / "mbart_trimmed_tokenizer", SHARED / "phoenix14t_text"
    if not (folder.is_dir() and phoenix.is_dir()):
        pytest.skip(f"{SHARED} is not here: no real trimmed mBART")
    import sentencepiece

    with gzip.open(phoenix / "dev.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    tokenizer = load_tokenizer(folder, "de")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    expected = [[i + 1 if i else 3 for i in ids] for ids in processor.encode(texts)]
    assert tokenizer(texts, add_special_tokens=False).input_ids == expected


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"\xff\xff\xff")
    with pytest.raises(CheckpointError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path)
    with pytest.raises(RecipeError, match="smaller than required"):
        train_sentencepiece(TRAIN, 5)
    with pytest.raises(RecipeError, match="no text"):
        train_sentencepiece(["", " "], 50)


@pytest.mark.parametrize("folder", ["/data/mbart", "./mbart", "~/mbart", "models/large/mbart"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(folder) -> None:
    with pytest.raises(CheckpointError, match=f"there is no folder {folder}"):
        load_tokenizer(folder)
