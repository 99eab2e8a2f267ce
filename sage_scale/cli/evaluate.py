"""`sage-scale evaluate`: translate a split, score it, and compare with the controls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    run: Annotated[Path, typer.Option("--run", help="Folder of a finished run.")],
    data: Annotated[str, typer.Option("--data", help="Dataset: a folder, file:// or s3://bucket/prefix.")],
    split: Annotated[
        str, typer.Option("--split", help="Split to score: test, dev, or another name.")
    ] = "test",
) -> None:
    """Translate a split and write scores.json and predictions/SPLIT.jsonl into the run."""
    from sage_scale.training import evaluate_run

    evaluate_run.run(run, data, split=split)
