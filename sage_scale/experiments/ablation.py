"""The runs of an ablation table: the cells times its seeds, on Ray.

HOME/corpus-DIGEST/        the synthetic corpus, with keypoints; other corpora stay where corpus.root says
HOME/shards/DIGEST/        one dataset for all cells and seeds that share its recipe keys and corpus
HOME/language/DIGEST/      one language model for all runs: it is not what is compared
HOME/TABLE/CELL-SEED/      run folders
HOME/rows/                 rows and pages, unless `--rows` names a folder
HOME/lock                  held while a call makes what its runs share

A run whose row is stored is not repeated; a run that was interrupted goes on with its stage.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from sage_scale.config import Recipe
from sage_scale.config.reading import changed
from sage_scale.errors import SageError
from sage_scale.experiments.ablation_data import (
    Corpora,
    alone_in,
    identity_of,
    in_place,
    language_digest,
)
from sage_scale.experiments.ablation_pool import Finished, Pool, ray_pool
from sage_scale.experiments.ablation_rows import Row, Rows, check_writable, slug
from sage_scale.experiments.ablation_run import LOG, Run, needs_language_model
from sage_scale.experiments.ablation_table import Cell, Table
from sage_scale.untrusted.display import duration, shortened
from sage_scale.untrusted.printer import tell
from sage_scale.untrusted.progress import Progress

LINE_S = 30.0
"""Seconds between two lines of progress where there is no terminal."""


class RunsFailed(SageError):
    """Some runs of a table failed; the others were made."""


class RunsLeft(SageError):
    """The budget ended before all runs were made: the same command goes on."""

    exit_code = 4


@dataclass(kw_only=True)
class Outcome:
    """What a call leaves."""

    rows: dict[tuple[str, int], Row] = field(default_factory=dict)
    """Finished runs by cell and seed."""
    failed: dict[tuple[str, int], str] = field(default_factory=dict)
    """Reasons of failures, with the log where there is one."""
    left: int = 0
    """Runs that were not begun."""


@dataclass(kw_only=True)
class Ablation:
    """The runs of a table."""

    table: Table
    cells: tuple[Cell, ...]
    seeds: int
    home: Path
    rows: Rows
    budget_s: float = 0.0
    """Seconds after which no new run starts; 0: none."""
    overrides: Sequence[str] = ()
    pool: Callable[[Recipe, int], AbstractContextManager[Pool]] = ray_pool
    """From a recipe and a number of runs to the processes that make them."""

    def __post_init__(self) -> None:
        self.home = self.home.expanduser().absolute()
        self.outcome = Outcome()
        self._corpora = Corpora(self.home)
        self._took: list[float] = []

    def execute(self) -> Outcome:
        """Makes the runs of the cells that have no row yet, seed by seed; of the table's other cells, finished runs are
        read. Raises SageError where no run can be prepared, KeyboardInterrupt after a Ctrl-C."""
        begun = time.monotonic()
        pending: list[tuple[Cell, int, Recipe, str]] = []
        for seed in range(self.seeds):
            for cell in self.table.cells:
                chosen = cell in self.cells
                if not chosen and not self.rows.path(cell.name, seed).is_file():
                    continue
                recipe = self.table.recipe_of(cell, seed, self.overrides)
                identity = identity_of(recipe, cell.stages, self.table.split, self._corpora.digest(recipe))
                row = self.rows.find(cell.name, seed, identity, self._controls(cell))
                if row is not None:
                    self.outcome.rows[cell.name, seed] = row
                elif chosen:
                    pending.append((cell, seed, recipe, identity))
        self.outcome.left = len(pending)
        if pending:
            check_writable(self.home)
            check_writable(self.rows.path("", 0).parent)
            with self.pool(pending[0][2], len(pending)) as pool:
                with alone_in(self.home):
                    runs = self._prepared(pending)
                    _make_language_models(pool, runs)
                self._make(pool, runs, begun)
        return self.outcome

    def _prepared(self, pending: Sequence[tuple[Cell, int, Recipe, str]]) -> list[Run]:
        """Returns the runs with their corpora and datasets made. Runs of a cell that has none count as failed; where
        this leaves no run, the first error is raised."""
        runs, errors = [], dict[str, SageError]()
        for cell, seed, recipe, identity in pending:
            if cell.name not in errors:
                try:
                    runs.append(self._run(cell, seed, recipe, identity))
                    continue
                except SageError as error:
                    errors[cell.name] = error
            self.outcome.failed[cell.name, seed] = shortened(errors[cell.name], 300)
        if not runs:
            raise next(iter(errors.values()))
        return runs

    def _run(self, cell: Cell, seed: int, recipe: Recipe, identity: str) -> Run:
        """Returns a run with its corpus and dataset made."""
        placed = in_place(recipe, self._corpora.make(recipe))
        language = None
        if needs_language_model(recipe, cell.stages):
            language = self.home / "language" / language_digest(recipe, self._corpora.digest(recipe))
        return Run(
            cell=cell.name,
            seed=seed,
            recipe=placed,
            stages=cell.stages,
            split=self.table.split,
            identity=identity,
            folder=self.home / self.table.name / f"{slug(cell.name)}-{seed}",
            data=self._corpora.dataset(recipe, placed, self.table.split),
            controls=self._controls(cell),
            language_model=language,
        )

    def _controls(self, cell: Cell) -> bool:
        """Returns whether a cell's controls are scored: where the table shows them and the cell has translations."""
        return "finetune" in cell.stages and any("control" in score for score in self.table.scores)

    def _make(self, pool: Pool, runs: list[Run], begun: float) -> None:
        done = sum(any(cell.name == name for cell in self.cells) for name, _ in self.outcome.rows)
        total, running = done + len(runs), 0
        with Progress("runs", every_s=LINE_S) as progress:
            while True:
                over = bool(self.budget_s) and time.monotonic() - begun > self.budget_s
                while runs and pool.idle and not over:
                    pool.start(runs.pop(0))
                    running += 1
                self.outcome.left = len(runs)
                if not running:
                    break
                for finished in pool.finished():
                    progress.say(self._keep(finished))
                    running, done = running - 1, done + 1
                line = self._line(done, total, running, 0 if over else len(runs), pool.count)
                progress.update(done, total, functools.partial(str, line))

    def _keep(self, finished: Finished) -> str:
        """Keeps the result of a run; returns a line about it."""
        run, row, failure, seconds = finished
        self._took.append(seconds)
        name = f"{run.cell}, seed {run.seed}"
        if failure:
            reason = f"{shortened(failure, 300)} (log: {run.folder / LOG})"
            self.outcome.failed[run.cell, run.seed] = reason
            return f"{name}: failed after {duration(seconds)}: {reason}"
        self.rows.put(row)
        self.outcome.rows[run.cell, run.seed] = row
        shown = (
            f"{score} {row['scores'][score]:.4g}" for score in self.table.scores if score in row["scores"]
        )
        return f"{name}: {'  '.join(shown)}  in {duration(seconds)}"

    def _line(self, done: int, total: int, running: int, waiting: int, slots: int) -> str:
        line = f"runs: {done:,} of {total:,}, {running} running"
        if not self._took:
            return f"{line}, time left unknown"
        left = sum(self._took) / len(self._took) * max(waiting + running / 2, 0.5) / slots
        return f"{line}, {duration(left)} left"


def _make_language_models(pool: Pool, runs: Sequence[Run]) -> None:
    """Makes the language models that are not there yet, by the recipe of their first run with the seed 0."""
    wanted: dict[Path, Run] = {}
    for run in runs:
        if run.language_model is not None:
            wanted.setdefault(run.language_model, run)
    for folder, run in wanted.items():
        if (folder / "language_model" / "prepared.json").is_file():
            continue
        tell("language model: one for all runs")
        recipe = changed(run.recipe, {"pretrain.seed": 0, "finetune.seed": 0})
        if failure := pool.language_model(recipe, run.data, folder):
            raise SageError(f"the language model was not made: {failure} (log: {folder / LOG})")
