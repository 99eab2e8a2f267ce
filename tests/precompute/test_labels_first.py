"""Precomputed labels are looked at before an output is begun and before Ray is asked."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from factories.precompute import CLIPS, manifest_of, recipe_for, run_here

from sage_scale.errors import TooManyRejects, UsageError
from sage_scale.shards import open_dataset


def recipe_with(root: Path, labels: Path, rate: float = 0.0):
    return recipe_for(
        root,
        segmentation={"tagger": "precomputed", "labels": str(labels)},
        shards={"max_reject_rate": rate},
    )


def table(root: Path) -> dict[str, dict[str, torch.Tensor]]:
    """SAGE's form: split to video id to tensor."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for clip in manifest_of(recipe_for(root)).clips:
        name = clip.id.partition("/")[2].removesuffix(".mp4")
        frames = 24 + 2 * int(name[-2:])
        labels = torch.ones(frames, dtype=torch.int64)
        labels[::6] = 2
        found.setdefault(clip.split, {})[name] = labels
    return found


def test_a_wrong_file_leaves_nothing_and_the_next_try_begins(corpus_root: Path, tmp_path: Path) -> None:
    out, labels = tmp_path / "out", table(corpus_root)
    for content in (b"", b"not a tensor", json.dumps({"a": "B"}).encode()):
        (tmp_path / "wrong.pt").write_bytes(content)
        with pytest.raises(UsageError, match=r"segmentation[.]labels"):
            run_here(recipe_with(corpus_root, tmp_path / "wrong.pt"), out)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UsageError, match="a FIFO"):
        run_here(recipe_with(corpus_root, tmp_path / "pipe.json"), out)
    torch.save({"train": labels["train"]}, tmp_path / "train.pt")
    with pytest.raises(TooManyRejects, match=rf"2 of {CLIPS + 2} clips"):
        run_here(recipe_with(corpus_root, tmp_path / "train.pt"), out)
    assert not out.exists()
    torch.save(labels, tmp_path / "all.pt")
    run_here(recipe_with(corpus_root, tmp_path / "all.pt"), out).execute()
    dataset = open_dataset(out)
    samples = dataset.samples()
    for row in range(len(samples)):
        sample = dataset.read(samples, row)
        starts = list(range(0, sample.meta["frames"], 6))
        assert sample.segments[:, 0].tolist() == [s for s in starts if sample.meta["frames"] - s >= 4]
    assert dataset.splits == {"train": CLIPS, "dev": 2}


def test_one_clips_bad_labels_reject_it_alone(corpus_root: Path, tmp_path: Path) -> None:
    labels = table(corpus_root)
    first, second, *_ = labels["train"]
    labels["train"][first] = torch.tensor([0.0, float("nan")])
    labels["train"][second] = torch.full((900,), 2)
    torch.save(labels, tmp_path / "all.pt")
    run_here(recipe_with(corpus_root, tmp_path / "all.pt", rate=0.3), tmp_path / "out").execute()
    dataset = open_dataset(tmp_path / "out")
    assert dataset.splits == {"train": CLIPS - 2, "dev": 2}
    assert sum(unit.reasons.get("bad-labels", 0) for unit in dataset.units) == 2
