"""Output of a stage: `log.jsonl`, TensorBoard curves and progress on the terminal."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch

from sage_scale.errors import RecipeError
from sage_scale.untrusted.display import json_text
from sage_scale.untrusted.files import open_regular, read_bytes
from sage_scale.untrusted.json_values import parse_json
from sage_scale.untrusted.printer import echo_row
from sage_scale.untrusted.progress import Progress


class StageLog:
    """Log of one stage in `folder`. Only rank 0's writes; the others pass `active=False`."""

    def __init__(
        self, folder: Path, name: str, active: bool = True, wandb: str = "", run: str = "", url: str = ""
    ) -> None:
        """`wandb` names a Weights & Biases project that also receives the numbers, as its run `run`/`name`; `url` is
        the run's, if it has one."""
        self.name = name
        self.active = active
        self.starts = 0
        """Earlier starts of the stage, by its log."""
        self._wandb: Any = None
        if not active:
            return
        if wandb:
            self._wandb = _wandb_run(wandb, f"{run}/{name}", folder, url)
        self._progress = Progress().__enter__()
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "log.jsonl"
        if path.is_file():
            with open_regular(path) as log:
                self.starts = sum(line.startswith(b'{"event": "start"') for line in log)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._tensorboard = SummaryWriter(str(folder / "tensorboard"), flush_secs=30)

    def event(self, event: str, step: int, **values: Any) -> None:
        """Write one JSON line, and its numbers as TensorBoard curves."""
        if not self.active:
            return
        plain = {key: _plain(value) for key, value in values.items()}
        row = {"event": event, "step": step, **plain}
        self._file.write(json_text(row) + "\n")
        echo_row(self.name, row)
        numbers = {
            f"{event}/{key}": value
            for key, value in plain.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for tag, value in numbers.items():
            self._tensorboard.add_scalar(tag, value, step)
        if self._wandb is not None:
            # Its own step may not go back, which a resumed run's does: ours is a value like the others.
            self._wandb.log({**numbers, "step": step})

    def progress(self, done: int, total: int, text: str) -> None:
        """Show steps done: a bar on a terminal, a plain line every few seconds elsewhere."""
        if self.active:
            self._progress.update(done, total, lambda: f"{self.name}: {text}")

    def say(self, text: str) -> None:
        """Print a line of its own."""
        if self.active:
            self._progress.say(f"{self.name}: {text}")

    def end_progress(self) -> None:
        """Remove the bar from the terminal."""
        if self.active:
            self._progress.__exit__()

    def flush(self) -> None:
        """Write the events so far to the files."""
        if self.active:
            self._tensorboard.flush()

    def close(self) -> None:
        """Flush and close the files."""
        if self.active:
            self._file.close()
            self._tensorboard.close()
            self.end_progress()
            if self._wandb is not None:
                self._wandb.finish()


def _wandb_run(project: str, name: str, folder: Path, url: str) -> Any:
    """Returns the run of Weights & Biases; the same name and place (the URL, else the folder) resume the same one."""
    try:
        import wandb
    except ImportError:
        raise RecipeError(
            f"the recipe asks for Weights & Biases (wandb={project}), which is not installed: "
            "pip install 'sage-scale[wandb]', or leave the key empty"
        ) from None
    place = f"{url}/{folder.name}" if url else str(folder.absolute())
    identity = hashlib.sha256(place.encode()).hexdigest()[:16]
    return wandb.init(project=project, name=name, id=identity, resume="allow", dir=str(folder))


def record_timing(run: Path, stage: str, seconds: float, memory: float, note: str = "") -> None:
    """Adds a stage's seconds, peak memory (MB) and a note to `timing.json` of a run, for the report."""
    path = run / "timing.json"
    rows: list[Any] = []
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):  # a damaged file begins anew
        rows = [row for row in parse_json(read_bytes(path)) if row.get("stage") != stage]
    row = {"stage": stage, "seconds": round(seconds, 1), "memory_mb": round(memory)}
    rows.append(row | {"note": note} if note else row)
    path.write_text(json.dumps(rows, indent=1) + "\n")


def clock(seconds: float) -> str:
    """Returns 3725 as `1:02:05`, 65 as `1:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no word for it
    return round(value, 6) if isinstance(value, float) else value
