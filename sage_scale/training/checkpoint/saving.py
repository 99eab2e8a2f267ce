"""Saves checkpoints in the background: the step gathers and copies to host memory, a thread does the rest.

The thread of each rank serialises, hashes and writes the rank's files and then its marker; rank 0's waits for all
markers, uploads the files of a run at a URL, writes state.json, drops old checkpoints and the leftovers of killed
saves. Threads coordinate through files alone, since their collectives would interfere with those of the training. At
most one save is active. The next save and the end of the stage wait for it, and then all ranks agree whether it
succeeded.

Storage that does not answer, is full or refuses is reported at once and retried, while training continues. Only if
training waits for the save, it fails after `give_up_after_s` seconds without success.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from sage_scale.errors import StorageError
from sage_scale.retry import retry
from sage_scale.training import distributed
from sage_scale.training.checkpoint.checkpoints import Checkpoints, Say, TrainingProgress, folder_of
from sage_scale.training.checkpoint.snapshot import HostCopies, shapes, split_by_size, take_snapshot
from sage_scale.training.distributed import Ranks
from sage_scale.training.engine import Engine
from sage_scale.untrusted.json_values import parse_json_object

FILE_BYTES = 128_000_000
"""Most bytes of a file (one tensor may be larger): the unit of serialising, sending and repeating."""
PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds between attempts; the last one repeats."""
TELL_EVERY_S = 60.0
LEAVE_S = 10.0
"""Longest wait for a save under way when the process ends by an error, seconds."""

T = TypeVar("T")


@dataclass(frozen=True)
class Saved:
    """A finished save on this rank."""

    step: int
    blocked_s: float
    """Seconds that training stood still for it."""
    seconds: float
    """Seconds in the background; on rank 0 until the checkpoint was complete."""
    bytes: int
    """Bytes written by this rank."""


class Saver:
    """Saves the checkpoints of a stage. Every rank has one and calls the same methods in the same order."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        ranks: Ranks,
        background: bool = True,
        give_up_after_s: float = 300.0,
        say: Say = lambda line: None,
        before_complete: Callable[[], None] | None = None,
    ) -> None:
        """`say` must be thread-safe: the saving thread calls it, too. Rank 0's calls `before_complete` before each
        checkpoint is complete; its storage errors count as the checkpoint's."""
        self.checkpoints = checkpoints
        self.ranks = ranks
        self.background = background
        self.give_up_after_s = give_up_after_s
        self.say = say
        self.before_complete = before_complete
        self._copies = HostCopies()
        self._group = distributed.long_timeout_group()
        self._save: _Save | None = None
        self._saved: list[Saved] = []

    def save(self, engine: Engine, progress: TrainingProgress) -> None:
        """Begin a checkpoint of the current state (a collective); without `background`, also wait for it."""
        self.finish()
        started = time.monotonic()
        token = distributed.broadcast_object(secrets.token_hex(4), self._group)
        tensors = take_snapshot(engine, self._copies)
        values = {**dataclasses.asdict(progress), "engine": engine.loss_scale.state_dict()}
        self._save = _Save(self, token, tensors, values, shapes(engine))
        self._save.blocked_s = time.monotonic() - started
        self._save.start()
        if not self.background:
            self.finish()

    def finish(self) -> None:
        """Wait for the active save (a collective). Every rank raises if any rank's part was not written."""
        save, self._save = self._save, None
        if save is None:
            return
        save.awaited.set()
        save.part_done.wait()
        self._agree(save, save.part_error)
        save.parts_written.set()
        save.join()
        self._agree(save, save.error)
        self._saved.append(Saved(save.step, save.blocked_s, save.seconds, save.bytes))

    def finished_saves(self) -> list[Saved]:
        """Returns the saves that have finished since the last call, without waiting.

        Raises the active save's error, unless it is a storage error, which is retried.
        """
        error = self._save.error if self._save is not None else None
        if error is not None and not isinstance(error, StorageError):
            raise error
        saved, self._saved = self._saved, []
        return saved

    def wait_briefly(self) -> None:
        """Wait for an active save without storage errors; call it before this rank exits by an error."""
        if self._save is not None and not self._save.in_trouble:
            self._save.join(LEAVE_S)

    def _agree(self, save: _Save, error: BaseException | None) -> None:
        lines = distributed.gather_objects(None if error is None else str(error), self._group)
        failed = [f"rank {rank}: {line}" for rank, line in enumerate(lines) if line is not None]
        if failed:
            save.abandoned.set()
            raise StorageError(
                f"the checkpoint of step {save.step} could not be written ({failed[0]}); the one before is whole: "
                "run the same command to go on from there"
            )


