"""Decoding: which source frame stands where, squares, and every way a file can be bad."""

from __future__ import annotations

import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from factories.videos import BASE, STEP, numbers
from PIL import Image

from sage_scale.config import Vision
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import ClipRejected, StorageError
from sage_scale.vision.decode import decode_clip, encode_jpeg, probe
from sage_scale.vision.sampling import median_frame

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "videos"
SMALL = Vision(size=32, crop=32, frame_stride=1)


def clip(path: Path, start_s: float = 0.0, end_s: float | None = None) -> Clip:
    return Clip(id=path.name, video=str(path), start_s=start_s, end_s=end_s)


def reason(path: Path, vision: Vision = SMALL, **interval: float) -> str:
    with pytest.raises(ClipRejected) as caught:
        decode_clip(clip(path, **interval), vision)
    assert "\n" not in str(caught.value) and str(path.parent) not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize(
    "rate",
    [25, 50, 12, 60, 30, 15, Fraction(30000, 1001), Fraction(24000, 1001)],
    ids=lambda rate: f"{float(rate):.2f}",
)
def test_frame_k_is_the_source_frame_nearest_to_its_time(video, rate) -> None:
    path = video(frames=60, rate=rate)
    decoded = decode_clip(clip(path), SMALL)
    total = round(60 / Fraction(rate) * 25)
    shown = numbers(decoded.frames)
    assert len(shown) == decoded.total_frames == total
    for k, number in enumerate(shown):
        distance = [abs(Fraction(t) / Fraction(rate) - Fraction(k, 25)) for t in range(60)]
        assert float(distance[number] - min(distance)) < 1e-3  # containers round times to their own ticks


def test_stride_grid_and_grey_frames(video) -> None:
    decoded = decode_clip(clip(video(frames=41)), Vision(size=32, frame_stride=3))
    assert numbers(decoded.frames) == decoded.grid.tolist() == list(range(0, 41, 3))
    assert decoded.grey_THW.shape == (41, 48, 48)
    assert numbers(decoded.grey_THW) == list(range(41))


@pytest.mark.parametrize("start,end", [(0, 12), (7, 31), (25, 50), (13, 40), (36, 50)])
def test_an_interval_is_a_slice_of_the_whole(video, start, end) -> None:
    path = video(frames=50)
    whole = decode_clip(clip(path), SMALL)
    part = decode_clip(clip(path, start / 25, end / 25), SMALL)
    assert part.total_frames == end - start
    assert np.array_equal(part.frames, whole.frames[start:end])
    assert np.array_equal(part.grey_THW, whole.grey_THW[start:end])


def test_an_end_beyond_the_video_is_cut(video) -> None:
    assert decode_clip(clip(video(frames=30), 0.4, 99), SMALL).total_frames == 20


def test_variable_frame_rate_follows_the_timestamps(video) -> None:
    times = [0.0, 0.04, 0.08, 0.28, 0.32, 0.36, 0.78, 0.82]
    decoded = decode_clip(clip(video("vfr.mkv", frames=8, times=times)), SMALL)
    shown = numbers(decoded.frames)
    nearest = [min(range(8), key=lambda t: (abs(times[t] - k / 25), t)) for k in range(20)]
    assert shown[:20] == nearest


