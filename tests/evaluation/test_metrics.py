"""Scores against the field's own scripts, against formulas computed another way, and against bad input."""

from __future__ import annotations

import csv
import json
import math
import random
import unicodedata
from pathlib import Path

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from sage_scale.errors import UsageError
from sage_scale.evaluation import PRESETS, content_f1, rouge_l, score, score_as
from sage_scale.text.languages import normal_form, restore_punctuation
from sage_scale.text.tokenizer import encode_texts, train_sentencepiece

tokenizer_13a = Tokenizer13a()

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


CHINESE = [
    ("你3月21号去北京吗？", "你3月20号去北京吗？"),
    ("他用iPhone打电话，很贵。", "他用 iPhone 打电话，真的很贵。"),
    ("今天-5到12.5度！", "今天-5到13.5度！"),
]


@pytest.mark.parametrize("preset", ["neccam", "sign2gpt", "two-stream", "gfslt", "sage", "uni-sign"])
def test_chinese_has_no_full_stop_and_its_punctuation_is_one(preset):
    """Every character alone, digits and Latin letters too, full-width or not."""
    hypotheses, references = zip(*CHINESE)
    ours = score_as(preset, hypotheses, references, "zh-CN")
    ascii_ = [[normal_form(text) for text in texts] for texts in (hypotheses, references)]
    assert ours == score_as(preset, *ascii_, "zh-CN") and "tok:char" in ours["signature"]
    characters = sum(len(text.replace(" ", "")) for text in references)
    perfect = score_as(preset, [text[:-1] for text in references], references, "zh-CN")
    assert perfect["bleu1"] == pytest.approx(100 * math.exp(1 - characters / (characters - 3)))


def test_sacrebleus_own_chinese_tokeniser_keeps_digits_together():
    """`score` and the preset `sacrebleu` say tok:zh; the other figure is per character."""
    ours = score(["在2021年"], ["在2020年"], "zh")
    assert ours["bleu1"] == pytest.approx(100 * 2 / 3) and ours["bleu1_none"] == pytest.approx(100 * 5 / 6)
    assert score_as("sacrebleu", ["在2021年"], ["在2020年"], "zh")["bleu1"] == ours["bleu1"]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("zh", "你好，我们（三个人）１２点见……好吗？真的！"),
        ("zh-TW", "「對」；他說：『１００％』～"),
        ("ja", "ﾃﾞｰﾀは５０％です。カ\u3099"),
        ("ar", "\ufefbزم ﷲ"),
        ("de", "a\u0308hnlich … ﬁndet ½ \u00a0 m²\u200b"),
        ("fa", "می\u200cروم"),
        ("ko", "\u1112\u1161\u11ab국어"),
        ("hi", "क\u093c\u093f\u200d"),
    ],
)
def test_what_mbarts_normaliser_makes_of_a_reference_scores_100(language, text):
    """A translator that is always right writes the text as its tokenizer gives it back."""
    texts = [text, text + " " + text]
    tokenizer = train_sentencepiece(texts, 200)
    given_back = [tokenizer.decode(ids) for ids in encode_texts(tokenizer, texts)]
    ours = score(given_back, texts, language)
    assert ours["rouge_l"] == pytest.approx(100) and ours["bleu1"] == pytest.approx(100)
    assert "norm:nfkc" in ours["signature"]
    restored = [restore_punctuation(t, language) for t in given_back]
    assert score(restored, texts, language)["rouge_l"] == pytest.approx(100)
    assert content_f1(given_back, texts, language) == pytest.approx(100)


@given(st.text(min_size=1, max_size=20))
@settings(max_examples=200, deadline=None)
def test_the_normal_form_is_one(text):
    form = normal_form(text)
    assert normal_form(form) == form and normal_form(restore_punctuation(form, "zh")) == form
    assert normal_form(unicodedata.normalize("NFD", text)) == form


def test_each_language_is_cut_by_its_own_tokeniser_and_scored_alone():
    german = [
        ("am montag, im norden.", "am montag , im norden ."),
        ("es regnet heute viel", "es regnet heute viel"),
    ]
    chinese = [("明天北京天气很好", "明天上海天气很好"), ("你好，再见", "你好,再见")]
    pairs = [german[0], chinese[0], german[1], chinese[1]]
    languages = ["de", "zh", "de", "zh"]
    both = score(*zip(*pairs), languages)
    assert (
        list(both["languages"]) == ["de", "zh"] and both["clips"] == 4 and "tok:13a+zh" in both["signature"]
    )
    for tag, some in (("de", german), ("zh", chinese)):
        assert both["languages"][tag] == score(*zip(*some), tag)
    # Overall: the counts of all sentences, each cut by its own tokeniser.
    cut = [
        [" ".join(x) if tag == "zh" else tokenizer_13a(x) for x in pair]
        for pair, tag in zip(pairs, languages)
    ]
    wanted = sacrebleu.corpus_bleu(
        [normal_form(h) for h, _ in cut], [[normal_form(r) for _, r in cut]], tokenize="none", force=True
    )
    assert both["bleu4"] == pytest.approx(wanted.score)
    alone = [both["languages"][tag]["rouge_l"] for tag in ("de", "zh")]
    assert both["rouge_l"] == pytest.approx(sum(alone) / 2)
    with pytest.raises(UsageError, match="3 languages for 4 references"):
        score(*zip(*pairs), languages[:3])


def test_one_language_for_all_is_the_same_as_naming_it_for_each():
    hypotheses, references = ["am tag regen", "im süden"], ["am tag viel regen", "im norden"]
    assert score(hypotheses, references, ["de", "de"]) == score(hypotheses, references, "de")


def test_presets_differ_only_by_their_stated_conventions():
    hypotheses, references = ["Im Norden, Regen"], ["im Norden , Regen ."]
    scores = {name: score_as(name, hypotheses, references, "de") for name in PRESETS}
    assert scores["sage"]["bleu1"] == pytest.approx(sacrebleu.corpus_bleu(
        ["Im Norden, Regen ."], [references], force=True).precisions[0])  # fmt: skip
    assert scores["sign2gpt"]["bleu1"] < scores["sage"]["bleu1"]  # "Norden," is another word without 13a
    with pytest.raises(UsageError, match="no scoring preset"):
        score_as("nobody", hypotheses, references, "de")
