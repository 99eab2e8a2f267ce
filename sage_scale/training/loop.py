"""The loop that both stages share: steps, log, dev evaluation, checkpoints, and stopping in good order.

One step: the stream gives a rank its part of the global batch; `compute` runs forward and backward and returns the
rank's shares of what is logged; the engine steps; one small all-reduce carries the shares, the clock and a stop
request to every rank, so that all of them do the same next.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from sage_scale.config import Recipe, Stage
from sage_scale.errors import SageError
from sage_scale.streaming import ReadCounts, Stream, WaitMonitor
from sage_scale.training import distributed
from sage_scale.training.checkpoint import Checkpoints, Progress
from sage_scale.training.engine import Engine
from sage_scale.training.runlog import RunLog, clock, memory_mb

TRIM_EVERY = 16
"""Steps between two returns of freed memory to the system (CPU only)."""

READING = ("samples", "bytes", "cache_hits", "node_hits", "requests", "retries", "hedges")
"""What the log says of reading, summed over the ranks (ReadCounts)."""

Compute = Callable[[Any], dict[str, float]]
Evaluate = Callable[[int], tuple[dict[str, float], float]]


class Interrupted(SageError):
    """The stage was asked to stop, saved, and can be resumed by the same command."""

    exit_code = 130


class StopRequest:
    """Notes SIGINT and SIGTERM; a second one ends the process at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            # Outside of the main thread there are no signals: the caller has its own way to stop.
            with contextlib.suppress(ValueError):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class Loop:
    """Trains one stage of a run; the state it keeps is `progress` (see checkpoint.py)."""

    def __init__(self, name: str, recipe: Recipe, run: Path, engine: Engine, stream: Stream) -> None:
        self.name = name
        self.recipe = recipe
        self.stage: Stage = engine.stage
        self.engine = engine
        self.stream = stream
        self.folder = run / name
        self.waiting = WaitMonitor(
            recipe.stream.warn_wait, remote=stream.dataset.remote, workers=stream.workers
        )
        self.log = RunLog(self.folder, name, active=engine.ranks.first)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", self.stage.keep_checkpoints)
        self.progress = Progress(stage=name, recipe=recipe.fingerprint())
        self.total_steps = self.stage.max_steps or math.ceil(self.stage.epochs * stream.steps_per_epoch)

    def resume(self) -> bool:
        """Continue from the newest checkpoint of this stage, if there is one."""
        found = self.checkpoints.load_latest(self.engine)
        if found is None:
            return False
        self.progress = found
        self.stream.load_state_dict(found.stream)
        self.log.line(f"resumed at step {found.step} of {self.total_steps}", now=True)
        return True

    @property
    def fraction(self) -> float:
        """How much of the stage is done, by steps or by its time budget, whichever is further."""
        by_steps = self.progress.step / max(self.total_steps, 1)
        budget = self.stage.max_minutes * 60
        return max(by_steps, self.progress.seconds / budget if budget else 0.0)

    def train(self, compute: Compute, evaluate: Evaluate) -> Progress:
        """Run to the end of the stage. Raises Interrupted after saving when asked to stop."""
        evaluate_every = self._every(self.stage.evaluate_every)
        save_every = self._every(self.stage.save_every)
        evaluated = saved = self.progress.step
        with StopRequest() as stop:
            batches = iter(self.stream) if self.fraction < 1 else iter(())
            while self.fraction < 1:
                started = time.monotonic()
                before = self.stream.counts
                batch = next(batches)
                waited = time.monotonic() - started
                self.engine.model.train()
                shares = compute(batch)
                rate = self.engine.step(self.fraction)
                self.progress.step += 1
                spent = self.stream.counts - before
                stopping = self._share(shares, waited, started, spent, rate, stop)
                self.progress.stream = self.stream.state_dict()
                warning = self.waiting.note(waited, time.monotonic() - started, self.stream.counts)
                if warning:
                    self.log.line(warning, now=True)
                step = self.progress.step
                if step % TRIM_EVERY == 0:
                    distributed.return_freed_memory(self.engine.ranks.device)
                over = self.fraction >= 1
                if not stopping and evaluate_every and step % evaluate_every == 0 and not over:
                    self._evaluate(evaluate)
                    evaluated = step
                if stopping or (save_every and step % save_every == 0 and not over):
                    self.checkpoints.save(self.engine, self.progress)
                    saved = step
                if stopping:
                    self.log.line(f"stopped at step {step} as asked; the same command resumes", now=True)
                    self.log.close()
                    raise Interrupted(
                        f"{self.name} stopped at step {step} and saved; run the same command to go on"
                    )
        if evaluated < self.progress.step or self.progress.best_score is None:
            self._evaluate(evaluate)
        if saved < self.progress.step or self.progress.step not in self.checkpoints.steps():
            self.checkpoints.save(self.engine, self.progress)
        self._take_best()
        self.log.line(f"{self.progress.step} steps in {clock(self.progress.seconds)}", now=True)
        self.log.close()
        return self.progress

    def _share(
        self,
        shares: dict[str, float],
        waited: float,
        started: float,
        spent: ReadCounts,
        rate: float,
        stop: StopRequest,
    ) -> bool:
        names = sorted(shares)
        first = self.engine.ranks.first
        local = [shares[name] for name in names]
        local += [float(getattr(spent, name)) for name in READING] + [float(len(spent.skipped))]
        local += [float(stop.asked)]
        local += [waited, time.monotonic() - started] if first else [0.0, 0.0]
        summed = distributed.sum_over_ranks(local, self.engine.ranks.device)
        values, rest = summed[: len(names)], summed[len(names) :]
        reading = dict(zip(READING, rest))
        clips_all, (skipped_all, asked, waited, seconds) = reading.pop("samples"), rest[len(READING) :]
        self.progress.seconds += seconds
        figures = dict(zip(names, values))
        loss = figures.get("loss", 0.0)
        if not math.isfinite(loss):
            raise SageError(
                f"{self.name}: the loss is {loss} at step {self.progress.step}; lower {self.name}.lr or set "
                f"{self.name}.precision=fp32, then run the same command to resume from the last checkpoint"
            )
        self.log.event(
            "step",
            self.progress.step,
            epoch=self.progress.step / max(self.stream.steps_per_epoch, 1),
            **figures,
            lr=rate,
            grad_norm=self.engine.gradient_norm(),
            clips=clips_all,
            skipped=skipped_all,
            samples_per_s=clips_all / max(seconds, 1e-9),
            wait_s=waited,
            **reading,
            memory_mb=memory_mb(self.engine.ranks.device),
            time_s=self.progress.seconds,
        )
        if skipped_all:
            self.log.line(
                f"{skipped_all:.0f} damaged samples skipped at step {self.progress.step}; each rank names its own",
                now=True,
            )
        left = self.progress.seconds * (1 - self.fraction) / max(self.fraction, 1e-9)
        self.log.line(
            f"step {self.progress.step}/{self.total_steps}  loss {loss:.3f}  lr {rate:.2g}  "
            f"{clips_all / max(seconds, 1e-9):.0f} clips/s  {clock(left)} left"
        )
        return asked > 0

    def _evaluate(self, evaluate: Evaluate) -> None:
        started = time.monotonic()
        with self.engine.evaluating():
            figures, score = evaluate(self.progress.step)
        score = distributed.from_first(score)
        seconds = distributed.from_first(time.monotonic() - started)
        self.progress.seconds += seconds
        self.log.event("dev", self.progress.step, **figures, seconds=seconds, time_s=self.progress.seconds)
        shown = "  ".join(
            f"{name} {value:.3g}" for name, value in figures.items() if isinstance(value, int | float)
        )
        self.log.line(f"dev at step {self.progress.step}: {shown}", now=True)
        if self.progress.best_score is None or score > self.progress.best_score:
            self.progress.best_score, self.progress.best_step = score, self.progress.step
            self.checkpoints.save(self.engine, self.progress)

    def _take_best(self) -> None:
        if self.progress.best_step != self.progress.step:
            last = self.progress
            self.checkpoints.load(self.engine, last.best_step)
            self.progress = last
            self.log.line(f"took the weights of step {last.best_step}, the best on dev", now=True)

    def _every(self, setting: int) -> int:
        if setting < 0:
            return 0
        return setting or self.stream.steps_per_epoch
