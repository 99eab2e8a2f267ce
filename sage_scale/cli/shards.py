"""`sage-scale shards`: look at a dataset of shards, check it, change it, or make others of it.

sage-scale shards ls URL                 the splits and shards
sage-scale shards ls URL --samples       one line a clip
sage-scale shards cat URL KEY            one clip: description, segments, what is stored of it
sage-scale shards stats URL              figures of each split
sage-scale shards verify URL             every hash, every member
sage-scale shards index URL              indexes, markers and index.json again; or an index for tars of others
sage-scale shards remove URL --ids FILE  take clips out for good
sage-scale shards repair URL             keep what is whole, list what is lost
sage-scale shards merge OUT URL...       one dataset of several
sage-scale shards split URL --out OUT    parts of a dataset

The last five are in shards_change.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from sage_scale.cli import shards_change, shards_web
from sage_scale.cli.shards_web import SHOWN
from sage_scale.errors import DatasetError, StorageError, UsageError
from sage_scale.untrusted.display import shortened, size
from sage_scale.untrusted.printer import echo, echo_json, tell
from sage_scale.untrusted.progress import Progress

if TYPE_CHECKING:
    from sage_scale.shards import Dataset
    from sage_scale.shards.statistics import SplitStatistics

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Look at a dataset of shards, check it, change it."
)
Url = Annotated[str, typer.Argument(metavar="URL", help="Folder, or s3://bucket/prefix, of the dataset.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
for change in (
    shards_change.remove,
    shards_change.repair,
    shards_change.merge,
    shards_change.split,
    shards_change.index,
):
    app.command(change.__name__)(change)


@app.command("verify")
def verify(
    url: Url, threads: Annotated[int, typer.Option(help="Shards checked at once.", min=1)] = 4
) -> None:
    """Read every byte and compare it with hashes, markers and index.json; exit code 1 where something differs."""
    from sage_scale.shards import verify_dataset

    if web := shards_web.web_index(url):
        return shards_web.verify(web, threads)
    with Progress("verify", "shards") as show:
        report = verify_dataset(url, threads=threads, progress=show)
    for problem in report.problems[:SHOWN]:
        echo(problem)
    if report.problems:
        more = len(report.problems) - SHOWN
        rest = f" ({more} more are not shown)" if more > 0 else ""
        raise DatasetError(
            f"{report.url}: {len(report.problems)} problems{rest}; "
            f"`sage-scale shards repair {quote(report.url)} --dry-run` says what can be done"
        )
    echo(
        f"{report.url}: {report.units} shards, {report.samples:,} samples, {size(report.bytes)}: all is as written"
    )


@app.command("ls")
def ls(
    url: Url,
    samples: Annotated[
        bool, typer.Option("--samples", help="One line a clip instead of one a shard.")
    ] = False,
    split: Annotated[str, typer.Option(help="Only this split.")] = "",
    rejects: Annotated[bool, typer.Option("--rejects", help="The clips left out, and why.")] = False,
) -> None:
    """List splits and shards, or clips, or the clips that were left out. Open units are named."""
    from sage_scale.shards import open_dataset, read_metadata, unfinished_units
    from sage_scale.shards.rejects import current_rejects

    if web := shards_web.web_index(url):
        return shards_web.ls(web, samples)
    dataset = open_dataset(url, unfinished=True)
    chosen = (split,) if split else ()
    table = dataset.samples(*chosen)  # refuses an unknown split
    if rejects:
        for unit, reject in current_rejects(dataset):
            if not split or unit.split == split:
                echo(f"{unit.tar}  {reject.id}  {reject.reason}  {reject.detail}".rstrip())
        return
    if samples:
        for row, meta in enumerate(read_metadata(dataset, *chosen)):
            unit = dataset.units[int(table.unit[row])]
            echo(
                f"{int(table.key[row]):016x}  {unit.tar}  {shortened(unit.split):<12}  {meta['frames']:>5} frames  "
                f"{int(table.segments[row]):>3} segments  {meta['id']}  {meta['sentence']}"
            )
        return
    for unit in dataset.units:
        if not split or unit.split == split:
            echo(
                f"{unit.tar}  {shortened(unit.split):<12}  {unit.samples:>5} clips  {unit.rejects:>3} rejects  "
                f"{unit.frames:>8} frames  {size(unit.bytes):>9}"
            )
    missing = unfinished_units(dataset)
    for number in missing[:SHOWN]:
        echo(f"{number:06d}.tar  {shortened(dataset.info.units[number].split):<12}  open")
    if len(missing) > SHOWN:
        echo(f"... and {len(missing) - SHOWN} more open units")
    state = "finished" if dataset.finished else f"{len(missing)} of {len(dataset.info.units)} units open"
    parts = (
        ", ".join(f"{shortened(name)} {count:,}" for name, count in dataset.splits.items()) or "no clips yet"
    )
    echo(f"{dataset.url}: {dataset.info.kind}; {parts}; {state}")


@app.command("cat")
def cat(
    url: Url,
    key: Annotated[str, typer.Argument(metavar="KEY", help="A clip's key (16 hex digits) or its id.")],
    out: Annotated[str, typer.Option(help="Folder into which the clip's members are written.")] = "",
) -> None:
    """Print one clip: its description, its segments and what is stored of it."""
    from sage_scale.shards import open_dataset
    from sage_scale.shards.writer import sample_members

    if web := shards_web.web_index(url):
        return shards_web.cat(web, key, out)
    dataset = open_dataset(url, unfinished=True)
    row = _find(dataset, key)
    table = dataset.samples()
    sample = dataset.read(table, row)
    echo_json(
        {
            "key": sample.key,
            "shard": dataset.units[int(table.unit[row])].tar,
            "offset": int(table.offset[row]),
            "length": int(table.length[row]),
            "xxh3": table.hash[row].tobytes().hex(),
            **sample.meta,
            "segments": sample.segments.tolist(),
            "stored_frames": sorted(sample.frames) if sample.frames is not None else None,
            "features": list(sample.features.shape) if sample.features is not None else None,
            "views": 1 + len(sample.views) if sample.features is not None else None,
            "background": sample.background is not None,
        }
    )
    if out:
        from sage_scale.storage import open_store

        folder = open_store(out)
        for name, data in sample_members(sample):
            folder.put(name, data)
        tell(f"members written to {folder.url}")


@app.command("stats")
def stats(
    url: Url,
    as_json: AsJson = False,
    figure: Annotated[str, typer.Option(metavar="PATH.svg", help="Draw the figures into this file.")] = "",
) -> None:
    """Figures of each split: clips, hours, frames, segments, lengths, languages, signers, rejects."""
    import dataclasses

    from sage_scale.shards import open_dataset
    from sage_scale.shards.statistics import statistics

    if figure and not figure.endswith(".svg"):
        raise UsageError(f"--figure {figure}: the figure is an SVG file, name it PATH.svg")
    if web := shards_web.web_index(url):
        if figure or as_json:
            raise UsageError(f"{url} is a WebDataset of others: it has neither --figure nor --json")
        return shards_web.stats(web)
    dataset = open_dataset(url, unfinished=True)
    found = statistics(dataset)
    if figure:
        _draw(dataset, found, Path(figure))
    if as_json:
        echo_json([dataclasses.asdict(part) for part in found], indent=1)
        return
    for part in found:
        echo(*_paragraph(part))
    if (views := dataset.info.feature_views) > 1:
        echo(f"{views} views of each clip's features, the plain one and {views - 1} augmented")
    if not found:
        echo(f"{dataset.url}: no clips yet")


def _draw(dataset: Dataset, found: list[SplitStatistics], path: Path) -> None:
    from sage_scale.reporting.dataset_figure import dataset_figure

    if not found:
        raise UsageError(f"{dataset.url} has no clips yet: there is nothing to draw")
    try:
        path.write_text(dataset_figure(dataset, found), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from None
    tell(f"figure written to {path}")


def _paragraph(part: SplitStatistics) -> list[str]:
    lines = [
        f"{shortened(part.split)}: {part.clips:,} clips in {part.shards} shards, {size(part.bytes)}, "
        f"{part.hours:.2f} hours",
        f"  frames         {_line(part.frames)}",
        f"  segments       {_line(part.segments)}   {part.token_ratio:.3f} a frame",
        f"  pseudo-glosses {_line(part.pseudo_glosses)}   {part.gloss_types:,} types",
        *(
            f"  {name:<15}{_line(spread)}"
            for name, spread in (("words", part.words), ("characters", part.characters))
            if spread["total"]
        ),
        f"  sentences      {part.sentences:,} distinct",
        f"  languages      {_top(part.languages)}",
        f"  signers        {_top(part.signers)}",
    ]
    if part.without_sentence:
        lines.append(f"  without a sentence (can be translated, not trained on): {part.without_sentence:,}")
    if part.rejects:
        lines.append(f"  rejects        {part.rejects:,}: {_top(part.reasons)}")
    return lines


def _line(spread: dict[str, float]) -> str:
    return (
        f"mean {spread['mean']:.1f}  10/50/90%: {spread['p10']:.0f} / {spread['p50']:.0f} / {spread['p90']:.0f}"
        f"  max {spread['max']:.0f}  total {spread['total']:,.0f}"
    )


def _top(counts: dict[str, int], most: int = 12) -> str:
    shown = ", ".join(f"{name or 'unknown'} {count:,}" for name, count in list(counts.items())[:most])
    return shown + (f", and {len(counts) - most} more" if len(counts) > most else "")


def _find(dataset: Dataset, wanted: str) -> int:
    from sage_scale.shards import sample_key
    from sage_scale.shards.rejects import current_rejects, reject_key

    keys = dataset.records["key"]
    for key in (wanted.lower(), sample_key(wanted)):
        if re.fullmatch("[0-9a-f]{16}", key):
            rows = (keys == int(key, 16)).nonzero()[0]
            if len(rows):
                return int(rows[0])
    for unit, reject in current_rejects(dataset):
        if wanted == reject.id or wanted.lower() == reject_key(reject):
            why = f"{reject.reason}: {reject.detail}" if reject.detail else reject.reason
            raise UsageError(
                f"{dataset.url}: clip '{reject.id}' was rejected, nothing of it is stored; why stands in {unit.tar}: "
                f"{why}. Where the cause is mended, `sage-scale precompute --retry-rejects` tries again"
            )
    raise UsageError(
        f"{dataset.url} has no clip '{wanted}'; `sage-scale shards ls {quote(dataset.url)} --samples` lists them"
    )
