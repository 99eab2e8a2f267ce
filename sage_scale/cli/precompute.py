"""`sage-scale precompute`: a corpus in, a finished dataset of shards out; a killed run resumes.

sage-scale precompute --corpus phoenix14t --root data/phoenix --out s3://bucket/phoenix --recipe sage-phoenix14t
"""

from __future__ import annotations

import shlex
from pathlib import Path

import typer

from sage_scale.untrusted.printer import echo, tell

CORPUS = typer.Option(..., "--corpus", help="Corpus reader; `recipe explain corpus.name` lists them.")
ROOT = typer.Option(..., "--root", help="Folder of the corpus.")
OUT = typer.Option(..., "--out", help="Where the dataset goes: a folder, file:// or s3://bucket/prefix.")
RECIPE = typer.Option("demo", "--recipe", help="Recipe by name or YAML file.")
OVERWRITE = typer.Option(False, "--overwrite", help="Delete the dataset in the output and start again.")
GIVE_UP = typer.Option([], "--give-up", metavar="CLIP", help="Reject a clip by hand; may be repeated.")
RETRY = typer.Option(False, "--retry-rejects", help="Try rejected clips once more, in new shards.")
EXTEND = typer.Option(False, "--extend", help="Add the corpus' new clips to the output, in new shards.")
EVENTS = typer.Option(None, "--events", help="File to which progress is appended as JSON Lines.")
OVERRIDES = typer.Argument(None, metavar="[KEY=VALUE]...", help="Changes to the recipe, section.key=value.")


def precompute(
    corpus: str = CORPUS,
    root: str = ROOT,
    out: str = OUT,
    recipe: str = RECIPE,
    overwrite: bool = OVERWRITE,
    give_up: list[str] = GIVE_UP,
    retry_rejects: bool = RETRY,
    extend: bool = EXTEND,
    events: Path = EVENTS,
    overrides: list[str] = OVERRIDES,
) -> None:
    """Decode, segment and tag a corpus into shards on Ray. Repeat the command to go on after whatever stopped it."""
    from sage_scale.precompute import precompute_corpus

    summary = precompute_corpus(
        corpus=corpus,
        root=root,
        out=out,
        recipe=recipe,
        overrides=overrides or [],
        overwrite=overwrite,
        give_up=give_up or [],
        retry_rejects=retry_rejects,
        extend=extend,
        events=events,
    )
    if summary.stages:
        echo(f"seconds of all actors: {summary.stages}")
    echo(summary.line())
    if summary.kept:
        ids = ",".join(summary.kept)
        tell(
            f"--give-up {ids}: stored already, and kept; to remove {'it' if len(summary.kept) == 1 else 'them'}: "
            f"sage-scale shards remove {shlex.quote(summary.url)} --ids {shlex.quote(ids)}",
        )
