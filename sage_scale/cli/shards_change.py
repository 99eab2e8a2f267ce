"""The verbs of `sage-scale shards` that change a dataset or make one: remove, repair, merge, split, resegment,
index.

All may be killed at any moment; the same command resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from sage_scale.cli import DatasetUrl, Overrides
from sage_scale.errors import DatasetError, UnitsOpen, UsageError
from sage_scale.untrusted.display import size
from sage_scale.untrusted.printer import echo
from sage_scale.untrusted.progress import Progress

if TYPE_CHECKING:
    from sage_scale.shards.repair import Mode, RepairPlan

Out = Annotated[str, typer.Option("--out", help="Folder, or s3://bucket/prefix, to write to.")]
Threads = Annotated[int, typer.Option(help="Shards worked on at once.", min=1)]
Pairs = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE")]
T = TypeVar("T")
_FILE_ENDINGS = (".txt", ".tsv", ".csv", ".lst", ".list", ".ids", ".json", ".jsonl")
"""Endings of files of ids; no id ends so."""


def remove(
    url: DatasetUrl,
    ids: Annotated[
        str, typer.Option(help="Ids or keys of the clips, ID[,ID], or a file with one id in a line.")
    ] = "",
    signer: Annotated[list[str] | None, typer.Option(help="Every clip of a signer. May be repeated.")] = None,
    video: Annotated[
        list[str] | None,
        typer.Option(
            "--video", "--source", help="Every clip of a video, by its path, name or stem. May be repeated."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed, and do nothing.")
    ] = False,
    ignore_unknown: Annotated[
        bool, typer.Option("--ignore-unknown", help="Pass over ids that the dataset does not have.")
    ] = False,
) -> None:
    """Remove clips for good: their data vanish, and no later precompute brings them back.

    Without a choice of clips a removal that was cut off is finished.
    """
    from sage_scale.shards.remove import clips_by, plan_removal, remove_clips
    from sage_scale.storage import open_to_write

    store = open_to_write(url)
    wanted = named_ids(ids)
    chosen = clips_by(store, signer or (), video or ()) if signer or video else []
    wanted += chosen
    if dry_run:
        clips, shards, rejects, left = plan_removal(store, wanted)
        echo(
            f"{store.url}: {clips:,} clips in {shards:,} shards would be removed, with {rejects:,} rejects; index.json "
            "would be written anew; nothing was done"
        )
        if signer and left:
            echo(
                f"{left:,} rejects stay: they name no signer; `sage-scale shards ls --rejects` lists their --ids"
            )
        return
    with Progress("remove", "shards") as show:
        report = remove_clips(store, wanted, ignore_unknown=ignore_unknown, progress=show)
    if chosen and report.unfinished_units:
        echo(
            f"{report.unfinished_units} units are not made yet: which of their clips are of this signer or video is "
            "not known; finish precompute, then repeat this command"
        )
    if report.absent:
        unknown = "are in no shard yet" if report.unfinished_units else "are not in the dataset"
        echo(f"{report.absent} clips {unknown}; should they be made, they are left out")
    if report.unfinished_units:
        echo(
            f"{report.unfinished_units} units are not made yet: the removed clips will be left out there too"
        )
    echo(
        f"{report.url}: {report.samples} clips removed, {report.shards} shards rewritten, {report.objects} older "
        f"objects deleted; {report.left:,} clips are left"
    )


def repair(
    url: DatasetUrl,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")
    ] = False,
    drop_shards: Annotated[
        bool,
        typer.Option(
            "--drop-shards",
            help="Delete damaged shards whole, for precompute to make them again byte for byte.",
        ),
    ] = False,
    threads: Threads = 4,
) -> None:
    """Find damage as verify does, keep intact samples, and list every clip that is lost.

    A damaged shard is rewritten with its intact clips; the lost ones become rejects, which `precompute
    --retry-rejects` makes again. Missing or stale indexes and markers are made from the tars.
    """
    from sage_scale.shards.repair import carry_out_repair, plan_repair, precompute_command
    from sage_scale.storage import open_store

    mode: Mode = "drop" if drop_shards else "keep"
    with Progress("repair: reading", "shards") as show:
        found = plan_repair(open_store(url), threads=threads, progress=show)
    if found.empty:
        echo(f"{found.store.url}: {len(found.state.units)} shards, {size(found.bytes)}: nothing to repair")
        return
    _print_damage(found, mode, done=not dry_run)
    if dry_run:
        raise DatasetError(f"{found.store.url}: needs repair; nothing was changed (--dry-run)")
    finished = carry_out_repair(found, mode)
    again = precompute_command(found.store.url, found.state.info, mode if finished else "drop")
    advice = (
        f"with the recipe and corpus that made it (recipe {found.state.info.recipe}, manifest "
        f"{found.state.info.manifest}): {again}"
        if again
        else "it was made by merge or split: repair the source and run that again into another output"
    )
    if not finished:
        raise UnitsOpen(f"{found.store.url}: repaired, and units are open now; have them made again {advice}")
    echo(f"{found.store.url}: repaired; `sage-scale shards verify` finds it whole")
    if found.lost:
        echo(f"to have the {len(found.lost)} lost clips made again, {advice}")


def _print_damage(found: RepairPlan, mode: Mode, done: bool) -> None:
    from sage_scale.shards.layout import INDEX_JSON
    from sage_scale.shards.repair import is_dropped

    for problem in found.state.problems:
        echo(problem)
    for unit in found.damaged:
        echo(unit.problem)
        if unit.fault == "marker":
            echo(f"  index and marker {'made' if done else 'to be made'} from the tar")
            continue
        if is_dropped(unit, mode):
            echo(f"  shard {'deleted' if done else 'to be deleted'}, to be made again by precompute")
        else:
            echo(f"  {len(unit.intact)} clips kept in a new generation of the shard, {len(unit.lost)} lost")
        for lost in unit.lost:
            echo(f"  lost  {lost.key}  {lost.id or '(id unknown)'}")
        if unit.rejects is None and not is_dropped(unit, mode):
            echo("  lost  the list of clips that this shard had left out")
    if found.stale or found.state.indexed is None:
        echo(f"{found.store.url}/{INDEX_JSON} is missing, stale or damaged")
    if found.state.listing.superseded:
        echo(f"{len(found.state.listing.superseded)} objects of older generations are left over")


def merge(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Where the new dataset goes.")],
    urls: Annotated[list[str], typer.Argument(metavar="URL...", help="The datasets, in the order wanted.")],
    duplicates: Annotated[
        str, typer.Option(help="A clip in two datasets: refuse, or take it from the first.")
    ] = "refuse",
) -> None:
    """Make one dataset of several; the samples' bytes are copied as they are."""
    from sage_scale.shards import open_dataset
    from sage_scale.shards.merge import merge_datasets
    from sage_scale.storage import open_to_write

    if duplicates not in ("refuse", "first"):
        raise UsageError(f"--duplicates {duplicates}: must be refuse or first")
    sources = [open_dataset(url) for url in urls]
    with Progress("merge", "shards") as show:
        made = merge_datasets(open_to_write(out), sources, first_wins=duplicates == "first", progress=show)
    echo(f"{made.url}: {len(made.records):,} clips of {len(sources)} datasets in {len(made.units)} shards")


