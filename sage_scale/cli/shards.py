"""`sage-scale shards`: shows and checks a dataset of shards, changes it, or makes others of it.

sage-scale shards ls URL                 the splits and shards
sage-scale shards ls URL --samples       one line a clip
sage-scale shards cat URL KEY            one clip: description, segments, stored members; --figure draws it
sage-scale shards stats URL              figures of each split
sage-scale shards sheet URL --out PAGE   clips as a page: pictures, segments, sentences; rejects
sage-scale shards verify URL             every hash, every member
sage-scale shards index URL              indexes, markers and index.json again; or an index for tars of others
sage-scale shards remove URL --ids FILE  remove clips for good
sage-scale shards repair URL             keep intact clips, list lost ones
sage-scale shards merge OUT URL...       one dataset of several
sage-scale shards split URL --out OUT    parts of a dataset
sage-scale shards resegment URL --out OUT  other segments from stored data
sage-scale shards export URL --out OUT   for Hugging Face datasets, or sign-language-data-loading

Export is in shards_export.py, the six before it in shards_change.py. The first four also take a WebDataset of others
that `shards index` has indexed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from sage_scale.cli import DatasetUrl, shards_change, shards_export
from sage_scale.errors import DatasetError, StorageError, UsageError
from sage_scale.storage import on_this_machine
from sage_scale.untrusted.display import shortened, size
from sage_scale.untrusted.printer import echo, echo_json, tell
from sage_scale.untrusted.progress import Progress

if TYPE_CHECKING:
    from sage_scale.shards import Dataset, Sample
    from sage_scale.shards.statistics import SplitStatistics
    from sage_scale.shards.webdataset_index import WebDatasetIndex

SHOWN = 20
"""Problems and open units printed; the rest is counted."""
app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Look at a dataset of shards, check it, change it."
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
for change in (
    shards_change.remove,
    shards_change.repair,
    shards_change.merge,
    shards_change.split,
    shards_change.resegment,
    shards_change.index,
    shards_export.export,
):
    app.command(change.__name__)(change)


@app.command("verify")
def verify(
    url: DatasetUrl, threads: Annotated[int, typer.Option(help="Shards checked at once.", min=1)] = 4
) -> None:
    """Read every byte and compare it with hashes, markers and index.json; exit code 1 where something differs."""
    from sage_scale.shards import verify_dataset
    from sage_scale.shards.webdataset_index import verify_webdataset

    if web := _webdataset(url):
        with Progress("verify", "shards") as show:
            problems = verify_webdataset(web, threads=threads, progress=show)
        advice = "fetch those tars again, or `sage-scale shards index` them as they are"
        _refuse(web.tars, problems, advice)
        total = sum(shard.bytes for shard in web.shards)
        echo(
            f"{web.tars}: {len(web.shards)} tars, {len(web.keys):,} samples, {size(total)}: all is as indexed"
        )
        return
    with Progress("verify", "shards") as show:
        report = verify_dataset(url, threads=threads, progress=show)
    advice = f"`sage-scale shards repair {quote(report.url)} --dry-run` shows the repair"
    _refuse(report.url, report.problems, advice)
    echo(
        f"{report.url}: {report.units} shards, {report.samples:,} samples, {size(report.bytes)}: all is as written"
    )


@app.command("ls")
def ls(
    url: DatasetUrl,
    samples: Annotated[
        bool, typer.Option("--samples", help="One line a clip instead of one a shard.")
    ] = False,
    split: Annotated[str, typer.Option(help="Only this split.")] = "",
    rejects: Annotated[bool, typer.Option("--rejects", help="The clips left out, and why.")] = False,
) -> None:
    """List splits and shards, or clips, or the clips that were left out. Open units are named."""
    from sage_scale.shards import open_dataset, read_metadata, unfinished_units
    from sage_scale.shards.rejects import current_rejects

    if web := _webdataset(url):
        return _list_webdataset(web, samples)
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
    url: DatasetUrl,
    key: Annotated[str, typer.Argument(metavar="KEY", help="A clip's key (16 hex digits) or its id.")],
    out: Annotated[str, typer.Option(help="Folder into which the clip's members are written.")] = "",
    figure: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH.png", help="Draw its frames, segments and sentence: .png, .svg, .pdf, .jpg."
        ),
    ] = None,
) -> None:
    """Print one clip: its description, its segments and its stored members."""
    from sage_scale.shards import open_dataset
    from sage_scale.shards.lookup import row_of
    from sage_scale.shards.writer import sample_members

    if web := _webdataset(url):
        if figure:
            raise UsageError(f"{url} is a WebDataset of others: --figure draws clips of our own datasets")
        return _print_webdataset_sample(web, key, out)
    if figure:
        from sage_scale.translation.timeline import check_target

        check_target(figure)
    dataset = open_dataset(url, unfinished=True)
    row = row_of(dataset, key)
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
    _write_members(out, sample_members(sample))
    if figure:
        _draw_clip(sample, figure)


@app.command("sheet")
def sheet(
    url: DatasetUrl,
    out: Annotated[Path, typer.Option(help="Page to write, .html.")],
    split: Annotated[list[str] | None, typer.Option(help="Only this split. May be repeated.")] = None,
    clips: Annotated[int, typer.Option(min=1, max=2000, help="Clips of each split, at even distances.")] = 12,
    seed: Annotated[int | None, typer.Option(min=0, help="Draw the clips at random instead.")] = None,
    ids: Annotated[
        str, typer.Option(help="These clips instead: ids or keys, ID[,ID], or a file of ids.")
    ] = "",
) -> None:
    """Write one page with clips of a dataset: pictures, segments over time, crop, sentence; and its rejects."""
    from sage_scale.reporting.clip_sheet import by_split, clip_sheet, rows_of
    from sage_scale.reporting.page import write_page
    from sage_scale.shards import open_dataset
    from sage_scale.shards.lookup import row_of

    on_this_machine(out, "a page")
    dataset = open_dataset(url, unfinished=True)
    if ids and (split or seed is not None):
        raise UsageError("--ids names the clips: leave out --split and --seed")
    if ids:
        chosen = by_split(dataset, [row_of(dataset, name) for name in shards_change.named_ids(ids)])
    else:
        chosen = rows_of(dataset, split or (), clips, seed)
    with Progress("sheet", "clips") as show:
        page = write_page(clip_sheet(dataset, chosen, show), out)
    echo(f"{page}: {sum(map(len, chosen.values())):,} clips, {size(page.stat().st_size)}")


@app.command("stats")
def stats(
    url: DatasetUrl,
    as_json: AsJson = False,
    figure: Annotated[str, typer.Option(metavar="PATH.svg", help="Draw the figures into this file.")] = "",
) -> None:
    """Figures of each split: clips, hours, frames, segments, lengths, languages, signers, rejects."""
    import dataclasses

    from sage_scale.shards import open_dataset
    from sage_scale.shards.statistics import statistics

    if figure and not figure.endswith(".svg"):
        raise UsageError(f"--figure {figure}: the figure is an SVG file, name it PATH.svg")
    if web := _webdataset(url):
        if figure or as_json:
            raise UsageError(f"{url} is a WebDataset of others: it has neither --figure nor --json")
        return _print_webdataset_statistics(web)
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


def _refuse(url: str, problems: Iterable[str], advice: str) -> None:
    """Prints problems and raises DatasetError, where there are any."""
    problems = list(problems)
    for problem in problems[:SHOWN]:
        echo(problem)
    if problems:
        more = len(problems) - SHOWN
        rest = f" ({more} more are not shown)" if more > 0 else ""
        raise DatasetError(f"{url}: {len(problems)} problems{rest}; {advice}")


def _write_members(out: str, members: Iterable[tuple[str, bytes]]) -> None:
    from sage_scale.storage import open_store

    if out:
        folder = open_store(out)
        for name, data in members:
            folder.put(name, data)
        tell(f"members written to {folder.url}")


def _draw(dataset: Dataset, found: list[SplitStatistics], path: Path) -> None:
    from sage_scale.reporting.dataset_figure import dataset_figure

    if not found:
        raise UsageError(f"{dataset.url} has no clips yet: there is nothing to draw")
    try:
        path.write_text(dataset_figure(dataset, found), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from None
    tell(f"figure written to {path}")


def _draw_clip(sample: Sample, path: Path) -> None:
    from sage_scale.translation.result import Translation
    from sage_scale.translation.timeline import write_timeline

    meta = sample.meta
    shown = Translation(
        video=meta["source"], sentence=meta["sentence"], language=meta["language"], fps=meta["fps"],
        frames=meta["frames"], segments=sample.segments, tagger="", seconds=0.0, sample=sample,
    )  # fmt: skip
    glosses = f"; {' '.join(map(str, meta['pseudo_glosses']))}" if meta["pseudo_glosses"] else ""
    write_timeline(shown, path, f"{meta['id']}, signer {meta['signer']}, {meta['split']}{glosses}")
    tell(f"figure written to {path}")


def _paragraph(part: SplitStatistics) -> list[str]:
    def line(spread: dict[str, float]) -> str:
        return (
            f"mean {spread['mean']:.1f}  10/50/90%: {spread['p10']:.0f} / {spread['p50']:.0f} / {spread['p90']:.0f}"
            f"  max {spread['max']:.0f}  total {spread['total']:,.0f}"
        )

    def top(counts: dict[str, int], most: int = 12) -> str:
        shown = ", ".join(f"{name or 'unknown'} {count:,}" for name, count in list(counts.items())[:most])
        return shown + (f", and {len(counts) - most} more" if len(counts) > most else "")

    lines = [
        f"{shortened(part.split)}: {part.clips:,} clips in {part.shards} shards, {size(part.bytes)}, "
        f"{part.hours:.2f} hours",
        f"  frames         {line(part.frames)}",
        f"  segments       {line(part.segments)}   {part.token_ratio:.3f} a frame",
        f"  pseudo-glosses {line(part.pseudo_glosses)}   {part.gloss_types:,} types",
    ]
    for name, spread in (("words", part.words), ("characters", part.characters)):
        if spread["total"]:
            lines.append(f"  {name:<15}{line(spread)}")
    lines += [
        f"  sentences      {part.sentences:,} distinct",
        f"  languages      {top(part.languages)}",
        f"  signers        {top(part.signers)}",
    ]
    if part.without_sentence:
        lines.append(f"  without a sentence (can be translated, not trained on): {part.without_sentence:,}")
    if part.rejects:
        lines.append(f"  rejects        {part.rejects:,}: {top(part.reasons)}")
    return lines


def _webdataset(url: str) -> WebDatasetIndex | None:
    """Returns the index of a WebDataset of others; None at any other URL."""
    from sage_scale.shards.layout import DATASET_JSON
    from sage_scale.shards.webdataset_index import WEB_INDEX_JSON, open_webdataset_index
    from sage_scale.storage import open_store

    store = open_store(url)
    if store.exists(WEB_INDEX_JSON) and not store.exists(DATASET_JSON):
        return open_webdataset_index(store)
    return None


def _list_webdataset(index: WebDatasetIndex, samples: bool) -> None:
    if samples:
        for shard, key, record in zip(index.shard_of.tolist(), index.keys, index.records):
            echo(f"{index.shards[shard].name}  {size(int(record['length'])):>9}  {key}")
        return
    for entry in index.shards:
        echo(f"{entry.name}  {entry.samples:>7} samples  {size(entry.bytes):>9}")
    echo(f"{index.tars}: WebDataset of {len(index.keys):,} samples in {len(index.shards)} tars")


def _print_webdataset_statistics(index: WebDatasetIndex) -> None:
    import numpy as np

    lengths = index.records["length"].astype(float)
    low, middle, high = np.percentile(lengths, [10, 50, 90])
    echo(
        f"{index.tars}: {len(index.keys):,} samples in {len(index.shards)} tars, {size(float(lengths.sum()))}",
        f"  bytes a sample  mean {size(lengths.mean())}  10/50/90%: {size(low)} / {size(middle)} / {size(high)}  "
        f"max {size(lengths.max())}",
    )
    if repeated := len(index.keys) - len(set(index.keys)):
        echo(f"  keys that occur more than once: {repeated:,}")


def _print_webdataset_sample(index: WebDatasetIndex, key: str, out: str) -> None:
    from sage_scale.shards.sample import sample_hash
    from sage_scale.shards.webdataset_index import read_members
    from sage_scale.storage import open_store

    if key not in index.keys:
        raise UsageError(
            f"{index.url} has no sample '{key}'; `sage-scale shards ls {quote(index.url)} --samples` lists them"
        )
    row = index.keys.index(key)
    record, shard = index.records[row], index.shards[int(index.shard_of[row])]
    offset, length = int(record["offset"]), int(record["length"])
    data = open_store(index.tars).get_range(shard.name, offset, length)
    if sample_hash(data) != record["hash"].tobytes():
        raise DatasetError(f"{index.tars}/{shard.name}, sample {key}: its bytes differ from the index's hash")
    _, members = read_members(data, shard.name)
    echo_json(
        {
            "key": key,
            "shard": shard.name,
            "offset": offset,
            "length": length,
            "xxh3": record["hash"].tobytes().hex(),
            "members": {extension: len(body) for extension, body in members.items()},
        }
    )
    _write_members(out, ((f"{key}.{extension}", body) for extension, body in members.items()))
