"""The synthetic clips: timing against real DGS, the files, and what happens to an interrupted run."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import av
import numpy as np
import pytest

from sage_scale import config
from sage_scale.corpora.synthetic import corpus as making
from sage_scale.corpora.synthetic import load_gold, make_corpus, read_corpus
from sage_scale.corpora.synthetic.animation import Motion, animate
from sage_scale.corpora.synthetic.grammar import Sign, signing
from sage_scale.corpora.synthetic.lexicon import LEXICON
from sage_scale.corpora.synthetic.render import SIZE, render
from sage_scale.corpora.synthetic.sampling import sample
from sage_scale.corpora.synthetic.signers import HELD_OUT_SIGNERS, SIGNERS, TRAINING_SIGNERS
from sage_scale.errors import StorageError, UsageError

SHARED = Path(__file__).resolve().parents[3] / "shared"
SMALL = config.Corpus(train_clips=9, dev_clips=1, test_clips=2, heldout_clips=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic")
    make_corpus(SMALL, root, workers=1)
    return root


@pytest.fixture(scope="module")
def motions() -> list[Motion]:
    rng = Random(11)
    shares = [signer.share for signer in TRAINING_SIGNERS]
    return [animate(signing(sample(rng)), rng.choices(TRAINING_SIGNERS, shares)[0], rng) for _ in range(150)]


def files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


# -- motion


def _timing(signs: list[list[tuple[float, float]]]) -> dict[str, np.ndarray]:
    """Percentiles 10, 50, 90 in ms of durations, onset to onset, and gaps."""
    pairs = [pair for clip in signs for pair in pairwise(clip)]
    kinds = {
        "duration": [end - start for clip in signs for start, end in clip],
        "onset": [b[0] - a[0] for a, b in pairs],
        "gap": [b[0] - a[1] for a, b in pairs],
    }
    return {kind: np.percentile(values, [10, 50, 90]) for kind, values in kinds.items()}


def test_signs_are_timed_like_real_dgs(motions: list[Motion]) -> None:
    """Public DGS Corpus, 272 clips, p10/50/90: 80/180/500 ms a sign, 200/360/720 from onset to onset; gap 160.

    A frame is 40 ms.
    """
    timing = _timing([[(span.start * 40, span.end * 40) for span in motion.spans] for motion in motions])
    assert (np.abs(timing["duration"] - [80, 180, 500]) <= [20, 40, 120]).all(), timing
    assert (np.abs(timing["onset"] - [200, 360, 720]) <= [60, 80, 140]).all(), timing
    assert timing["gap"][1] == pytest.approx(160, abs=40)


@pytest.mark.skipif(not (SHARED / "data/dgs_motion").is_dir(), reason="../shared/data/dgs_motion is missing")
def test_hands_are_as_fast_within_signs_as_those_of_dgs_signers(motions: list[Motion]) -> None:
    """Speed of the faster wrist in shoulder widths a second, inside human sign boundaries and inside ours."""
    real = []
    for line in (SHARED / "data/dgs_motion/clips.jsonl").read_text().splitlines():
        clip = json.loads(line)
        points = np.load(SHARED / f"data/dgs_motion/keypoints/{clip['id']}.npz")["keypoints"]
        points = points.astype(float).reshape(len(points), -1, 2)[::2]  # 25 fps
        width = np.median(np.abs(points[:, 2, 0] - points[:, 5, 0]))
        speed = np.linalg.norm(np.diff(points[:, [4, 7]], axis=0), axis=-1).max(1) * 25 / width
        for sign in clip["signs"]:
            real += list(speed[sign["start_ms"] // 40 : -(-sign["end_ms"] // 40)])
    ours = []
    for motion in motions:
        hands = np.stack([motion.strong[:, :2], motion.weak[:, :2]], 1)
        speed = np.linalg.norm(np.diff(hands, axis=0), axis=-1).max(1) * 25 / 0.68
        for span in motion.spans:
            ours += list(speed[span.start : span.end - 1])
    ratio = np.percentile(ours, [50, 75, 90]) / np.percentile(real, [50, 75, 90])
    assert ((ratio > 0.7) & (ratio < 1.4)).all(), ratio


def test_clips_last_60_to_150_frames_and_start_and_end_without_signs(motions: list[Motion]) -> None:
    for motion in motions:
        assert 60 <= motion.frames <= 150
        assert motion.spans[0].start >= 5 and motion.spans[-1].end <= motion.frames - 5
        assert all(
            a.end < b.start + 1 and a.end - a.start >= 2 for a, b in zip(motion.spans, motion.spans[1:])
        )
        # Hands hang below the chest at both ends.
        assert motion.strong[0, 1] < -0.7 and motion.strong[-1, 1] < -0.7


def test_tempo_varies_by_a_third_between_and_within_signers() -> None:
    tempos = [signer.tempo for signer in SIGNERS]
    assert 0.7 <= min(tempos) < 0.85 and 1.15 < max(tempos) <= 1.3
    rng = Random(4)
    signs = signing(sample(Random(3)))
    lengths = [animate(signs, SIGNERS[0], rng).spans for _ in range(60)]
    durations = np.array([[span.end - span.start for span in spans] for spans in lengths], dtype=float)
    spread = (durations.std(0) / durations.mean(0)).mean()
    assert 0.2 < spread < 0.45


def test_no_rest_between_signs_and_the_next_shape_is_anticipated(motions: list[Motion]) -> None:
    still, ways, ahead = 0, 0, []
    for motion in motions:
        speed = np.linalg.norm(np.diff(motion.strong[:, :2], axis=0), axis=1)
        for a, b in zip(motion.spans, motion.spans[1:]):
            if b.start - a.end < 3 or "hold" in (LEXICON[s.sign.gloss].form.movement for s in (a, b)):
                continue
            ways += 1
            still += bool((speed[a.end : b.start - 1] < 0.004).all())
            middle = (a.end - 1 + b.start) // 2
            start, here, end = motion.strong[a.end - 1], motion.strong[middle], motion.strong[b.start]
            for part in (slice(0, 2), slice(6, 14)):
                whole = np.linalg.norm(end[part] - start[part])
                if whole > 0.05:
                    ahead.append((part.start, np.linalg.norm(here[part] - start[part]) / whole))
    assert still < 0.03 * ways
    place = np.median([share for part, share in ahead if part == 0])
    shape = np.median([share for part, share in ahead if part == 6])
    assert shape > place + 0.15


def test_left_handers_mirror_the_hands_but_not_the_map() -> None:
    """The strong hand is on the other side of the picture; the way from west to east stays the same way."""
    assert {signer.left_handed for signer in TRAINING_SIGNERS} == {False, True}
    assert {signer.dialect for signer in TRAINING_SIGNERS} == {"A", "B"}
    for signer in (SIGNERS[0], next(s for s in SIGNERS if s.left_handed)):
        side = 1 if signer.left_handed else -1
        motion = animate(
            (Sign("EINS"), Sign("ZIEHEN", path=("west", "ost")), Sign("EINS")), signer, Random(0)
        )
        first, way, _ = motion.spans
        x = side * motion.strong[:, 0]
        assert np.sign(x[first.start]) == side
        assert x[way.start] < -0.1 < 0.1 < x[way.end - 1]


# -- picture


def test_marks_are_seen_on_the_head_alone() -> None:
    """The same hands with and without a mark of face and head: the pictures differ, above the shoulders only."""
    signer = SIGNERS[0]

    def sign(*marks: str) -> Motion:
        return animate((Sign("REIF"), Sign("REIF", marks=marks), Sign("REIF")), signer, Random(1))

    plain = sign()
    unmarked = np.stack(list(render(plain, signer))).astype(int)

    def fit(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values, np.zeros((plain.frames, *values.shape[1:]))])[: plain.frames]

    for mark in ("negation", "question", "intensity"):
        head = sign(mark)
        motion = replace(plain, brows=fit(head.brows), cheeks=fit(head.cheeks), head=fit(head.head))
        difference = np.abs(np.stack(list(render(motion, signer))).astype(int) - unmarked).max(-1)
        assert (difference[:, : SIZE // 2] > 40).sum() > 400, mark
        assert (difference[:, SIZE // 2 :] > 40).sum() == 0, mark


def test_the_signer_stands_out_from_a_still_background(made: Path) -> None:
    clip = read_corpus(SMALL, made).clips[0]
    with av.open(clip.video) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(
            int
        )
    wall = frames[:, 40:, :6]  # beside the signer; only a hand may pass there
    assert np.quantile(np.abs(wall - np.median(wall, 0)), 0.99) < 10
    signs = load_gold(made, clip.id)["signs"]
    moving = np.abs(frames - np.median(frames, 0)).max(-1) > 40
    share = moving[signs[0]["start"] : signs[-1]["end"]].mean((1, 2))
    assert share.min() > 0.02 and 0.04 < share.mean() < 0.35


# -- files


def test_videos_are_real_h264_of_the_stated_length(made: Path) -> None:
    manifest = read_corpus(SMALL, made)
    assert Counter(clip.split for clip in manifest.clips) == {
        "train": 9,
        "dev": 1,
        "test": 2,
        "test_heldout": 2,
    }
    for clip in manifest.clips:
        with av.open(clip.video) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264" and stream.average_rate == 25
            assert (stream.width, stream.height) == (SIZE, SIZE)
            assert sum(1 for _ in container.decode(stream)) == clip.frames
        gold = load_gold(made, clip.id)
        assert gold["frames"] == clip.frames and gold["sentence"] == clip.sentence
        assert all(0 <= sign["start"] < sign["end"] <= clip.frames for sign in gold["signs"])
        held = clip.signer in {signer.name for signer in HELD_OUT_SIGNERS}
        assert held == (clip.split == "test_heldout")
    assert len(TRAINING_SIGNERS) == 8 and len(HELD_OUT_SIGNERS) == 2


def test_gold_stays_out_of_the_manifest(made: Path) -> None:
    text = (made / "manifest.jsonl").read_text()
    assert "gloss" not in text and str(made) not in text


def test_same_seed_same_bytes_and_another_seed_other_bytes(made: Path, tmp_path: Path) -> None:
    small = config.Corpus(train_clips=2, dev_clips=0, test_clips=0, heldout_clips=0)
    other = config.Corpus(train_clips=2, dev_clips=0, test_clips=0, heldout_clips=0, seed=1)
    make_corpus(small, tmp_path / "a", workers=1)
    make_corpus(small, tmp_path / "b", workers=1)
    make_corpus(other, tmp_path / "c", workers=1)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert not set(files(tmp_path / "a")) & {name for name in files(tmp_path / "c") if "/" in name}


def test_an_interrupted_run_is_continued(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = files(made)
    real, calls = making.make_clip, []

    def killed(after: int) -> Callable:
        def make(root: Path, task: making.PlannedClip) -> dict:
            calls.append(task.id)
            if len(calls) > after:
                (root / "videos" / f"{task.id}.mp4.part").write_bytes(b"half")
                raise KeyboardInterrupt
            return real(root, task)

        return make

    monkeypatch.setattr(making, "make_clip", killed(5))
    with pytest.raises(KeyboardInterrupt):
        make_corpus(SMALL, tmp_path, workers=1)
    with pytest.raises(UsageError, match="no finished synthetic corpus"):
        read_corpus(SMALL, tmp_path)
    gold = next(
        (tmp_path / "gold").glob("*.json")
    )  # one more victim: a video cut short after it was finished
    (tmp_path / "videos" / f"{gold.stem}.mp4").write_bytes(b"cut")
    calls.clear()
    monkeypatch.setattr(making, "make_clip", killed(99))
    done: list[tuple[int, int]] = []
    make_corpus(SMALL, tmp_path, workers=1, progress=lambda *counts: done.append(counts))
    assert len(calls) == 14 - 4
    assert done[0] == (4, 14) and done[-1] == (14, 14)
    assert files(tmp_path) == whole
    calls.clear()
    make_corpus(SMALL, tmp_path, workers=1)
    assert not calls


def test_other_settings_are_made_anew_and_strangers_are_left_alone(made: Path, tmp_path: Path) -> None:
    fewer = config.Corpus(train_clips=2, dev_clips=0, test_clips=0, heldout_clips=0)
    with pytest.raises(UsageError, match="another synthetic corpus") as refused:
        read_corpus(fewer, made)
    repeated = re.findall(r"corpus\.(\w+)=(\d+)", str(refused.value))
    assert len(read_corpus(replace(fewer, **{key: int(n) for key, n in repeated}), made).clips) == 14
    make_corpus(fewer, tmp_path / "a", workers=1)
    note = tmp_path / "a" / "videos" / "mine.mp4"
    note.write_bytes(b"mine")
    shorter = config.Corpus(train_clips=1, dev_clips=0, test_clips=0, heldout_clips=0)
    manifest = make_corpus(shorter, tmp_path / "a", workers=1)
    assert sorted(path.name for path in note.parent.iterdir()) == sorted(
        ["mine.mp4", *(Path(clip.video).name for clip in manifest.clips)]
    )
    (tmp_path / "b" / "videos").mkdir(parents=True)
    with pytest.raises(UsageError, match="another corpus"):
        make_corpus(fewer, tmp_path / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        make_corpus(fewer, tmp_path / "file")
    with pytest.raises(UsageError, match="no clip id"):
        load_gold(made, "../../secret")


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(root: Path, task: making.PlannedClip) -> dict:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(making, "make_clip", full)
    with pytest.raises(StorageError, match="No space left on device"):
        make_corpus(SMALL, tmp_path, workers=1)


@pytest.mark.system
def test_two_processes_make_the_same_bytes(made: Path, tmp_path: Path) -> None:
    make_corpus(SMALL, tmp_path, workers=2)
    assert files(tmp_path) == files(made)
