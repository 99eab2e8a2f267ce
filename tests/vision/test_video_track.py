"""Which stream is the video, when its pictures are shown, and where they end: as a player of the file has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from av.stream import Disposition
from factories.videos import COVER, Pictures, Sound, numbers, write_tracks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sage_scale.config import Vision
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import ClipRejected
from sage_scale.vision.crop import Region
from sage_scale.vision.decode import _interval, decode_clip, decode_clips, probe
from sage_scale.vision.keypoints import LEFT_SHOULDER, POINTS, RIGHT_SHOULDER
from sage_scale.vision.video_frames import DecodeStats

SMALL = Vision(size=32, crop=32, frame_stride=1, min_frames=1)
DEFAULT = int(Disposition.default)
WHOLE = (0.0, None)


def clip(path: Path, interval: tuple[float, float | None]) -> Clip:
    return Clip(id=f"{interval}", video=str(path), start_s=interval[0], end_s=interval[1])


def shown(
    path: Path, *intervals: tuple[float, float | None], stats: DecodeStats | None = None
) -> list[list[int] | str]:
    """Picture numbers of each interval, or why it is refused; the same from one pass as alone."""
    clips = [clip(path, interval) for interval in intervals]
    together = dict(decode_clips(clips, SMALL, stats))
    found: list[list[int] | str] = []
    for k, each in enumerate(clips):
        try:
            alone = decode_clip(each, SMALL)
        except ClipRejected as rejected:
            assert str(together[k]) == str(rejected)
            found.append(rejected.reason)
        else:
            assert alone.frames.tobytes() == together[k].frames.tobytes()
            found.append(numbers(alone.frames))
    return found


def run(first: int, count: int) -> list[int]:
    return list(range(first, first + count))


def end_s(path: Path) -> float | None:
    track = probe(str(path))
    assert track is not None
    return track.end_s


MANY: dict[str, tuple[str, list[Pictures | Sound], str]] = {
    "cover first": ("a.mp4", [COVER, Pictures()], ""),
    "cover first, B-frames": ("a.mp4", [COVER, Sound(2), Pictures(b_frames=2)], ""),
    "cover last": ("a.mp4", [Pictures(), Sound(2), COVER], ""),
    "png cover": ("a.mp4", [Pictures(frames=1, codec="png", disposition=COVER.disposition), Pictures()], ""),
    "still picture as a track": (
        "a.mp4",
        [Pictures(frames=1, codec="mjpeg", first=44, disposition=DEFAULT), Pictures(disposition=DEFAULT)],
        "2 video streams, 2 of them default: stream 1",
    ),
    "the second is default": (
        "a.mkv",
        [Pictures(codec="mjpeg", first=5), Pictures(disposition=DEFAULT)],
        "2 video streams, 1 of them default: stream 1 is taken (h264, 64 x 48)",
    ),
    "the third is default": (
        "a.mp4",
        [Pictures(first=5), Pictures(first=9), Sound(2), Pictures(disposition=DEFAULT)],
        "3 video streams, 1 of them default: stream 3",
    ),
    "the first of two": ("a.ts", [Pictures(), Pictures(first=5)], "2 video streams, none of them default: stream 0"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MANY)
def test_the_stream_that_plays_is_the_video(tmp_path, kind) -> None:
    name, tracks, note = MANY[kind]
    path = write_tracks(tmp_path / name, tracks)
    stats = DecodeStats()
    assert shown(path, WHOLE, (0.4, 0.8), stats=stats) == [run(0, 50), run(10, 10)]
    track = probe(str(path))
    assert track is not None and track.end_s == pytest.approx(2.0) and track.note.startswith(note)
    assert bool(track.note) == bool(note)
    assert stats.take_notes() == ((f"{name}: {track.note}",) if note else ())


@pytest.mark.parametrize("tracks", [[Sound(2), COVER], [COVER, Sound(2)], [COVER, Sound(1), COVER]], ids=len)
def test_sound_with_a_cover_is_no_video(tmp_path, tracks) -> None:
    path = write_tracks(tmp_path / "a.mp4", tracks)
    assert shown(path, WHOLE, (0.0, 1.0)) == ["no-video", "no-video"]
    with pytest.raises(ClipRejected, match="attached pictures"):
        probe(str(path))


CLOCKS: dict[str, tuple[str, list[Pictures | Sound], float]] = {
    "mp4": ("a.mp4", [Sound(4), Pictures(start_s=2.0)], 2.0),
    "mp4, B-frames": ("a.mp4", [Pictures(start_s=0.8, b_frames=2), Sound(4)], 0.8),
    "mkv": ("a.mkv", [Sound(4), Pictures(start_s=2.0)], 2.0),
    "webm": ("a.webm", [Sound(4, codec="libopus"), Pictures(start_s=0.8, codec="libvpx")], 0.8),
    # The encoder's first packet, a frame of 1,024 silent samples, lies before the sound.
    "ts": ("a.ts", [Sound(4), Pictures(start_s=2.0)], 2.064),
    "flv": ("a.flv", [Sound(4), Pictures(start_s=2.0)], 2.064),
    "sound comes late": ("a.mkv", [Sound(3, start_s=1), Pictures()], 0.0),
    "sound comes late in ts": ("a.ts", [Pictures(), Sound(3, start_s=1)], 0.0),
    "no sound, from 5 s": ("a.mkv", [Pictures(start_s=5.0)], 0.0),
    "no sound, from 5 s in ts": ("a.ts", [Pictures(start_s=5.0, b_frames=2)], 0.0),
    "both from 5 s": ("a.mkv", [Sound(3, start_s=5.064), Pictures(start_s=5.0)], 0.0),
    "priming before zero": ("a.webm", [Sound(2, codec="libopus"), Pictures(codec="libvpx")], 0.0),
}  # fmt: skip


@pytest.mark.parametrize("kind", CLOCKS)
def test_captions_count_from_the_start_of_the_file(tmp_path, kind) -> None:
    name, tracks, first_s = CLOCKS[kind]
    path = write_tracks(tmp_path / name, tracks)
    at = first_s + 0.4
    assert shown(path, (round(at, 3), round(at + 0.8, 3)), WHOLE) == [run(10, 20), run(0, 50)]
    track = probe(str(path))
    assert track is not None
    assert (track.first_s, track.end_s) == pytest.approx((first_s, first_s + 2.0), abs=0.001)
    if first_s:
        # What a caption has before the first picture is cut, as is what it has behind the last.
        assert shown(path, (0.0, round(first_s + 0.4, 3)), (0.0, first_s / 2)) == [run(0, 10), "too-short"]


LENGTHS = {
    "mp4": Pictures(), "mkv": Pictures(b_frames=2), "webm": Pictures(codec="libvpx"), "flv": Pictures(),
    "ts": Pictures(b_frames=2), "mpg": Pictures(codec="mpeg2video"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", LENGTHS)
def test_sound_that_goes_on_does_not_lengthen_the_video(tmp_path, suffix) -> None:
    codec = {"webm": "libopus", "mpg": "mp2"}.get(suffix, "aac")
    path = write_tracks(tmp_path / f"a.{suffix}", [Sound(9, codec=codec), LENGTHS[suffix]])
    whole, behind = shown(path, WHOLE, (4.0, 5.0))
    assert whole == run(0, 50) and behind == "beyond-end"
    assert end_s(path) == pytest.approx(2.0, abs=0.07)


def test_the_picture_of_a_program_stream_ends_where_its_packets_do(tmp_path) -> None:
    """ffmpeg guesses 0.84 s for these 1.6 s."""
    path = write_tracks(tmp_path / "a.mpg", [Pictures(frames=40, codec="mpeg2video")])
    assert shown(path, (1.2, 1.6), WHOLE) == [run(30, 10), run(0, 40)] and end_s(path) == pytest.approx(1.6)


@pytest.mark.parametrize("suffix", ["mkv", "ts", "webm"])
def test_a_file_with_sound_that_was_cut_short_is_still_told_from_a_whole_one(tmp_path, suffix) -> None:
    codecs = {"webm": ("libopus", "libvpx")}.get(suffix, ("aac", "libx264"))
    path = write_tracks(
        tmp_path / f"a.{suffix}", [Sound(3, codec=codecs[0]), Pictures(frames=60, codec=codecs[1])]
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    (found,) = shown(path, WHOLE)
    if suffix == "ts":  # says no length, so that nothing can be missing
        assert found == run(0, len(found)) and 0 < len(found) < 50
    else:
        assert found in ("truncated", "corrupt")


def joined(path: Path, *parts: Sequence[Pictures | Sound]) -> Path:
    """Files written one behind the other, as `cat` does it."""
    part = path.with_name(f"part{path.suffix}")
    path.write_bytes(b"".join(write_tracks(part, tracks).read_bytes() for tracks in parts))
    return path


P = Pictures
JOINED: dict[str, tuple[str, list[list[Pictures | Sound]]]] = {
    "two": ("a.ts", [[P(20)], [P(40, first=20)]]),
    "three": ("a.ts", [[P(20)], [P(20, first=20)], [P(20, first=40)]]),
    "B-frames and without": ("a.ts", [[P(20, b_frames=2)], [P(20, first=20)], [P(20, first=40, b_frames=3)]]),
    "the clock jumps ahead, then back": (
        "a.ts", [[P(20)], [P(20, first=20, start_s=500)], [P(20, first=40, start_s=30)]],
    ),
    "from other days": ("a.ts", [[P(30, start_s=900)], [P(30, first=30, start_s=4000)]]),
    "sound comes up on the way": ("a.ts", [[P(30)], [P(30, first=30), Sound(1.2)]]),
    "another size": ("a.ts", [[P(30)], [P(30, first=30, size=(96, 80))]]),
    "program streams": ("a.mpg", [[P(45, codec="mpeg2video")], [P(15, first=45, codec="mpeg2video")]]),
    "mkv": ("a.mkv", [[P(30, b_frames=2)], [P(30, first=30, b_frames=2)]]),
    "webm": ("a.webm", [[P(30, codec="libvpx")], [P(30, first=30, codec="libvpx")]]),
}  # fmt: skip


@pytest.mark.parametrize("kind", JOINED)
def test_a_clock_that_starts_again_goes_on(tmp_path, kind) -> None:
    name, parts = JOINED[kind]
    path = joined(tmp_path / name, *parts)
    stats = DecodeStats()
    intervals = [WHOLE, (0.2, 1.0), (1.0, 1.6), (1.4, 2.4), (2.0, None), (2.6, 3.0)]
    expected = [run(0, 60), run(5, 20), run(25, 15), run(35, 25), run(50, 10), "beyond-end"]
    assert shown(path, *intervals, stats=stats) == expected
    assert end_s(path) == pytest.approx(2.4)
    assert [note for note in stats.take_notes() if "clock starts again" in note]


def test_joined_sound_and_pictures(tmp_path) -> None:
    parts = [[Sound(1), P(25)], [Sound(1), P(25, first=25)]]
    path = joined(tmp_path / "a.ts", *parts)
    assert shown(path, WHOLE, (0.464, 1.464)) == [run(0, 50), run(10, 25)]


def test_a_clock_that_wraps_goes_on(tmp_path) -> None:
    """Times of a transport stream have 33 bits: they begin again after 26.5 hours."""
    path = write_tracks(tmp_path / "a.ts", [P(60, start_s=2**33 / 90_000 - 2.4, b_frames=2)])
    assert shown(path, WHOLE, (1.0, 1.6)) == [run(0, 60), run(25, 15)]
    track = probe(str(path))
    assert track is not None and track.restarts == 0 and track.end_s == pytest.approx(2.4)


def test_one_wrong_time_is_damage_and_no_other_clock(tmp_path) -> None:
    path = write_tracks(tmp_path / "a.ts", [P(60)])
    data = bytearray(path.read_bytes())
    headers = [at for at in range(0, len(data)) if data[at : at + 4] == b"\0\0\1\xe0"]
    for number, value in ((20, 2**32), (40, 9)):  # far ahead, then far back
        at = headers[number] + 9
        size = 10 if data[headers[number] + 7] >> 6 == 3 else 5
        for begin in range(at, at + size, 5):
            data[begin] = data[begin] & 0xF1 | value >> 29 & 0x0E
            data[begin + 1] = value >> 22 & 0xFF
            data[begin + 2] = value >> 14 & 0xFE | 1
            data[begin + 3] = value >> 7 & 0xFF
            data[begin + 4] = value << 1 & 0xFE | 1
    path.write_bytes(data)
    assert shown(path, WHOLE, (1.0, 1.8)) == [run(0, 60), run(25, 20)]
    track = probe(str(path))
    assert (
        track is not None
        and (track.restarts, track.strays) == (0, 2)
        and track.end_s == pytest.approx(2.4, abs=0.03)
    )


@pytest.mark.parametrize(
    "name,tracks",
    [
        ("a.mkv", [P(start_s=-0.4)]),
        ("b.mkv", [P(start_s=-0.4, b_frames=2), Sound(2)]),
        ("c.mkv", [P(start_s=-1.2, b_frames=3)]),
        ("d.webm", [P(start_s=-0.4, codec="libvpx")]),
    ],
)
def test_pictures_before_time_zero_are_not_lost(tmp_path, name, tracks) -> None:
    path = write_tracks(tmp_path / name, tracks, {"avoid_negative_ts": "disabled"})
    assert shown(path, WHOLE, (0.2, 0.6), (1.0, 1.4)) == [run(0, 50), run(5, 10), run(25, 10)]
    assert end_s(path) == pytest.approx(2.0)


def test_what_an_edit_list_hides_stays_hidden(tmp_path) -> None:
    path = write_tracks(tmp_path / "a.mp4", [P(start_s=-0.4)], {"avoid_negative_ts": "disabled"})
    assert shown(path, WHOLE, (0.0, 0.4)) == [run(10, 40), run(10, 10)]


def test_keypoints_beside_a_video_count_from_its_first_picture(tmp_path) -> None:
    """Whoever made them from the pictures knew no other clock."""
    path = write_tracks(tmp_path / "a.mp4", [Sound(4), P(start_s=2.0, size=(96, 48))])
    keypoints = np.zeros((50, POINTS, 2), np.float32)
    keypoints[:, [0, LEFT_SHOULDER, RIGHT_SHOULDER]] = 0.5
    keypoints[:, 0, 0] = np.arange(50) / 100
    keypoints[:, LEFT_SHOULDER, 0] = np.where(np.arange(50) < 25, 0.2, 0.8) + 0.05
    keypoints[:, RIGHT_SHOULDER, 0] = np.where(np.arange(50) < 25, 0.2, 0.8) - 0.05
    np.savez(tmp_path / "a.npz", keypoints=keypoints.reshape(50, -1), fps=25.0)
    vision = Vision(kind="features", backbone="keypoints", min_frames=1)
    got = decode_clip(clip(path, (2.4, 3.0)), vision).keypoints_TKC
    assert got is not None and np.allclose(got, 1024 * keypoints[10:25])
    sides = [signer_interval(path, interval).x for interval in ((2.0, 2.8), (3.2, 4.0))]
    assert sides == pytest.approx([0.2, 0.8], abs=0.01)


def signer_interval(path: Path, interval: tuple[float, float]) -> Region:
    region = _interval(clip(path, interval), path, Vision(fit="signer")).region
    assert region is not None
    return region


@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["two", "program streams", "mkv"]))
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_damage_in_joined_files_gives_frames_or_a_reason(tmp_path, seed, kind) -> None:
    """A pass and reading alone agree on how many; decoders fill holes with what their memory held."""
    name, parts = JOINED[kind]
    folder = tmp_path / kind
    if not folder.exists():
        folder.mkdir()
        joined(folder / f"whole{Path(name).suffix}", *parts)
    data = bytearray((folder / f"whole{Path(name).suffix}").read_bytes())
    random = np.random.default_rng(seed)
    for place in random.integers(0, len(data), random.integers(1, 30)):
        data[place] = random.integers(0, 256)
    path = folder / name
    path.write_bytes(data)
    clips = [clip(path, interval) for interval in ((0.1, 0.9), (1.0, 1.5), (1.3, 2.2), WHOLE)]
    for place, outcome in decode_clips(clips, SMALL):
        try:
            alone = decode_clip(clips[place], SMALL)
        except ClipRejected as rejected:
            assert str(outcome) == str(rejected)
        else:
            assert not isinstance(outcome, ClipRejected) and outcome.frames.shape == alone.frames.shape
