from sage_scale.streaming import DataStallMonitor, ReadCounts


def feed(monitor, steps, waited, elapsed, each):
    """`steps` equal steps; the lines that were said."""
    counts, lines = ReadCounts(), []
    for _ in range(steps):
        counts += each
        line = monitor.note(waited, elapsed, counts)
        if line:
            lines.append(line)
    return lines


def test_waiting_is_told_with_its_reason_and_cure():
    reading = ReadCounts(bytes=50_000_000, read_s=0.9, decode_s=0.1, retries=1)
    (line,) = feed(DataStallMonitor(0.1, remote=True, workers=0), 30, 0.6, 1.0, reading)
    assert "60% of the last 30 s" in line and "object store gives 50 MB/s" in line and "30 reads" in line
    decoding = ReadCounts(bytes=1_000_000, read_s=0.1, decode_s=0.8)
    (line,) = feed(DataStallMonitor(0.1, remote=False, workers=2), 30, 0.6, 1.0, decoding)
    assert "decoding is the limit (stream.workers=2)" in line


def test_little_waiting_is_not_told_and_much_is_not_repeated():
    each = ReadCounts(bytes=1, read_s=1.0)
    assert feed(DataStallMonitor(0.1, remote=False, workers=0), 300, 0.09, 1.0, each) == []
    assert feed(DataStallMonitor(0.0, remote=False, workers=0), 300, 1.0, 1.0, each) == []
    assert len(feed(DataStallMonitor(0.1, remote=False, workers=0), 300, 0.5, 1.0, each)) == 1
    assert len(feed(DataStallMonitor(0.1, remote=False, workers=0), 600, 0.5, 1.0, each)) == 2


def test_waiting_is_judged_by_the_last_half_minute_alone():
    monitor = DataStallMonitor(0.1, remote=False, workers=0)
    each = ReadCounts(read_s=1.0)
    assert feed(monitor, 300, 0.0, 1.0, each) == []
    assert len(feed(monitor, 30, 0.5, 1.0, each)) == 1


def test_what_was_added_since_is_the_difference():
    early = ReadCounts(samples=2, bytes=10, skipped=("a",))
    late = early + ReadCounts(samples=3, bytes=5, retries=1, skipped=("b", "c"))
    assert late - early == ReadCounts(samples=3, bytes=5, retries=1, skipped=("b", "c"))