class _Save(threading.Thread):
    """The background part of one save, on one rank."""

    def __init__(
        self,
        saver: Saver,
        token: str,
        tensors: dict[str, Tensor],
        progress: dict[str, Any],
        shaped: dict[str, list[int]],
    ) -> None:
        # A daemon: a process that ends by an error does not wait for storage that is away.
        super().__init__(name=f"save-{progress['step']}", daemon=True)
        self.saver = saver
        self.checkpoints = copy.copy(saver.checkpoints)
        self.checkpoints.store = saver.checkpoints.store.single_attempt()  # `_retry` repeats
        self.token = token
        self.progress = progress
        self.shaped = shaped
        self.step = int(progress["step"])
        self.blocked_s = self.seconds = 0.0
        self.bytes = 0
        self.awaited = threading.Event()
        self.abandoned = threading.Event()
        self.part_done = threading.Event()
        self.parts_written = threading.Event()
        self.part_error: BaseException | None = None
        self.error: BaseException | None = None
        self.in_trouble = False
        self._tensors = tensors

    def run(self) -> None:
        started = time.monotonic()
        ranks = self.saver.ranks
        try:
            self._write_part(ranks.rank)
            self.part_done.set()
            if ranks.is_main:
                files: dict[str, Any] = {}
                for rank in range(ranks.world):
                    files |= self._part_of(rank)
                if self.saver.before_complete is not None:
                    self._retry(self.saver.before_complete)
                self._retry(lambda: self.checkpoints.write_state(self.progress, files, self.shaped))
                best = int(self.progress["best_step"])
                self._retry(lambda: self.checkpoints.drop_old(self.step, best))
        except BaseException as error:
            self.error = error
            if not self.part_done.is_set():
                self.part_error = error
        finally:
            self._tensors = {}
            self.seconds = time.monotonic() - started
            self.part_done.set()

    def _write_part(self, rank: int) -> None:
        files = {}
        for number, group in enumerate(split_by_size(self._tensors, FILE_BYTES)):
            name = f"tensors-{rank:05d}-{number:03d}-{self.token}.safetensors"
            files[name] = self._retry(partial(self.checkpoints.write_file, self.step, name, group))
            self.bytes += files[name]["bytes"]
        data = json.dumps(files).encode()
        self._retry(lambda: self.checkpoints.store.put_if_absent(self._marker(rank), data))

    def _part_of(self, rank: int) -> dict[str, Any]:
        """Wait for a rank's marker and return its content; if that rank dies, the rank monitor ends the job."""
        store, turn, hidden_since = self.checkpoints.store, 0, 0.0
        while not self._retry(lambda: store.exists(self._marker(rank))):
            if self.parts_written.is_set():  # the rank says so itself; a network's file system may be late
                hidden_since = hidden_since or time.monotonic()
                if time.monotonic() - hidden_since > self.saver.give_up_after_s:
                    raise StorageError(
                        f"what rank {rank} wrote to {store.url} is not seen here: the hosts share no "
                        "such folder; set the stage's key checkpoints to a shared one or to s3://bucket/prefix"
                    )
            if self.abandoned.wait(PAUSES_S[min(turn, 2, len(PAUSES_S) - 1)] / 4):
                raise StorageError(f"rank {rank} could not write its part")
            turn += 1
        return parse_json_object(self._retry(lambda: store.get(self._marker(rank))))

    def _marker(self, rank: int) -> str:
        return f"{folder_of(self.step)}/part-{rank:05d}-{self.token}.json"

    def _retry(self, work: Callable[[], T]) -> T:
        """Returns `work()`, retried on storage errors; raises when a waiting caller's time limit is over."""
        failing_since = told = 0.0

        def failed(error: Exception) -> None:
            nonlocal failing_since, told
            now = time.monotonic()
            failing_since = failing_since or now
            self.in_trouble = True
            patience = self.saver.give_up_after_s
            if self.awaited.is_set() and now - failing_since > patience:
                raise StorageError(f"{error}, and so for {now - failing_since:.0f} s") from None
            if now - told > TELL_EVERY_S:
                told = now
                self.saver.say(
                    f"the checkpoint of step {self.step} waits for its storage: {error}. Training goes on; the "
                    f"next checkpoint waits until this has lasted {patience:.0f} s"
                )

        def pause(seconds: float) -> None:
            if self.abandoned.wait(seconds):
                raise StorageError("given up, as another rank could not write its part")

        pauses = itertools.chain(PAUSES_S, itertools.repeat(PAUSES_S[-1]))
        value = retry(work, StorageError, pauses, on_failure=failed, sleep=pause)
        self.in_trouble = False
        return value
