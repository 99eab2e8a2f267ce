"""`sage-scale precompute`: a corpus in, a finished dataset of shards out; a killed run resumes.

sage-scale precompute --corpus phoenix14t --root data/phoenix --out s3://bucket/phoenix --recipe sage-phoenix14t
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from sage_scale.cli import Overrides, RecipeName
from sage_scale.untrusted.printer import echo, tell


def precompute(
    corpus: Annotated[str, typer.Option(help="Corpus reader; `recipe explain corpus.name` lists them.")],
    root: Annotated[str, typer.Option(help="Folder of the corpus.")],
    out: Annotated[str, typer.Option(help="Output: a folder, file:// or s3://bucket/prefix.")],
    recipe: RecipeName = "demo",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the dataset in the output and start again.")
    ] = False,
    give_up: Annotated[
        list[str] | None, typer.Option(metavar="CLIP", help="Reject a clip by hand; may be repeated.")
    ] = None,
    retry_rejects: Annotated[
        bool, typer.Option("--retry-rejects", help="Try rejected clips once more, in new shards.")
    ] = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="Add the corpus' new clips to the output, in new shards.")
    ] = False,
    events: Annotated[
        Path | None, typer.Option(help="File to which progress is appended as JSON Lines.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Only check recipe, corpus, weights, output and credentials; no Ray."),
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Decode, segment and tag a corpus into shards on Ray. Repeat the command to go on after whatever stopped it."""
    from sage_scale.precompute import corpus_job, precompute_corpus

    if check:
        from sage_scale.precompute.preflight import preflight

        for line in preflight(
            lambda: corpus_job(
                corpus,
                root,
                recipe,
                overrides or [],
                url=out,
                overwrite=overwrite,
                give_up=frozenset(give_up or []),
                retry_rejects=retry_rejects,
                extend=extend,
                quiet=True,
            )
        ):
            echo(line)
        return
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
