"""WebDatasets of others in our order: equal samples whatever the layout, resumable, and damage is never delivered."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import pytest
import webdataset

from sage_scale.config import Stream as Settings
from sage_scale.errors import CheckpointError, DatasetError, UsageError
from sage_scale.shards.webdataset_index import index_webdataset
from sage_scale.storage import open_store
from sage_scale.streaming import open_webdataset
from sage_scale.streaming.readers import DamagedSample

SAMPLES = 61
SMALL = Settings(lanes=8, window=16)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict]]:
    """A folder of tars by webdataset's own writer, indexed, and what webdataset gives for each key."""
    folder = tmp_path_factory.mktemp("theirs")
    rng = random.Random(0)
    with webdataset.ShardWriter(str(folder / "s-%03d.tar"), maxcount=17, verbose=0) as writer:
        for n in range(SAMPLES):
            writer.write(
                {
                    "__key__": f"folder.{n % 3}/sample {n}",
                    "jpg": rng.randbytes(rng.randrange(1, 4000)),
                    "seg.json": {"n": n},
                    "pth": pickle.dumps(n),
                }
            )
    index_webdataset(open_store(folder))
    pipeline = webdataset.DataPipeline(
        webdataset.SimpleShardList(sorted(map(str, folder.glob("*.tar")))), webdataset.tarfile_to_samples()
    )
    return folder, {sample["__key__"]: sample for sample in pipeline}


def test_an_epoch_is_what_webdataset_gives_each_sample_once(theirs) -> None:
    folder, expected = theirs
    batches = list(open_webdataset(str(folder), batch_size=8, seed=3, epochs=1, settings=SMALL))
    samples = [sample for batch in batches for sample in batch.samples]
    assert len(samples) == len(expected) == SAMPLES
    assert {sample["__key__"]: sample for sample in samples} == expected
    keys = [sample["__key__"] for sample in samples]
    assert keys != list(expected) and keys == [key for batch in batches for key in batch.keys]
    assert [batch.position for batch in batches] == [8, 16, 24, 32, 40, 48, 56, 61]


@pytest.mark.parametrize("world", [2, 3, 8])
def test_every_layout_gives_the_same_global_batches(theirs, world: int) -> None:
    folder, _ = theirs
    alone = list(open_webdataset(str(folder), batch_size=8, seed=3, epochs=2, settings=SMALL))
    ranks = [
        list(
            open_webdataset(str(folder), batch_size=8, rank=r, world=world, seed=3, epochs=2, settings=SMALL)
        )
        for r in range(world)
    ]
    for step, whole in enumerate(alone):
        parts = {p: s for rank in ranks for p, s in zip(rank[step].positions_B.tolist(), rank[step].samples)}
        assert parts == dict(zip(whole.positions_B.tolist(), whole.samples))


def test_resuming_at_another_size_goes_on_exactly(theirs) -> None:
    folder, _ = theirs
    whole = open_webdataset(str(folder), batch_size=8, seed=3, epochs=2, settings=SMALL)
    expected = [batch.keys for batch in whole]
    first = open_webdataset(str(folder), batch_size=8, seed=3, epochs=2, settings=SMALL)
    reading = iter(first)
    for _ in range(10):
        next(reading)
    state = first.state_dict()
    second = open_webdataset(str(folder), batch_size=8, seed=3, epochs=2, settings=SMALL)
    second.load_state_dict(state)
    assert [batch.keys for batch in second] == expected[10:]
    other = open_webdataset(str(folder), batch_size=8, seed=4, settings=SMALL)
    with pytest.raises(CheckpointError, match="another order"):
        other.load_state_dict(state)


def test_decode_makes_of_a_sample_what_it_likes(theirs) -> None:
    folder, expected = theirs
    stream = open_webdataset(
        str(folder), batch_size=8, epochs=1, settings=SMALL, decode=lambda sample: len(sample["jpg"])
    )
    for batch in stream:
        assert batch.samples == [len(expected[key]["jpg"]) for key in batch.keys]


def test_workers_give_the_same(theirs) -> None:
    folder, _ = theirs
    alone, worked = (
        [
            (b.keys, b.samples)
            for b in open_webdataset(str(folder), batch_size=8, epochs=1, workers=w, settings=SMALL)
        ]
        for w in (0, 2)
    )
    assert alone == worked


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_damage_is_never_delivered(theirs, tmp_path: Path, policy: str) -> None:
    folder, expected = theirs
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray((tmp_path / "s-001.tar").read_bytes())
    data[900] ^= 2
    (tmp_path / "s-001.tar").write_bytes(bytes(data))
    settings = Settings(lanes=8, window=16, on_corrupt=policy)
    stream = open_webdataset(str(tmp_path), batch_size=8, epochs=1, settings=settings)
    if policy == "raise":
        with pytest.raises(DamagedSample, match=r"sample folder\.\d/sample 17 of .*s-001\.tar"):
            list(stream)
        return
    samples = [sample for batch in stream for sample in batch.samples]
    assert len(samples) == SAMPLES - 1 and len(stream.counts.skipped) == 1
    assert all(
        {**sample, "__url__": ""} == {**expected[sample["__key__"]], "__url__": ""} for sample in samples
    )


def test_wrong_input_is_one_clear_line(tmp_path: Path, theirs) -> None:
    with pytest.raises(DatasetError, match="shards index"):
        open_webdataset(str(tmp_path), batch_size=8)
    with pytest.raises(UsageError, match="at least 1"):
        open_webdataset(str(theirs[0]), batch_size=0)
    with pytest.raises(UsageError, match="cannot share"):
        open_webdataset(str(theirs[0]), batch_size=8, rank=0, world=9, settings=SMALL)


@pytest.mark.system
def test_from_s3_with_the_index_elsewhere(theirs, s3, tmp_path: Path) -> None:
    folder, expected = theirs
    store = open_store(f"{s3.url}/theirs")
    for path in folder.glob("*.tar"):
        store.put(path.name, path)
    index_webdataset(store, open_store(tmp_path))
    batches = list(open_webdataset(str(tmp_path), batch_size=8, seed=3, epochs=1, settings=SMALL))
    here = list(open_webdataset(str(folder), batch_size=8, seed=3, epochs=1, settings=SMALL))
    assert [batch.keys for batch in batches] == [batch.keys for batch in here]
    for sample in (sample for batch in batches for sample in batch.samples):
        assert {**sample, "__url__": ""} == {**expected[sample["__key__"]], "__url__": ""}
