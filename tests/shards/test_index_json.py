"""index.json as it is read: in pieces of any size, into arrays that hold it all, with little memory besides."""

from __future__ import annotations

import base64
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factories.datasets import make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_scale.errors import DatasetError
from sage_scale.shards import DatasetInfo, Marker, PlannedUnit, open_dataset
from sage_scale.shards.addition_plan import Addition
from sage_scale.shards.index import RECORD
from sage_scale.shards.index_json import index_json
from sage_scale.shards.layout import INDEX_JSON, checksummed_json
from sage_scale.shards.units import Units
from sage_scale.storage import Store, open_store
from sage_scale.storage.folder import FolderStore

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=4)
markers = st.builds(
    Marker, unit=st.integers(0, 10**7), split=names, dataset=names, samples=st.integers(0, 4), frames=st.integers(0, 9),
    segments=st.integers(0, 9), rejects=st.integers(0, 9),
    reasons=st.dictionaries(names, st.integers(0, 9), max_size=2),
    bytes=st.integers(0, 2**40), sha256=names, index_sha256=names, languages=st.lists(names, max_size=3).map(tuple),
    generation=st.integers(0, 2),
)  # fmt: skip
ODD = {"records": "AAAA", "record_bytes": 48, "a": [{"records": ""}, '"records":"'], "units": [1]}
INFO = DatasetInfo(
    kind="features", recipe="r", manifest="m", units=(PlannedUnit(split="train", clips=2),), notes=ODD
)


class Pieces(FolderStore):
    """A store that gives an object in pieces of `size` bytes, each overwritten when the next is asked for."""

    size = 1

    def read(self, name, parse):
        data = self.get(name)

        def pieces():
            for begin in range(0, len(data), self.size):
                piece = bytearray(data[begin : begin + self.size])
                yield memoryview(piece)
                piece[:] = bytes(len(piece))

        return parse(len(data), pieces())


@given(st.lists(markers, max_size=4), st.integers(1, 700), st.booleans(), st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_in_pieces_of_any_size_it_is_the_document(tmp_path_factory, units, size, added, seed):
    records = np.random.default_rng(seed).bytes(48 * sum(unit.samples for unit in units))
    additions = [Addition(manifest="m", first_unit=3, before=(1, 0))] if added else []
    folder = tmp_path_factory.mktemp("pieces")
    line = index_json(INFO, units, np.frombuffer(records, RECORD), additions)
    (folder / INDEX_JSON).write_bytes(line)
    store = Pieces(folder)
    store.size = size
    dataset, document = open_dataset(store), json.loads(line)
    assert dataset.records.tobytes() == records == base64.b64decode(document["records"])
    assert dataset.units == units and [unit.to_mapping() for unit in dataset.units] == [
        json.loads(json.dumps(unit.to_mapping())) | {"languages": unit.languages} for unit in units
    ]
    assert (
        dataset.digest == document["xxh3"] and dataset.info == INFO and list(dataset.additions) == additions
    )
    assert dataset.unit_of_row.tolist() == [n for n, unit in enumerate(units) for _ in range(unit.samples)]
    splits: dict[str, int] = {}
    for unit in units:
        splits[unit.split] = splits.get(unit.split, 0) + unit.samples
    assert dataset.splits == splits
    for split in splits:
        rows = [n for n, unit in enumerate(dataset.unit_of_row.tolist()) if units[unit].split == split]
        assert dataset.samples(split).records.tobytes() == dataset.records[rows].tobytes()
        assert dataset.samples(split).unit.tolist() == dataset.unit_of_row[rows].tolist()
    assert dataset.units.tars() == tuple(unit.tar for unit in units)
    assert dataset.units[:] == tuple(units) == tuple(Units.of(units, ""))


@pytest.mark.parametrize("change", [
    {"records": "AA"}, {"records": "A"}, {"samples": 3}, {"units": {}}, {"units": [[]]}, {"records": 3},
    {"records": [""]}, {"dataset": []}, {"additions": [{}]}, {"version": 2}, {"format": "x"},
])  # fmt: skip
def test_a_sound_checksum_over_another_content_is_named(tmp_path: Path, change: dict) -> None:
    made = make_dataset(open_store(tmp_path))
    values = json.loads((tmp_path / INDEX_JSON).read_bytes())
    del values["xxh3"]
    (tmp_path / INDEX_JSON).write_bytes(checksummed_json({**values, **change}))
    with pytest.raises(DatasetError, match=r"is damaged|is of the format 'x'|is of format version 2"):
        open_dataset(made.store)
    for name in ("records", "units", "samples", "dataset", "format"):
        left = {key: value for key, value in values.items() if key != name}
        (tmp_path / INDEX_JSON).write_bytes(checksummed_json(left))
        with pytest.raises(DatasetError, match="is damaged"):
            open_dataset(made.store)


def test_opening_takes_at_most_half_more_memory_than_it_keeps(tmp_path: Path) -> None:
    whole = make_dataset(open_store(tmp_path))
    units = tuple(replace(whole.units[0], unit=n, samples=100) for n in range(4_000))
    info = replace(whole.info, units=(PlannedUnit(split="train", clips=100),) * len(units))
    records = np.zeros(400_000, RECORD)
    records["flags"] = 1
    whole.store.put(INDEX_JSON, index_json(info, units, records))
    del records, units
    tracemalloc.start()
    try:
        dataset = open_dataset(whole.store)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(dataset.samples("train")) == 400_000
    assert peak < 1.5 * kept and kept < 400_000 * 64, (peak, kept)


@pytest.mark.parametrize("action", ["truncate", "reset"])
def test_a_body_that_breaks_off_is_read_again(s3, behind_proxy, action: str) -> None:
    made = make_dataset(open_store(s3.url))
    proxy = behind_proxy(s3)
    rule = proxy.add(action, at=1_000)
    store: Store = open_store(s3.url)
    assert open_dataset(store).digest == made.digest and rule.hits == 1