def split(
    url: DatasetUrl,
    out: Out,
    share: Pairs = None,
    count: Pairs = None,
    signer: Pairs = None,
    ids: Pairs = None,
    seed: Annotated[int, typer.Option(help="Another seed draws other clips, for --share and --count.")] = 0,
    rest: Annotated[str, typer.Option(help="Name of the part with all other clips; '' for none.")] = "rest",
    as_splits: Annotated[
        bool,
        typer.Option(
            "--as-splits", help="One dataset whose splits the parts are, instead of a dataset each."
        ),
    ] = False,
) -> None:
    """Make parts of a dataset, OUT/NAME each, without touching a sample's bytes. One of these, any number of times:

    --share NAME=0.1 (of every split), --count NAME=100 (of every split), --signer NAME=A,B, --ids NAME=FILE|ID[,ID].
    """
    from sage_scale.shards import open_dataset
    from sage_scale.shards import split as by
    from sage_scale.shards.split import split_dataset
    from sage_scale.storage import open_to_write

    options = {"share": share, "count": count, "signer": signer, "ids": ids}
    given = [f"--{name}" for name, value in options.items() if value]
    if len(given) > 1:
        both = " and ".join(given)
        raise UsageError(
            f"{both} cannot be given together: split by one of them, and then a part of that by the other"
        )
    if not given:
        raise UsageError("choose how to split: one of --share, --count, --signer, --ids (each NAME=VALUE)")
    source = open_dataset(url)
    if share:
        parts = by.by_share(source, _pairs("share", share, float), seed)
    elif count:
        parts = by.by_count(source, _pairs("count", count, int), seed)
    elif signer:
        parts = by.by_signer(source, _pairs("signer", signer, lambda text: text.split(",")))
    else:
        parts = by.by_ids(source, _pairs("ids", ids or [], named_ids))
    parts = by.with_rest(source, parts, rest)
    store = open_to_write(out)
    outs = {name: store if as_splits else store.child(name) for name in parts}
    with Progress("split", "shards") as show:
        made = split_dataset(source, outs, parts, as_splits=as_splits, progress=show)
    for dataset in made.values():
        splits = ", ".join(f"{name} {clips:,}" for name, clips in dataset.splits.items())
        echo(f"{dataset.url}: {len(dataset.records):,} clips in {len(dataset.units)} shards ({splits})")


