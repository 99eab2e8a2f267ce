"""The place of a run: a folder of this machine, or `s3://bucket/runs/NAME` with a working folder on each host.

The working folder lies in the user's folder of $TMPDIR (else /var/tmp) and has the layout of any run folder. The URL
has it, too, checkpoints included, and is the truth: a start makes the working folder equal to it, each save and the end
of a stage send what changed. So a run is resumed, evaluated and read on any machine, without a shared disk.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sage_scale.errors import StorageError, UsageError
from sage_scale.retry import retry
from sage_scale.storage import on_this_machine, open_store
from sage_scale.storage.store import is_name
from sage_scale.storage.working_copy import WorkingCopy
from sage_scale.training.run_lock import is_locked
from sage_scale.untrusted.files import own_folder
from sage_scale.untrusted.printer import tell
from sage_scale.untrusted.progress import Progress

HUB = "hf://"
"""Start of a name of the Hugging Face hub; without it a mistyped `runs/mine` would name a stranger's repository."""
PAUSES_S = (0.5, 1.0, 2.0, 5.0)
"""Seconds between attempts to upload; the last one repeats."""


@dataclass(frozen=True)
class RunPlace:
    """A run's folder on this machine, and the URL that it mirrors."""

    folder: Path
    url: str = ""
    """Empty for a run that lies in the folder alone."""
    copy: WorkingCopy | None = None

    def fetch(self, wanted: Callable[[str], bool] = lambda name: True) -> int:
        """Make the working folder equal to the URL (files with `wanted` names); returns the number of its files there.

        Does nothing for a folder without URL. Raises StorageError.
        """
        if self.copy is None:
            return 0
        with Progress(f"fetching {self.url}", "files") as progress:
            return self.copy.fetch(wanted, progress)

    def fetch_to_read(self, *choices: Callable[[str], bool]) -> Path:
        """Returns the folder with the files of the first of `choices` that finds any, for a verb that reads a run.

        If a stage trains in the working folder now, its files are taken as they are. Raises UsageError where the URL
        has none of these files.
        """
        if self.copy is None:
            return self.folder
        if is_locked(self.folder):
            self.copy.adopt()
        elif not any(self.fetch(wanted) for wanted in choices or (lambda name: True,)):
            raise UsageError(f"there is no run {self.url}, or nothing in it yet that this command reads")
        return self.folder

    def stored_recipe(self) -> Path:
        """Returns the path of the run's recipe.yaml, there or not; of a run at a URL it is fetched."""
        if self.copy is not None and not is_locked(self.folder):
            self.fetch(lambda name: name == "recipe.yaml")
        return self.folder / "recipe.yaml"

    def upload(self, patience_s: float) -> None:
        """Send the files that changed; an outage of the store is reported and waited for, at most `patience_s`.

        Raises StorageError after it.
        """
        copy = self.copy
        if copy is None:
            return
        failing_since = 0.0

        def failed(error: Exception) -> None:
            nonlocal failing_since
            if not failing_since:
                tell(f"the run's files wait for their storage, at most {patience_s:.0f} s: {error}")
            failing_since = failing_since or time.monotonic()
            if time.monotonic() - failing_since > patience_s:
                raise StorageError(
                    f"the run's files could not be uploaded for {patience_s:.0f} s ({error}): run the same command "
                    "to go on from the last checkpoint"
                ) from None

        pauses = itertools.chain(PAUSES_S, itertools.repeat(PAUSES_S[-1]))
        retry(lambda: copy.upload(single_attempt=True), StorageError, pauses, on_failure=failed)

    def upload_once(self) -> None:
        """Send the files that changed, at the early end of a stage; a failure is one line, not an error."""
        try:
            if self.copy is not None:
                self.copy.upload(single_attempt=True)
        except StorageError as error:
            tell(f"the last lines of the log are in {self.folder} only: {error}")

    def send(self, *names: str) -> None:
        """Send single files that are there, in one attempt; a failure is one line, not an error."""
        try:
            store = self.copy.store.single_attempt() if self.copy is not None else None
            for name in names:
                if store is not None and (self.folder / name).is_file():
                    store.put(name, self.folder / name)
        except StorageError as error:
            tell(f"{', '.join(names)} could not be uploaded: {error}")


def run_place(run: str | Path) -> RunPlace:
    """Returns the place of a run by the value of `--run`. Contacts nothing.

    Raises UsageError for another kind of URL, and for one that names no run.
    """
    if not str(run).startswith("s3://"):
        return RunPlace(on_this_machine(run, "a run"))
    store = open_store(str(run))
    name = store.url.rstrip("/").removeprefix("s3://").partition("/")[2]
    if not name or not is_name(name):
        raise UsageError(f"{store.url} names no run: write s3://bucket/runs/NAME")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    digest = hashlib.sha256(f"{endpoint} {store.url}".encode()).hexdigest()[:16]
    try:
        folder = own_folder() / "runs" / digest / name.rpartition("/")[2]
    except OSError as error:
        raise StorageError(
            f"{error.filename}: {error.strerror}: set TMPDIR to a folder for the run's working files"
        ) from None
    return RunPlace(folder, store.url, WorkingCopy(store, folder, _mirrored))


def model_folder(model: str | Path) -> Path:
    """Returns the folder on this machine of a trained model: a run or an export, its `s3://` URL, or a repository
    of the Hugging Face hub, `hf://OWNER/NAME[@REVISION]`, whose files are fetched.

    Raises NoModel or UsageError where there is none.
    """
    if str(model).startswith(HUB):
        from sage_scale.text.hub import fetch_model

        name, _, revision = str(model).removeprefix(HUB).rstrip("/").partition("@")
        return fetch_model(name, revision or None)
    return run_place(model).fetch_to_read(is_model, is_export)


def _mirrored(name: str) -> bool:
    """Returns whether a file is sent with the run: not its checkpoints, which lie at the URL themselves."""
    parts = name.split("/")
    unfinished = any(part.endswith(".partial") for part in parts)
    return not unfinished and "checkpoints" not in parts[1:2] and "wandb" not in parts[1:2]


def is_model(name: str) -> bool:
    """Returns whether a file of a run belongs to its export."""
    return name.startswith("model/")


def is_export(name: str) -> bool:
    """Returns whether a file may belong to an export that is named itself, `s3://bucket/runs/NAME/model`."""
    return name.partition("/")[0] not in ("pretrain", "finetune", "predictions", "timelines")


def is_readable(name: str) -> bool:
    """Returns whether a file of a run is read by a report: no weights, no TensorBoard events."""
    inside = name.startswith(("model/", "language_model/"))
    return not inside and name.endswith((".json", ".jsonl", ".yaml", ".txt", ".tsv"))
