"""Tars as others write them, and how webdataset and we read them."""

from __future__ import annotations

import io
import pickle
import random
import tarfile
from pathlib import Path

import numpy as np
import webdataset

from sage_scale.shards.webdataset_index import open_webdataset_index, read_members
from sage_scale.storage import open_store

LONG = "a-folder-with-a-name/" * 12


def their_tars(folder: Path, shards: int = 3) -> Path:
    """Tars by webdataset's own writer: several dots, folders, upper case, long names, nothing that is ours."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for shard in range(shards):
        with webdataset.TarWriter(str(folder / f"part-{shard:03d}.tar")) as writer:
            for n in range(7):
                key = [f"{shard}/{n:04d}", f"x{shard}-{n}", f"{LONG}{shard}-{n}", f"ünï/{shard} {n}"][n % 4]
                writer.write(
                    {
                        "__key__": key,
                        "left.seg.PNG": rng.randbytes(rng.randrange(3000)),
                        "cls": str(n).encode(),
                        "json": {"n": n},
                        "pkl": pickle.dumps([n]),
                        **({"npy": np.arange(n)} if n % 2 else {}),
                    }
                )
    return folder


def theirs(path: Path) -> list[dict]:
    """What webdataset gives before it decodes anything."""
    stages = [webdataset.SimpleShardList([str(path)]), webdataset.tarfile_to_samples()]
    return list(webdataset.DataPipeline(*stages))


def ours(url: Path | str) -> list[dict]:
    index = open_webdataset_index(str(url))
    store = open_store(index.tars)
    found = []
    for row, (shard, record) in enumerate(zip(index.shard_of.tolist(), index.records)):
        name = index.shards[shard].name
        data = store.get_range(name, int(record["offset"]), int(record["length"]))
        key, members = read_members(data, name)
        assert key == index.keys[row]
        found.append({"__key__": key, "__url__": f"{index.tars}/{name}", **members})
    return found


def hostile_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in (*members, (tarfile.TarInfo("good.txt"), b"good")):
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **pax: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.pax_headers = kind, link, {k.replace("__", "."): v for k, v in pax.items()}
    return info


def write_tar(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    return path
