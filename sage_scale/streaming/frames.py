"""Which stored frames belong to a segment.

Shards hold a clip on its stride grid (frames 0, s, 2s, ...). A segment [start, end) is made of the grid
frames inside it; a segment between two grid points is made of the nearest one, so that no segment is ever
empty.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


def grid_rows(segments_N2: NDArray, stride: int, rows: int | Integers) -> tuple[Integers, Integers]:
    """Row numbers on the grid, segment after segment (F,), and how many rows each segment has (N,), at least
    1.

    Row r is frame r * stride. `rows` is how many rows the clip has stored (one number, or one for each
    segment); nothing beyond them is asked for. Both results are int64.
    """
    start_N = segments_N2[:, 0].astype(np.int64)
    end_N = segments_N2[:, 1].astype(np.int64)
    first_N = -(-start_N // stride)
    after_N = np.minimum(-(-end_N // stride), rows)
    # Between two grid points: the one before is start - before away, the one behind is behind - last away.
    before_N = start_N // stride
    nearer_N = np.where(start_N - before_N * stride <= first_N * stride - (end_N - 1), before_N, first_N)
    lone_N = after_N <= first_N
    first_N = np.where(lone_N, np.minimum(nearer_N, np.asarray(rows) - 1), first_N)
    count_N = np.where(lone_N, 1, after_N - first_N)
    begin_N = np.cumsum(count_N) - count_N
    rows_F = np.repeat(first_N - begin_N, count_N) + np.arange(int(count_N.sum()))
    return rows_F, count_N
