"""Which stored frames belong to a segment.

Shards hold a clip on its stride grid (frames 0, s, 2s, ...). A segment [start, end) is made of the grid frames
inside it; a segment between two grid points is made of the nearest one, so that no segment is ever empty.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def grid_runs(segments_N2: NDArray, stride: int, rows: int) -> tuple[list[int], list[tuple[int, int]]]:
    """How many grid rows each segment has (N numbers, at least 1), and the rows of all, as runs [begin, end).

    Row r is frame r * stride. `rows` is how many rows the clip has stored; nothing beyond them is asked for.
    Neighbouring segments share a run, so that most clips are a handful of copies. Plain Python on purpose: at the
    usual ten to fifty segments a clip it takes a third of the time of array operations.
    """
    counts: list[int] = []
    runs: list[tuple[int, int]] = []
    last_begin, last_end = 0, 0
    up = stride - 1
    for start, end in segments_N2.tolist():
        first = (start + up) // stride
        after = (end + up) // stride
        if after > rows:
            after = rows
        if after <= first:
            # Between two grid points: the one before is start - before away, the one behind is behind - last away.
            before = start // stride
            nearer = before if start - before * stride <= first * stride - (end - 1) else first
            first = min(nearer, rows - 1)
            after = first + 1
        counts.append(after - first)
        if first == last_end:
            last_end = after
        else:
            if last_end > last_begin:
                runs.append((last_begin, last_end))
            last_begin, last_end = first, after
    if last_end > last_begin:
        runs.append((last_begin, last_end))
    return counts, runs


def grid_rows(
    segments_N2: NDArray[np.int32], segments_B: NDArray[np.int64], stride: int, rows_B: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """`grid_runs` for the clips of a whole batch: rows of each segment (N,), and which rows they are (F,).

    Clip b has `segments_B[b]` segments and `rows_B[b]` stored rows; rows are numbered through all clips. Where the
    segments are all rows in their order, None stands for them.
    """
    start_N, end_N = segments_N2[:, 0].astype(np.int64), segments_N2[:, 1].astype(np.int64)
    rows_N = np.repeat(rows_B, segments_B)
    first_N = (start_N + stride - 1) // stride
    after_N = np.minimum((end_N + stride - 1) // stride, rows_N)
    lone_N = after_N <= first_N
    if lone_N.any():
        before_N = start_N // stride
        nearer_N = np.where(start_N - before_N * stride <= first_N * stride - (end_N - 1), before_N, first_N)
        first_N = np.where(lone_N, np.minimum(nearer_N, rows_N - 1), first_N)
        after_N = np.where(lone_N, first_N + 1, after_N)
    counts_N = after_N - first_N
    ends_B = np.cumsum(rows_B)
    begin_N = first_N + np.repeat(ends_B - rows_B, segments_B)
    ends_N = np.cumsum(counts_N)
    total = int(ends_N[-1])
    if total == int(ends_B[-1]) and np.array_equal(begin_N, ends_N - counts_N):
        return counts_N, None
    return counts_N, np.repeat(begin_N - (ends_N - counts_N), counts_N) + np.arange(total)
