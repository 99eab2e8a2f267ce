"""One pass over a video gives what each clip gives alone, decodes each frame once, and holds little."""

from __future__ import annotations

import functools
from pathlib import Path

import av
import numpy as np
import pytest
from factories.videos import write_video
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from video_kinds import FRAMES, KINDS, X264, scenes

from sage_scale.errors import ClipRejected
from sage_scale.vision.crop import Region
from sage_scale.vision.video_clips import ClipPictures, Interval, PictureSettings, read_clip, read_clips
from sage_scale.vision.video_frames import MIN_SEEK_S, DecodeStats

SMALL = PictureSettings(fps=25.0, stride=2, size=16, grey_size=8, stretch=False, min_frames=3, max_frames=150)


def alone(path: Path, interval: Interval, pictures: PictureSettings = SMALL) -> ClipPictures | ClipRejected:
    try:
        return read_clip(path, interval, pictures)
    except ClipRejected as rejected:
        return rejected


def same(one: ClipPictures | ClipRejected, other: ClipPictures | ClipRejected) -> bool:
    if isinstance(one, ClipRejected) or isinstance(other, ClipRejected):
        return type(one) is type(other) and str(one) == str(other)
    return (
        one.frames.tobytes() == other.frames.tobytes()
        and one.grey_THW.tobytes() == other.grey_THW.tobytes()
        and one.frames.shape == other.frames.shape
        and one.source_fps == other.source_fps
    )


def check_same(path: Path, intervals: list[Interval], pictures: PictureSettings = SMALL) -> DecodeStats:
    stats = DecodeStats()
    outcomes = dict(read_clips(path, intervals, pictures, stats))
    assert sorted(outcomes) == list(range(len(intervals)))
    for number, interval in enumerate(intervals):
        expected = alone(path, interval, pictures)
        assert same(outcomes[number], expected), (interval, outcomes[number], expected)
    return stats


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    return functools.cache(lambda kind: KINDS[kind](folder))


moments = st.one_of(
    st.integers(0, FRAMES).map(lambda t: t / 25),  # on frames
    st.integers(0, 10_000).map(lambda ms: ms / 1000),
)
clips = st.lists(
    st.builds(
        lambda start, length, region: Interval(start, None if length is None else start + length, region),
        moments,
        st.none() | st.floats(0.04, 4).map(lambda s: round(s, 3)),
        st.sampled_from([None, None, None, Region(0.3, 0.4, 0.5), Region(0.9, 0.1, 0.4)]),
    ),
    min_size=1,
    max_size=7,
)


@pytest.mark.parametrize("kind", KINDS)
@given(intervals=clips, stride=st.integers(1, 3))
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_a_pass_gives_what_each_clip_gives_alone(made, kind, intervals, stride) -> None:
    pictures = PictureSettings(**vars(SMALL) | {"stride": stride})
    check_same(made(kind), intervals, pictures)


def consecutive(count: int, seconds: float, overlap_s: float = 0.0) -> list[Interval]:
    return [Interval(k * seconds, (k + 1) * seconds + overlap_s) for k in range(count)]


def test_overlapping_clips_that_cover_a_video_decode_each_frame_once(made) -> None:
    stats = check_same(made("mp4 B-frames"), consecutive(11, 0.8, overlap_s=0.3))
    assert (stats.decoded, stats.seeks, stats.passes) == (FRAMES, 0, 1)


def test_a_gap_with_a_key_frame_in_it_is_skipped_and_a_gap_without_is_decoded(made, tmp_path) -> None:
    path = made("mp4")  # a key frame every 30 frames
    gaps = [Interval(0, 1), Interval(6, 7)]
    stats = check_same(path, gaps)
    assert stats.seeks == 1
    needed = 26 + (7 * 25 + 1 - 150)  # frames 0 to 25, and from the key frame 150 (6.0 s) to 175
    assert stats.decoded <= needed + 4  # the decoder runs ahead by what it reorders
    near = [Interval(0, 1), Interval(1 + 0.9 * MIN_SEEK_S, 3)]
    assert check_same(path, near).seeks == 0
    long = made("one key frame")
    assert check_same(long, gaps).seeks == 0
    without_index = made("ts")
    assert check_same(without_index, gaps).seeks == 0


def test_clips_in_any_order_become_complete_in_that_of_time(made) -> None:
    intervals = [Interval(5, 6), Interval(0, 5.9), Interval(1, 2), Interval(0.5, 1)]
    assert [number for number, _ in read_clips(made("mp4"), intervals, SMALL)] == [3, 2, 1, 0]