def test_a_turned_video_stands_upright(video) -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24] = 230  # stored: bright above
    path = video("turned.mp4", [picture] * 10)
    data = bytearray(path.read_bytes())
    place = data.find(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of times, ids and volume
    turn_right = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    data[place : place + 36] = struct.pack(">9i", *turn_right)
    path.write_bytes(data)
    frame = decode_clip(clip(path), SMALL).frames[0].mean(-1)
    assert frame[:, 20:].mean() > 180 and frame[:, :12].mean() < 60  # shown: bright on the right


def test_the_middle_square_of_odd_sizes(video) -> None:
    for width, height in ((101, 77), (77, 101), (64, 64), (330, 50)):
        picture = np.zeros((height, width, 3), np.uint8)
        side = min(width, height)
        top, left = (height - side) // 2, (width - side) // 2
        picture[top : top + side, left : left + side] = 200
        path = video(f"{width}.mkv", [picture] * 9, pixels="yuv444p", options={"threads": "1", "qp": "4"})
        frame = decode_clip(clip(path), SMALL).frames[4]
        assert frame.shape == (32, 32, 3)
        assert abs(frame[2:-2, 2:-2].mean() - 200) < 4
    stretched = decode_clip(clip(path), Vision(size=32, frame_stride=1, fit="stretch")).frames[4]
    assert stretched[:, :10].mean() < 20 and stretched[:, 15:17].mean() > 150


def test_decoding_twice_gives_the_same_bytes(video) -> None:
    path = video(frames=20)
    first, second = decode_clip(clip(path), SMALL), decode_clip(clip(path), SMALL)
    assert first.frames.tobytes() == second.frames.tobytes()
    assert [encode_jpeg(f, 92) for f in first.frames] == [encode_jpeg(f, 92) for f in second.frames]


def test_names_with_blanks_umlauts_and_colons(video) -> None:
    for name in ("Schöne Grüße.mp4", "a:b.mp4", "http:x y%20#?.mp4", "-i.mp4"):
        assert decode_clip(clip(video(name, frames=10)), SMALL).total_frames == 10


def test_folder_of_frames_in_natural_order_and_stretched(tmp_path) -> None:
    folder = tmp_path / "wetter heute"
    folder.mkdir()
    for t in range(12):
        picture = np.full((260, 210, 3), BASE + STEP * t, np.uint8)
        picture[:26] = 255  # the upper tenth, which a middle crop would lose
        Image.fromarray(picture).save(folder / f"images{t + 1}.png")
    decoded = decode_clip(clip(folder), SMALL)
    assert decoded.total_frames == 12 and (decoded.frames[:, 0] == 255).all()
    assert numbers(decoded.frames[:, 10:]) == list(range(12))
    cropped = decode_clip(clip(folder), Vision(size=32, frame_stride=1, fit="crop"))
    assert cropped.frames[:, 1:].max() < 60
    halved = decode_clip(clip(folder, 0.08), Vision(size=32, frame_stride=1, source_fps=50, min_frames=1))
    assert numbers(halved.frames[:, 10:]) == [4, 6, 8, 10]


def test_bad_files_are_rejected_with_a_reason(video, tmp_path) -> None:
    good = video(frames=58, container_options={"movflags": "faststart"})
    data = good.read_bytes()
    bad = tmp_path / "bad.mp4"
    for content in (
        b"",
        b"\0" * 5000,
        b"no video " * 600,
        os.urandom(9000),
        b"#EXTM3U\n#EXTINF:9,\n/etc/passwd\n",
    ):
        bad.write_bytes(content)
        assert reason(bad) == "unreadable"
    bad.write_text(f"ffconcat version 1.0\nfile '{good}'\n")
    assert reason(bad) == "unreadable"
    bad.write_bytes(data[: len(data) // 2])
    assert reason(bad) in ("truncated", "corrupt")
    assert reason(tmp_path / "none.mp4") == "missing"
    assert reason(good, start_s=9) == "beyond-end"
    assert reason(good, start_s=2, end_s=2) == "bad-interval"
    assert reason(good, end_s=0.2) == "too-short"
    assert reason(good, Vision(size=32, max_frames=40)) == "too-long"
    (tmp_path / "frames").mkdir()
    assert reason(tmp_path / "frames") == "empty"
    points = Vision(kind="features", backbone="keypoints")
    assert reason(good, points) == "no-keypoints"
    (tmp_path / "link.pose").symlink_to("/dev/zero")
    assert reason(tmp_path / "link.pose", points) == "unreadable"


def test_names_that_nothing_can_bear_are_missing(video, tmp_path) -> None:
    path = video(frames=10)
    (tmp_path / "round").symlink_to("about")
    (tmp_path / "about").symlink_to("round")
    for name in ("x" * 300 + ".mp4", "x" * 300 + "/a.mp4", "手" * 90, f"{path.name}/a.mp4", "round/a.mp4",
                 "round.zip/a.mp4", "a\0b.mp4", "\ud800.mp4", "/".join(["a"] * 4000), "x" * 300 + ".npz"):  # fmt: skip
        for vision in (SMALL, Vision(size=32, fit="signer")):
            with pytest.raises(ClipRejected) as caught:
                decode_clip(Clip(id="a", video=f"{tmp_path}/{name}"), vision)
            assert caught.value.reason == "missing" and len(caught.value.detail) < 400
        with pytest.raises(ClipRejected, match="missing"):
            probe(f"{tmp_path}/{name}")
    assert reason(tmp_path / "round") == "unreadable"


def test_the_longest_name_that_a_file_can_have(video) -> None:
    """The keypoint file beside it would have a name that is one too long."""
    path = video("v" * 251 + ".mp4", frames=10)
    assert decode_clip(clip(path), Vision(size=32, fit="signer")).total_frames == 10


def test_sound_alone_is_no_video(tmp_path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert reason(path) == "no-video"


def test_a_header_that_claims_giant_pictures(video, tmp_path) -> None:
    path = video("raw.avi", frames=10, codec="rawvideo", pixels="yuv420p")
    data = bytearray(path.read_bytes())
    place = data.find(b"strf") + 12  # BITMAPINFOHEADER: width and height follow its size
    data[place : place + 8] = struct.pack("<2i", 16384, 16384)
    path.write_bytes(data)
    assert reason(path) in ("too-large", "unreadable")
    folder = tmp_path / "giant"
    folder.mkdir()
    picture = bytearray(_png(8, 8))
    picture[16:24] = struct.pack(">2I", 16384, 16384)
    for t in range(10):
        (folder / f"{t}.png").write_bytes(picture)
    assert reason(folder) in ("too-large", "unreadable")


def test_a_picture_cut_short(tmp_path) -> None:
    for t in range(10):
        (tmp_path / f"{t}.png").write_bytes(_png(64, 64)[: 9999 if t < 9 else 60])
    assert reason(tmp_path) == "unreadable"


def test_flipped_bytes_never_bring_more_than_a_reject(video) -> None:
    path = video(frames=30)
    data = path.read_bytes()
    rng = np.random.default_rng(7)
    outcomes = set()
    for _ in range(40):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 30)):
            damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            decoded = decode_clip(clip(path), Vision(size=32, max_frames=200))
        except ClipRejected as rejected:
            outcomes.add(rejected.reason)
        else:
            assert 8 <= decoded.total_frames <= 200 and len(decoded.frames) == len(decoded.grid)
    assert outcomes, "40 damaged files, none of them refused"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file_is_not_the_clips_fault(video) -> None:
    path = video(frames=10)
    path.chmod(0)
    with pytest.raises(StorageError, match="ermission"):
        decode_clip(clip(path), SMALL)


def test_median_frame_is_the_scene_without_what_moves() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (31, 6, 5, 3), dtype=np.uint8)
    assert np.array_equal(median_frame(frames), np.median(frames, axis=0))
    scene = rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)
    frames = np.repeat(scene[None], 20, axis=0)
    for t in range(20):
        frames[t, t] = 255
    assert np.array_equal(median_frame(frames), scene)


