"""The text-only controls, checked by brute force."""

from __future__ import annotations

import random

import pytest
import sacrebleu

from sage_scale.errors import UsageError
from sage_scale.evaluation import nearest_in_length, prior_sentence, text_controls


def test_the_prior_is_the_best_constant_answer_by_sacrebleu():
    rng = random.Random(1)
    for _ in range(5):
        words = ["a", "b", "c", "d"]
        training = [" ".join(rng.choices(words, k=rng.randint(4, 9))) for _ in range(15)]
        best = prior_sentence(training)

        def bleu(sentence, training=training):
            return sacrebleu.corpus_bleu(
                [sentence] * len(training), [training], tokenize="none", force=True
            ).score

        assert bleu(best) == pytest.approx(max(bleu(sentence) for sentence in training))


def test_nearest_in_length_equals_a_linear_search():
    rng = random.Random(2)
    lengths = [rng.randint(10, 60) for _ in range(30)]
    training = [f"sentence {i}" for i in range(30)]
    asked = list(range(0, 80, 3))
    for length, answer in zip(asked, nearest_in_length(training, lengths, asked)):
        best = min(range(30), key=lambda i: (abs(lengths[i] - length), lengths[i], i))
        assert answer == training[best]


def test_controls_answer_every_clip():
    answers = text_controls(["am tag regen im norden", "am tag regen im süden"], [50, 90], [40, 100, 60])
    assert answers["nearest_length"][:2] == ["am tag regen im norden", "am tag regen im süden"]
    assert len(set(answers["prior"])) == 1 and len(answers["prior"]) == 3


def test_nothing_to_learn_from_is_said():
    with pytest.raises(UsageError, match="empty"):
        prior_sentence([])
    with pytest.raises(UsageError, match="2 training sentences for 1 lengths"):
        nearest_in_length(["a", "b"], [3], [4])


def test_controls_answer_in_the_language_of_the_clip():
    answers = text_controls(
        ["am tag regen im norden", "明天北京下雨", "im süden sonne und wind"], [50, 60, 90],
        [61, 61, 89], ["zh-CN", "de-AT", "de"], ["de", "zh", "de"],
    )  # fmt: skip
    assert answers["nearest_length"] == ["明天北京下雨", "am tag regen im norden", "im süden sonne und wind"]
    assert (
        answers["prior"][0] == "明天北京下雨" and answers["prior"][1] == answers["prior"][2] != "明天北京下雨"
    )
    french = text_controls(["am tag"], [5], [7], ["fr"], ["de"])
    assert french == {"prior": ["am tag"], "nearest_length": ["am tag"]}  # nothing better is known
