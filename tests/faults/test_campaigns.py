"""A few kills of each campaign of tests/campaigns; more are asked for on their command lines."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from servers.ceph import missing_programs

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
CAMPAIGNS = Path(__file__).resolve().parents[1] / "campaigns"


def run(script: str, *options: str) -> str:
    """Returns the last line that a campaign prints."""
    command = [sys.executable, str(CAMPAIGNS / script), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


def test_kills_of_readers_change_no_sample_and_leave_nothing_behind():
    """Ranks and loader workers that share a cache."""
    assert "every batch equal, nothing left behind" in run("stream_kills.py", "--kills", "4", "--seed", "1")


def test_kills_of_training_change_no_weight_and_lose_no_clip():
    """Ranks, rank monitors and launchers of a training run."""
    said = run("train_kills.py", "--kills", "4", "--seed", "1")
    assert "weights, losses and clips equal, nothing left behind" in said


@pytest.mark.extras
def test_our_launchers_keep_exit_codes_and_save():
    """srun's are in tests/launch/test_slurm.py; all, with those of others, in docs/results/launchers.md."""
    assert "ours as stated" in run("launchers.py", "--only", "plain", "ranks", "nodes")


def test_eight_kills_of_driver_actors_and_raylet_beside_s3_faults_change_no_byte():
    """On Ceph's gateway, which dies and comes back as well; on moto, which only goes away, where there is no Ceph."""
    server = "moto" if missing_programs() else "ceph"
    said = run("precompute_kills.py", "--kills", "8", "--clips", "30", "--seed", "4", "--server", server)
    # A run may end before it was killed eight times; then another round follows.
    pattern = r"8 kills beside (\d+) faults and (\d+) restarts of S3 in \d+ rounds: every file equal"
    matched = re.fullmatch(pattern, said)
    assert matched and int(matched.group(1)) > 0, said


def test_kills_of_segment_predict_beside_s3_faults_change_no_file():
    """Driver, actors and raylet; probabilities, intervals, ELAN files, captions and figures."""
    options = ["--verb", "segment", "--kills", "4", "--clips", "9", "--seed", "2", "--server", "moto"]
    said = run("precompute_kills.py", *options)
    assert re.fullmatch(
        r"4 kills beside \d+ faults and \d+ restarts of S3 in \d+ rounds: every file equal", said
    ), said


def test_kills_of_extractors_and_actors_beside_s3_faults_change_no_keypoint():
    """With a stand-in for MediaPipe's process, which the same kills hit."""
    server = "moto" if missing_programs() else "ceph"
    options = ("--kills", "5", "--clips", "10", "--seed", "3", "--server", server, "--verb", "keypoints")
    said = run("precompute_kills.py", *options)
    assert re.fullmatch(
        r"5 kills beside \d+ faults and \d+ restarts of S3 in \d+ rounds: every file equal", said
    ), said
