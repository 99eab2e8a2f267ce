"""A few kills of tests/campaigns/train_kills.py: ranks, rank monitors and launchers of a training run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.system
@pytest.mark.timeout(600)
def test_kills_change_no_weight_and_lose_no_clip():
    script = Path(__file__).parents[2] / "tests" / "campaigns" / "train_kills.py"
    run = subprocess.run(
        [sys.executable, script, "--kills", "4", "--seed", "1"], capture_output=True, text=True, timeout=560
    )
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert "weights, losses and clips equal, nothing left behind" in run.stdout