def test_jpeg_is_close_to_its_picture() -> None:
    ramp = np.linspace(0, 255, 64)[:, None, None] + np.zeros((64, 64, 3))
    data = encode_jpeg(ramp.astype(np.uint8), 92)
    import io

    assert np.abs(np.asarray(Image.open(io.BytesIO(data)), float) - ramp).mean() < 2


@pytest.mark.skipif(not SHARED.is_dir(), reason="the three real videos (../shared/data/videos) are not here")
@pytest.mark.parametrize(
    "name,seconds",
    [("bsl_demo_video", 5.0), ("human_signer_480", 121 / 30), ("pose_test_video", 58 / (359 / 12))],
)
def test_real_signing_videos(name, seconds) -> None:
    decoded = decode_clip(clip(SHARED / f"{name}.mp4"), Vision())
    assert decoded.total_frames == round(seconds * 25)
    assert decoded.frames.shape == (len(decoded.grid), 256, 256, 3)
    still = np.abs(np.diff(decoded.grey_THW.astype(int), axis=0)).mean((1, 2))
    assert 0 < np.median(still) < 20  # a picture that moves, and not noise


def _png(width: int, height: int) -> bytes:
    import io

    out = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def test_without_grey_pictures_all_else_is_the_same(video, tmp_path) -> None:
    path = video(frames=41)
    with_grey, without = (decode_clip(clip(path), SMALL, grey=grey) for grey in (True, False))
    assert without.grey_THW is None and with_grey.grey_THW is not None
    assert without.total_frames == with_grey.total_frames == 41
    assert np.array_equal(without.frames, with_grey.frames)
    folder = tmp_path / "frames"
    folder.mkdir()
    for t in range(9):
        (folder / f"{t}.png").write_bytes(_png(40, 30))
    assert decode_clip(clip(folder), SMALL, grey=False).total_frames == 9
