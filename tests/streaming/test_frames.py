"""Which stored frames a segment is made of, against the definition, frame by frame."""

import numpy as np
from factories.properties import many
from hypothesis import strategies as st

from sage_scale.streaming.packing import grid_rows, run_indices


def rows_of(segments, stride, rows):
    begin_N, counts_N = grid_rows(segments, np.array([len(segments)]), stride, np.array([rows]))
    return counts_N.tolist(), run_indices(begin_N, counts_N).tolist()


@many(st.lists(st.integers(1, 12), min_size=1, max_size=12), st.integers(1, 6), st.integers(0, 9))
def test_a_segment_holds_its_grid_frames_or_the_nearest_one(lengths, stride, tail):
    edges = np.cumsum([0, *lengths])
    total = int(edges[-1]) + tail
    grid = list(range(0, total, stride))
    segments = np.stack([edges[:-1], edges[1:]], axis=1).astype(np.int32)[::2]
    counts, rows = rows_of(segments, stride, len(grid))
    expected_rows, expected_counts = [], []
    for start, end in segments.tolist():
        inside = [row for row, frame in enumerate(grid) if start <= frame < end]
        if not inside:
            away = [max(start - frame, frame - (end - 1)) for frame in grid]
            inside = [int(np.argmin(away))]
        expected_rows += inside
        expected_counts.append(len(inside))
    assert rows == expected_rows and counts == expected_counts


def test_a_segment_behind_the_last_stored_frame_takes_it():
    assert rows_of(np.array([[0, 4], [4, 6]], dtype=np.int32), 4, 1) == ([1, 1], [0, 0])
