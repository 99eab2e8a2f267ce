"""Characters added to a vocabulary: what was unknown is spelled, all else is encoded and scored as before."""

from __future__ import annotations

import io

import pytest
import sentencepiece
import torch
from factories.models import unigram
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoModelForCausalLM, AutoTokenizer, XGLMConfig, XGLMForCausalLM, XGLMTokenizer

from sage_scale.errors import CheckpointError
from sage_scale.text.languages import restore_punctuation
from sage_scale.text.vocabulary import (
    NOISE,
    expand_model,
    expand_tokenizer,
    expand_vocabulary,
    missing_characters,
)

KNOWN = ["我喜欢冬天", "公司离家很远", "他为什么不打车", "这件衣服怎么样", "今天下雪了"]
NEW = ["我喜欢鳄鱼", "他打嗝了", "公司在濮阳"]


def tokenizer() -> XGLMTokenizer:
    return XGLMTokenizer(vocab=unigram(KNOWN, 50, hard_vocab_limit=False, character_coverage=1.0))


def model(words: int, dtype: torch.dtype = torch.float32) -> XGLMForCausalLM:
    torch.manual_seed(0)
    config = XGLMConfig(
        vocab_size=words, d_model=16, ffn_dim=8, num_layers=1, attention_heads=2, init_std=0.5
    )
    return XGLMForCausalLM(config).eval().to(dtype)


def test_missing_characters_are_those_without_a_piece():
    assert missing_characters(tokenizer(), KNOWN) == []
    assert missing_characters(tokenizer(), [*KNOWN, *NEW]) == sorted("鳄鱼嗝濮阳在")
    assert missing_characters(tokenizer(), ["", " "]) == []


def test_characters_are_looked_at_as_the_tokenizer_normalises_them(tmp_path):
    """Full-width forms are ASCII to XGLM's normaliser, which must still be there when the tokenizer was expanded."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["好不好?", "是,我!"] * 9), model_writer=model, vocab_size=30, minloglevel=2,
        hard_vocab_limit=False, character_coverage=1.0, normalization_rule_name="nmt_nfkc",
    )  # fmt: skip
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    before = XGLMTokenizer(
        vocab=[*special, *((piece.piece, piece.score) for piece in proto.pieces[3:])],
        _spm_precompiled_charsmap=proto.normalizer_spec.precompiled_charsmap,
    )
    assert missing_characters(before, ["好？，！", "ＡＢ"]) == ["A", "B"]
    after = expand_tokenizer(before, ["A", "B"], tmp_path)
    assert after.unk_token_id not in after("好？ＡＢ！")["input_ids"]
    decoded = after.decode(after("好？ＡＢ！")["input_ids"], skip_special_tokens=True)
    assert restore_punctuation(decoded.strip(), "zh") == "好？AB！"


@torch.no_grad()
def test_expanded_model_and_tokenizer_know_them_and_change_nothing_else(tmp_path):
    before = tokenizer()
    plain = model(len(before))
    larger, after, report = expand_vocabulary(plain, before, [*KNOWN, *NEW], tmp_path, seed=3)
    count = len(report.characters)
    assert count == 6 and report.first_id == len(before) and len(after) == len(before) + count
    for sentence in KNOWN:
        assert after(sentence)["input_ids"] == before(sentence)["input_ids"]
    for sentence in NEW:
        ids = after(sentence)["input_ids"]
        assert before.unk_token_id in before(sentence)["input_ids"] and after.unk_token_id not in ids
        assert after.decode(ids, skip_special_tokens=True).strip() == sentence, (
            "no blank beside a new character"
        )
    for token, number in before.get_vocab().items():
        assert after.get_vocab()[token] == number
    ids = torch.tensor([before(KNOWN[0])["input_ids"]])
    torch.testing.assert_close(larger(input_ids=ids).logits[..., : len(before)], plain(input_ids=ids).logits)
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(NEW[0])["input_ids"] == after(NEW[0])["input_ids"]
    ids = torch.tensor([after(NEW[0])["input_ids"]])
    torch.testing.assert_close(reopened(input_ids=ids).logits, larger(input_ids=ids).logits)
    assert larger.lm_head.weight.data_ptr() == larger.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_embeddings_are_the_mean_with_slight_noise_by_the_seed(dtype):
    plain = model(500, dtype)
    old = plain.model.embed_tokens.weight.detach().float()
    rows = expand_model(plain, 500, 400, seed=1).model.embed_tokens.weight.detach()
    assert rows.dtype == dtype and torch.equal(rows[:500].float(), old)
    new = rows[500:].float()
    away = (new - old.mean(0)) / old.std(0)
    if dtype == torch.float32:
        assert away.std() == pytest.approx(NOISE**0.5, rel=0.05) and len(new.unique(dim=0)) == 400
    assert away.abs().max() < 0.05
    again = [
        expand_model(plain, 500, 400, seed=seed).model.embed_tokens.weight[500:].float() for seed in (1, 2)
    ]
    assert torch.equal(again[0], new) and not torch.equal(again[1], new)


def test_spare_embeddings_of_a_model_are_used_and_too_few_refused(tmp_path):
    words = len(tokenizer())
    larger, _, _ = expand_vocabulary(model(words + 4), tokenizer(), NEW, tmp_path)
    assert larger.config.vocab_size == words + 6
    with pytest.raises(CheckpointError, match="embeddings"):
        expand_model(model(10), 11, 2)
    same, _, report = expand_vocabulary(plain := model(words), tokenizer(), KNOWN, tmp_path / "none")
    assert same is plain and report.characters == () and not (tmp_path / "none").exists()


def test_punctuation_comes_back_in_chinese_only():
    assert restore_punctuation("他为什么不打车?是:我,好!", "zh-Hans") == "他为什么不打车？是：我，好！"
    assert restore_punctuation("was, wirklich?", "de") == "was, wirklich?"
