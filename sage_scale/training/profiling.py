"""A trace of a few steps: operators, kernels, memory and waiting, for Perfetto, Chrome and TensorBoard."""

from __future__ import annotations

from pathlib import Path

import torch

FIRST = 4
"""The first step that is traced: those before it compile, allocate and fill caches."""


class StepTrace:
    """Traces steps FIRST to FIRST + `steps` - 1 of this process into `folder`/profile; 0 steps trace nothing."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.path = folder / "profile" / "trace.json"
        self._last = FIRST + steps - 1 if steps else 0
        self._done = 0
        self._profiler: torch.profiler.profile | None = None

    def __enter__(self) -> StepTrace:
        return self

    def __exit__(self, *_: object) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def step(self) -> str:
        """Call after each step; once the trace is written, returns a line that says where."""
        self._done += 1
        if self._last and self._done == FIRST - 1:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities, profile_memory=True)
            self._profiler.start()
        if self._profiler is None or self._done < self._last:
            return ""
        self._profiler.stop()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._profiler.export_chrome_trace(str(self.path))
        self._profiler = None
        return f"steps {FIRST} to {self._done} are traced in {self.path}: open it in ui.perfetto.dev or chrome://tracing"
