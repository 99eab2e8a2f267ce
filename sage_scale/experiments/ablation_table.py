"""Ablation tables: YAML files that name a grid of cells over one base recipe, and the published figures beside them.

    name: sage-4a
    title: Losses of stage 1, one level or two
    source: SAGE (Low et al. 2025), Table 4a, PHOENIX14T dev     # of the published figures
    recipe: ablation                                             # name, or path to a YAML file
    changes: {}                                                  # of all cells
    split: dev
    scores: [bleu4, rouge_l]
    seeds: 5
    reference: CLCL, two levels                                  # cell of the paired tests; else the first one
    cells:
      - name: CLIP, one level
        changes: {clcl.loss: clip, clcl.beta: 0.0}
        published: {bleu4: 21.93, rouge_l: 47.04}
      - name: no stage 1
        stages: [finetune]                                       # else pretrain and finetune
        changes: {finetune.init: none}

A table, a cell and a key that do not exist are refused with the nearest one that does.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sage_scale.config import LAUNCH_FOLDER, Recipe, load_recipe, override
from sage_scale.config.reading import changed, converted, nearest, read_mapping
from sage_scale.config.recipe import flat, to_mapping
from sage_scale.errors import RecipeError, UsageError
from sage_scale.evaluation.counts import metric_names
from sage_scale.experiments.ablation_rows import slug
from sage_scale.untrusted.display import shortened

TABLE_FOLDER = LAUNCH_FOLDER / "tables"
MOST_CELLS = 200
MOST_SEEDS = 100
StageName = Literal["pretrain", "finetune"]
STAGES: tuple[StageName, ...] = ("pretrain", "finetune")
SCORES = (*metric_names(), "content_f1", "token_ratio", "best_control")
SCORES_OF = ("heldout", "controls", "groups", "pretrain", "finetune", "prototypes")
"""First parts of dotted scores."""
RUN_AXES = ("tokens", "epoch_tokens", "epoch_clips", "steps", "cpu_seconds")
"""Axes that are figures of a run, not recipe keys: visual and text tokens that all stages were given; those, and the
clips, of one epoch; optimizer steps of all stages."""
MOST_BYTES = 200
"""Bytes of a table's or cell's name: a file's name has at most 255."""
SEEDS = ("stream.seed", "pretrain.seed", "finetune.seed")
"""Keys that a run's seed sets."""
Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row of a table: a named set of changes to its recipe."""

    name: str = ""
    """Name, unique in the table."""
    changes: Values = field(default_factory=dict)
    """`section.key` to plain value."""
    stages: tuple[StageName, ...] = STAGES
    """Stages to train; without finetune there are scores of stage 1 alone."""
    published: Mapping[str, float] = field(default_factory=dict)
    """Published figures by score."""
    needs: str = ""
    """Weights or corpora that the cell cannot do without: it is run only where `--cells` names it."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A grid of cells over one recipe."""

    name: str = ""
    """Name; of a shipped table, its file's."""
    title: str = ""
    """Heading."""
    source: str = ""
    """Publication, table and split of the published figures."""
    recipe: str = "ablation"
    """Base recipe: a name, or a path to a YAML file."""
    changes: Values = field(default_factory=dict)
    """Changes of all cells, `section.key` to plain value."""
    split: str = "dev"
    """Split that is scored."""
    scores: tuple[str, ...] = ("bleu4", "rouge_l")
    """Columns: names of a run's scores. `bleu4` and the like of the split; `pretrain.NAME`, a dev figure of stage 1;
    `heldout.NAME`, of held-out signers; `prototypes.NAME`, of Sign2GPT's stage 1 (docs/ablations.md)."""
    seeds: int = 5
    """Seeds of each cell, 0 to this less one, unless `--seeds` says otherwise."""
    reference: str = ""
    """Cell that the others are tested against; empty: the first one."""
    axes: tuple[str, ...] = ()
    """Horizontal axes of the figure, a chart each: a recipe key, or a figure of the runs (docs/ablations.md). Empty: a
    bar a cell."""
    cells: tuple[Cell, ...] = ()
    """Rows, in their order."""

    def recipe_of(self, cell: Cell, seed: int | None = None, overrides: Sequence[str] = ()) -> Recipe:
        """Returns the recipe of a cell: the base with the table's changes, `overrides`, the cell's changes, and the
        seed, each over the one before."""
        recipe = override(self._base, overrides)
        recipe = changed(recipe, cell.changes)
        if seed is None:
            return recipe
        return changed(recipe, dict.fromkeys(SEEDS, seed))

    @functools.cached_property
    def _base(self) -> Recipe:
        return changed(load_recipe(self.recipe), self.changes)

    def chosen(self, names: Sequence[str]) -> tuple[Cell, ...]:
        """Returns the cells of these names in the table's order; without names all that need nothing. Raises
        UsageError."""
        known = [cell.name for cell in self.cells]
        for name in names:
            if name not in known:
                some = nearest(name, known) or f"; it has: {', '.join(known)}"
                raise UsageError(f"table '{self.name}' has no cell '{shortened(name)}'{some}")
        return tuple(cell for cell in self.cells if cell.name in names or not (names or cell.needs))


def table_names() -> list[str]:
    """Returns the names of the tables that come with the product."""
    return sorted(path.stem for path in TABLE_FOLDER.glob("*.yaml"))


