"""Figures of memory in the log: the system's own, in megabytes of 10^6 bytes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from sage_scale.training.throughput import memory_mb


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_that_of_proc():
    told = memory_mb(torch.device("cpu"))
    high = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6
    assert told == pytest.approx(high, rel=0.005)