def resegment(url: DatasetUrl, out: Out, overrides: Overrides = None) -> None:
    """Make the same dataset with segments by another tagger or rule, from what its shards store; no video is read.

    segmentation.tagger=uniform, precomputed (with segmentation.labels), hands-on (with segmentation.features), or for
    stored pictures motion; any rule.
    """
    from sage_scale.precompute.resegment import resegment as make
    from sage_scale.shards import open_dataset
    from sage_scale.storage import open_to_write

    source = open_dataset(url)
    with Progress("resegment", "shards") as show:
        made = make(source, open_to_write(out), overrides or (), show)
    before, after = (sum(unit.segments for unit in dataset.units) for dataset in (source, made))
    rejects = len(source.records) - len(made.records)
    echo(
        f"{made.url}: {len(made.records):,} clips, {after:,} segments (before: {before:,})"
        + (f", {rejects:,} more rejects (`sage-scale shards ls --rejects`)" if rejects else "")
    )


def index(
    url: DatasetUrl,
    out: Annotated[
        str,
        typer.Option("--out", help="Where the index goes, if not beside the tars (a WebDataset of others)."),
    ] = "",
    threads: Threads = 4,
) -> None:
    """Make the index again from the tars, which stay as they are; or make one for a WebDataset that others wrote.

    Of our own datasets: every .idx, every marker and index.json. Of any other tars: sage-index.json, there or in --out,
    with which `sage_scale.streaming.open_webdataset` reads them.
    """
    from sage_scale.shards import rebuild_index
    from sage_scale.shards.layout import DATASET_JSON
    from sage_scale.shards.webdataset_index import ODD, WEB_INDEX_JSON, index_webdataset
    from sage_scale.storage import open_store, open_to_write

    store = open_store(url)
    if not out and store.exists(DATASET_JSON):
        with Progress("index", "shards") as show:
            dataset = rebuild_index(open_to_write(url), progress=show)
        echo(f"{dataset.url}: index of {len(dataset.units)} shards, {len(dataset.records):,} samples written")
        return
    store_out = open_to_write(out or url)
    with Progress("index", "shards") as show:
        made, skipped = index_webdataset(store, store_out if out else None, threads=threads, progress=show)
    for kind, number in sorted(skipped.counts.items()):
        named = ", ".join(skipped.names.get(kind, ()))
        echo(f"{'odd' if kind in ODD else 'skipped'}: {number:,} x {kind}" + (f": {named}" if named else ""))
    by_tar = len(set(zip(made.shard_of.tolist(), made.keys)))
    if repeated := by_tar - len(set(made.keys)):
        echo(f"odd: {repeated:,} x key that occurs in an earlier tar")
    total = sum(shard.bytes for shard in made.shards)
    echo(
        f"{made.url}/{WEB_INDEX_JSON}: {len(made.keys):,} samples in {len(made.shards)} tars, {size(total)}"
        + (f" of {made.tars}" if out else "")
    )


def named_ids(text: str) -> list[str]:
    """Returns the ids in the file of that name, else those in the text, separated by commas."""
    from sage_scale.shards.remove import read_ids
    from sage_scale.untrusted.files import read_text

    try:
        is_file = bool(text) and Path(text).is_file()
    except OSError:  # too long for a name
        is_file = False
    if is_file:
        try:
            return read_ids(read_text(text), text)
        except UnicodeDecodeError:
            raise UsageError(f"{text} is no text in UTF-8: write one id in a line") from None
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:  # ids may have slashes inside (videos in folders)
        if name.startswith(("/", "./", "../", "~")) or name.lower().endswith(_FILE_ENDINGS):
            raise UsageError(
                f"there is no file {name}: give ids, parted by commas, or a file with one id in a line"
            )
    return names


def _pairs(option: str, pairs: Sequence[str], read: Callable[[str], T]) -> dict[str, T]:
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier() or not value:
            raise UsageError(f"--{option} {pair}: write NAME=VALUE, with a name of letters, digits and _")
        if name in found:
            raise UsageError(f"--{option} {pair}: the part '{name}' is named twice")
        try:
            found[name] = read(value)
        except ValueError:
            raise UsageError(f"--{option} {pair}: '{value}' is no number") from None
    return found
