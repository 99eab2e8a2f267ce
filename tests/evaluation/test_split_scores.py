"""The entry of a split: groups are the scores of their clips alone, and controls are tested against the run."""

from __future__ import annotations

import random

import pytest

from sage_scale.evaluation import score
from sage_scale.evaluation.significance import bootstrap_interval, paired_test
from sage_scale.evaluation.split_scores import SIGNERS, split_scores

WORDS = ["am", "tag", "regen", "im", "norden", "viel", "wind"]


def rows_of(seed: int, clips: int = 24) -> list[dict]:
    rng = random.Random(seed)
    rows = []
    for number in range(clips):
        tag, between = ("de", " ") if number % 3 else ("zh", "")
        words = WORDS if tag == "de" else list("明天北京下雨")
        reference = rng.choices(words, k=rng.randint(2, 35))
        hypothesis = [word if rng.random() < 0.7 else rng.choice(words) for word in reference]
        rows.append(
            {
                "key": f"k{number}", "hypothesis": between.join(hypothesis), "reference": between.join(reference),
                "language": tag, "signer": f"S{number % 2}", "segments": [[0, 1]] * rng.randint(1, 45),
                "length": len(reference),
            }
        )  # fmt: skip
    return rows


def of(rows: list[dict], name: str) -> list[str]:
    return [row[name] for row in rows]


def alone(rows: list[dict]) -> dict:
    return score(of(rows, "hypothesis"), of(rows, "reference"), of(rows, "language"))


def in_bin(name: str, count: int) -> bool:
    first, _, last = name.rstrip("+").partition("-")
    return int(first) <= count <= (int(last) if last else 10**9)


def test_a_group_is_scored_as_its_clips_alone():
    rows = rows_of(0)
    found = split_scores(rows)
    assert {name: found[name] for name in alone(rows) if name != "languages"} == {
        name: value for name, value in alone(rows).items() if name != "languages"
    }
    members = {
        "signer": lambda row, name: row["signer"] == name,
        "words": lambda row, name: in_bin(name, row["length"]),  # Chinese is counted in characters
        "segments": lambda row, name: in_bin(name, len(row["segments"])),
    }
    assert set(found["groups"]) == set(members)
    for kind, groups in found["groups"].items():
        assert sum(group["clips"] for group in groups.values()) == len(rows)
        for name, group in groups.items():
            some = [row for row in rows if members[kind](row, name)]
            wanted = alone(some)
            assert group == {key: pytest.approx(wanted[key]) for key in ("bleu4", "rouge_l", "chrf", "clips")}


def test_the_mean_over_languages_is_of_their_own_scores():
    rows = rows_of(1)
    found = split_scores(rows)
    parts = [alone([row for row in rows if row["language"] == tag]) for tag in ("de", "zh")]
    for name in ("bleu4", "rouge_l", "chrf"):
        assert found["macro"][name] == pytest.approx(sum(part[name] for part in parts) / 2)
    assert found["macro"]["languages"] == 2 and list(found["languages"]) == ["de", "zh"]


def test_intervals_and_paired_tests_are_those_of_the_texts():
    rows = rows_of(2)
    blind = ["am tag"] * len(rows)
    texts = of(rows, "hypothesis"), of(rows, "reference"), of(rows, "language")
    found = split_scores(rows, {"blank_videos": blind})
    interval = bootstrap_interval(*texts, metric="chrf")
    assert found["intervals"]["chrf"] == [interval.low, interval.high]
    control = found["controls"]["blank_videos"]
    test = paired_test(texts[0], blind, texts[1], texts[2], "rouge_l")
    assert control["paired"]["rouge_l"] == vars(test) and test.difference > 0 and test.p < 0.05
    assert control["languages"]["de"]["clips"] == 16


def test_one_group_is_no_group_and_many_signers_are_cut():
    rows = [row | {"signer": "A", "segments": [], "reference": "am tag"} for row in rows_of(3)]
    assert "groups" not in split_scores(rows)
    rows = [row | {"signer": f"S{number}"} for number, row in enumerate(rows_of(4, SIGNERS + 9))]
    assert len(split_scores(rows)["groups"]["signer"]) == SIGNERS
