"""Presets against the publications' scripts, written again here from their definition, in German, English, Chinese.

neccam/slt, Sign2GPT and TwoStream-SLT: sacrebleu 1.4.2's `raw_corpus_bleu` (nothing tokenised, no smoothing) and two
forms of ROUGE-L. GFSLT-VLP, SAGE, Uni-Sign: sacrebleu's BLEU of the texts as they are. All of them join the characters
of a Chinese text by spaces (`" ".join(list(text))`) and then score as they do German.
"""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from sacrebleu.metrics.bleu import BLEU

from sage_scale.evaluation import score_as
from sage_scale.evaluation.rouge import sentence_rouge_l
from sage_scale.text import normal_form

WORDS = {
    "de": ["am", "tag", "regen", "schnee", ",", "wind", "im", "norden", "12", "grad", "-3", "z.B."],
    "en": ["it's", "the", "rain", "won't", "stop", ",", "today", "3.5", "degrees", "well-known", "U.S."],
    "zh-CN": ["今天", "天气", "很好", ",", "明天", "北京", "iPhone", "12", "3.5", "?", "。", "下雨"],
}


def texts(language: str, seed: int) -> tuple[list[str], list[str]]:
    """Returns hypotheses and references, some of them with a final full stop, one hypothesis empty."""
    rng, words = random.Random(seed), WORDS[language]
    between = "" if language == "zh-CN" else " "
    references = [rng.choices(words, k=rng.randint(3, 9)) for _ in range(12)]
    hypotheses = [[w if rng.random() < 0.7 else rng.choice(words) for w in row] for row in references]
    if language != "zh-CN":
        for row in [*references[:4], *hypotheses[2:6]]:
            row.append(".")
    hypotheses[-1] = []
    return [between.join(row) for row in hypotheses], [between.join(row) for row in references]


def as_the_scripts_see_it(text: str, language: str, full_stop: bool) -> str:
    text = normal_form(text)
    if language == "zh-CN":
        return " ".join(text.replace(" ", ""))
    return text + " ." if full_stop and not text.endswith(".") else text


def raw_corpus_bleu(hypotheses: list[str], references: list[str]) -> list[float]:
    """BLEU-1 to 4 of neccam/slt: words split at spaces, an order without a match makes the product 0."""
    matched, every, lengths = [0] * 4, [0] * 4, [0, 0]
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        h, r = hypothesis.split(), reference.split()
        lengths = [lengths[0] + len(h), lengths[1] + len(r)]
        for n in range(4):
            ours, theirs = (Counter(tuple(x[i : i + n + 1]) for i in range(len(x) - n)) for x in (h, r))
            matched[n] += (ours & theirs).total()
            every[n] += ours.total()
    brevity = min(1.0, math.exp(1 - lengths[1] / lengths[0]))
    shares = [m / e if e else 0.0 for m, e in zip(matched, every)]
    return [100 * brevity * math.prod(shares[:n]) ** (1 / n) for n in range(1, 5)]


def rouge(hypothesis: str, reference: str, form: str) -> float:
    h, r = hypothesis.split(), reference.split()
    table = {(i, j): 0 for i in range(len(h) + 1) for j in range(len(r) + 1)}
    for i in range(1, len(h) + 1):
        for j in range(1, len(r) + 1):
            equal = h[i - 1] == r[j - 1]
            table[i, j] = table[i - 1, j - 1] + 1 if equal else max(table[i - 1, j], table[i, j - 1])
    if not table[len(h), len(r)]:
        return 0.0
    p, q = table[len(h), len(r)] / len(h), table[len(h), len(r)] / len(r)
    beta = 1.2 if form == "coco" else p / (q + 1e-12)
    return (1 + beta**2) * q * p / (q + beta**2 * p + 1e-12)


@pytest.mark.parametrize("language", WORDS)
@pytest.mark.parametrize(
    ("preset", "full_stop", "bleu", "form"),
    [
        ("neccam", True, "raw", "coco"),
        ("sign2gpt", True, "raw", "coco"),
        ("two-stream", True, "raw", "seq2seq"),
        ("gfslt", False, "sacrebleu", "coco"),
        ("sage", True, "sacrebleu", "coco"),
        ("uni-sign", False, "sacrebleu", ""),
    ],
)
def test_a_preset_is_its_script(preset, full_stop, bleu, form, language):
    for seed in range(4):
        hypotheses, references = texts(language, seed)
        ours = score_as(preset, hypotheses, references, language)
        h, r = (
            [as_the_scripts_see_it(t, language, full_stop) for t in side] for side in (hypotheses, references)
        )
        wanted = (
            raw_corpus_bleu(h, r)
            if bleu == "raw"
            else [BLEU(max_ngram_order=n, force=True).corpus_score(h, [r]).score for n in range(1, 5)]
        )
        assert [ours[f"bleu{n}"] for n in range(1, 5)] == pytest.approx(wanted, abs=1e-3)
        if form:
            mean = sum(rouge(a, b, form) for a, b in zip(h, r)) / len(h)
            assert ours["rouge_l"] == pytest.approx(100 * mean, abs=1e-3)
        assert ours["clips"] == 12 and f"smooth:{'none' if bleu == 'raw' else 'exp'}" in ours["signature"]


def test_an_order_without_a_match_is_zero_where_the_script_smooths_nothing():
    hypotheses, references = ["am tag regen im norden"], ["regen am tag wind im norden"]
    assert score_as("neccam", hypotheses, references, "de")["bleu4"] == 0
    assert score_as("sage", hypotheses, references, "de")["bleu4"] > 5


@pytest.mark.parametrize(
    ("hypothesis", "reference", "wanted"),
    [
        # Of the package itself: rouge.Rouge().get_scores(...)[0]["rouge-l"]["f"], version 1.0.1.
        ("am tag regen . im norden regen . es regnet", "im norden am tag viel regen . es regnet viel .", 0.93333328),
        (" ".join("今天天气好,今天好。"), " ".join("今天天气很好,天天好。"), 0.92307692),
        ("", "am tag", 0.0),  # the package raises here
    ],
)  # fmt: skip
def test_rouge_of_the_package(hypothesis, reference, wanted):
    assert sentence_rouge_l(hypothesis.split(), reference.split(), "package") == pytest.approx(
        wanted, abs=1e-7
    )


def test_uni_sign_takes_the_package():
    pair = ["am tag regen . im norden regen . es regnet"], ["im norden am tag viel regen . es regnet viel ."]
    assert score_as("uni-sign", *pair, "de")["rouge_l"] == pytest.approx(93.333328, abs=1e-5)
    chinese = ["今天天气好,今天好。"], ["今天天气很好，天天好。"]
    assert score_as("uni-sign", *chinese, "zh")["rouge_l"] == pytest.approx(92.307692, abs=1e-5)
