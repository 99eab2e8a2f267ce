"""`sage-scale corpus act`: invented signs perform glossed sentences, as videos or as keypoints."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from sage_scale.cli import Overrides, RecipeName
from sage_scale.errors import UsageError
from sage_scale.storage import on_this_machine
from sage_scale.text.languages import checked_tag
from sage_scale.untrusted.files import expanded
from sage_scale.untrusted.printer import echo
from sage_scale.untrusted.progress import Progress

SHOWN = 10
"""Rows left out that are named; left_out.jsonl names all."""


def act(
    table: Annotated[
        list[Path],
        typer.Option("--table", help="Glossed sentences: .csv, .tsv or .jsonl. Several: repeat it."),
    ],
    root: Annotated[str, typer.Option("--root", help="Folder to make the corpus in.")] = "",
    keypoints: Annotated[
        bool,
        typer.Option("--keypoints", help="Write the signer's keypoints alone, without rendering videos."),
    ] = False,
    recipe: RecipeName = "acted",
    overrides: Overrides = None,
) -> None:
    """Act the sentences of a table with invented signs, one for each gloss, into --root: media, sentences, gold files.

    The table has the columns id, glosses, sentence, and if known split, signer, language, frames. The same
    table and corpus.seed give the same bytes; repeat the command to go on. Figures on such a corpus are
    not results on the corpus of the table.
    """
    from sage_scale.cli.corpus import _recipe
    from sage_scale.corpora.acted.corpus import make_acted
    from sage_scale.corpora.acted.table import left_out_line, read_gloss_tables

    corpus = _recipe(recipe, "acted", root, overrides).corpus
    if not corpus.root:
        raise UsageError("say where to make the corpus: --root PATH")
    folder = expanded(on_this_machine(corpus.root, "a corpus"))
    language = checked_tag(corpus.language, "corpus.language")
    tables = [expanded(on_this_machine(path, "a table")) for path in table]
    sentences = read_gloss_tables(tables, language)
    for row in sentences.left_out[:SHOWN]:
        echo(f"  left out: {left_out_line(row)}")
    if len(sentences.left_out) > SHOWN:
        echo(f"  ... and {len(sentences.left_out) - SHOWN:,} more rows, named in left_out.jsonl")
    with Progress("clips acted") as progress:
        manifest = make_acted(sentences, folder, corpus.seed, not keypoints, progress=progress)
    splits = ", ".join(
        f"{name} {count:,}" for name, count in Counter(clip.split for clip in manifest.clips).items()
    )
    frames = sum(clip.frames for clip in manifest.clips)
    echo(
        f"{len(manifest.clips):,} clips ({splits}), {frames:,} frames, {len(sentences.glosses):,} glosses in {folder}",
        manifest.notice,
    )
