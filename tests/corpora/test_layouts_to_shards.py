"""A published layout through the command `precompute` to shards, with what was set aside recorded in them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
from factories.corpora import put, vtt, youtube_sl25

from sage_scale.shards import open_dataset, read_rejects
from sage_scale.shards.dataset import open_unfinished
from sage_scale.storage import open_store


@pytest.mark.system
def test_youtube_sl25_becomes_shards_and_filtered_captions_stop_no_run(tmp_path) -> None:
    root = youtube_sl25(tmp_path / "corpus mit Ümlaut")
    (root / "videos" / "fffffffffff.f137.mp4").unlink()
    put(root / "videos" / "fffffffffff.mp4")
    sounds = [(t, t + 0.5, "[applause]") for t in range(5)]
    put(
        root / "videos" / "fffffffffff.en.vtt",
        vtt(*sounds, (6, 8, "A short talk."), (60, 62, "After the end.")),
    )
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "sage_scale.cli.main", "precompute", "--corpus", "youtube_sl25", "--root", str(root),
        "--out", str(out), "vision.size=32", "vision.crop=32", "text.tagger=none", "text.target=sentence",
        "corpus.dev_share=0", "corpus.test_share=0", "precompute.actors=1", "precompute.object_store_mb=80",
        "shards.max_reject_rate=0.2",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_raylet_start_wait_time_s": "180"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    dataset = open_dataset(out)
    samples = [dataset.read(dataset.samples(), at) for at in range(5)]
    told = {
        sample.meta["id"]: (sample.meta["sentence"], sample.meta["language"], sample.meta["frames"])
        for sample in samples
    }
    assert told == {
        "aaaaaaaaaaa@1.000-3.000": ("Hello & welcome.", "en", 50),
        "aaaaaaaaaaa@7.000-9.000": ("Bye.", "en", 50),
        "bbbbbbbbb_b@0.000-2.400": ("Schöne Grüße.", "de-DE", 60),
        "ddddddddddd@1.500-4.000": ("Dzień dobry.", "pl", 62),
        "fffffffffff@6.000-8.000": ("A short talk.", "en", 50),
    }
    store = open_store(str(out))
    reasons = Counter(
        row.reason for unit in open_unfinished(store).units for row in read_rejects(store, unit)
    )
    # Eight of nine rejects were asked for; the ninth begins after its video's end, found when it was read.
    assert reasons == {"filter-not-speech": 6, "filter-automatic": 1, "not-downloaded": 1, "beyond-end": 1}