@pytest.mark.parametrize(
    "kind", ["mp4 B-frames", "mkv open GOP, 29.97", "ts", "avi B-frames", "MPEG-2 B-frames"]
)
def test_damage_rejects_the_clips_in_it_as_alone_and_leaves_the_others(made, kind, tmp_path) -> None:
    data = made(kind).read_bytes()
    rng = np.random.default_rng(5)
    reasons = set()
    good = 0
    for case in range(6):
        damaged = bytearray(data)
        if case % 3 == 0:
            del damaged[int(rng.integers(len(data) // 4, len(data))) :]
        elif case % 3 == 1:
            start = int(rng.integers(len(data) // 4, len(data) * 3 // 4))
            damaged[start : start + len(data) // 12] = bytes(len(data) // 12)
        else:
            for place in rng.integers(len(data) // 5, len(data), 12):
                damaged[place] ^= int(rng.integers(1, 256))
        path = tmp_path / f"{case}{Path(made(kind)).suffix}"
        path.write_bytes(damaged)
        check_same(path, consecutive(9, 0.9, overlap_s=0.2))
        for _, outcome in read_clips(path, consecutive(9, 0.9), SMALL):
            if isinstance(outcome, ClipRejected):
                reasons.add(outcome.reason)
            else:
                good += 1
    assert good > 10 and reasons <= {"corrupt", "truncated", "unreadable", "too-short", "beyond-end", "empty"}


def test_a_long_file_cut_short_is_not_read_again_for_each_clip_behind_the_cut(tmp_path) -> None:
    path = write_video(
        tmp_path / "long.mp4",
        scenes(1500),
        options=X264 | {"g": "50"},
        container_options={"movflags": "faststart"},
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    stats = check_same(path, consecutive(60, 1.0))
    assert stats.decoded < 10 * 750  # 30 clips lie behind the cut, those beyond 16 s of it cost nothing


def test_what_the_disk_is_to_blame_for_rejects_nothing(made, monkeypatch) -> None:
    from sage_scale.vision import video_clips

    def fails(path: Path) -> None:
        raise OSError(5, "Input/output error")

    path = made("mp4").with_name("cut.mp4")
    path.write_bytes(made("one key frame").read_bytes()[:9000])
    monkeypatch.setattr(video_clips, "read_through", fails)
    monkeypatch.setattr("sage_scale.vision.video_files.read_through", fails)
    with pytest.raises(OSError, match="Input/output"):
        list(read_clips(path, consecutive(3, 1), SMALL))


def test_memory_is_that_of_the_open_clips(tmp_path) -> None:
    """However many clips a pass gives, few pictures are alive at a time."""
    import tracemalloc

    path = write_video(tmp_path / "long.mp4", scenes(1000), options=X264 | {"g": "50"})
    large = PictureSettings(**vars(SMALL) | {"size": 128, "stride": 1})
    tracemalloc.start()
    peaks = []
    for count in (6, 36):
        tracemalloc.reset_peak()
        for _ in read_clips(path, consecutive(count, 1.0), large):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0] and peaks[1] < 4 * 25 * 128 * 128 * 3


def test_an_interlaced_frame_gives_one_field(tmp_path) -> None:
    """Fields that show two moments would comb: the square is that of the upper field alone."""
    pictures = []
    for _ in range(12):
        picture = np.zeros((96, 96, 3), np.uint8)
        picture[0::2, 10:30] = 220  # the upper field's bar
        picture[1::2, 60:80] = 220  # the lower field's, elsewhere
        pictures.append(picture)
    options = {"threads": "1", "qp": "2", "x264-params": "interlaced=1:bframes=0"}
    path = write_video(tmp_path / "i.mp4", pictures, options=options)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    square = read_clip(path, Interval(), PictureSettings(**vars(SMALL) | {"size": 96})).frames[3].mean(-1)
    assert square[10:-10, 14:26].min() > 180 and square[10:-10, 64:76].max() < 40
    plain = write_video(tmp_path / "p.mp4", pictures, options={"threads": "1", "qp": "2"})
    untouched = read_clip(plain, Interval(), PictureSettings(**vars(SMALL) | {"size": 96})).frames[3].mean(-1)
    assert np.abs(untouched - pictures[0].mean(-1)).mean() < 12
