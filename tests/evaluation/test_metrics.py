"""Scores against the field's own scripts, against formulas computed another way, and against bad input."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path

import pytest
import sacrebleu

from sage_scale.errors import UsageError
from sage_scale.evaluation import PRESETS, content_f1, rouge_l, score, score_as

METRICS = Path(__file__).parents[3] / "shared" / "data" / "metrics"


@pytest.fixture(scope="module")
def field_pairs() -> tuple[list[str], list[str], dict]:
    if not METRICS.is_dir():
        pytest.skip(f"{METRICS} is not here: the field's own scores cannot be compared")
    with open(METRICS / "phoenix14t_dev.tsv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    expected = json.loads((METRICS / "phoenix14t_dev.scores.json").read_text())
    return [row["hypothesis"] for row in rows], [row["reference"] for row in rows], expected


def test_scores_equal_the_fields_own_scripts(field_pairs):
    hypotheses, references, expected = field_pairs
    ours = score(hypotheses, references, "de")
    for order in range(1, 5):
        assert ours[f"bleu{order}"] == pytest.approx(expected["sacrebleu_13a"][order - 1], abs=1e-3)
        assert ours[f"bleu{order}_none"] == pytest.approx(expected["bleu_tokenize_none"][order - 1], abs=1e-3)
    assert ours["rouge_l_beta12"] == pytest.approx(expected["rouge_l_beta_1.2"], abs=1e-3)
    assert ours["clips"] == expected["n"]
    assert "tok:13a" in ours["signature"]


def test_a_final_full_stop_moves_the_figures_as_the_field_has_seen(field_pairs):
    hypotheses, references, _ = field_pairs
    plain, stopped = score(hypotheses, references, "de"), score_as("neccam", hypotheses, references, "de")
    assert 0.4 < stopped["bleu4"] - plain["bleu4_none"] < 1.9
    assert 3 < stopped["rouge_l"] - plain["rouge_l_beta12"] < 6


def test_identical_sentences_score_100_and_disjoint_ones_0():
    texts = ["am montag regnet es im norden", "es bleibt am abend meist trocken ."]
    full = score(texts, texts, "de")
    assert all(full[key] == pytest.approx(100) for key in full if key.startswith(("bleu", "rouge")))
    none = score(["a b c d e", "a b c d e"], ["v w x y z", "v w x y z"], "de")
    assert none["bleu1"] == none["rouge_l"] == 0


def test_bleu_is_counted_over_the_set_not_averaged_over_sentences():
    hypotheses = ["der wind weht schwach aus nord", "sonne"]
    references = ["der wind weht schwach aus süd", "am tag scheint die sonne im süden"]
    sentences = [sacrebleu.sentence_bleu(h, [r]).score for h, r in zip(hypotheses, references)]
    whole = sacrebleu.corpus_bleu(hypotheses, [references]).score
    assert score(hypotheses, references, "de")["bleu4"] == pytest.approx(whole)
    assert not math.isclose(whole, sum(sentences) / 2, abs_tol=1)


def test_chinese_is_scored_per_character():
    hypothesis, reference = ["今天天气好"], ["今天 天气 很好"]
    ours = score(hypothesis, reference, "zh-Hans")
    assert ours["bleu1_none"] == pytest.approx(100 * math.exp(1 - 6 / 5))  # five of five match, brevity 6/5
    assert ours["rouge_l"] == pytest.approx(100 * 2 * 5 / (5 + 6))
    assert "tok:zh" in ours["signature"]


def test_rouge_l_equals_the_recursive_definition():
    rng = random.Random(0)

    def common(a, b):
        if not a or not b:
            return 0
        if a[-1] == b[-1]:
            return common(a[:-1], b[:-1]) + 1
        return max(common(a[:-1], b), common(a, b[:-1]))

    for beta in (1.0, 1.2):
        pairs = [([rng.choice("abc") for _ in range(rng.randint(1, 6))] for _ in range(2)) for _ in range(20)]
        total, hypotheses, references = 0.0, [], []
        for h, r in pairs:
            hypotheses.append(" ".join(h))
            references.append(" ".join(r))
            lcs = common(h, r)
            if lcs:
                p, q = lcs / len(h), lcs / len(r)
                total += (1 + beta**2) * p * q / (q + beta**2 * p)
        assert rouge_l(hypotheses, references, "de", beta) == pytest.approx(100 * total / 20)


def test_content_f1_sees_lemmas_and_not_function_words():
    reference = ["am montag regnet es im norden"]
    assert content_f1(["montag regnen norden"], reference, "de") == pytest.approx(100)
    assert content_f1(["am es im"], reference, "de") == 0
    # Content words: montag, regnen, norden. Two of the hypothesis's two are right, one of three is missing.
    assert content_f1(["im norden regnet es"], reference, "de") == pytest.approx(100 * 2 * 2 / (2 + 3))


def test_an_empty_hypothesis_is_a_miss_and_not_a_crash():
    ours = score(["", "am tag regen"], ["am abend", "am tag regen"], "de")
    assert 0 < ours["bleu1"] < 100 and ours["rouge_l"] == pytest.approx(50)


@pytest.mark.parametrize(
    ("hypotheses", "references", "says"),
    [([], [], "empty"), (["a"], ["a", "b"], "1 hypotheses for 2 references"), ("a", ["a"], "one string")],
)
def test_bad_input_is_one_clear_line(hypotheses, references, says):
    for function in (score, rouge_l, content_f1):
        with pytest.raises(UsageError, match=says):
            function(hypotheses, references, "de")


def test_presets_differ_only_by_their_stated_conventions():
    hypotheses, references = ["Im Norden, Regen"], ["im Norden , Regen ."]
    scores = {name: score_as(name, hypotheses, references, "de") for name in PRESETS}
    assert scores["sage"]["bleu1"] == pytest.approx(sacrebleu.corpus_bleu(
        ["Im Norden, Regen ."], [references], force=True).precisions[0])  # fmt: skip
    assert scores["sign2gpt"]["bleu1"] < scores["sage"]["bleu1"]  # "Norden," is another word without 13a
    with pytest.raises(UsageError, match="no scoring preset"):
        score_as("nobody", hypotheses, references, "de")
