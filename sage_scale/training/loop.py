"""The loop that both stages share: steps, log, dev evaluation, checkpoints, and stopping in good order.

One step: the stream gives a rank its part of the global batch; `compute` runs forward and backward and returns the
rank's shares of what is logged; the engine steps; one small all-reduce carries the shares, the clock and a stop
request to every rank, so that all of them do the same next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sage_scale.config import Recipe, Stage
from sage_scale.errors import SageError
from sage_scale.streaming import Stream, WaitMonitor
from sage_scale.training import distributed, watchdog
from sage_scale.training.checkpoint import Checkpoints, Progress
from sage_scale.training.engine import Engine
from sage_scale.training.runlog import RunLog, clock
from sage_scale.training.stepfigures import StepFigures, share_step
from sage_scale.training.stopping import Interrupted, StopRequest

TRIM_EVERY = 16
"""Steps between two returns of freed memory to the system (CPU only)."""

Compute = Callable[[Any], dict[str, float]]
Evaluate = Callable[[int], tuple[dict[str, float], float]]


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
                watchdog.beat(self.progress.step)
                spent = self.stream.counts - before
                figures = share_step(shares, waited, started, spent, stop.asked, self.engine.ranks)
                self._note(figures, rate)
                stopping = figures.stop_asked
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
                    self._save()
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
            self._save()
        watchdog.begin("taking the best weights and the last evaluation")
        self._take_best()
        self.log.line(f"{self.progress.step} steps in {clock(self.progress.seconds)}", now=True)
        self.log.close()
        return self.progress

    def _note(self, figures: StepFigures, rate: float) -> None:
        """Adds a step's figures to the progress and the log. Raises SageError where the loss is no number."""
        self.progress.seconds += figures.seconds
        if not math.isfinite(figures.loss):
            raise SageError(
                f"{self.name}: the loss is {figures.loss} at step {self.progress.step}; lower {self.name}.lr or set "
                f"{self.name}.precision=fp32, then run the same command to resume from the last checkpoint"
            )
        self.log.event(
            "step",
            self.progress.step,
            epoch=self.progress.step / max(self.stream.steps_per_epoch, 1),
            **figures.logged(),
            lr=rate,
            grad_norm=self.engine.gradient_norm(),
            time_s=self.progress.seconds,
        )
        if figures.skipped:
            self.log.line(
                f"{figures.skipped:.0f} damaged samples skipped at step {self.progress.step}; each rank names its own",
                now=True,
            )
        left = self.progress.seconds * (1 - self.fraction) / max(self.fraction, 1e-9)
        self.log.line(
            f"step {self.progress.step}/{self.total_steps}  loss {figures.loss:.3f}  lr {rate:.2g}  "
            f"{figures.samples_per_s:.0f} clips/s  {clock(left)} left"
        )

    def _evaluate(self, evaluate: Evaluate) -> None:
        started = time.monotonic()
        with watchdog.phase("evaluation on dev"), self.engine.evaluating():
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
            self._save()

    def _save(self) -> None:
        with watchdog.phase("saving a checkpoint"):
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
