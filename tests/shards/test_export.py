"""`shards export`: Parquet, tars of keypoints, cards, resumption, damage; a clip by its id; its figure."""

from __future__ import annotations

import sys
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
import yaml
from factories.datasets import DyingStore, Killed, make_dataset, make_sample, snapshot, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_scale.keypoints.features import RowLayout, keypoint_features
from sage_scale.keypoints.names import LAYOUTS
from sage_scale.keypoints.track import KeypointTrack
from sage_scale.shards import open_dataset
from sage_scale.shards.export import export_dataset, split_names
from sage_scale.shards.lookup import NoClip
from sage_scale.shards.parquet import HuggingFace
from sage_scale.shards.pose_webdataset import segment_rows
from sage_scale.storage import open_store

HOSTILE = (
    "a/b.c/d", "../../etc/passwd", "zwei Wörter 手话 \U0001f9cf", "tab\tline\nend", "<b>|`x`|*#", "x" * 5000,
)  # fmt: skip
POSE = {
    "vision": {"backbone": "keypoints", "kind": "features", "keypoint_z": True, "keypoint_velocities": True}
}


def rows_of(folder, split):
    """All rows of a split's Parquet files, in order."""
    files = sorted((folder / "data" / split).glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def keypoint_samples(split, count):
    width = 67 * 3 * 2
    return [make_sample(f"{split} {n}", split=split, width=width, total=21, stride=2) for n in range(count)]


@pytest.mark.parametrize("kind", ["features", "frames"])
def test_parquet_holds_what_the_shards_hold(tmp_path, shards, kind):
    dataset = make_dataset(open_store(tmp_path / "data"), kind)
    said = shards("export", tmp_path / "data", "--out", tmp_path / "out", "--licence", "cc-by-4.0")
    assert "14 clips (train 12, dev 2) in 3 files" in said
    for split, count in (("train", 12), ("dev", 2)):
        rows, table = rows_of(tmp_path / "out", split), dataset.samples(split)
        assert len(rows) == count
        for row, number in zip(rows, range(count)):
            sample = dataset.read(table, number)
            same = ("id", "sentence", "language", "signer", "fps", "frame_stride", "pseudo_glosses", "source")
            assert {name: row[name] for name in same} == {name: sample.meta[name] for name in same}
            assert (row["key"], row["num_frames"]) == (sample.key, sample.meta["frames"])
            assert row["segments"] == sample.segments.tolist()
            if kind == "frames":
                assert [frame["bytes"] for frame in row["frames"]] == list(sample.frames.values())
            else:
                assert np.array_equal(np.array(row["features"], np.float16), sample.features)
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc-by-4.0" and front["language"] == ["de"]
    found = {entry["split"]: entry["path"] for entry in front["configs"][0]["data_files"]}
    assert found == {"train": "data/train/*.parquet", "dev": "data/dev/*.parquet"}


def test_hostile_names_are_values_and_never_paths(tmp_path, shards):
    samples = [make_sample(name, split="all", sentence=name) for name in HOSTILE]
    write_dataset(tmp_path / "data", [("all", samples), ("a|b *", [make_sample("y", split="a|b *")])])
    shards("export", tmp_path / "data", "--out", tmp_path / "out", "--name", "x\n---\nlicense: mit\n# `y`")
    assert [row["id"] for row in rows_of(tmp_path / "out", "all_")] == [s.meta["id"] for s in samples]
    assert {path.name for path in (tmp_path / "out" / "data").iterdir()} == {"all_", "a_b__"}
    front, body = (tmp_path / "out" / "README.md").read_text().removeprefix("---\n").split("\n---\n", 1)
    assert "license" not in yaml.safe_load(front) and body.startswith("\n# x\\\\n---")


@given(st.lists(st.text(max_size=8), unique=True, max_size=6))
@settings(max_examples=60, deadline=None)
def test_names_of_splits_are_distinct_words(splits):
    names = split_names(splits)
    assert len(set(names.values())) == len(splits)
    assert all(name.replace("_", "a").isalnum() and name != "all" for name in names.values())


def test_a_damaged_shard_is_named_and_the_others_are_exported(tmp_path, shards):
    dataset = make_dataset(open_store(tmp_path / "data"))
    tar, record = tmp_path / "data" / "000001.tar", dataset.records_by_unit()[1][2]
    data = bytearray(tar.read_bytes())
    data[int(record["offset"]) + 700] ^= 1
    tar.write_bytes(data)
    said = shards("export", tmp_path / "data", "--out", tmp_path / "out", code=1)
    assert f"000001.tar, sample {int(record['key']):016x}" in said and "1 of 3 shards are damaged" in said
    out = tmp_path / "out"
    assert not (out / "README.md").exists()
    assert {str(path.relative_to(out)) for path in out.rglob("*.parquet")} == {
        "data/train/000000.parquet",
        "data/dev/000002.parquet",
    }
    shards("repair", tmp_path / "data")
    said = shards("export", tmp_path / "data", "--out", out)
    assert "13 clips" in said and "1 written now" in said
    assert (out / "data/train/000001.g1.parquet").exists() and (out / "README.md").exists()


@pytest.mark.parametrize("broken", ["cut off", "missing", "first clip"])
def test_damage_of_the_first_shard_does_not_end_the_export(tmp_path, shards, broken):
    make_dataset(open_store(tmp_path / "data"))
    tar = tmp_path / "data" / "000000.tar"
    data = bytearray(tar.read_bytes())
    data[1024 + 600] ^= 1
    if broken == "missing":
        tar.unlink()
    else:
        tar.write_bytes(data[:900] if broken == "cut off" else data)
    said = shards("export", tmp_path / "data", "--out", tmp_path / "out", code=1)
    assert "000000.tar" in said and "1 of 3 shards are damaged, the others are exported" in said
    assert len(list((tmp_path / "out").rglob("*.parquet"))) == 2


def test_without_pyarrow_the_extra_is_named(tmp_path, store, shards, monkeypatch):
    monkeypatch.delitem(sys.modules, "sage_scale.shards.parquet", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    said = shards("export", store.url, "--out", tmp_path / "out", code=2)
    assert "pip install 'sage-scale[hf]'" in said


def test_the_card_repeats_the_notice_of_acted_text(tmp_path, shards):
    notes = {"notice": "Acted: the signs are <invented>."}
    part = {"corpus": {"name": "acted"}}
    write_dataset(tmp_path / "data", [("train", [make_sample("a")])], notes=notes, recipe_part=part)
    shards("export", tmp_path / "data", "--out", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "> **Acted: the signs are \\<invented\\>.**" in card and "- synthetic" in card
    assert "| signing | invented signs of no sign language |" in card and "Clips show people" not in card


def test_a_removed_clip_leaves_the_export(tmp_path, shards):
    make_dataset(open_store(tmp_path / "data"))
    shards("export", tmp_path / "data", "--out", tmp_path / "out")
    shards("remove", tmp_path / "data", "--ids", "train-0-3")
    said = shards("export", tmp_path / "data", "--out", tmp_path / "out")
    assert "1 written now, 1 outdated ones deleted" in said
    ids = [row["id"] for row in rows_of(tmp_path / "out", "train")]
    assert len(ids) == 11 and "train-0-3" not in ids


def test_a_killed_export_resumes_to_the_same_bytes(tmp_path):
    dataset = make_dataset(open_store(tmp_path / "data"))
    whole, form = open_store(tmp_path / "whole"), HuggingFace(dataset)
    export_dataset(dataset, whole, form)
    for at in range(4):
        with pytest.raises(Killed):
            export_dataset(dataset, DyingStore(tmp_path / f"{at}", at), form, threads=1)
        again = export_dataset(dataset, open_store(tmp_path / f"{at}"), form)
        assert again.written == 3 - max(at - 1, 0)
        assert snapshot(open_store(tmp_path / f"{at}")) == snapshot(whole)


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ({"notes.txt": b"mine"}, "holds other things (notes.txt)"),
        ({"sage-export.json": b"{"}, "sage-export.json is damaged"),
        ({"sage-export.json": b'{"kind":"pose-webdataset"}'}, "an export of another format"),
        ({"sage-export.json": b'{"kind":"hf","dataset":"0"}'}, "an export of another dataset"),
    ],
)
def test_a_target_with_anything_else_is_refused(tmp_path, store, shards, there, words):
    out = open_store(tmp_path / "out")
    for name, data in there.items():
        out.put(name, data)
    assert words in shards("export", store.url, "--out", out.url, code=2)
    assert snapshot(out) == there


def test_wrong_options_are_refused_before_any_work(tmp_path, store, shards):
    assert "must be hf or pose-webdataset" in shards(
        "export", store.url, "--out", "o", "--format", "x", code=2
    )
    assert "identifier" in shards("export", store.url, "--out", "o", "--licence", "my own: yes", code=2)
    assert "no keypoints" in shards("export", store.url, "--out", "o", "--format", "pose-webdataset", code=2)
    assert "holds other things" in shards("export", store.url, "--out", store.url, code=2)


def test_s3_is_a_source_and_a_target(s3, shards):
    make_dataset(open_store(f"{s3.url}/data"), "frames")
    shards("export", f"{s3.url}/data", "--out", f"{s3.url}/out")
    names = {entry.name for entry in open_store(f"{s3.url}/out").list()}
    assert names >= {"README.md", "sage-export.json", "data/train/000000.parquet", "data/dev/000002.parquet"}


def test_keypoints_by_body_part(tmp_path, shards):
    """Members as the package's `_get_continuous_webdataset_mapping_fn` asks for them; values as stored."""
    units = [("train", keypoint_samples("train", 3)), ("dev", keypoint_samples("dev", 2))]
    write_dataset(tmp_path / "data", units, recipe_part=POSE)
    shards("export", tmp_path / "data", "--out", tmp_path / "out", "--format", "pose-webdataset")
    tar = tmp_path / "out" / "data" / "train" / "000000.tar"
    found = list(webdataset.WebDataset(str(tar), shardshuffle=False).decode())
    names = LAYOUTS["openpose"]
    for item, sample in zip(found, units[0][1], strict=True):
        assert item["__key__"] == sample.key and item["json"]["id"] == sample.meta["id"]
        assert item["signer.txt"] == "s1" and item["txt"] == sample.meta["sentence"]
        points = sample.features[:, : 67 * 3].reshape(-1, 67, 3)
        assert item["pose.upper_pose.npy"].shape == (11, 25, 3)
        place = names.index("right_hand.wrist")
        assert np.array_equal(item["pose.right_hand.npy"][:, 0], points[:, place].astype(np.float32))
        assert len(item["annotations.both_hands.json"]) == len(sample.segments)
    with tarfile.open(tar) as plain:
        assert len(plain.getnames()) == 3 * 7
    shards("export", tmp_path / "data", "--out", tmp_path / "hf")
    row = rows_of(tmp_path / "hf", "dev")[1]
    assert np.shape(row["keypoints"]) == np.shape(row["velocities"]) == (11, 67, 3)


def test_rows_of_keypoints_divide_as_they_were_joined():
    """Points and velocities of `keypoint_features`: the latter are the differences of the former."""
    rng = np.random.default_rng(0)
    names = LAYOUTS["holistic"]
    track = KeypointTrack(
        names=names, points_TKC=rng.uniform(0, 500, (9, len(names), 3)).astype(np.float32),
        confidence_TK=np.ones((9, len(names)), np.float32), fps=25, width=500, height=500, has_z=True,
    )  # fmt: skip
    rows = keypoint_features(track, layout="holistic", velocities=True, z=True)
    vision = {
        "backbone": "keypoints",
        "keypoint_layout": "holistic",
        "keypoint_z": True,
        "keypoint_velocities": True,
    }
    layout = RowLayout.recorded(vision, rows.shape[1])
    points, velocities = layout.parts(rows)
    inside = (np.abs(points[1:]) < 10) & (np.abs(points[:-1]) < 10) & (np.abs(velocities[1:]) < 10)
    assert inside.mean() > 0.1
    assert np.allclose(np.diff(points.astype(float), axis=0)[inside], velocities[1:][inside], atol=2e-2)
    assert RowLayout.recorded(vision, rows.shape[1] - 1) is None


@given(st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_segments_in_rows_are_inside_and_never_empty(stride, seed):
    sample = make_sample(f"clip {seed}", total=40, stride=stride)
    for row, (start, end) in zip(segment_rows(sample), sample.segments.tolist(), strict=True):
        first, last = row["start_frame"], row["end_frame"]
        assert 0 <= first < last <= -(-40 // stride)
        grid = [n for n in range(first, last) if start <= n * stride < end]
        assert grid == list(range(first, last)) or (last - first == 1 and not grid)
        assert (row["start_ms"], row["end_ms"]) == (40 * start, 40 * end)


def test_a_clip_by_its_id(tmp_path, store):
    dataset = open_dataset(store)
    sample = dataset["dev-2-1"]
    assert sample.meta["id"] == "dev-2-1" and dataset[sample.key].key == sample.key
    assert "dev-2-1" in dataset and "dev-2-9" not in dataset and 3 not in dataset
    with pytest.raises(NoClip, match=r"no clip 'dev-2-2'; did you mean 'dev-2-[01]'"):
        dataset["dev-2-2"]
    with pytest.raises(NoClip, match=r"'dev-x' was rejected.*too-short: 3 frames"):
        dataset["dev-x"]
    with pytest.raises(KeyError):
        dataset["nul\0byte"]
    with pytest.raises(TypeError, match="a clip's id"):
        dataset[0]
    with pytest.raises(TypeError):
        iter(dataset)


def test_a_clip_by_its_id_is_one_range_request(store, monkeypatch):
    dataset, asked = open_dataset(store), []
    read = type(store).get_range
    monkeypatch.setattr(type(store), "get_range", lambda *call: asked.append(call[1:]) or read(*call))
    assert dataset["train-1-4"].meta["id"] == "train-1-4" and len(asked) == 1


def test_the_figure_of_a_clip(tmp_path, shards):
    make_dataset(open_store(tmp_path / "data"), "frames")
    for ending in ("svg", "png"):
        shards("cat", tmp_path / "data", "dev-2-1", "--figure", tmp_path / f"clip.{ending}")
    drawn = (tmp_path / "clip.svg").read_text()
    segments = open_dataset(tmp_path / "data")["dev-2-1"].segments
    assert "segment 1" in drawn and len(segments) and (tmp_path / "clip.png").read_bytes()[:4] == b"\x89PNG"
    assert "ends in" in shards("cat", tmp_path / "data", "dev-2-1", "--figure", tmp_path / "clip.txt", code=2)