def load_table(name: str | Path, overrides: Sequence[str] = ()) -> Table:
    """Returns a table by name or by path to a YAML file, with the recipe of every cell checked under `overrides`.

    Raises RecipeError, in one line, for an unknown table, key, stage, score or recipe key, and for malformed YAML.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        known = table_names()
        if str(name) not in known:
            raise RecipeError(
                f"no table '{shortened(name)}'{nearest(str(name), known)}; known: {', '.join(known)}"
            )
        path = TABLE_FOLDER / f"{name}.yaml"
    shown = shortened(path, 300)
    values = read_mapping(path, "table")
    values.setdefault("name", path.stem)
    try:
        table = _table(values)
        table.recipe_of(Cell(), None, overrides)  # an error outside the cells names none
        _check_columns(table)
        _refuse_seeds(table, overrides)
        for cell in table.cells:
            _check_cell(table, cell, overrides)
    except RecipeError as error:
        raise RecipeError(f"{shown}: {error}") from None
    return table


def _check_columns(table: Table) -> None:
    for score in table.scores:
        if score not in SCORES and score.partition(".")[0] not in SCORES_OF:
            known = f"{', '.join(SCORES)}, and those of {', '.join(f'{one}.' for one in SCORES_OF)}"
            raise RecipeError(
                f"scores: no score '{shortened(score)}'{nearest(score, SCORES)}; known: {known}"
            )
    keys = [*RUN_AXES, *flat(to_mapping(table.recipe_of(Cell())))]
    for axis in table.axes:
        if axis not in keys:
            raise RecipeError(f"axes: no recipe key or figure '{shortened(axis)}'{nearest(axis, keys)}")
    for name, values in (("scores", table.scores), ("axes", table.axes)):
        if twice := next((value for value in values if values.count(value) > 1), None):
            raise RecipeError(f"{name}: '{shortened(twice)}' occurs twice")


def _refuse_seeds(table: Table, overrides: Sequence[str]) -> None:
    given = [override.partition("=")[0] for override in overrides]
    changed_keys = [
        key for changes in (table.changes, *(cell.changes for cell in table.cells)) for key in changes
    ]
    if seed := next((key for key in (*given, *changed_keys) if key in SEEDS), None):
        raise RecipeError(f"{seed}: a run's seed is set by the table (seeds, --seeds): leave the key out")


def _check_cell(table: Table, cell: Cell, overrides: Sequence[str]) -> None:
    try:
        finetune = table.recipe_of(cell, None, overrides).finetune
        if "pretrain" not in cell.stages and finetune.init != "none" and not finetune.glosses:
            raise RecipeError("stages without pretrain need finetune.init=none")
    except RecipeError as error:
        raise RecipeError(f"cell '{shortened(cell.name)}': {error}") from None


def _table(values: Values) -> Table:
    rows = values.get("cells")
    if not isinstance(rows, list) or not 0 < len(rows) <= MOST_CELLS:
        raise RecipeError(f"cells: must be a list of 1 to {MOST_CELLS} cells")
    cells = []
    for number, row in enumerate(rows, start=1):
        name = row.get("name") if isinstance(row, dict) else None
        where = f"cell '{shortened(name)}': " if name else f"cell {number}: "
        cell = _filled(Cell(), row, where)
        if not cell.name or not cell.name.isprintable() or len(cell.name) > 80:
            raise RecipeError(f"{where}name: must be one line of 1 to 80 characters")
        if len(slug(cell.name).encode()) > MOST_BYTES:
            raise RecipeError(f"{where}name: is part of a file's name: must have at most {MOST_BYTES} bytes")
        if not cell.stages or list(cell.stages) != [stage for stage in STAGES if stage in cell.stages]:
            raise RecipeError(f"{where}stages: must be pretrain, finetune or both, in this order")
        cells.append(cell)
    table: Table = _filled(Table(), {key: value for key, value in values.items() if key != "cells"}, "")
    table = dataclasses.replace(table, cells=tuple(cells))
    names, files = [cell.name for cell in cells], [slug(cell.name) for cell in cells]
    if twice := next((name for name, file in zip(names, files) if files.count(file) > 1), None):
        raise RecipeError(f"two cells are named '{shortened(twice)}', or alike but for signs between words")
    if table.name != slug(table.name) or len(table.name.encode()) > MOST_BYTES:
        raise RecipeError(
            f"name: must be of small letters, digits, dots and hyphens, at most {MOST_BYTES} bytes, as "
            f"'{shortened(slug(table.name))}'"
        )
    if table.reference and table.reference not in names:
        raise RecipeError(
            f"reference: no cell '{shortened(table.reference)}'{nearest(table.reference, names)}"
        )
    if not table.scores:
        raise RecipeError("scores: at least one")
    if not 0 < table.seeds <= MOST_SEEDS:
        raise RecipeError(f"seeds={table.seeds}: must be 1 to {MOST_SEEDS}")
    for cell in cells:
        for score in cell.published:
            if score not in table.scores:
                near = nearest(score, table.scores) or f"; scores: {', '.join(table.scores)}"
                raise RecipeError(
                    f"cell '{shortened(cell.name)}': published.{shortened(score)} is no score of the table{near}"
                )
    return table


def _filled(empty: Any, values: Any, where: str) -> Any:
    """Returns a table or cell with its values, each checked against its field's type."""
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where}must be a mapping")
    hints, known = typing.get_type_hints(type(empty)), [f.name for f in dataclasses.fields(empty)]
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise RecipeError(f"{where}unknown key '{shortened(key)}'{nearest(str(key), known)}")
        if key in ("changes", "published"):
            if not isinstance(value if value is not None else {}, Mapping):
                raise RecipeError(f"{where}{key}: must be a mapping")
            found[key] = flat(value or {})
            if key == "published":
                found[key] = {
                    one: converted(float, number, f"{where}{key}.{shortened(one)}")
                    for one, number in found[key].items()
                }
        else:
            found[key] = converted(hints[key], value, f"{where}{key}")
    return dataclasses.replace(empty, **found)
