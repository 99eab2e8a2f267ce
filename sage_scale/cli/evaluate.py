"""`sage-scale evaluate`: translate a split, score it, and compare with the controls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sage_scale.errors import UsageError
from sage_scale.storage import on_this_machine
from sage_scale.untrusted.printer import echo, tell


def evaluate(
    run: Annotated[Path, typer.Option("--run", help="Folder of a finished run.")],
    data: Annotated[
        list[str],
        typer.Option("--data", help="Dataset: a folder, file:// or s3://bucket/prefix. Several: repeat it."),
    ],
    split: Annotated[
        str, typer.Option("--split", help="Split to score: test, dev, or another name.")
    ] = "test",
    controls: Annotated[bool, typer.Option(help="Score what a translator must beat as well.")] = True,
) -> None:
    """Translate a split; write its entry of scores.json and predictions/SPLIT.jsonl into the run, print the scores."""
    if not on_this_machine(run, "a run").is_dir():
        raise UsageError(f"there is no run {run}")

    from sage_scale.training import evaluate_run

    scores = evaluate_run.run(run, data, split=split, controls=controls, say=tell)
    figures = f"BLEU-4 {scores['bleu4']:.2f}  ROUGE-L {scores['rouge_l']:.2f}  ({scores['signature']})"
    echo(f"{split}: {figures}, {scores['clips']} clips")
    for tag, values in scores.get("languages", {}).items():
        echo(
            f"  {tag}: BLEU-4 {values['bleu4']:.2f}  ROUGE-L {values['rouge_l']:.2f}  ({values['signature']}), "
            f"{values['clips']} clips"
        )
    if "heldout" in scores:
        echo(f"{split}_heldout: BLEU-4 {scores['heldout']['bleu4']:.2f}, {scores['heldout']['clips']} clips")
    for name, values in scores.get("controls", {}).items():
        echo(f"  control {name.replace('_', ' ')}: BLEU-4 {values['bleu4']:.2f}")
