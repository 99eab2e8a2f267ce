"""A thousand random corruptions: every one is found by `verify`, named, and never delivered by a stream.

    python tests/campaigns/corruptions.py [--count 1000] [--seed 0] [--kind features] [--url s3://bucket/prefix]

A small dataset is damaged in one random way, verified, streamed with both policies, and restored; then the next. For
each way the table says how many were found, how many messages name the object that was hit and (where the damage lies
within one) the sample, and what a stream did. "wrong" counts clips that a stream handed out with other content than was
written: it must be 0, and the exit code is 1 where anything is not as it must be.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.extend(map(str, (Path(__file__).parents[1], Path(__file__).parents[2] / "benchmarks")))

import numpy as np
from common import parse
from damage import WAYS, Hit, Rig, contents, make_rig, stream
from factories.datasets import equal

from sage_scale.errors import DatasetError, SageError, StorageError
from sage_scale.shards import verify_dataset
from sage_scale.streaming import Batch


@dataclass
class Outcome:
    """What was seen of one corruption."""

    found: bool
    named: bool
    sample_named: bool
    hits_sample: bool
    raised: bool
    wrong: int
    lost: int
    complaints: list[str] = field(default_factory=list)


def look(rig: Rig, hit: Hit) -> Outcome:
    """Verify and stream the damaged dataset."""
    complaints: list[str] = []
    try:
        lines = list(verify_dataset(rig.store, threads=1).problems)
    except SageError as error:
        lines = [str(error)]
    named = any(name in line for name in hit.objects for line in lines)
    whole_index = "index.json" not in hit.objects
    sample_named = not hit.key or any(hit.key in line for line in lines)
    complaints += misread(rig)
    if any("\n" in line for line in lines):
        complaints.append(f"a message of several lines: {lines}")
    raised, wrong, delivered = False, 0, 0
    try:
        for batch in stream(rig, "raise"):
            wrong += judge(rig, batch)
            delivered += len(batch.keys)
    except SageError as error:
        raised = True
        says = str(error)
        # where the index is whole, the message is about a sample of a shard
        if whole_index and not (
            re.search(r"\d{6}(\.g\d+)?\.tar", says) and re.search(r"sample [0-9a-f]{16}", says)
        ):
            complaints.append(f"does not name shard and sample: {says}")
        if not whole_index and "index.json" not in says and "is not finished" not in says:
            complaints.append(f"does not name index.json: {says}")
    if not raised and delivered != len(rig.clips):
        complaints.append(f"{delivered} of {len(rig.clips)} clips without an error")
    lost = 0
    if whole_index:
        kept = 0
        for batch in stream(rig, "skip"):
            wrong += judge(rig, batch)
            kept += len(batch.keys)
            lost += len(batch.counts.skipped)
        if kept + lost != len(rig.clips) or bool(lost) != raised:
            complaints.append(f"skip: {kept} delivered, {lost} skipped of {len(rig.clips)}, raised: {raised}")
    return Outcome(bool(lines), named, sample_named, bool(hit.key), raised, wrong, lost, complaints)


def misread(rig: Rig) -> list[str]:
    """Complaints about samples that `Dataset.read`, by the index from before, does not give as written or refuse."""
    table, complaints = rig.dataset.samples(), []
    for row in range(len(table)):
        key, tar = f"{int(table.key[row]):016x}", rig.dataset.units[int(table.unit[row])].tar
        try:
            if not equal(rig.dataset.read(table, row), rig.samples[key]):
                complaints.append(f"sample {key} was read with other content")
        except (DatasetError, StorageError) as error:
            if tar not in str(error) or (isinstance(error, DatasetError) and key not in str(error)):
                complaints.append(f"does not name {tar} and {key}: {error}")
    return complaints


def judge(rig: Rig, batch: Batch) -> int:
    """How many clips of the batch are not what was written."""
    return sum(rig.clips.get(key) != content for key, content in contents(batch).items())


def corruptions(rig: Rig, count: int, seed: int) -> Iterator[tuple[str, Hit, Outcome]]:
    """Damage, look, restore, `count` times; every way in its share, at least once."""
    rng = np.random.default_rng(seed)
    ways = [way for way, share in WAYS.items() for _ in range(max(1, round(share * count)))]
    for number in rng.permutation(len(ways)).tolist():
        hit = ways[number](rig, rng)
        try:
            yield ways[number].__name__, hit, look(rig, hit)
        finally:
            rig.restore()


def right(outcome: Outcome) -> bool:
    """Whether everything is as it must be."""
    return (
        outcome.found
        and outcome.named
        and outcome.sample_named
        and outcome.wrong == 0
        and not outcome.complaints
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=("features", "frames"), default="features")
    parser.add_argument(
        "--url", default="", help="where the dataset is made; a temporary folder unless given"
    )
    options = parse(parser, count=1)
    logging.getLogger("sage_scale.streaming").setLevel(
        logging.ERROR
    )  # hundreds of samples are skipped on purpose
    begun, cpu = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="corruptions-") as folder:
        rig = make_rig(options.url or f"{folder}/data", options.kind)
        sums: dict[str, Counter[str]] = {way.__name__: Counter() for way in WAYS}
        failures = 0
        for name, hit, outcome in corruptions(rig, options.count, options.seed):
            row = sums[name]
            row.update(
                n=1,
                found=outcome.found,
                named=outcome.named,
                in_sample=outcome.hits_sample,
                sample_named=outcome.hits_sample and outcome.sample_named,
                raised=outcome.raised,
                skipped=outcome.lost,
                wrong=outcome.wrong,
            )
            if not right(outcome):
                failures += 1
                print(f"NOT AS IT MUST BE: {name} {hit} {outcome}", file=sys.stderr)
        if verify_dataset(rig.store).problems:
            print("the dataset was not restored", file=sys.stderr)
            failures += 1
    total: Counter[str] = Counter()
    for row in sums.values():
        total.update(row)
    print(
        f"{'corruption':<20} {'n':>5} {'found':>6} {'named':>6} {'sample named':>13} {'stream raised':>14} {'wrong':>6}"
    )
    for name, row in [*sums.items(), ("all", total)]:
        samples = f"{row['sample_named']}/{row['in_sample']}"
        counts = f"{row['n']:>5} {row['found']:>6} {row['named']:>6} {samples:>13} {row['raised']:>14}"
        print(f"{name:<20} {counts} {row['wrong']:>6}")
    print(
        f"{total['n']} corruptions of {options.kind} in {time.monotonic() - begun:.0f} s "
        f"({time.process_time() - cpu:.0f} s of processor time), {total['skipped']} samples skipped under 'skip', "
        f"{failures} not as it must be"
    )
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
