"""The two ways to pick source frames, one for what is known in advance and one for a stream, agree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_scale.errors import ClipRejected
from sage_scale.vision.sampling import StreamSampler, nearest_frames


def sample_stream(timed_frames, fps, start_s, end_s, max_frames):
    """Yields (k, frame) of a stream of (time, duration, frame), read no further than needed."""
    sampler = StreamSampler(fps, start_s, end_s, max_frames)
    for timed in timed_frames:
        yield from sampler.push(*timed)
        if sampler.done:
            return
    yield from sampler.finish()


def stream(frames: int, rate: float) -> list[tuple[float, float, int]]:
    return [(t / rate, 1 / rate, t) for t in range(frames)]


@given(
    frames=st.integers(1, 200),
    rate=st.sampled_from([12.5, 23.976, 25.0, 29.97, 30.0, 50.0, 59.94]),
    fps=st.sampled_from([12.5, 25.0, 30.0]),
    start=st.floats(0, 3),
    length=st.none() | st.floats(0.05, 5),
)
def test_stream_and_table_pick_the_same_frames(frames, rate, fps, start, length) -> None:
    end = None if length is None else start + length
    try:
        expected = nearest_frames(frames, rate, fps, start, end).tolist()
    except ClipRejected as rejected:
        assert rejected.reason == "beyond-end"
        return
    if start > 0:  # a reader that seeks gives one frame at or before the start
        before = max(t for t in range(frames) if t / rate <= start)
        timed = stream(frames, rate)[before:]
    else:
        timed = stream(frames, rate)
    picked = [frame for _, frame in sample_stream(timed, fps, start, end, 10_000)]
    assert [k for k, _ in sample_stream(timed, fps, start, end, 10_000)] == list(range(len(picked)))
    differing = [k for k, pair in enumerate(zip(picked, expected)) if pair[0] != pair[1]]
    assert abs(len(picked) - len(expected)) <= 1  # only where a length of x.5 frames is rounded
    for k in differing:  # only where two source frames are equally near
        position = (start + k / fps) * rate
        assert abs(position % 1 - 0.5) < 1e-3


@given(frames=st.integers(1, 300))
def test_the_same_rate_takes_every_frame(frames) -> None:
    assert nearest_frames(frames, 25.0, 25.0).tolist() == list(range(frames))


def test_half_the_rate_takes_every_second() -> None:
    assert nearest_frames(100, 50.0, 25.0).tolist() == list(range(0, 100, 2))


def test_an_endless_stream_ends() -> None:
    def endless():
        t = 0
        while True:
            yield t / 25, 1 / 25, t
            t += 1

    with pytest.raises(ClipRejected, match="too-long"):
        list(sample_stream(endless(), 25.0, 0.0, None, 500))
    assert len(list(sample_stream(endless(), 25.0, 0.0, 4.0, 500))) == 100
