"""The loop that both stages share: steps, log, dev evaluation, checkpoints, and stopping in good order.

One step: the stream gives a rank its part of the global batch; `compute` runs forward and backward and returns the
rank's shares of what is logged; the guard looks at the loss of all ranks; the engine steps; one small all-reduce
carries the shares, the clock and a stop request to every rank, so that all of them do the same next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from sage_scale.config import Recipe, Stage
from sage_scale.errors import SageError
from sage_scale.planning.step import StepSize
from sage_scale.streaming import DataStallMonitor, Stream
from sage_scale.training import distributed
from sage_scale.training.checkpoint.checkpoints import Checkpoints, TrainingProgress
from sage_scale.training.checkpoint.compatibility import RunIdentity
from sage_scale.training.checkpoint.saving import Saver
from sage_scale.training.engine import Engine
from sage_scale.training.loss_guard import LossGuard
from sage_scale.training.monitor import rank_status
from sage_scale.training.profiling import StepTrace
from sage_scale.training.stage_log import StageLog, clock, memory_now
from sage_scale.training.stepfigures import StepFigures, share_step
from sage_scale.training.stopping import Interrupted, StopRequest
from sage_scale.training.throughput import Throughput
from sage_scale.untrusted.printer import tell

TRIM_EVERY = 16
"""Steps between two returns of freed memory to the system (CPU only)."""

Compute = Callable[[Any], dict[str, float]]
Evaluate = Callable[[int], tuple[dict[str, float], float]]


def checkpoint_place(stage: Stage, run: Path, name: str) -> str | Path:
    """Where the checkpoints of the stage `name` go; runs that share a recipe do not share these: the name is in it."""
    if not stage.checkpoints:
        return run / name / "checkpoints"
    return f"{stage.checkpoints.rstrip('/')}/{run.absolute().name}/{name}"


class Loop:
    """Trains one stage of a run; the state it keeps is `progress` (see checkpoint.py)."""

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        run: Path,
        engine: Engine,
        stream: Stream,
        frozen: Sequence[Path] = (),
        operations: Callable[[StepSize], float] | None = None,
    ) -> None:
        """`frozen` are the files or folders of weights that the stage uses and does not train;
        `operations` counts those of a step."""
        self.name = name
        self.recipe = recipe
        self.differing: dict[str, list[Any]] = {}
        """Values of recipe keys in which the run's datasets differ; the log tells of them."""
        self.stage: Stage = engine.stage
        self.engine = engine
        self.stream = stream
        self.folder = run / name
        self.waiting = DataStallMonitor(
            recipe.stream.warn_wait, remote=stream.dataset.remote, workers=stream.workers
        )
        self.log = StageLog(
            self.folder, name, active=engine.ranks.first, wandb=self.stage.wandb, run=run.absolute().name
        )
        self.throughput = Throughput(engine, operations)
        self.profile = StepTrace(self.folder, self.stage.profile_steps if engine.ranks.first else 0)
        identity = distributed.on_first(lambda: RunIdentity.of(name, recipe, frozen), engine.ranks.first)
        self.checkpoints = Checkpoints(
            checkpoint_place(self.stage, run, name), self.stage.keep_checkpoints, identity
        )
        self.saver = Saver(
            self.checkpoints, engine.ranks, self.stage.async_save, recipe.stream.give_up_after_s, self._say
        )
        self.guard = LossGuard(engine, self.stage)
        self.progress = TrainingProgress(stage=name, recipe=recipe.fingerprint())
        self._saved = 0
        self.total_steps = self.stage.max_steps or math.ceil(self.stage.epochs * stream.steps_per_epoch)

    def resume(self) -> bool:
        """Continue from the newest whole checkpoint of this stage, if there is one."""
        found = self.checkpoints.load_latest(self.engine, self._say_once)
        if found is None:
            return False
        self.progress = found
        self.stream.load_state_dict(found.stream)
        self.log.line(f"resumed at step {found.step} of {self.total_steps}", now=True)
        return True

    @property
    def fraction(self) -> float:
        """How much of the stage is done, by steps, time or tokens, whichever is furthest; all of it where dev has not
        become better for the recipe's `patience`."""
        if self.stage.patience and self.progress.since_best >= self.stage.patience:
            return 1.0
        by_steps = self.progress.step / max(self.total_steps, 1)
        budget = self.stage.max_minutes * 60
        by_time = self.progress.seconds / budget if budget else 0.0
        tokens = self.stage.max_tokens
        return max(by_steps, by_time, self.progress.tokens / tokens if tokens else 0.0)

    @property
    def cut_short(self) -> str:
        """How many of its steps the stage made where `max_minutes` ended it before the last; else empty."""
        budget = self.stage.max_minutes * 60
        if not budget or self.progress.seconds < budget or self.progress.step >= self.total_steps:
            return ""
        return f"{self.progress.step:,} of {self.total_steps:,} steps: max_minutes={self.stage.max_minutes:g} ended it"

    def train(self, compute: Compute, evaluate: Evaluate) -> TrainingProgress:
        """Run to the end of the stage. Raises Interrupted after saving when asked to stop."""
        try:
            return self._train(compute, evaluate)
        except BaseException:
            self.saver.leave()
            raise

    def _train(self, compute: Compute, evaluate: Evaluate) -> TrainingProgress:
        evaluate_every = self._every(self.stage.evaluate_every)
        save_every = self._every(self.stage.save_every)
        self._saved = self.progress.step
        if (
            evaluate_every
            and self.progress.step
            and self.progress.step % evaluate_every == 0
            and self.fraction < 1
        ):
            self._evaluate_once(evaluate)  # due, but asked to stop at that very step
        dataset = self.stream.state_dict()["digest"]
        differing = {"differing": self.differing} if self.differing else {}
        self.log.event("start", self.progress.step, **self.throughput.job(), dataset=dataset, **differing)
        with StopRequest() as stop:
            self._make_steps(stop, compute, evaluate, evaluate_every, save_every)
            # Asked from here on: what was trained is evaluated and saved first, too.
            if self.progress.since_best and self.progress.since_best == self.stage.patience:
                self.log.event("early_stop", self.progress.step, best_step=self.progress.best_step)
                self.log.line(
                    f"ends at step {self.progress.step}: no better on dev for {self.stage.patience} evaluations, best "
                    f"at step {self.progress.best_step}",
                    now=True,
                )
            if self.cut_short:
                self.log.line(self.cut_short, now=True)
            self._evaluate_once(evaluate)
            self._save()
            self._finish_saving()
            if any(distributed.gather_objects(stop.asked)):
                self._leave_as_asked()
        rank_status.begin_phase("taking the best weights and the last evaluation")
        self._take_best()
        self.log.line(f"{self.progress.step} steps in {clock(self.progress.seconds)}", now=True)
        self.log.close()
        return self.progress

    def _make_steps(
        self, stop: StopRequest, compute: Compute, evaluate: Evaluate, evaluate_every: int, save_every: int
    ) -> None:
        """Steps to the end of the stage, with what is due between them. Raises Interrupted as `train`."""
        with self.profile:
            batches = iter(self.stream) if self.fraction < 1 else iter(())
            while self.fraction < 1:
                started = time.monotonic()
                before = self.stream.counts
                batch = next(batches)
                waited = time.monotonic() - started
                bad, shares, rate = self._step(compute, batch)
                rank_status.step_done(self.progress.step)
                spent = self.stream.counts - before
                figures = share_step(shares, waited, started, spent, stop.asked, self.engine.ranks)
                self._note(figures, rate)
                stopping = figures.stop_asked
                self.progress.stream = self.stream.state_dict()
                if bad:
                    self._survive(bad)
                self._note_saves()
                warning = self.waiting.note(waited, time.monotonic() - started, self.stream.counts)
                if warning:
                    self.log.line(warning, now=True)
                step = self.progress.step
                if step % TRIM_EVERY == 0:
                    distributed.return_freed_memory(self.engine.ranks.device)
                over = self.fraction >= 1
                if not stopping and evaluate_every and step % evaluate_every == 0 and not over:
                    self._evaluate_once(evaluate)
                if stopping or (save_every and step % save_every == 0 and not over):
                    self._save()
                if traced := self.profile.step():
                    self.log.line(traced, now=True)
                if stopping:
                    self._finish_saving()
                    self._leave_as_asked()

    def _leave_as_asked(self) -> NoReturn:
        step = self.progress.step
        self.log.line(f"stopped at step {step} as asked; the same command resumes", now=True)
        self.log.close()
        raise Interrupted(f"{self.name} stopped at step {step} and saved; run the same command to go on")

    def _step(self, compute: Compute, batch: Any) -> tuple[str, dict[str, float], float]:
        """One step: what was wrong with it or "", the rank's shares, and the learning rate."""
        # What still draws from torch's generator (dropout of attention weights, in language models that have it) is
        # a function of the place in the training, so there is no state of it to save.
        place = (self.stage.seed * 1_000_003 + self.progress.step) * 65_537 + self.engine.ranks.rank
        torch.manual_seed(place % (1 << 63))
        self.engine.model.train()
        self.guard.begin()
        shares = compute(batch)
        bad = self.guard.judge(shares.get("loss", 0.0), self.progress)
        rate = self.engine.step(self.fraction, hold=bool(bad))
        bad = bad or self.guard.judge_gradient()
        self.progress.step += 1
        self.progress.updates += self.engine.updated
        return bad, shares, rate

    def _survive(self, reason: str) -> None:
        """What the recipe says about a bad step, whose update was left out. Raises SageError where it says stop."""
        progress, action = self.progress, self.stage.on_bad_loss
        progress.bad_steps += 1
        if progress.bad_steps > self.stage.max_bad_steps:
            action = "stop"
        known = (
            distributed.on_first(self.checkpoints.steps, self.engine.ranks.first)
            if action == "roll_back"
            else []
        )
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
        self.guard.undo_forward()
        if action == "skip":
            self.log.line(f"{reason} at step {progress.step}: its update is left out", now=True)
            return
        self._finish_saving()
        with rank_status.phase("going back to a checkpoint"):
            back = self.checkpoints.load_latest(self.engine, self._say_once)
        if back is not None:
            progress.updates, progress.recent_losses = back.updates, back.recent_losses
            self.log.line(
                f"{reason} at step {progress.step}: back to the weights of step {back.step}, on with the next batch",
                now=True,
            )

    def _save(self, best: bool = False) -> None:
        """Begin a checkpoint of this step, unless there is one; what is best now is saved in any case."""
        if best or self._saved < self.progress.step or self.progress.step == 0:
            with rank_status.phase("saving a checkpoint"):
                self.saver.save(self.engine, self.progress)
            self._saved = self.progress.step

    def _finish_saving(self) -> None:
        with rank_status.phase("waiting for a checkpoint to be written"):
            self.saver.finish()
        self._note_saves()

    def _note_saves(self) -> None:
        for saved in self.saver.news():
            self.log.event(
                "save", saved.step, blocked_s=saved.blocked_s, background_s=saved.seconds, bytes=saved.bytes
            )

    def _note(self, figures: StepFigures, rate: float) -> None:
        """Adds a step's figures to the progress and the log."""
        self.progress.seconds += figures.seconds
        self.progress.tokens += sum(
            figures.shares.get(kind, 0.0) for kind in ("visual_tokens", "text_tokens")
        )
        self.log.event(
            "step",
            self.progress.step,
            epoch=self.progress.step / max(self.stream.steps_per_epoch, 1),
            **figures.logged(),
            **self.throughput.rates(figures),
            **memory_now(self.engine.ranks.device),
            **({"loss_scale": self.engine.scale.value} if self.engine.scale.enabled else {}),
            lr=rate,
            grad_norm=self.engine.gradient_norm(),
            time_s=self.progress.seconds,
        )
        if figures.skipped:
            self.log.line(
                f"{figures.skipped:.0f} damaged samples skipped at step {self.progress.step}; each rank names its own",
                now=True,
            )
        left = self.progress.seconds * max(1 - self.fraction, 0) / max(self.fraction, 1e-9)
        self.log.line(
            f"step {self.progress.step}/{self.total_steps}  loss {figures.loss:.3f}  lr {rate:.2g}  "
            f"{figures.samples_per_s:.0f} clips/s  {clock(left)} left"
        )

    def _evaluate_once(self, evaluate: Evaluate) -> None:
        if self.progress.evaluated == self.progress.step and self.progress.best_score is not None:
            return
        started = time.monotonic()
        with rank_status.phase("evaluation on dev"), self.engine.evaluating():
            figures, score = evaluate(self.progress.step)
        score = distributed.from_first(score)
        seconds = distributed.from_first(time.monotonic() - started)
        self.progress.seconds += seconds
        self.log.event("dev", self.progress.step, **figures, seconds=seconds, time_s=self.progress.seconds)
        shown = "  ".join(
            f"{name} {value:.3g}" for name, value in figures.items() if isinstance(value, int | float)
        )
        self.log.line(f"dev at step {self.progress.step}: {shown}", now=True)
        self.progress.evaluated = self.progress.step
        if math.isfinite(score) and score > (
            -math.inf if (best := self.progress.best_score) is None else best
        ):
            self.progress.best_score, self.progress.best_step = score, self.progress.step
            self.progress.since_best = 0
            self._save(best=True)
        else:
            self.progress.since_best += 1

    def _take_best(self) -> None:
        best, ranks = self.progress.best_step, self.engine.ranks
        if best == self.progress.step:
            return
        damage = distributed.on_all(lambda: self.checkpoints.damage(best, ranks.rank, ranks.world))
        if damage is not None:
            self._say_once(f"{damage}: the weights of the last step are kept, not the best of step {best}")
            return
        self.checkpoints.load(self.engine, best)
        self.log.line(f"took the weights of step {best}, the best on dev", now=True)

    def _say(self, line: str) -> None:
        """A line of this rank alone, also from the thread that saves."""
        if self.engine.ranks.first:
            self.log.line(line, now=True)
        else:
            tell(f"{self.name}: rank {self.engine.ranks.rank}: {line}")

    def _say_once(self, line: str) -> None:
        """A line that every rank has."""
        self.log.line(line, now=True)

    def _every(self, setting: int) -> int:
        if setting < 0:
            return 0
        return setting or self.stream.steps_per_epoch
