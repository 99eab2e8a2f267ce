"""A shard: what is written is read back by us, by tarfile and by webdataset, and the same is always the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
import xxhash
from factories.datasets import equal, make_sample
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_scale.errors import DatasetError, StorageError
from sage_scale.shards import Reject, Sample, build_index, make_marker, read_sample, write_shard
from sage_scale.shards.index import RECORD, parse_index
from sage_scale.shards.layout import sample_key
from sage_scale.shards.tar import header, padding
from sage_scale.shards.writer import sample_bytes, sample_members

SHARD = {"unit": 42, "split": "train", "dataset": "00112233445566aa"}


def write(path: Path, samples: list[Sample], rejects: tuple[Reject, ...] = ()) -> bytes:
    write_shard(path, samples, rejects, **SHARD)
    return path.read_bytes()


samples = st.builds(
    make_sample,
    clip=st.text(min_size=1, max_size=12),
    kind=st.sampled_from(["frames", "features"]),
    total=st.integers(1, 60),
    stride=st.integers(1, 4),
    background=st.booleans(),
    sentence=st.text(max_size=30),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(samples, max_size=4, unique_by=lambda sample: sample.key), st.integers(0, 2))
def test_the_writers_index_is_that_of_the_tar(tmp_path_factory, made: list[Sample], rejected: int) -> None:
    path = tmp_path_factory.mktemp("s") / "a.tar"
    rejects = tuple(Reject(id=f"r{n}", reason="too-short", detail="é") for n in range(rejected))
    for language, sample in zip(("de", "en", "de", ""), made):
        sample.meta["language"] = language
    ours, read = write_shard(path, made, rejects, **SHARD), build_index(path)
    assert ours.to_bytes() == read.to_bytes()
    assert make_marker(ours) == make_marker(read)
    assert (ours.header, ours.rejects, ours.tar_sha256) == (read.header, read.rejects, read.tar_sha256)
    assert ours.tar_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@settings(max_examples=25, deadline=None)
@given(st.lists(samples, max_size=4, unique_by=lambda sample: sample.key))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, made: list[Sample]) -> None:
    data = write(tmp_path_factory.mktemp("s") / "a.tar", made)
    index = build_index(data)
    assert len(index.records) == len(made)
    for sample, record in zip(made, index.records):
        piece = data[int(record["offset"]) : int(record["offset"]) + int(record["length"])]
        assert xxhash.xxh3_128(piece).digest() == record["hash"].tobytes()
        again = read_sample(piece, key=sample.key, digest=record["hash"].tobytes())
        assert equal(again, sample)
        assert (record["frames"], record["segments"], record["glosses"], record["flags"]) == (
            sample.meta["frames"],
            len(sample.segments),
            len(sample.meta["pseudo_glosses"]),
            int(bool(sample.meta["sentence"])),
        )


@pytest.mark.parametrize("kind", ["frames", "features"])
def test_webdataset_reads_it_with_no_code_of_ours(tmp_path: Path, kind: str) -> None:
    made = [make_sample(f"clip {n}", kind, background=kind == "frames") for n in range(5)]
    write(tmp_path / "000042.tar", made, (Reject(id="x", reason="empty"),))
    read = list(webdataset.WebDataset(str(tmp_path / "000042.tar"), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in read] == [sample.key for sample in made]
    for theirs, ours in zip(read, made):
        assert theirs["json"] == ours.meta
        assert theirs["segments.npy"].dtype == np.int32
        assert np.array_equal(theirs["segments.npy"], ours.segments)
        if kind == "features":
            assert theirs["features.npy"].dtype == np.float16
            assert np.array_equal(theirs["features.npy"], ours.features)
        else:
            assert theirs["background.jpg"] == ours.background
            assert {n: theirs[f"{n:06d}.jpg"] for n in ours.frames or {}} == ours.frames


def test_webdataset_decodes_the_images(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [make_sample("clip", "frames")])
    (sample,) = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode("rgb8")
    assert sample["000000.jpg"].shape == (8, 8, 3)


def test_tarfile_sees_plain_members_without_clock_or_owner(tmp_path: Path) -> None:
    made = [make_sample("a", "frames"), make_sample("b", "frames", background=True)]
    write(tmp_path / "a.tar", made, (Reject(id="x", reason="empty", detail="no frame"),))
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = tar.getmembers()
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m in members} == {
            (0, 0, 0, "", "", 0o644, tarfile.REGTYPE)
        }
        names = [m.name for m in members]
        assert names[0] == "__shard__" and names[-1] == "__rejects__"
        key = made[1].key
        assert [name for name in names if name.startswith(key)] == [
            f"{key}.json",
            f"{key}.segments.npy",
            f"{key}.background.jpg",
            *(f"{key}.{n:06d}.jpg" for n in range(0, 20, 2)),
        ]
        header = json.load(tar.extractfile("__shard__"))  # type: ignore[arg-type]
        assert header == {"format": "sage-scale-shards", "version": 1, **SHARD}
        assert json.load(tar.extractfile("__rejects__")) == [  # type: ignore[arg-type]
            {"id": "x", "reason": "empty", "detail": "no frame"}
        ]
        starts = {m.name.split(".")[0]: m.offset for m in reversed(members)}
    for sample, record in zip(made, build_index(tmp_path / "a.tar").records):
        assert int(record["offset"]) == starts[sample.key] and int(record["key"]) == int(sample.key, 16)


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    made = [make_sample(f"{n}", "frames") for n in range(3)]
    shuffled = [
        Sample(**{**vars(sample), "meta": dict(reversed(sample.meta.items()))})  # another order of keys
        for sample in made
    ]
    first = write(tmp_path / "a.tar", made)
    time.sleep(1.1)  # tar's clock counts seconds
    assert write(tmp_path / "other-name.tar", shuffled) == first
    assert len(first) % 512 == 0 and first[-1024:] == bytes(1024)


def test_index_and_marker_follow_from_the_tar_alone(tmp_path: Path) -> None:
    data = write(
        tmp_path / "a.tar", [make_sample("a"), make_sample("b", sentence="")], (Reject(id="x", reason="r"),)
    )
    one, two = build_index(data), build_index(tmp_path / "a.tar")
    assert one.to_bytes() == two.to_bytes() and make_marker(one).to_bytes() == make_marker(two).to_bytes()
    marker = json.loads(make_marker(one).to_bytes())
    assert marker["sha256"] == hashlib.sha256(data).hexdigest()
    assert marker["index_sha256"] == hashlib.sha256(one.to_bytes()).hexdigest()
    assert {name: marker[name] for name in ("unit", "split", "dataset")} == SHARD
    assert (marker["samples"], marker["rejects"], marker["reasons"], marker["bytes"]) == (
        2,
        1,
        {"r": 1},
        len(data),
    )
    assert parse_index(one.to_bytes(), "").tobytes() == one.records.tobytes()
    assert RECORD.itemsize == 48 and len(one.to_bytes()) == 32 + 2 * 48


def test_a_shard_may_be_empty_of_clips(tmp_path: Path) -> None:
    index = build_index(write(tmp_path / "a.tar", [], (Reject(id="x", reason="unreadable"),)))
    assert len(index.records) == 0 and make_marker(index).split == "train"
    assert list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False, empty_check=False)) == []


def change(sample: Sample, **values: object) -> Sample:
    return Sample(**{**vars(sample), **values})


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda s: change(s, key="0" * 16), "not the hash of its id"),
        (lambda s: change(s, meta={k: v for k, v in s.meta.items() if k != "signer"}), "lacks signer"),
        (lambda s: change(s, segments=np.array([[0, 5], [3, 8]], np.int32)), "disjoint"),
        (lambda s: change(s, segments=np.array([[5, 5]], np.int32)), "disjoint"),
        (lambda s: change(s, segments=np.array([[0, 21]], np.int32)), "inside"),
        (lambda s: change(s, segments=np.zeros((0, 2), np.int32)), "N >= 1"),
        (lambda s: change(s, segments=np.array([[0, 5]], np.int64)), "int32"),
        (lambda s: change(s, features=s.features.astype(np.float32)), "float16"),
        (lambda s: change(s, features=s.features[1:]), "10 frames"),
        (lambda s: change(s, views=(s.features, s.features[1:])), "as large as its features"),
        (lambda s: change(s, views=(s.features.astype(np.float32),)), "as large as its features"),
        (lambda s: change(s, features=None, frames={0: b"\xff\xd8"}, views=(s.features,)), "no features"),
        (lambda s: change(s, features=None), "either frames or features"),
        (lambda s: change(s, features=None, frames={0: b"\xff\xd8"}), "all 10 frames"),
        (lambda s: change(s, meta={**s.meta, "split": "dev"}), "in a unit of train"),
    ],
)
def test_a_writer_refuses_what_breaks_the_contract(tmp_path: Path, broken, says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        write_shard(tmp_path / "a.tar", [make_sample("ok"), broken(make_sample("clip"))], **SHARD)
    assert list(tmp_path.iterdir()) == []


def test_a_clip_twice_and_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="occurs twice"):
        write(tmp_path / "a.tar", [make_sample("clip"), make_sample("clip")])
    (tmp_path / "full.tar").symlink_to("/dev/full")  # what fails is unlinked: the link, not the device
    with pytest.raises(StorageError, match="disk is full"):
        write_shard(tmp_path / "full.tar", [make_sample("clip")], **SHARD)
    assert list(tmp_path.iterdir()) == []


def test_views_of_features_come_back_and_anybody_can_read_them(tmp_path: Path) -> None:
    plain = make_sample("clip")
    views = tuple(plain.features * scale for scale in (2, 4))
    write(tmp_path / "a.tar", [change(plain, views=views)])
    (read,) = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode()
    for name, array in zip(("features.npy", "features.1.npy", "features.2.npy"), (plain.features, *views)):
        assert np.array_equal(read[name], array)
    sample = read_sample(sample_bytes(change(plain, views=views)))
    assert len(sample.views) == 2 and all(np.array_equal(*pair) for pair in zip(sample.views, views))
    assert [sample.view(n) is not None for n in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("order", [("2", "1"), ("1", "1"), ("2",), ("0", "1")])
def test_views_that_do_not_follow_each_other_are_damage(order: tuple[str, ...]) -> None:
    plain = make_sample("clip")
    members = list(sample_members(plain))
    members += [(f"{plain.key}.features.{number}.npy", members[-1][1]) for number in order]
    data = b"".join(header(name, len(value)) + value + padding(len(value)) for name, value in members)
    if order[0] == "0":  # no view's name: of somebody else, and not ours to judge
        assert len(read_sample(data).views) == 1
    else:
        with pytest.raises(DatasetError, match=rf"features\.{order[0]}\.npy occurs twice or out of order"):
            read_sample(data)


HEADER = json.dumps({"format": "sage-scale-shards", "version": 1, **SHARD}).encode()


def hostile(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """A whole tar, by Python's own writer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    # tarfile goes on with two empty blocks and then fills up its record; a shard ends after the two
    with tarfile.open(fileobj=io.BytesIO(buffer.getvalue())) as tar:
        last = tar.getmembers()[-1]
        end = last.offset_data + -(-last.size // 512) * 512
    return buffer.getvalue()[: end + 1024]


def in_shard(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """The members as they lie in a shard, without the end of the tar."""
    return hostile(members)[:-1024]


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def npy(array: np.ndarray, **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


class Trap:
    """Unpickling it leaves a trace."""

    def __reduce__(self):
        return (open, ("trap-was-sprung", "w"))


KEY = sample_key("clip")
GOOD = [
    (f"{KEY}.json", json.dumps(make_sample("clip").meta).encode()),
    (f"{KEY}.segments.npy", npy(np.array([[0, 5]], np.int32))),
    (f"{KEY}.features.npy", npy(np.zeros((10, 4), np.float16))),
]


def test_samples_of_other_writers_are_read_too() -> None:
    sample = read_sample(in_shard([(member(name), body) for name, body in GOOD]), key=KEY)
    assert sample.features is not None and sample.features.shape == (10, 4)


@pytest.mark.parametrize(
    "extra",
    [
        (member(f"{KEY}.link.json", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (member(f"{KEY}.hard", tarfile.LNKTYPE, f"{KEY}.json"), b""),
        (member(f"{KEY}.device", tarfile.CHRTYPE), b""),
        (member(f"{KEY}.folder", tarfile.DIRTYPE), b""),
        (member("/etc/passwd"), b"x"),
        (member(f"../{KEY}.json"), b"x"),
        (member(f"{KEY}/../../x.json"), b"x"),
        (member(f"{KEY}.json"), b"{}"),
        (member(f"{KEY}.features.npy"), b""),
        (member("f" * 16 + ".json"), b"{}"),
        (member("prefix/" * 20 + f"{KEY}.json"), b"{}"),
    ],
    ids=lambda extra: extra[0].name[-24:],
)
def test_hostile_members_are_refused(extra: tuple[tarfile.TarInfo, bytes]) -> None:
    members = [*((member(name), body) for name, body in GOOD), extra]
    with pytest.raises(DatasetError):
        read_sample(in_shard(members), key=KEY)
    around = [(member(name), body) for name, body in (("__shard__", HEADER), ("__rejects__", b"[]"))]
    assert len(build_index(hostile([around[0], *members[:-1], around[1]])).records) == 1
    with pytest.raises(DatasetError):
        build_index(hostile([around[0], *members, around[1]]))


@pytest.mark.parametrize(
    ("index", "body"),
    [
        (2, npy(np.array([{"a": 1}], object), allow_pickle=True)),
        (2, npy(np.zeros((10, 4), np.float64))),
        (2, npy(np.asfortranarray(np.zeros((10, 4), np.float16)))),
        (2, npy(np.zeros((10, 4), np.float16))[:-2]),
        (2, npy(np.zeros((10, 4), np.float16)) + b"\0\0"),
        (2, npy(np.zeros((10, 4), np.float16)).replace(b"(10, 4)", b"(-1, 4)")),
        (2, npy(np.zeros((10, 4), np.float16)).replace(b"'<f2'", b"exit(")),
        (2, b"\x93NUMPY"),
        (2, b""),
        (1, b""),
        (0, b"{"),
        (0, b"[" * 100_000),
        (0, b"[]"),
    ],
)
def test_hostile_arrays_and_descriptions_are_refused(index: int, body: bytes) -> None:
    members = [(member(name), body if n == index else good) for n, (name, good) in enumerate(GOOD)]
    with pytest.raises(DatasetError):
        read_sample(in_shard(members), key=KEY)


@pytest.mark.parametrize(
    "size", [b"77777777777", b"-0000000001", b"00000xyz000", b"\x80\0\0\0\0\0\0\0\0\0\x01"]
)
def test_sizes_that_lie_are_refused(tmp_path: Path, size: bytes) -> None:
    data = bytearray(write(tmp_path / "a.tar", [make_sample("clip")]))
    record = build_index(bytes(data)).records[0]
    start, length = int(record["offset"]), int(record["length"])
    data[start + 124 : start + 135] = size
    with pytest.raises(DatasetError, match=KEY):
        read_sample(bytes(data[start : start + length]), key=KEY)
    with pytest.raises(DatasetError):
        build_index(bytes(data))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_bytes_whatever_make_the_reader_do_anything_but_read_or_refuse(data: st.DataObject) -> None:
    whole = bytearray(in_shard([(member(name), body) for name, body in GOOD]))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    piece = bytes(whole[: cut if data.draw(st.booleans()) else len(whole)])
    try:
        sample = read_sample(piece, key=KEY)
    except DatasetError as error:
        assert KEY in str(error) and "\n" not in str(error)
    else:
        assert sample.segments.dtype == np.int32 and isinstance(sample.meta, dict)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_names_the_shard_and_its_folder_not_a_descriptor() -> None:
    with open("/dev/full", "wb") as full, pytest.raises(StorageError) as caught:
        write_shard(
            Path(f"/proc/self/fd/{full.fileno()}"),
            [make_sample("a", total=400)],
            unit=7,
            split="train",
            dataset="0" * 16,
        )
    assert str(caught.value).startswith("shard 000007 in /dev cannot be written: the disk is full")
