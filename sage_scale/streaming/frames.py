"""Which stored frames belong to a segment.

Shards hold a clip on its stride grid (frames 0, s, 2s, ...). A segment [start, end) is made of the grid frames
inside it; a segment between two grid points is made of the nearest one, so that no segment is ever empty.
"""

from __future__ import annotations

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
