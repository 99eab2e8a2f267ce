"""`sage-scale models describe`: what a recipe's model consists of."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def models() -> None:
    """The models of a recipe."""


@app.command()
def describe(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or path to its YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changed keys.")
    ] = None,
) -> None:
    """Parameters of each part, total and trained in each stage; nothing is downloaded."""
    from rich.console import Console
    from rich.table import Table

    from sage_scale.config import load_recipe
    from sage_scale.models.describe import describe as parts_of
    from sage_scale.models.describe import note

    chosen = load_recipe(recipe, overrides or ())
    parts = parts_of(chosen)
    table = Table(title=f"recipe {chosen.name}", title_justify="left")
    table.add_column("part")
    for column in ("parameters", "trained in stage 1", "trained in stage 2"):
        table.add_column(column, justify="right")
    for part in parts:
        table.add_row(part.name, *(f"{count:,}" for count in (part.parameters, part.stage1, part.stage2)))
    table.add_section()
    totals = (sum(counts) for counts in zip(*((p.parameters, p.stage1, p.stage2) for p in parts)))
    table.add_row("total", *(f"{count:,}" for count in totals))
    table.caption, table.caption_justify = note(chosen) or None, "left"
    Console(width=110, highlight=False).print(table)
