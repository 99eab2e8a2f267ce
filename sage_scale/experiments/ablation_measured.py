"""From the rows of an ablation to its measured table: spreads over seeds, tests against the reference cell, caption."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from sage_scale.config import Recipe
from sage_scale.config.recipe import flat, to_mapping
from sage_scale.evaluation.counts import metric_names
from sage_scale.evaluation.significance import (
    PairedTest,
    difference_over_seeds,
    over_seeds,
    paired_over_seeds,
)
from sage_scale.experiments.ablation import Outcome
from sage_scale.experiments.ablation_rows import Row
from sage_scale.experiments.ablation_table import RUN_AXES, STAGES, Table
from sage_scale.reporting.ablation_chart import Measured, MeasuredCell, MeasuredTable


def measure(
    table: Table, outcome: Outcome, seeds: int, overrides: Sequence[str] = (), given: str = ""
) -> MeasuredTable:
    """Returns the measured table; cells without a finished run have no scores. `given` is the table as it was asked
    for, its name or file, for the caption's command."""
    reference = table.reference or table.cells[0].name
    rows = {cell.name: _rows(outcome, cell.name, seeds) for cell in table.cells}
    cells = []
    for cell in table.cells:
        own = rows[cell.name]
        recipe = table.recipe_of(cell, None, overrides)
        scores = {}
        for score in table.scores:
            values = [row["scores"][score] for row in own.values() if score in row["scores"]]
            if values:
                test, tested = None, 0
                if cell.name != reference:
                    test, tested = _test(own, rows[reference], score)
                scores[score] = Measured(
                    values=tuple(values), spread=over_seeds(values), test=test, seeds_tested=tested
                )
        cells.append(
            MeasuredCell(
                name=cell.name,
                published=cell.published,
                needs=cell.needs,
                scores=scores,
                runs=len(own),
                failed=sum(name == cell.name for name, _ in outcome.failed),
                axes={axis: at for axis in table.axes if (at := _at(axis, recipe, own.values())) is not None},
            )
        )
    return MeasuredTable(
        name=table.name,
        title=table.title,
        source=table.source,
        scores=table.scores,
        reference=reference,
        seeds=seeds,
        cells=tuple(cells),
        axes=table.axes,
        caption=tuple(_caption(table, list(outcome.rows.values()), seeds, overrides, given)),
    )


def _rows(outcome: Outcome, cell: str, seeds: int) -> dict[int, Row]:
    return {seed: outcome.rows[cell, seed] for seed in range(seeds) if (cell, seed) in outcome.rows}


def _test(own: dict[int, Row], reference: dict[int, Row], score: str) -> tuple[PairedTest | None, int]:
    """Returns the test over the seeds that both cells have, and their number: over clips as well where the score is
    counted from texts of the same clips, else over seeds alone."""
    both = [
        seed
        for seed in own
        if seed in reference and score in own[seed]["scores"] and score in reference[seed]["scores"]
    ]
    if not both:
        return None, 0
    same_clips = len({rows[seed]["references"] for rows in (own, reference) for seed in both}) == 1
    if score in metric_names() and same_clips and own[both[0]]["texts"]:
        texts = own[both[0]]["texts"]
        references, languages = [text for _, text, _ in texts], [tag for _, _, tag in texts]
        ours, theirs = (
            [[text for text, _, _ in rows[s]["texts"]] for s in both] for rows in (own, reference)
        )
        return paired_over_seeds(ours, theirs, references, languages, score), len(both)
    if len(both) < 2:
        return None, 0
    values, others = ([rows[seed]["scores"][score] for seed in both] for rows in (own, reference))
    return difference_over_seeds(values, others), len(both)


def _at(axis: str, recipe: Recipe, rows: Iterable[Row]) -> float | None:
    """Returns the position of a cell on an axis: the value of a recipe key, or the mean of a figure of its runs."""
    if axis not in RUN_AXES:
        value = flat(to_mapping(recipe)).get(axis)
        return float(value) if isinstance(value, int | float) else None
    found = [row[axis] for row in rows if axis in row]
    totals = [sum(value.values()) if isinstance(value, dict) else value for value in found]
    return sum(totals) / len(totals) if totals else None


def _caption(
    table: Table, rows: Sequence[Row], seeds: int, overrides: Sequence[str], given: str
) -> list[str]:
    recipe = table.recipe_of(table.cells[0], None, overrides)
    corpus = recipe.corpus
    if corpus.name == "synthetic":
        clips = f"{corpus.train_clips} training and {corpus.dev_clips} dev clips, seed {corpus.seed}"
        lines = [f"corpus: synthetic signing with German weather sentences, {clips}"]
    else:
        clips = _some(row["epoch_clips"] for row in rows if "epoch_clips" in row)
        lines = [f"corpus: {corpus.name}, {clips or 'unknown'} training clips an epoch"]
    lines += dict.fromkeys(notice for row in rows if (notice := row.get("notice")))
    lines.append(f"recipe: {recipe.name}; features: {recipe.vision.backbone}; split: {table.split}")
    if rows:
        shown = [f"{stage} {' or '.join(counts)}" for stage in STAGES if (counts := _steps(rows, stage))]
        ceilings = [row["ceiling"] for row in rows if row.get("ceiling") is not None]
        if ceilings:
            lines.append(
                f"ceiling: BLEU-4 {_some(ceilings)} on dev, the same language model from pseudo-glosses"
            )
        signatures = _some(row["signature"] for row in rows if row["signature"])
        lines += [
            f"scored clips: {_some(map(_clips, rows))}; steps: {', '.join(shown)}; seeds: {seeds}",
            f"tokeniser: {signatures or 'none, no text was scored'}",
            f"device: {_some(row['device'] for row in rows)}; CPU seconds a run: {_seconds(rows)}",
            f"dates: {_some(row['date'] for row in rows)}; versions: {_some(_versions(row) for row in rows)}",
        ]
    command = ["sage-scale", "ablate", given or table.name, "--seeds", str(seeds), *overrides]
    lines.append(f"command: {shlex.join(command)}")
    return lines


def _clips(row: Row) -> int:
    """Returns the clips of the scored split; without translations those of stage 1's scores."""
    return row["clips"] or int(row["scores"].get("prototypes.clips", row["scores"].get("pretrain.clips", 0)))


def _steps(rows: Sequence[Row], stage: str) -> list[str]:
    return list(map(str, sorted({row["steps"][stage] for row in rows if stage in row["steps"]})))


def _versions(row: Row) -> str:
    return ", ".join(f"{name} {version}" for name, version in row["versions"].items())


def _seconds(rows: Sequence[Row]) -> str:
    spent = sorted(row["cpu_seconds"] for row in rows)
    return f"{spent[0]:.0f} to {spent[-1]:.0f}"


def _some(values: Iterable[Any]) -> str:
    return ", ".join(map(str, dict.fromkeys(values)))


def unknown_scores(table: Table, rows: Sequence[Row]) -> list[str]:
    """Returns the scores of the table that no finished run has."""
    known = {name for row in rows for name in row["scores"]}
    return [score for score in table.scores if known and score not in known]
