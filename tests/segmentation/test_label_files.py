"""Files of precomputed labels: SAGE's own .pt and the other forms, names with and without splits, and hostile ones."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_scale.config import from_mapping
from sage_scale.corpora.manifest import Clip, Manifest
from sage_scale.errors import ClipRejected, TooManyRejects, UsageError
from sage_scale.segmentation import label_files
from sage_scale.segmentation.elan import eaf_bytes
from sage_scale.segmentation.intervals import Interval, SignIntervals, interval_json
from sage_scale.segmentation.precomputed import check_labels, find_labels, fitted, has_labels

LETTERS = [0, 0, 2, 1, 1, 1, 2, 1, 1, 1, 1, 1]
TOTAL = len(LETTERS)


def clip(name: str = "train/heute-1", split: str = "train") -> Clip:
    return Clip(id=name, video="none.mp4", split=split)


def labels_of(place: Path, of: Clip | None = None, total: int = TOTAL) -> list[int]:
    label_files._table.cache_clear()  # files of one size within one tick of the clock
    return fitted(find_labels(str(place), of or clip()), (of or clip()).start_s, total, 25.0).tolist()


def refused(place: Path, of: Clip | None = None, total: int = TOTAL) -> str:
    """What is said of labels that cannot be used; one line."""
    with pytest.raises((ClipRejected, UsageError)) as caught:
        labels_of(place, of, total)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return f"{type(caught.value).__name__}: {caught.value}"


def check(place: Path, clips: list[Clip], rate: float = 0.0) -> None:
    label_files._table.cache_clear()
    recipe = from_mapping({"segmentation": {"tagger": "precomputed", "labels": str(place)}})
    check_labels(recipe, Manifest(tuple(clips)), lambda lacking: lacking > rate * len(clips))


class Trap:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return (os.mkdir, (str(self.place),))


@pytest.mark.parametrize(
    "shape",
    [
        lambda t: {"train": {"heute-1": t}, "dev": {"heute-2": t}, "test": {}},
        lambda t: {"dev": {"heute-2": t}, "train": {"train/heute-1": t}},
        lambda t: {"heute-1": t, "heute-2": t},
        lambda t: {"train/heute-1": t},
        lambda t: {"all": {"heute-1": t}},
        lambda t: {"train": {"heute-1": {"labels": t, "fps": 25}}},
        lambda t: {"heute-1": {"segments": torch.tensor([[4, 12], [12, 24]]), "fps": 50}},
        lambda t: {"heute-1": torch.eye(3)[t.long()]},
        lambda t: {"heute-1": torch.tensor([[2, 6], [6, 12]])},
        lambda t: {"heute-1": t.tolist()},
    ],
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.float32, torch.bfloat16])
def test_the_forms_of_a_pt_file(tmp_path, shape, dtype):
    torch.save(shape(torch.tensor(LETTERS, dtype=dtype)), tmp_path / "labels.pt")
    if dtype is torch.bfloat16 and isinstance(shape(torch.tensor(LETTERS, dtype=dtype)).get("heute-1"), list):
        pytest.skip("a list has no type")
    assert labels_of(tmp_path / "labels.pt") == LETTERS
    check(tmp_path / "labels.pt", [clip()])


def test_json_has_the_same_forms_and_publishers_words_for_splits(tmp_path):
    place = tmp_path / "labels.json"
    for table in (
        {"val": {"x": LETTERS}, "train": {"x": [2] * TOTAL}},
        {"valid/x": LETTERS},
        {"dev/x": LETTERS},
    ):
        place.write_text(json.dumps(table))
        assert labels_of(place, clip("dev/x", "dev")) == LETTERS
    place.write_text(json.dumps({"a": {"x": LETTERS}, "b": {"x": LETTERS}}))
    assert "several splits have it" in refused(place, clip("dev/x", "dev"))
    place.write_text(json.dumps({"film": LETTERS}))
    assert labels_of(place, clip("train/film.mp4")) == LETTERS
    assert "no-labels" in refused(place, clip("test/film.mp4"))  # the folder is no split of this clip


def test_a_folder_has_a_file_a_clip_under_any_of_its_names(tmp_path):
    names = ("train__heute-1.pt", "heute-1.pt", f"{clip().key}.npy", "heute-1.json", "train/heute-1.pt")
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        (folder / name).parent.mkdir(parents=True)
        if name.endswith(".pt"):
            torch.save(torch.tensor(LETTERS), folder / name)
        elif name.endswith(".npy"):
            np.save(folder / name, np.array(LETTERS))
        else:
            (folder / name).write_text(json.dumps(LETTERS))
        assert labels_of(folder) == LETTERS and has_labels(str(folder), clip())
        assert not has_labels(str(folder), clip("train/other"))
        check(folder, [clip()])
    (tmp_path / "outside.json").write_text(json.dumps(LETTERS))
    for name in ("../outside", f"{tmp_path}/outside", "x/../../outside"):
        assert not has_labels(str(tmp_path / "0"), clip(name))


def test_elan_files_and_documents_of_intervals_have_the_times_of_the_video(tmp_path):
    """A clip from 2 s on of a video; its signs are those of LETTERS, others lie before and after it."""
    signs = [(0.5, 1.5), (2.08, 2.24), (2.24, 2.48), (3.0, 4.0)]
    intervals = SignIntervals(signs=tuple(Interval(a, b, "X") for a, b in signs))
    part = Clip(id="train/film-1", video="/videos/film.mp4", start_s=2.0, end_s=2.48)
    wanted = LETTERS
    for name, data in (
        ("film.eaf", eaf_bytes(intervals)),
        ("film.mp4.eaf", eaf_bytes(intervals)),
        ("film-1.eaf", eaf_bytes(intervals)),
        ("train__film-1.json", interval_json(intervals)),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(data)
        assert labels_of(folder, part) == wanted and has_labels(str(folder), part)
        check(folder, [part])
    assert labels_of(tmp_path / "film.eaf" / "film.eaf", part) == wanted
    check(tmp_path / "film.eaf" / "film.eaf", [part])
    (tmp_path / "all.json").write_text(json.dumps({"train/film-1": json.loads(interval_json(intervals))}))
    assert labels_of(tmp_path / "all.json", part) == wanted
    other = tmp_path / "other.eaf"
    other.write_bytes(eaf_bytes(intervals, sign_tier="Hand"))
    assert "bad-labels: there is no tier SIGN; its tiers are Hand" in refused(other, part)
    assert fitted(find_labels(str(other), part, "hand"), part.start_s, TOTAL, 25.0).tolist() == wanted
    with pytest.raises(UsageError, match=r"segmentation.labels: other\.eaf: there is no tier SIGN"):
        check(other, [part])


def test_a_table_keeps_its_line_separators_and_byte_order_marks(tmp_path):
    rows = io.StringIO()
    csv.writer(rows).writerows([["id", "labels"], ["train/a\u2028b", "OOBIIIBIIIII"], ["x", "B"]])
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "labels.csv").write_bytes(rows.getvalue().encode(encoding))
        assert labels_of(tmp_path / "labels.csv", clip("train/a\u2028b")) == LETTERS


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([0, 1, 3], "a label is 3"),
        ([0, 1, -1], "a label is -1"),
        ([0.5, 1.0], "a label is 0.5"),
        ([[0, 1], [2]], "lists of unlike lengths"),
        ([[0, 4], [9, 6]], "an interval ends before it starts"),
        ([[0, 400]], "the last sign ends at 16.00 s"),
        ([2, 1] * 99, "labels last 7.92 s, the clip 0.48 s"),
        ([], "labels of shape"),
        ("", "no labels"),
        (None, "a NoneType, no labels"),
        (7, "a int, no labels"),
        ([[1, 2, 3, 4]], "labels of shape"),
        (["B", "I"], "labels of the type <U1, expected numbers"),
        ([True, False], "labels of the type bool, expected numbers"),
        ({"segments": [[1, 2, 3], [4, 5, 6]]}, "segments of shape"),
        ({"labels": [2, 1], "fps": "fast"}, "fps fast"),
        ({"labels": [2, 1], "fps": True}, "fps True"),
        ({"fps": 25}, "neither labels, segments nor signs"),
        ({"labels": {"labels": [2]}}, "a dict, no labels"),
    ],
)
def test_one_clips_bad_labels_reject_that_clip_alone(tmp_path, value, says):
    place = tmp_path / "labels.json"
    place.write_text(json.dumps({"heute-1": value, "heute-2": LETTERS}))
    assert f"ClipRejected: bad-labels: {says}" in refused(place)
    assert labels_of(place, clip("train/heute-2")) == LETTERS
    check(place, [clip(), clip("train/heute-2")], rate=0.5)


@pytest.mark.parametrize(
    "tensor",
    [
        lambda: torch.tensor([0.0, float("nan")]),
        lambda: torch.tensor([[0.0, 1.0, float("inf")]]),
        lambda: torch.zeros(1, dtype=torch.int8).expand(10**12),
        lambda: torch.tensor([1 + 2j]),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.tensor(2),
        lambda: torch.zeros(0),
        lambda: torch.zeros(2, 2, 2),
        lambda: torch.full((9,), 2**40),
        lambda: torch.zeros(4, dtype=torch.bool),
        lambda: torch.float32,
        lambda: {"labels": None},
        lambda: (1, 2),
    ],
)
def test_tensors_that_are_no_labels_reject_their_clip(tmp_path, tensor):
    torch.save({"train": {"heute-1": tensor(), "heute-2": torch.tensor(LETTERS)}}, tmp_path / "labels.pt")
    assert "bad-labels" in refused(tmp_path / "labels.pt")
    assert labels_of(tmp_path / "labels.pt", clip("train/heute-2")) == LETTERS


def hostile_files(folder: Path) -> dict[str, Path]:
    """Files of which nothing can be used."""
    trap = Trap(folder / "sprung")
    torch.save({"train": {"heute-1": trap}}, folder / "code.pt")
    (folder / "pickle.pt").write_bytes(pickle.dumps({"heute-1": trap}))
    torch.save({"heute-1": np.zeros(3)}, folder / "numpy.pt")
    torch.save([torch.tensor(LETTERS)], folder / "list.pt")
    torch.save(torch.tensor(LETTERS), folder / "tensor.pt")
    torch.save({("a", "b"): torch.tensor(LETTERS)}, folder / "tuple.pt")
    whole = io.BytesIO()
    torch.save({"heute-1": torch.tensor(LETTERS)}, whole)
    (folder / "cut.pt").write_bytes(whole.getvalue()[:-300])
    with zipfile.ZipFile(folder / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 24))
        archive.writestr("archive/version", "3\n")
    (folder / "empty.pt").write_bytes(b"")
    (folder / "deep.json").write_text("[" * 200_000)
    (folder / "digits.json").write_text('{"heute-1": [' + "9" * 5001 + "]}")
    (folder / "nan.json").write_text('{"heute-1": [NaN]}')
    (folder / "surrogate.json").write_text('{"\\ud800": "B"}')
    (folder / "latin.csv").write_bytes("id,labels\nü,B\n".encode("latin-1"))
    (folder / "wide.csv").write_text("id,labels\nx," + "B" * 200_000 + "\n")
    with (folder / "huge.json").open("wb") as file:
        file.truncate(3 << 30)  # sparse
    os.mkfifo(folder / "pipe.json")
    os.mkfifo(folder / "pipe.pt")
    (folder / "zero.json").symlink_to("/dev/zero")
    return {path.name: path for path in sorted(folder.iterdir())}


def test_hostile_files_are_refused_before_anything_is_begun(tmp_path):
    for name, place in hostile_files(tmp_path).items():
        with pytest.raises(UsageError) as caught:
            check(place, [clip()])
        said = str(caught.value)
        assert said.startswith("segmentation.labels: ") and "\n" not in said and len(said) < 400, (name, said)
        assert "weights_only" not in said
    assert not (tmp_path / "sprung").exists()


def test_hostile_files_of_a_folder_reject_their_clip(tmp_path):
    for name, place in hostile_files(tmp_path).items():
        if place.suffix != ".csv" and place.stem != "tensor":  # which is a clip's own file
            assert "bad-labels" in refused(tmp_path, clip(f"train/{place.stem}")), name
    np.save(tmp_path / "objects.npy", np.array([Trap(tmp_path / "sprung")], dtype=object), allow_pickle=True)
    (tmp_path / "lies.npy").write_bytes(
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999999,), }".ljust(117)
        + b"\n"
    )
    for name in ("objects", "lies"):
        assert "bad-labels" in refused(tmp_path, clip(f"train/{name}"))
    assert not (tmp_path / "sprung").exists()


def test_a_file_of_other_clips_and_one_of_too_few_are_told_apart(tmp_path):
    place = tmp_path / "labels.json"
    place.write_text(json.dumps({"theirs": LETTERS}))
    with pytest.raises(UsageError, match=r"for 2 of 2 clips \(the first: 'train/a'\); there is 'theirs'"):
        check(place, [clip("train/a"), clip("train/b")], rate=1.0)
    place.write_text("{}")
    with pytest.raises(UsageError, match="it is empty"):
        check(place, [clip("train/a")])
    place.write_text(json.dumps({"a": LETTERS, "b": [9]}))
    clips = [clip(f"train/{name}") for name in "abc"]
    with pytest.raises(TooManyRejects, match=r"2 of 3 clips .*'train/b'"):
        check(place, clips, rate=0.5)
    check(place, clips, rate=0.7)
    with pytest.raises(UsageError, match="there is no"):
        check(tmp_path / "none.pt", clips)
    with pytest.raises(UsageError, match="for 3 of 3 clips"):
        (tmp_path / "folder").mkdir()
        check(tmp_path / "folder", clips)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([".json", ".csv", ".npy", ".pt"]))
def test_any_bytes_are_labels_or_one_line(tmp_path_factory, data, suffix):
    _any_bytes(tmp_path_factory.mktemp("any"), data, suffix)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_changed_bytes_are_labels_or_one_line(tmp_path_factory, data):
    suffix = data.draw(st.sampled_from([".json", ".npy", ".pt", ".csv"]))
    whole = io.BytesIO()
    if suffix == ".npy":
        np.save(whole, np.array(LETTERS))
    elif suffix == ".pt":
        torch.save({"x": torch.tensor(LETTERS)}, whole)
    else:
        whole.write(
            b'{"x": [0, 2, 1], "y": {"fps": 5, "segments": [[1, 2]]}}'
            if suffix == ".json"
            else b"id,start,end\nx,0,2\n"
        )
    changed = bytearray(whole.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    _any_bytes(tmp_path_factory.mktemp("any"), bytes(changed), suffix)


def _any_bytes(folder: Path, data: bytes, suffix: str) -> None:
    (folder / f"x{suffix}").write_bytes(data)
    for place in (folder / f"x{suffix}", folder):
        if place.suffix == ".npy":
            continue
        try:
            found = labels_of(place, clip("train/x"))
        except (ClipRejected, UsageError) as error:
            assert "\n" not in str(error) and str(error).isprintable()
        else:
            assert len(found) == TOTAL and set(found) <= {0, 1, 2}
