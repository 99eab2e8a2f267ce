"""What is left to see of a rank that died or hangs: stacks, the state of its process, the kernel's kills."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path
from typing import IO

_SPAN = re.compile(r'File "([^"]+)", line (\d+) in (\S+)')
_COLLECTIVE = ("torch/distributed/", "deepspeed/comm/")


def keep_stacks(stacks: IO[bytes], run: Path | None, stage: str, rank: int) -> str:
    """Tracebacks and stacks of a rank as a file of the run (of the temporary folder, before there is a run).

    Gives its path, '' where there is nothing to keep.
    """
    stacks.seek(0)
    text = stacks.read()
    if not text:
        return ""
    if run is not None and run.is_dir():
        path = run / stage / "faults" / f"rank-{rank:05d}.txt"
    else:
        path = Path(tempfile.gettempdir()) / f"sage-scale-{stage}-{os.getpid()}-rank-{rank:05d}.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    except OSError:
        return ""
    return str(path)


def innermost(stacks: str) -> tuple[str, bool]:
    """Where the main thread is, by the stacks that faulthandler wrote, and whether it waits in a collective."""
    block = stacks.split("most recent call first)")[-1]  # the main thread is written last
    spans = _SPAN.findall(block)
    if not spans:
        return "", False
    waiting = any(name in path for path, _, _ in spans[:12] for name in _COLLECTIVE)
    shown = next((span for span in spans if "sage_scale" in span[0]), spans[0])
    path, line, function = shown
    return f"{function}, {'/'.join(Path(path).parts[-2:])}:{line}", waiting


def process_state(pid: int) -> str:
    """The process state of /proc: R running, S sleeping, D disk, T stopped; '?' where it is not known."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "?"


def kills_for_memory() -> int:
    """How often the kernel has killed for lack of memory in this process's cgroup (v2)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        group = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2]
        events = (Path("/sys/fs/cgroup") / group.lstrip("/") / "memory.events").read_text()
        return int(events.split("oom_kill ")[1].split()[0])
    return 0
