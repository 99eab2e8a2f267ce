"""`sage-scale demo`, `evaluate` and `report`: the whole main job on a synthetic corpus; a run's scores; its page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sage_scale.cli import Overrides, RecipeName
from sage_scale.errors import UsageError
from sage_scale.storage import on_this_machine
from sage_scale.training.run_place import RunPlace, is_readable, run_place
from sage_scale.untrusted.printer import echo, echo_json, tell
from sage_scale.untrusted.progress import Progress

METRICS = {"bleu4": "BLEU-4", "rouge_l": "ROUGE-L", "chrf": "chrF", "bleurt": "BLEURT", "comet": "COMET"}
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        help="bleurt=FOLDER of a checkpoint, comet or comet=MODEL, by their own packages. Several: repeat it.",
    ),
]


def demo(
    recipe: RecipeName = "demo",
    run: Annotated[
        Path | None, typer.Option("--run", help="Folder of the run; runs/RECIPE unless given.")
    ] = None,
    control: Annotated[
        bool, typer.Option("--control", help="The same budget without stage 1, to compare.")
    ] = False,
    ranks: Annotated[
        int, typer.Option("--ranks", min=0, help="Training processes; 0: one a core, at most two.")
    ] = 0,
    overrides: Overrides = None,
) -> None:
    """Make a corpus, precompute, pretrain, finetune, evaluate, translate and report. Repeat it to go on."""
    from sage_scale.experiments import demo as experiment

    experiment.run(recipe, run, control=control, overrides=overrides or [], ranks=ranks)


def evaluate(
    run: Annotated[str, typer.Option("--run", help="Folder of a finished run, or s3://bucket/runs/NAME.")],
    data: Annotated[
        list[str],
        typer.Option("--data", help="Dataset: a folder, file:// or s3://bucket/prefix. Several: repeat it."),
    ],
    split: Annotated[
        str, typer.Option("--split", help="Split to score: test, dev, or another name.")
    ] = "test",
    controls: Annotated[
        bool, typer.Option(help="Score the controls that a translator must beat as well.")
    ] = True,
    metrics: Metrics = None,
    gold: Annotated[
        str | None,
        typer.Option(
            "--gold",
            help="Gold signs, to score stage 1's tokens: a synthetic corpus, a folder of .json or .eaf, a table.",
        ),
    ] = None,
) -> None:
    """Translate a split; write its scores and predictions/SPLIT (.jsonl, .txt, .tsv) into the run, print the scores."""
    place = run_place(run)
    if not place.url and not place.folder.is_dir():
        raise UsageError(f"there is no run {run}")

    from sage_scale.training import evaluate_run

    scores = evaluate_run.run(
        run, data, split=split, controls=controls, say=tell, metrics=metrics or [], gold=gold
    )
    echo(f"{split}: {_line(scores)} ({scores['signature']}), {scores['clips']} clips")
    for tag, values in scores.get("languages", {}).items():
        echo(f"  {tag}: {_line(values)} ({values['signature']}), {values['clips']} clips")
    if "macro" in scores:
        echo(f"  mean over {scores['macro']['languages']} languages: {_line(scores['macro'])}")
    if "heldout" in scores:
        echo(f"{split}_heldout: {_line(scores['heldout'])}, {scores['heldout']['clips']} clips")
    aligned = scores.get("alignment")
    if aligned and not aligned["scored"]:
        echo(
            "  pseudo-gloss of a token is its sign's: not scored, since no sign under the "
            f"{aligned['signed']} tokens on gold signs has its word among the pseudo-glosses"
        )
    elif aligned:
        echo(
            f"  pseudo-gloss of a token is its sign's: {aligned['accuracy']:.1f}% of {aligned['scored']} tokens "
            f"(chance {aligned['chance']:.1f}%)"
        )
    for name, values in scores.get("controls", {}).items():
        p = values["paired"]["bleu4"]["p"]
        echo(f"  control {name.replace('_', ' ')}: BLEU-4 {values['bleu4']:.2f} (p of no difference {p:.3f})")
    if "notice" in scores:
        echo(f"  {scores['notice']}")


def _line(scores: Mapping[str, Any]) -> str:
    """Returns the main scores, each with its interval if it has one."""
    intervals, parts = scores.get("intervals", {}), []
    for name, words in METRICS.items():
        if name in scores:
            between = " [{:.2f}, {:.2f}]".format(*intervals[name]) if name in intervals else ""
            parts.append(f"{words} {scores[name]:.2f}{between}")
    return "  ".join(parts)


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Folder of a run, finished or not, or s3://bucket/runs/NAME; several: side by side.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="File to write; RUN/report.html unless given (of several: comparison.html)."
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print scores, intervals and tests as JSON; write no page."),
    ] = False,
) -> None:
    """Write one self-contained HTML page: curves, scores, controls, examples, alignments, timelines, cost.

    Of several runs, one page that compares them: runs that differ in seeds alone are a group; recipe keys that differ,
    scores with intervals, significance of differences, token budget, time, curves, the same clips.
    """
    if out is not None:
        on_this_machine(out, "a page")
    if as_json and out is not None:
        raise UsageError("--json prints to the terminal and writes no page: leave --out away")
    places = [run_place(run) for run in runs]
    folders = [place.fetch_to_read(is_readable) for place in places]
    if len(runs) == 1 and not as_json:
        from sage_scale.reporting.page import write_report

        _echo_page(write_report(folders[0], out), places[0], out)
        return
    from sage_scale.reporting.comparison import write_comparison
    from sage_scale.reporting.comparison_json import compared
    from sage_scale.reporting.runlog import read_runs

    with Progress("runs read") as reading:
        records = read_runs(folders, reading)
    with Progress("tests of differences") as testing:
        found = compared(records, testing) if as_json else write_comparison(records, out, testing)
    if isinstance(found, Path):
        _echo_page(found, places[0], out)
    else:
        echo_json(found, indent=1)


def _echo_page(page: Path, place: RunPlace, out: Path | None) -> None:
    """Print the place of a page; one that lies in a run's working folder is sent to the run's URL first."""
    if place.copy is not None and out is None:
        place.copy.upload()
        echo(f"{place.url}/{page.name}")
    else:
        echo(page)
