"""A few of the kills of tests/campaigns/stream_kills.py: ranks and loader workers that share a cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.system
def test_kills_change_no_sample_and_leave_nothing_behind():
    script = Path(__file__).parents[2] / "tests" / "campaigns" / "stream_kills.py"
    run = subprocess.run(
        [sys.executable, script, "--kills", "4", "--seed", "1"], capture_output=True, text=True, timeout=280
    )
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert "every batch equal, nothing left behind" in run.stdout
