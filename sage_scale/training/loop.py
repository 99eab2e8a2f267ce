"""The training loop of both stages: steps, log, dev evaluation, checkpoints, and the stop on request.

One step: the stream gives a rank its part of the global batch; `compute` runs forward and backward and returns the
rank's shares of the logged metrics; the loss guard checks the loss of all ranks; the engine steps; one small
all-reduce carries the shares, the clock and a stop request to every rank, so that all ranks act alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from sage_scale.config import Recipe, Stage
from sage_scale.errors import SageError
from sage_scale.planning.step import StepSize
from sage_scale.storage.working_copy import WorkingCopy
from sage_scale.streaming import DataStallMonitor, Stream
from sage_scale.training import distributed
from sage_scale.training.checkpoint.checkpoints import Checkpoints, TrainingProgress
from sage_scale.training.checkpoint.compatibility import RunIdentity
from sage_scale.training.checkpoint.saving import Saver
from sage_scale.training.engine import Engine
from sage_scale.training.loss_guard import LossGuard
from sage_scale.training.monitor import rank_status
from sage_scale.training.monitor.stop_requests import Interrupted, StopRequest
from sage_scale.training.run_place import RunPlace
from sage_scale.training.stage_log import StageLog, clock
from sage_scale.training.throughput import (
    StepMetrics,
    StepTrace,
    Throughput,
    long_step,
    memory_now,
    reduce_metrics,
)
from sage_scale.untrusted.printer import tell

TRIM_EVERY = 16
"""Steps between two returns of freed memory to the system (CPU only)."""

Compute = Callable[[Any], dict[str, float]]
Evaluate = Callable[[int], tuple[dict[str, float], float]]


def checkpoint_location(stage: Stage, run: RunPlace, name: str) -> str | Path:
    """Returns the URL of a stage's checkpoints, which holds the run's name: several runs may share a recipe."""
    if stage.checkpoints:
        return f"{stage.checkpoints.rstrip('/')}/{run.folder.absolute().name}/{name}"
    return f"{run.url}/{name}/checkpoints" if run.url else run.folder / name / "checkpoints"


class Loop:
    """Trains one stage of a run; its state is `progress` (see checkpoints.py)."""

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        run: RunPlace,
        engine: Engine,
        stream: Stream,
        frozen: Sequence[Path] = (),
        operations: Callable[[StepSize], float] | None = None,
    ) -> None:
        """`frozen` are files or folders of weights that the stage uses and does not train; `operations` returns the
        FLOPs of a step."""
        ranks = engine.ranks
        self.name = name
        self.differing: dict[str, list[Any]] = {}
        """Values of recipe keys in which the run's datasets differ, for the log."""
        self.stage: Stage = engine.stage
        self.engine = engine
        self.stream = stream
        self.folder = run.folder / name
        self.stalls = DataStallMonitor(
            recipe.stream.warn_wait, remote=stream.dataset.remote, workers=stream.workers
        )
        called = run.folder.absolute().name
        self.log = StageLog(self.folder, name, ranks.is_main, self.stage.wandb, called, run.url)
        self.throughput = Throughput(engine, operations)
        self.trace = StepTrace(self.folder, self.stage.profile_steps if ranks.is_main else 0)
        identity = distributed.run_on_rank0(lambda: RunIdentity.of(name, recipe, frozen))
        self.checkpoints = Checkpoints(
            checkpoint_location(self.stage, run, name), self.stage.keep_checkpoints, identity
        )
        self.saver = Saver(
            self.checkpoints,
            ranks,
            self.stage.async_save,
            recipe.stream.give_up_after_s,
            self._say,
            partial(self._upload, run.copy) if run.copy else None,
        )
        self.guard = LossGuard(engine, self.stage)
        self.progress = TrainingProgress(stage=name, recipe=recipe.fingerprint())
        self._saved = 0
        """Step of the last save."""
        self._saves = 0
        self._reports = recipe.watch.http_port > 0
        self.total_steps = self.stage.max_steps or math.ceil(self.stage.epochs * stream.steps_per_epoch)

    def _upload(self, copy: WorkingCopy) -> None:
        """Send the run's files to its URL, called by the saving thread of rank 0."""
        self.log.flush()
        copy.upload(single_attempt=True)

    def resume(self) -> bool:
        """Continue from the newest undamaged checkpoint of this stage; returns whether there is one."""
        found = self.checkpoints.load_latest(self.engine, self._say_once)
        if found is None:
            return False
        self.progress = found
        self.stream.load_state_dict(found.stream)
        self._say_once(f"resumed at step {found.step} of {self.total_steps}")
        return True

    @property
    def fraction(self) -> float:
        """Returns the share of the stage that is done (0 to 1): the largest of steps, time and tokens.

        It is 1 after `patience` evaluations without a better dev score.
        """
        if self.stage.patience and self.progress.since_best >= self.stage.patience:
            return 1.0
        by_steps = self.progress.step / max(self.total_steps, 1)
        budget = self.stage.max_minutes * 60
        by_time = self.progress.seconds / budget if budget else 0.0
        tokens = self.stage.max_tokens
        return max(by_steps, by_time, self.progress.tokens / tokens if tokens else 0.0)

    @property
    def cut_short(self) -> str:
        """Returns a line on the number of steps made if `max_minutes` ended the stage early, else ""."""
        budget = self.stage.max_minutes * 60
        if not budget or self.progress.seconds < budget or self.progress.step >= self.total_steps:
            return ""
        return f"{self.progress.step:,} of {self.total_steps:,} steps: max_minutes={self.stage.max_minutes:g} ended it"

    def train(self, compute: Compute, evaluate: Evaluate) -> TrainingProgress:
        """Run to the end of the stage. Raises Interrupted after saving when asked to stop."""
        try:
            return self._train(compute, evaluate)
        except BaseException:
            self.saver.wait_briefly()
            self.log.end_progress()
            raise

    def _train(self, compute: Compute, evaluate: Evaluate) -> TrainingProgress:
        progress = self.progress
        self._saved = progress.step
        if progress.step and self._due(self.stage.evaluate_every):
            self._evaluate_once(evaluate)  # due, but asked to stop at that very step
        dataset = {"dataset": self.stream.state_dict()["digest"], "clips": len(self.stream.dataset)}
        differing = {"differing": self.differing} if self.differing else {}
        self.log.event("start", progress.step, **self.throughput.job(), **dataset, **differing)
        with StopRequest() as stop:
            self._make_steps(stop, compute, evaluate)
            # Asked from here on: the trained state is evaluated and saved first, too.
            if progress.since_best and progress.since_best == self.stage.patience:
                self.log.event("early_stop", progress.step, best_step=progress.best_step)
                self._say_once(
                    f"ends at step {progress.step}: no better on dev for {self.stage.patience} evaluations, best "
                    f"at step {progress.best_step}"
                )
            if self.cut_short:
                self._say_once(self.cut_short)
            self._evaluate_once(evaluate)
            self._save()
            self._finish_saving()
            if any(distributed.gather_objects(stop.asked)):
                self._leave_as_asked()
        rank_status.begin_phase("taking the best weights and the last evaluation")
        self._take_best()
        self._say_once(f"{progress.step} steps in {clock(progress.seconds)}")
        self.log.close()
        return progress

    def _make_steps(self, stop: StopRequest, compute: Compute, evaluate: Evaluate) -> None:
        """Make steps to the end of the stage, with evaluations and saves when due. Raises Interrupted as `train`."""
        with self.trace:
            batches = iter(self.stream) if self.fraction < 1 else iter(())
            first, told = self.progress.step, ""
            while self.fraction < 1:
                started = time.monotonic()
                before = self.stream.counts
                batch = next(batches)
                waited = time.monotonic() - started
                if self.progress.step == first:
                    told = self._say_long_step(self.throughput.estimate(batch))
                bad, shares, rate = self._step(compute, batch)
                step = self.progress.step
                rank_status.step_done(step)
                spent = self.stream.counts - before
                metrics = reduce_metrics(shares, waited, started, spent, stop.asked, self.engine.ranks)
                self._log_step(metrics, rate)
                if step == first + 1 and not told:
                    self._say_long_step(metrics.seconds, measured=True)
                self.progress.stream = self.stream.state_dict()
                if bad:
                    self._handle_bad_step(bad)
                self._log_saves()
                if warning := self.stalls.note(waited, time.monotonic() - started, self.stream.counts):
                    self._say_once(warning)
                if step % TRIM_EVERY == 0:
                    distributed.return_freed_memory(self.engine.ranks.device)
                save = self._due(self.stage.save_every)
                if not metrics.stop_asked and self._due(self.stage.evaluate_every):
                    self._evaluate_once(evaluate)
                if metrics.stop_asked or save:
                    self._save()
                if traced := self.trace.step():
                    self._say_once(traced)
                if metrics.stop_asked:
                    self._finish_saving()
                    self._leave_as_asked()

    def _say_long_step(self, seconds: float, measured: bool = False) -> str:
        """Print a line where a step takes more than a minute, without a sign of progress. Returns the line."""
        left = self.total_steps - self.progress.step
        if line := long_step(seconds, left, self.engine.ranks.device, measured):
            self._say_once(line)
        return line

    def _due(self, every: int) -> bool:
        """Returns whether evaluation or save is due (`every` steps; 0: epochs; below: never) before the stage's end."""
        every = every or self.stream.steps_per_epoch
        return every > 0 and self.progress.step % every == 0 and self.fraction < 1

    def _leave_as_asked(self) -> NoReturn:
        step = self.progress.step
        self._say_once(f"stopped at step {step} as asked; the same command resumes")
        self.log.close()
        raise Interrupted(f"{self.name} stopped at step {step} and saved; run the same command to go on")

    def _step(self, compute: Compute, batch: Any) -> tuple[str, dict[str, float], float]:
        """Make one step; returns its fault or "", the rank's shares, and the learning rate."""
        # Draws from torch's generator (dropout of attention weights, in language models that have it) are a function
        # of the position in the training, so the generator has no state to save.
        position = (self.stage.seed * 1_000_003 + self.progress.step) * 65_537 + self.engine.ranks.rank
        torch.manual_seed(position % (1 << 63))
        self.engine.model.train()
        self.guard.begin()
        shares = compute(batch)
        bad = self.guard.check_loss(shares.get("loss", 0.0), self.progress)
        rate = self.engine.step(self.fraction, skip_update=bool(bad))
        bad = bad or self.guard.check_gradient()
        self.progress.step += 1
        self.progress.updates += self.engine.updated
        return bad, shares, rate

    def _handle_bad_step(self, reason: str) -> None:
        """Apply `on_bad_loss` to a step whose update was skipped. Raises SageError for `stop`."""
        progress, action = self.progress, self.stage.on_bad_loss
        progress.bad_steps += 1
        if progress.bad_steps > self.stage.max_bad_steps:
            action = "stop"
        known = distributed.run_on_rank0(self.checkpoints.steps) if action == "roll_back" else []
        if action == "roll_back" and not known:
            action = "skip"
        self.log.event("bad_step", progress.step, reason=reason, action=action, bad_steps=progress.bad_steps)
        if action == "stop":
            self._finish_saving()  # a save under way is the one to resume from
            raise SageError(
                f"{self.name}: {reason} at step {progress.step} (bad steps so far: {progress.bad_steps}); lower "
                f"{self.name}.lr, set {self.name}.precision=fp32 or {self.name}.on_bad_loss=skip, then run the same "
                "command to resume from the last checkpoint"
            )
        self.guard.restore_buffers()
        if action == "skip":
            self._say_once(f"{reason} at step {progress.step}: its update is left out")
            return
        self._finish_saving()
        with rank_status.phase("going back to a checkpoint"):
            back = self.checkpoints.load_latest(self.engine, self._say_once)
        if back is not None:
            progress.updates, progress.recent_losses = back.updates, back.recent_losses
            self._say_once(
                f"{reason} at step {progress.step}: back to the weights of step {back.step}, on with the next batch"
            )

    def _save(self, best: bool = False) -> None:
        """Begin a checkpoint of this step, unless there is one; the best weights are saved in any case."""
        if best or self._saved < self.progress.step or self.progress.step == 0:
            with rank_status.phase("saving a checkpoint"):
                self.saver.save(self.engine, self.progress)
            self._saved = self.progress.step

    def _finish_saving(self) -> None:
        with rank_status.phase("waiting for a checkpoint to be written"):
            self.saver.finish()
        self._log_saves()

    def _log_saves(self) -> None:
        for saved in self.saver.finished_saves():
            self._saves += 1
            self._report(
                saves=self._saves,
                save_seconds=saved.blocked_s + saved.seconds,
                save_blocked_seconds=saved.blocked_s,
            )
            self.log.event(
                "save", saved.step, blocked_s=saved.blocked_s, background_s=saved.seconds, bytes=saved.bytes
            )

    def _log_step(self, metrics: StepMetrics, rate: float) -> None:
        """Add a step's metrics to the progress and the log."""
        progress = self.progress
        progress.seconds += metrics.seconds
        progress.tokens += sum(metrics.shares.get(kind, 0.0) for kind in ("visual_tokens", "text_tokens"))
        self.log.event(
            "step",
            progress.step,
            epoch=progress.step / max(self.stream.steps_per_epoch, 1),
            **metrics.logged(),
            **self.throughput.rates(metrics),
            **memory_now(self.engine.ranks.device),
            **({"loss_scale": self.engine.loss_scale.value} if self.engine.loss_scale.enabled else {}),
            lr=rate,
            grad_norm=self.engine.gradient_norm(),
            time_s=progress.seconds,
        )
        self._report(
            step=progress.step,
            total_steps=self.total_steps,
            loss=metrics.loss,
            samples_per_second=metrics.samples_per_s,
            data_wait_share=metrics.wait_s / max(metrics.seconds, 1e-9),
            restarts=self.log.starts,
        )
        if metrics.skipped:
            self._say_once(
                f"{metrics.skipped:.0f} damaged samples skipped at step {progress.step}; each rank names its own"
            )
        left = progress.seconds * max(1 - self.fraction, 0) / max(self.fraction, 1e-9)
        self.log.progress(
            progress.step,
            self.total_steps,
            f"step {progress.step}/{self.total_steps}  loss {metrics.loss:.3f}  lr {rate:.2g}  "
            f"{metrics.samples_per_s:.0f} clips/s  {clock(left)} left",
        )

    def _report(self, **figures: float) -> None:
        """Send figures to this host's endpoint: all of them from rank 0, its step from any other rank."""
        if self._reports and (self.engine.ranks.is_main or "step" in figures):
            rank_status.report(**figures if self.engine.ranks.is_main else {"step": figures["step"]})

    def _evaluate_once(self, evaluate: Evaluate) -> None:
        progress = self.progress
        if progress.evaluated == progress.step and progress.best_score is not None:
            return
        started = time.monotonic()
        with rank_status.phase("evaluation on dev"), self.engine.evaluating():
            figures, score = evaluate(progress.step)
        score, seconds = distributed.broadcast_object((score, time.monotonic() - started))
        progress.seconds += seconds
        self.log.event("dev", progress.step, **figures, seconds=seconds, time_s=progress.seconds)
        shown = (f"{name} {value:.3g}" for name, value in figures.items() if isinstance(value, int | float))
        self._say_once(f"dev at step {progress.step}: {'  '.join(shown)}")
        progress.evaluated = progress.step
        if math.isfinite(score) and (progress.best_score is None or score > progress.best_score):
            progress.best_score, progress.best_step, progress.since_best = score, progress.step, 0
            self._save(best=True)
        else:
            progress.since_best += 1

    def _take_best(self) -> None:
        best, ranks = self.progress.best_step, self.engine.ranks
        if best == self.progress.step:
            return
        damage = distributed.run_on_all_ranks(lambda: self.checkpoints.damage(best, ranks.rank, ranks.world))
        if damage is not None:
            self._say_once(f"{damage}: the weights of the last step are kept, not the best of step {best}")
            return
        self.checkpoints.load(self.engine, best)
        self._say_once(f"took the weights of step {best}, the best on dev")

    def _say(self, line: str) -> None:
        """Print a line from this rank alone; the saving thread calls it, too."""
        if self.engine.ranks.is_main:
            self.log.say(line)
        else:
            tell(f"{self.name}: rank {self.engine.ranks.rank}: {line}")

    def _say_once(self, line: str) -> None:
        """Print a line that all ranks have in common, once, from rank 0."""
        self.log.say(line)
