"""The global order in real jobs: every layout over the same batches, and sixty-four ranks over ten thousand shards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from factories.datasets import MUTE, PLAN, make_stream_dataset, make_wide_dataset

pytestmark = pytest.mark.system


def in_forks(task, folder):
    """What a task of forked_ranks.py finds; a process of its own, because forking this one would copy its threads."""
    script = Path(__file__).with_name("forked_ranks.py")
    done = subprocess.run(
        [sys.executable, script, task, folder],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        timeout=400,
        check=True,
    )
    return json.loads(done.stdout)


def test_global_batches_are_the_same_bytes_in_every_layout(tmp_path):
    made = make_stream_dataset(tmp_path / "set", "frames", PLAN, MUTE)
    found = in_forks("grid", tmp_path)
    (wanted, *others) = found["layouts"].values()
    assert len(others) == 14
    for layout, answer in found["layouts"].items():
        assert answer == wanted, layout
    # A chain of six layouts, each for one step, is the uninterrupted run.
    assert found["chain"] == wanted["steps"] and found["state"] == wanted["state"]
    clips = [key for step in wanted["steps"][:5] for _, key, _ in step]
    usable = [
        key for key, sample in made.items() if sample.meta["split"] == "train" and sample.meta["sentence"]
    ]
    assert sorted(clips) == sorted(usable)


def test_sixty_four_ranks_share_ten_thousand_shards(tmp_path):
    make_wide_dataset(tmp_path, shards=10_000, clips=11)
    found = in_forks("assignment", tmp_path)
    assert found["clips"] == 110_000
    assert found["once"] and found["misplaced"] == 0 and found["first_batch_equal"]
    assert found["order"] == found["wanted"]
