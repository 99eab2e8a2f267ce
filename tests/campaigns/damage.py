"""A small dataset, and the ways to damage it that `corruptions.py` draws from.

Each way takes a `Rig` and a random generator, changes one or two objects of the store, and says in a `Hit` which ones,
and the sample whose bytes it changed, if it is one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from factories.datasets import (
    SIZE,
    STRIDE,
    WIDTH,
    make_sample,
    publish,
    snapshot,
    stream_recipe,
    write_dataset,
)

from sage_scale.config import Recipe
from sage_scale.shards import Dataset, Sample
from sage_scale.shards.tar import Member, walk
from sage_scale.storage import Store, open_store
from sage_scale.streaming import Batch, open_stream

UNITS = (("train", 8), ("train", 8), ("train", 5), ("dev", 3))


@dataclass
class Hit:
    """What a corruption did: which objects it touched, and the sample whose bytes it changed, if it is one."""

    objects: tuple[str, ...]
    key: str = ""


@dataclass
class Rig:
    """A whole dataset, a store to damage it in, and what a stream of it delivers."""

    store: Store
    whole: dict[str, bytes]
    recipe: Recipe
    dataset: Dataset
    samples: dict[str, Sample]
    """As they were written, by key."""
    clips: dict[str, tuple] = field(default_factory=dict)
    """All that a stream says of each training clip, by key."""

    def put(self, name: str, data: bytes) -> None:
        """Replace an object; store.put would flush the disk a thousand times."""
        path = self.store.local_path(name)
        if path is not None:
            path.write_bytes(data)
        else:
            self.store.put(name, data)

    def restore(self) -> None:
        """Every object as it was."""
        there = {entry.name for entry in self.store.list()}
        for name in there - self.whole.keys():
            self.store.delete(name)
        for name, data in self.whole.items():
            if name not in there or self.store.get(name) != data:
                self.put(name, data)

    def key_at(self, tar: str, byte: int) -> str:
        """Key of the sample that a byte of a tar belongs to, or nothing."""
        table = self.dataset.samples()
        for row in range(len(table)):
            same = self.dataset.units[int(table.unit[row])].tar == tar
            if same and 0 <= byte - int(table.offset[row]) < int(table.length[row]):
                return f"{int(table.key[row]):016x}"
        return ""


# Ways to damage a dataset.


def pick(rng: np.random.Generator, names: list[str]) -> str:
    return names[int(rng.integers(0, len(names)))]


def tars(rig: Rig) -> list[str]:
    return sorted(name for name in rig.whole if name.endswith(".tar"))


def flip(rig: Rig, rng: np.random.Generator, name: str) -> Hit:
    data = bytearray(rig.whole[name])
    at = int(rng.integers(0, len(data)))
    data[at] ^= 1 << int(rng.integers(0, 8))
    rig.put(name, bytes(data))
    return Hit((name,), rig.key_at(name, at))


def bit_in_tar(rig: Rig, rng: np.random.Generator) -> Hit:
    return flip(rig, rng, pick(rng, tars(rig)))


def bit_in_idx(rig: Rig, rng: np.random.Generator) -> Hit:
    return flip(rig, rng, pick(rng, [name for name in rig.whole if name.endswith(".idx")]))


def bit_in_marker(rig: Rig, rng: np.random.Generator) -> Hit:
    return flip(rig, rng, pick(rng, [name for name in rig.whole if re.fullmatch(r"\d+\.json", name)]))


def bit_in_index_json(rig: Rig, rng: np.random.Generator) -> Hit:
    return flip(rig, rng, "index.json")


def bit_in_dataset_json(rig: Rig, rng: np.random.Generator) -> Hit:
    return flip(rig, rng, "dataset.json")


def zeroed_run(rig: Rig, rng: np.random.Generator) -> Hit:
    """A sector of zeros, as a disk leaves it; one that lay in zeros already is drawn again."""
    while True:
        name = pick(rng, tars(rig))
        data = bytearray(rig.whole[name])
        at = int(rng.integers(0, len(data) // 512)) * 512
        data[at : at + 512] = bytes(512)
        if bytes(data) != rig.whole[name]:
            rig.put(name, bytes(data))
            return Hit((name,), rig.key_at(name, at))


def truncated(rig: Rig, rng: np.random.Generator) -> Hit:
    name = pick(rng, sorted(rig.whole))
    data = rig.whole[name]
    at = int(rng.integers(0, len(data)))
    rig.put(name, data[:at])
    return Hit((name,), rig.key_at(name, at))


def members(rig: Rig, name: str) -> list[Member]:
    return list(walk(rig.whole[name], name))


def member_missing(rig: Rig, rng: np.random.Generator) -> Hit:
    name = pick(rng, tars(rig))
    found = members(rig, name)
    gone = found[int(rng.integers(0, len(found)))]
    data = rig.whole[name]
    rig.put(name, data[: gone.start] + data[gone.end :])
    return Hit((name,), rig.key_at(name, gone.start))


def member_twice(rig: Rig, rng: np.random.Generator) -> Hit:
    name = pick(rng, tars(rig))
    found = members(rig, name)
    twice = found[int(rng.integers(0, len(found)))]
    data = rig.whole[name]
    rig.put(name, data[: twice.end] + data[twice.start :])
    return Hit((name,))


def header_changed(rig: Rig, rng: np.random.Generator) -> Hit:
    """A tar header that says something else, with a checksum that is right again."""
    name = pick(rng, tars(rig))
    found = members(rig, name)
    target = found[int(rng.integers(0, len(found)))]
    data = bytearray(rig.whole[name])
    block = data[target.start : target.start + 512]
    change = int(rng.integers(0, 6))
    if change == 0:
        block[124:135] = b"%011o" % (target.size + 1 + int(rng.integers(0, 2000)))
    elif change == 1:
        block[124:135] = b"%011o" % (10 << 30 >> 2)
    elif change == 2:
        block[156:157] = bytes([b"12345S7xLg"[int(rng.integers(0, 10))]])
    elif change == 3:
        block[0:100] = b"../x.json".ljust(100, b"\0")
    elif change == 4:
        block[0:100] = b"/etc/passwd".ljust(100, b"\0")
    else:
        block[15] = block[15] ^ 1
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    data[target.start : target.start + 512] = block
    rig.put(name, bytes(data))
    return Hit((name,), rig.key_at(name, target.start))


def samples_exchanged(rig: Rig, rng: np.random.Generator) -> Hit:
    """Two samples of a shard change places: every member is whole, and none is where the index has it."""
    unit = int(rng.integers(0, len(UNITS)))
    table = rig.dataset.samples()
    rows = (table.unit == unit).nonzero()[0]
    first = int(rng.integers(0, len(rows) - 1))
    name = tars(rig)[unit]
    data = rig.whole[name]
    one, two = (
        slice(int(table.offset[r]), int(table.offset[r] + table.length[r])) for r in rows[first : first + 2]
    )
    rig.put(name, data[: one.start] + data[two] + data[one] + data[two.stop :])
    return Hit((name,), f"{int(table.key[rows[first]]):016x}")


def shards_exchanged(rig: Rig, rng: np.random.Generator) -> Hit:
    """Two tars change places: alone, with their indexes, or with their markers too."""
    one, other = (name[:-4] for name in rng.permutation(tars(rig))[:2].tolist())
    touched = ("tar", "idx", "json")[: int(rng.integers(1, 4))]
    for ending in touched:
        rig.put(f"{one}.{ending}", rig.whole[f"{other}.{ending}"])
        rig.put(f"{other}.{ending}", rig.whole[f"{one}.{ending}"])
    return Hit((f"{one}.tar", f"{other}.tar"))


def stale_index(rig: Rig, rng: np.random.Generator) -> Hit:
    """A shard made again from other clips, with index and marker that agree with it; index.json knows the old one."""
    unit = int(rng.integers(0, 3))
    split, clips = UNITS[unit]
    made = [
        sample_of(f"new {rng.integers(0, 10**9)} {n}", split, rig.recipe.vision.kind) for n in range(clips)
    ]
    for ending in ("tar", "idx", "json"):
        rig.store.delete(f"{unit:06d}.{ending}")
    publish(rig.store, made, unit=unit, split=split, dataset=rig.dataset.info.digest)
    return Hit((f"{unit:06d}.tar",))


def object_missing(rig: Rig, rng: np.random.Generator) -> Hit:
    name = pick(rng, sorted(rig.whole))
    rig.store.delete(name)
    return Hit((name,))


def stray_tar(rig: Rig, rng: np.random.Generator) -> Hit:
    name = f"{int(rng.integers(4, 30)):06d}.tar"
    rig.put(name, rig.whole[pick(rng, tars(rig))])
    return Hit((name,))


WAYS: dict[Callable[[Rig, np.random.Generator], Hit], float] = {
    bit_in_tar: 0.32,
    bit_in_idx: 0.08,
    bit_in_marker: 0.08,
    bit_in_index_json: 0.06,
    bit_in_dataset_json: 0.04,
    zeroed_run: 0.06,
    truncated: 0.08,
    member_missing: 0.06,
    member_twice: 0.03,
    header_changed: 0.08,
    samples_exchanged: 0.02,
    shards_exchanged: 0.04,
    stale_index: 0.02,
    object_missing: 0.02,
    stray_tar: 0.01,
}
"""Each way and its share of all corruptions."""


# A small dataset.


def sample_of(clip: str, split: str, kind: str) -> Sample:
    """A clip of the dataset."""
    return make_sample(
        clip, kind, split, total=0, stride=STRIDE, background=kind == "frames", size=SIZE, width=WIDTH
    )


def make_rig(url: str, kind: str) -> Rig:
    """The dataset, whole, and what a stream of it delivers."""
    # A block cached while it was whole would hide what follows.
    recipe = stream_recipe(kind, lanes=4, window=8, cache_gb=0, seed=0)
    units = [
        (split, [sample_of(f"{split}-{unit}-{n}", split, kind) for n in range(clips)])
        for unit, (split, clips) in enumerate(UNITS)
    ]
    store = open_store(url)
    dataset = write_dataset(store, units, recipe)
    assert dataset is not None
    samples = {sample.key: sample for _, made in units for sample in made}
    rig = Rig(store, snapshot(store), recipe, dataset, samples)
    for batch in stream(rig, "raise"):
        rig.clips.update(contents(batch))
    return rig


def stream(rig: Rig, policy: str) -> Iterator[Batch]:
    """One epoch of the training split."""
    settings = dataclasses.replace(rig.recipe.stream, on_corrupt=policy)  # type: ignore[arg-type]
    recipe = dataclasses.replace(rig.recipe, stream=settings)
    return iter(open_stream(rig.store.url, recipe, "train", batch_size=4, epochs=1))


def contents(batch: Batch) -> dict[str, tuple]:
    """All that a batch says of each of its clips, by key."""
    found = {}
    for row, key in enumerate(batch.keys):
        clip = batch.select([row])
        tensors = {
            name: value.numpy().tobytes()
            for name, value in vars(clip.video).items()
            if hasattr(value, "numpy")
        }
        tensors.pop("clip_seeds_B", None)  # a number of the place in the epoch
        found[key] = (repr(clip.metas[0]), clip.segments[0].tobytes(), tensors)
    return found
