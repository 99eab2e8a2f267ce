"""Progress of long commands."""

from __future__ import annotations

import io
import time

import pytest

from sage_scale.untrusted.display import duration, size
from sage_scale.untrusted.printer import echo
from sage_scale.untrusted.progress import Progress


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_lines_come_every_few_seconds_and_at_the_end_of_a_long_command(clock):
    stream = Stream(False)
    with Progress("clips rendered", stream=stream) as progress:
        for second in range(13):
            clock[0] = 1000.0 + second
            progress(40 + 10 * second, 160)  # 40 were there before
    assert stream.getvalue().splitlines() == [
        "clips rendered: 90 of 160, 10.0/s, 7 s left",
        "clips rendered: 140 of 160, 10.0/s, 2 s left",
        "clips rendered: 160 of 160, 10.0/s, 0 s left",
    ]


def test_bytes_have_a_rate_and_a_short_command_shows_nothing(clock):
    stream = Stream(False)
    with Progress("verify", "shards", stream=stream) as progress:
        clock[0] += 10
        progress(1, 21, 20_000_000)
    with Progress("verify", "shards", stream=stream) as progress:
        progress(1, 1, 20)
    assert stream.getvalue() == "verify: 1 of 21 shards, 20.0 MB, 2.0 MB/s, 3 min 20 s left\n"


def test_a_terminal_gets_a_bar_and_lines_above_it():
    stream = Stream(True)
    with Progress("verify", "shards", stream=stream) as progress:
        progress(3, 4, 50)
        progress.say("a [bold]line[/bold] of its own\x1b[31m")
    assert "verify: 3 of 4 shards, 50 B" in stream.getvalue()
    assert "a [bold]line[/bold] of its own\\x1b[31m" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (18240, "5 h 04 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(12, "12 B"), (3_400_000, "3.4 MB"), (2e15, "2000.0 TB")])
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


def test_results_go_to_stdout_while_a_bar_is_on_the_terminal(capsys, clock):
    """`sage-scale translate ... > captions.txt` at a terminal."""
    stream = Stream(True)
    with Progress("talk.mp4", stream=stream) as progress:
        progress(1, 2)
        echo("a caption")
    assert capsys.readouterr().out == "a caption\n"
    assert "talk.mp4: 1 of 2" in stream.getvalue() and "a caption" not in stream.getvalue()
