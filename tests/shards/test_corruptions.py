"""The benchmark of a thousand corruptions, in small: all are found, named, and never delivered."""

from __future__ import annotations

from pathlib import Path

import corruptions as benchmark
import pytest

from sage_scale.shards import verify_dataset


def all_right(url: str, kind: str, count: int, seed: int) -> int:
    rig = benchmark.make_rig(url, kind)
    assert len(rig.clips) == 21 and verify_dataset(rig.store).problems == ()
    ways, skipped = set(), 0
    for name, hit, outcome in benchmark.corruptions(rig, count, seed):
        assert benchmark.right(outcome), (name, hit, outcome)
        ways.add(name)
        skipped += outcome.lost
    assert len(ways) == 15 and verify_dataset(rig.store).problems == ()
    return skipped


def test_sixty_corruptions_are_found_named_and_not_delivered(tmp_path: Path) -> None:
    assert all_right(str(tmp_path / "data"), "features", 60, seed=7) > 20


@pytest.mark.system
def test_so_they_are_in_frames(tmp_path: Path) -> None:
    assert all_right(str(tmp_path / "data"), "frames", 60, seed=8) > 20


def test_a_judge_that_lets_damage_through_would_be_noticed(tmp_path: Path) -> None:
    """The benchmark itself: another clip's content under a right key counts as wrong."""
    rig = benchmark.make_rig(str(tmp_path / "data"), "features")
    first, second = list(rig.clips)[:2]
    rig.clips[first] = rig.clips[second]
    assert sum(benchmark.judge(rig, batch) for batch in benchmark.stream(rig, "raise")) == 1
