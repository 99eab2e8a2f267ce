"""The command line, over everything else: a module for each group of verbs, and the arguments that several share."""

from __future__ import annotations

from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Option("--recipe", help="Recipe name or YAML file.")]
RecipeToShow = Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe name or YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe, section.key=value."),
]
DatasetUrl = Annotated[
    str, typer.Argument(metavar="URL", help="Folder, or s3://bucket/prefix, of the dataset.")
]
