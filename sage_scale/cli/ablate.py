"""`sage-scale ablate`: a table of cells times seeds on Ray, beside the published figures; a killed one resumes.

sage-scale ablate --list
sage-scale ablate sage-4a --seeds 3 --rows docs/results/ablations
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sage_scale.errors import UsageError
from sage_scale.storage import on_this_machine
from sage_scale.untrusted.files import expanded
from sage_scale.untrusted.printer import echo, tell


def ablate(
    table: Annotated[str, typer.Argument(metavar="[TABLE]", help="Table name or YAML file.")] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Changes to the recipe of all cells, section.key=value."
        ),
    ] = None,
    cells: Annotated[
        list[str] | None, typer.Option("--cells", metavar="NAME", help="Cell to run; several: repeat it.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=0, max=100, help="Seeds of each cell; 0: the table's.")] = 0,
    home: Annotated[Path, typer.Option(help="Folder of corpus, shards, language model and runs.")] = Path(
        "runs/ablations"
    ),
    rows: Annotated[
        Path | None,
        typer.Option(help="Folder of finished rows and of the pages; HOME/rows unless given."),
    ] = None,
    budget: Annotated[
        float, typer.Option(min=0, metavar="MINUTES", help="Time after which no new run starts; 0: none.")
    ] = 0.0,
    list_tables: Annotated[bool, typer.Option("--list", help="List the tables and their cells.")] = False,
) -> None:
    """Run a table's cells over seeds; write the measured figures beside the published ones. Repeat it to go on."""
    from sage_scale.experiments import ablation_table

    if list_tables:
        for name in [table] if table else ablation_table.table_names():
            found = ablation_table.load_table(name)
            source = f" ({found.source})" if found.source else ""
            echo(f"{found.name}: {found.title}{source}", *(f"  {cell.name}" for cell in found.cells))
        return
    if not table:
        raise UsageError("which table? `sage-scale ablate --list` lists them")
    found = ablation_table.load_table(table, overrides or [])
    chosen = found.chosen(cells or [])
    home = expanded(on_this_machine(home, "the folder of the runs"))
    rows = expanded(on_this_machine(rows, "the folder of the rows")) if rows else home / "rows"

    import sys

    from sage_scale.experiments.ablation import Ablation, RunsFailed, RunsLeft
    from sage_scale.experiments.ablation_measured import measure, unknown_scores
    from sage_scale.experiments.ablation_rows import Rows
    from sage_scale.reporting.ablation_page import show, write_pages

    count = seeds or found.seeds
    ablation = Ablation(
        table=found,
        cells=chosen,
        seeds=count,
        home=home,
        rows=Rows(rows, found.name),
        budget_s=budget * 60,
        overrides=overrides or [],
    )
    outcome = ablation.execute()
    for score in unknown_scores(found, list(outcome.rows.values())):
        tell(f"no run has the score '{score}' of the table")
    measured = measure(found, outcome, count, overrides or [], table)
    show(measured, sys.stdout)
    echo(*map(str, write_pages(measured, rows)))
    for (cell, seed), reason in outcome.failed.items():
        tell(f"failed: {cell}, seed {seed}: {reason}")
    if outcome.failed:
        raise RunsFailed(f"failed runs: {len(outcome.failed)}; the same command tries them again")
    if outcome.left:
        raise RunsLeft(f"runs not begun within --budget: {outcome.left}; the same command goes on")
