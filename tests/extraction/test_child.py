"""The child process of an extractor: its protocol, and how it may die, hang or answer nonsense."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from sage_scale.extraction.extractor import ExtractorFailed
from sage_scale.extraction.mediapipe import MediapipeHolistic

TOY = Path(__file__).parents[1] / "plugins" / "toy_extractor.py"


def spot(x: int, y: int, width: int = 90, height: int = 60) -> np.ndarray:
    picture = np.full((height, width, 3), 30, np.uint8)
    picture[y - 1 : y + 2, x - 1 : x + 2] = 250
    return picture


PICTURES = [spot(10 + 5 * k, 20 + k) for k in range(6)]


@pytest.fixture
def extractor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    def make(fault: str = "", at: int = 0, answer_s: float = 20.0) -> MediapipeHolistic:
        monkeypatch.setenv("TOY_FAULT", f"{fault}:{at}")
        made = MediapipeHolistic(command=[sys.executable, str(TOY)], answer_s=answer_s)
        request.addfinalizer(made.close)
        return made

    return make


def test_points_come_back_for_each_picture_whatever_its_size(extractor):
    asked = extractor()
    pictures = [*PICTURES, spot(700, 333, 1920, 1080), spot(3, 3, 17, 300)]
    answers = list(asked(iter(pictures)))
    assert [tuple(points[0, :2]) for points, _ in answers] == [
        *((10 + 5 * k, 20 + k) for k in range(6)), (700, 333), (3, 3)
    ]  # fmt: skip
    points, confidence = answers[0]
    assert points.shape == (75, 3) and confidence.shape == (75,) and points.dtype == np.float32
    assert asked.facts == {"mediapipe": "toy"}


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("die", "died", "died by signal 9, at picture 3"),
        ("print", "died", r"died with exit code 3 \(a library's last words\), at picture 3"),
        ("hang", "hung", "gave no answer for 0.5 s, at picture 3"),
        ("nonsense", "nonsense", "answered b'I th' and"),
        ("infinite", "nonsense", "answered numbers that are no points of a picture, at picture 3"),
        ("fail", "failed", r"reported no \\x1bhand, at picture 3"),
    ],
)
def test_a_child_that_fails_is_a_named_failure_and_the_next_video_has_a_new_one(
    extractor, fault, kind, said, monkeypatch
):
    asked = extractor(fault, 3)
    answers = asked(iter(PICTURES))
    assert len([next(answers) for _ in range(3)]) == 3  # the child has started
    asked._child._answer_s = 0.5 if fault == "hang" else 20
    with pytest.raises(ExtractorFailed, match=said) as caught:
        next(answers)
    assert caught.value.kind == kind
    monkeypatch.setenv("TOY_FAULT", ":0")
    assert len(list(asked(iter(PICTURES)))) == len(PICTURES)


def test_a_child_that_greets_wrongly_or_cannot_be_started(extractor):
    with pytest.raises(ExtractorFailed, match="greeted with b'HELL', at its start"):
        _ = extractor("greet").facts
    with pytest.raises(ExtractorFailed, match="cannot be started"):
        _ = MediapipeHolistic(command=["/nowhere/python"]).facts
    with pytest.raises(ExtractorFailed, match="died with exit code 0"):
        _ = MediapipeHolistic(command=["/bin/true"]).facts


def test_the_child_ends_with_its_parent(extractor):
    asked = extractor()
    _ = asked.facts
    process = asked._child._process
    process.stdin.close()  # as the kernel does where the parent is killed
    assert process.wait(10) == 0
