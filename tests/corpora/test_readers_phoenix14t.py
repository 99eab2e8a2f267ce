"""The readers of PHOENIX14T's published layout and of our own manifests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sage_scale.config import Corpus, Segmentation, Vision
from sage_scale.corpora.corpus_statistics import corpus_statistics
from sage_scale.corpora.manifest import Clip, to_json_lines
from sage_scale.corpora.registry import read_corpus
from sage_scale.errors import UsageError
from sage_scale.segmentation import segment_clip
from sage_scale.vision.decode import decode_clip

HEADER = "name|video|start|end|speaker|orth|translation\n"
ROWS = {
    "train": [
        ("01April_2010_Thursday_heute-6694", "Signer04", "MORGEN REGEN", "und morgen regnet es"),
        ("t2", "S1", "X", "a  b"),
    ],
    "dev": [("11August_2010_Wednesday_tagesschau-2", "Signer08", "DRUCK", 'ein "tief" kommt')],
    "test": [("25October_2010_Monday_tagesschau-17", "Signer01", "ABEND", "guten abend")],
}


@pytest.fixture
def release(tmp_path) -> Path:
    """Three splits in the layout of the published archive, with 12 frames a clip."""
    base = tmp_path / "PHOENIX-2014-T-release-v3" / "PHOENIX-2014-T"
    tables = base / "annotations" / "manual"
    tables.mkdir(parents=True)
    for split, rows in ROWS.items():
        lines = [
            f"{name}|{name}/1/*.png|-1|-1|{signer}|{gloss}|{text}\n" for name, signer, gloss, text in rows
        ]
        (tables / f"PHOENIX-2014-T.{split}.corpus.csv").write_text(HEADER + "".join(lines), encoding="utf-8")
        for number, row in enumerate(rows):
            folder = base / "features" / "fullFrame-210x260px" / split / row[0]
            folder.mkdir(parents=True)
            for t in range(12 + number):
                Image.fromarray(np.full((260, 210, 3), 10 * t, np.uint8)).save(
                    folder / f"images{t + 1:04d}.png"
                )
    return tmp_path


def test_the_published_layout(release) -> None:
    manifest = read_corpus(Corpus(name="phoenix14t", root=str(release)))
    assert [(clip.id, clip.split, clip.signer, clip.sentence, clip.frames) for clip in manifest.clips] == [
        ("train/01April_2010_Thursday_heute-6694", "train", "Signer04", "und morgen regnet es", 12),
        ("train/t2", "train", "S1", "a b", 13),
        ("dev/11August_2010_Wednesday_tagesschau-2", "dev", "Signer08", 'ein "tief" kommt', 12),
        ("test/25October_2010_Monday_tagesschau-17", "test", "Signer01", "guten abend", 12),
    ]
    assert not manifest.rejected
    inner = release / "PHOENIX-2014-T-release-v3" / "PHOENIX-2014-T"
    assert read_corpus(Corpus(name="phoenix14t", root=str(inner))).digest() == manifest.digest()
    decoded = decode_clip(manifest.clips[1], Vision(size=64, frame_stride=2))
    assert decoded.total_frames == 13 and decoded.frames.shape == (7, 64, 64, 3)
    assert decoded.frames[:, 0, 0, 0].tolist() == [0, 20, 40, 60, 80, 100, 120]
    assert segment_clip(decoded, Segmentation(tagger="uniform")).tolist() == [[0, 6], [6, 13]]


def test_rows_that_cannot_be_used(release) -> None:
    base = release / "PHOENIX-2014-T-release-v3" / "PHOENIX-2014-T"
    table = base / "annotations" / "manual" / "PHOENIX-2014-T.dev.corpus.csv"
    name = ROWS["dev"][0][0]
    table.write_text(
        HEADER
        + f"{name}|v|-1|-1|S|G|satz\n{name}|v|-1|-1|S|G|satz\nfehlt|v|-1|-1|S|G|satz\n../../x|v|-1|-1|S|G|satz\nkurz\n"
    )
    (base / "annotations" / "manual" / "PHOENIX-2014-T.test.corpus.csv").unlink()
    manifest = read_corpus(Corpus(name="phoenix14t", root=str(release)))
    assert len(manifest.clips) == 3
    assert [row.reason for row in manifest.rejected] == [
        "repeated-id",
        "missing",
        "bad-row",
        "bad-row",
    ]
    assert manifest.notes == (("split without its table PHOENIX-2014-T.test.corpus.csv", 1),)


def test_another_folder_is_no_phoenix(tmp_path) -> None:
    (tmp_path / "x.mp4").touch()
    with pytest.raises(UsageError, match=r"annotations/manual.*expected.*features"):
        read_corpus(Corpus(name="phoenix14t", root=str(tmp_path)))
    (tmp_path / "annotations" / "manual").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"no PHOENIX-2014-T\.train\.corpus\.csv"):
        read_corpus(Corpus(name="phoenix14t", root=str(tmp_path)))


def test_our_own_manifest(tmp_path) -> None:
    clips = [
        Clip(id="a", video="sub/a.npz", sentence="Hallo", start_s=1),
        Clip(id="b", video="/elsewhere/b.mp4"),
    ]
    bad = [{"id": "c", "video": "c.mp4", "start_s": "1"}, {"id": 7, "video": "d.mp4"}, {"video": "e.mp4"}]
    text = to_json_lines(clips) + "".join(json.dumps(row) + "\n" for row in bad) + "{oops\n"
    (tmp_path / "manifest.jsonl").write_text(text)
    for root in (tmp_path, tmp_path / "manifest.jsonl"):
        manifest = read_corpus(Corpus(name="manifest", root=str(root)))
        assert [clip.video for clip in manifest.clips] == [
            str(tmp_path / "sub" / "a.npz"),
            "/elsewhere/b.mp4",
        ]
        assert sorted(row.id for row in manifest.rejected) == ["c", "line 4", "line 5", "line 6"]
        assert {row.reason for row in manifest.rejected} == {"bad-row"}
    with pytest.raises(UsageError, match="there is no"):
        read_corpus(Corpus(name="manifest", root=str(tmp_path / "none")))


def test_rows_of_a_manifest_that_no_later_stage_could_use(tmp_path) -> None:
    path = tmp_path / "manifest.jsonl"
    rows = [
        '{"id": "a", "video": "a.mp4", "start_s": NaN}',
        '{"id": "b", "video": "b.mp4", "end_s": 1e999}',
        "[1]",
        "null",
    ]
    blank = '{"id": "c", "video": "c.mp4", "sentence": " \\t"}'
    path.write_text("\n".join([*rows, blank, '{"id": "d", "video": "d.mp4", "language": "fr"}']))
    manifest = read_corpus(Corpus(name="manifest", root=str(path), language="en"))
    assert [(row.id, row.detail) for row in manifest.rejected] == [
        ("line 1", "NaN is not a finite number"),
        ("line 2", "a number is not finite"),
        ("line 3", "not a JSON object"),
        ("line 4", "not a JSON object"),
    ]
    assert [(clip.id, clip.sentence, clip.language) for clip in manifest.clips] == [
        ("c", "", "en"),
        ("d", "", "fr"),
    ]
    path.write_bytes(b'{"id": "a"}\n{"id": "\xff"}\n')
    with pytest.raises(UsageError, match=r"not UTF-8 \(line 2\)"):
        read_corpus(Corpus(name="manifest", root=str(path)))


def test_a_keypoint_clip_through_a_manifest(tmp_path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "s.npz", keypoints=rng.random((80, 134)).astype(np.float16), fps=50)
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"id": "s", "video": "s.npz", "sentence": "x"}))
    (clip,) = read_corpus(Corpus(name="manifest", root=str(tmp_path))).clips
    decoded = decode_clip(clip, Vision(kind="features", backbone="keypoints"))
    segments = segment_clip(decoded, Segmentation())
    assert decoded.total_frames == 40 and segments[-1, 1] <= 40


def test_statistics_counts_what_is_there_and_what_is_odd() -> None:
    clips = [
        Clip(id="1", video="v", start_s=0, end_s=4, sentence="a b", signer="S"),
        Clip(id="2", video="v", start_s=3, end_s=3.5, sentence="b c", signer="S"),
        Clip(id="3", video="v", start_s=9, end_s=12, sentence="c", signer="R"),
        Clip(id="4", video="w", sentence="a b", split="test", language="en"),
        Clip(id="5", video="x", split="unlabelled", frames=50),
        Clip(id="6", video="v", start_s=11, end_s=12, sentence="d"),
    ]
    from sage_scale.corpora.manifest import Manifest
    from sage_scale.errors import Reject

    statistics = corpus_statistics(
        Manifest(tuple(clips), (Reject(id="7", reason="missing"),)), {"v": 10.0, "w": 36.0}
    )
    train = next(split for split in statistics.splits if split.name == "train")
    assert (train.clips, train.videos, train.signers, train.sentences, train.words) == (4, 1, 2, 4, 4)
    assert train.hours == pytest.approx((4 + 0.5 + 3 + 1) / 3600)
    assert {what: number for what, (number, _) in statistics.defects.items()} == {
        "rejected: missing": 1,
        "shorter than 1 s": 1,
        "overlaps the clip before": 2,
        "beyond-end: ends after the video's end (will be cut there)": 1,
        "beyond-end: starts after the video's end (will be rejected there)": 1,
        "test sentence also in train": 1,
        "no sentence (can be translated, not trained on)": 1,
    }
    assert {split.name: split.hours for split in statistics.splits}["unlabelled"] == pytest.approx(2 / 3600)
