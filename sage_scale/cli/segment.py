"""`sage-scale segment`: sign segments of videos, a segmenter of one's own, and scores."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import typer

from sage_scale.cli.segment_train import train
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.printer import echo, tell

app = typer.Typer(add_completion=False, no_args_is_help=True)
app.command()(train)
GOLD = typer.Option(
    ..., "--gold",
    help="Annotation: a table of intervals (.jsonl, .csv), label files, ELAN files, or a folder of them.",
)  # fmt: skip
MEDIA = typer.Option(
    ..., "--root", help="Folder of videos or keypoint files, one of them, or a corpus' folder."
)
OUT = typer.Option(..., "--out", help="Where the files go: a folder, file:// or s3://bucket/prefix.")
CORPUS = typer.Option("", "--corpus", help="Corpus reader: the clips of a corpus instead of whole videos.")
FORMAT = typer.Option(
    "json", "--format", help="Further files of each video: eaf, vtt, figure; comma-separated."
)
GIVE_UP = typer.Option([], "--give-up", metavar="VIDEO", help="Reject a video by hand; may be repeated.")
EVENTS = typer.Option(None, "--events", help="File to which progress is appended as JSON Lines.")
ROOT = typer.Option(..., "--root", help="Folder of the videos or keypoint files, named as in the annotation.")
ROWS = typer.Option(
    [], "--row", metavar="'NAME: KEY=VALUE ...'",
    help="A setting to score, with changes of its own; may be repeated. Without any, one row of the given keys.",
)  # fmt: skip
GROUP = typer.Option(
    "", "--group", metavar="COLUMN", help="Column of the table by which scores are also shown."
)
CHOOSE = typer.Option(
    False, "--choose-on-others",
    help="Add a row: peaks, with threshold and gap chosen for each group on the other groups.",
)  # fmt: skip
FPS = typer.Option(25.0, "--fps", min=1, max=1000, help="Frame rate at which times are compared.")
TABLES = typer.Option("", "--out", metavar="PATH", help="Also write PATH.json and PATH.md.")
RECIPE = typer.Option("demo", "--recipe", help="Recipe by name or YAML file.")
OVERRIDES = typer.Argument(None, metavar="[KEY=VALUE]...", help="Changes to the recipe, section.key=value.")


@app.callback()
def segment() -> None:
    """Sign segments of videos."""


@app.command()
def predict(
    root: str = MEDIA,
    out: str = OUT,
    corpus: str = CORPUS,
    formats: str = FORMAT,
    recipe: str = RECIPE,
    give_up: list[str] = GIVE_UP,
    events: Path = EVENTS,
    overrides: list[str] = OVERRIDES,
) -> None:
    """Find the signs of videos or keypoint files, on Ray. Repeat the command to go on after whatever stopped it.

    The tagger is the recipe's: segmentation.tagger=published segmentation.weights=FOLDER. Each video gets NAME.npz
    (probabilities and labels) and NAME.json (signs in seconds); segmentation.labels takes them.
    """
    from sage_scale.config import load_recipe
    from sage_scale.precompute.segment_job import predict_segments
    from sage_scale.segmentation.exports import check_formats

    summary = predict_segments(
        load_recipe(recipe, overrides or []),
        root,
        out,
        corpus=corpus,
        formats=check_formats(formats),
        give_up=frozenset(give_up or ()),
        events=events,
    )
    for line in summary.first_rejects():
        tell(line)
    echo(summary.line())


@app.command()
def evaluate(
    gold: str = GOLD,
    root: str = ROOT,
    rows: list[str] = ROWS,
    group: str = GROUP,
    choose_on_others: bool = CHOOSE,
    fps: float = FPS,
    out: str = TABLES,
    recipe: str = RECIPE,
    overrides: list[str] = OVERRIDES,
) -> None:
    """Score taggers against annotation: frames, segments and onsets, with intervals over clips.

    Labels and intervals in files are scored by segmentation.tagger=precomputed segmentation.labels=FOLDER. Signs are
    scored as they were labelled, or, in a row that gives segmentation.rule, after that rule.
    """
    from sage_scale.config import load_recipe
    from sage_scale.corpora.videos import whole_videos
    from sage_scale.errors import UsageError
    from sage_scale.reporting.segment_scores import as_json, as_markdown, show
    from sage_scale.segmentation import evaluation
    from sage_scale.segmentation.intervals import table_column
    from sage_scale.storage import on_this_machine
    from sage_scale.untrusted.progress import Progress

    common = overrides or []
    settings = []
    for text in rows or [""]:
        name, colon, changes = text.partition(":")
        if text and (not colon or not name.strip()):
            raise UsageError(f"--row {shlex.quote(text)}: expected 'NAME: KEY=VALUE ...'")
        given = [*common, *shlex.split(changes)]
        chosen = load_recipe(recipe, given)
        by_rule = any(change.startswith("segmentation.rule=") for change in given)
        name = name.strip() or chosen.segmentation.tagger
        settings.append(evaluation.Row(name=name, segmentation=chosen.segmentation, after_rule=by_rule))
    if twice := {row.name for row in settings if sum(other.name == row.name for other in settings) > 1}:
        raise UsageError(f"--row '{min(twice)}' is there twice")
    annotation = evaluation.annotation(gold)
    stem = on_this_machine(out, "a table") if out else None
    groups = table_column(annotation, group, "--group") if group else None
    manifest = whole_videos(root)
    if missing := evaluation.without_media(annotation, manifest.clips):
        tell(
            f"annotated clips without a file in {root}: {len(missing):,}, the first: '{shortened(missing[0])}'"
        )
    with Progress("evaluate", "clips") as progress:
        found = evaluation.evaluate(
            manifest.clips,
            str(annotation),
            settings,
            load_recipe(recipe, common).vision,
            fps=fps,
            groups=groups,
            choose=choose_on_others,
            progress=progress,
        )
    for row in found.left_out[:10]:
        tell(f"left out: '{row.id}': {row.reason} ({row.detail})")
    if len(found.left_out) > 10:
        tell(f"{len(found.left_out):,} of {len(manifest.clips):,} clips are left out; --out names all")
    for line in found.unread[:10]:
        tell(f"annotation: {line}")
    if len(found.unread) > 10:
        tell(f"annotation: {len(found.unread) - 10:,} more such signs")
    show(found, sys.stdout)
    about = {"annotation": annotation.name, "settings": " ".join(common)}
    about |= {f"row {row.name}": text.partition(":")[2].strip() for row, text in zip(settings, rows)}
    if stem:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for suffix, text in ((".json", as_json(found, about)), (".md", as_markdown(found, about))):
            path = stem.with_name(stem.name + suffix)
            path.write_text(text, encoding="utf-8")
            echo(f"written: {path}")
