"""What a person reads while a run goes on."""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_scale.corpora.manifest import Clip
from sage_scale.errors import UsageError
from sage_scale.precompute.plan import Unit
from sage_scale.precompute.progress import ClipDone, JobProgress, UnitDone, UnitFailed, label
from sage_scale.shards.layout import Marker

UNIT = Unit(number=3, split="train", clips=tuple(Clip(id=f"c{i}", video=f"{i}.mp4") for i in range(4)))
MARKER = Marker(
    unit=3, split="train", dataset="0" * 16, samples=3, frames=300, segments=40, rejects=1,
    reasons={"unreadable": 1}, bytes=9, sha256="", index_sha256="",
)  # fmt: skip


def done(clip: str, **stages: float) -> ClipDone:
    return ClipDone(clip=clip, frames=100, seconds=4.0, stages=stages)


def test_a_line_counts_clips_video_shards_rejects_and_names_the_bottleneck() -> None:
    text = io.StringIO()
    with JobProgress(clips=10, units=5, clips_before=2, units_before=1, stream=text, every_s=0.0) as progress:
        for number in range(3):
            progress.clip(UNIT, done(f"c{number}", decode=0.5, encode=1.5))
        progress.clip(
            UNIT, ClipDone(clip="c3", reason="unreadable", detail="no moov", stages={"decode": 0.1})
        )
    line = text.getvalue().splitlines()[-1]
    assert "6 of 10 clips" in line and "1 of 5 shards" in line and "1 rejects" in line and "left" in line
    assert "bottleneck encode (74% of" in line  # 4.5 of 6.1 seconds
    assert progress.stage_seconds() == "encode 4.5 s (74%), decode 1.6 s (26%)"


def test_clips_of_a_lost_unit_no_longer_count() -> None:
    text = io.StringIO()
    with JobProgress(clips=10, units=5, stream=text, every_s=99) as progress:
        progress.clip(UNIT, done("c0"))
        progress.clip(UNIT, done("c1"))
        assert progress.clips_done == 2
        progress.failure(UNIT, UnitFailed(kind="killed", message="its actor died", clip="c2"), again=True)
        assert progress.clips_done == 0
        progress.unit(UNIT, UnitDone(marker=MARKER))
        assert (progress.clips_done, progress.units_left) == (4, 4)
    assert text.getvalue() == "unit 000003 at clip 'c2': its actor died; trying again\n"


def test_an_outage_of_the_storage_is_one_line_a_minute(monkeypatch) -> None:
    text, now = io.StringIO(), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with JobProgress(clips=10, units=5, stream=text, every_s=9999) as progress:
        for second in range(130):
            now[0] = 1000.0 + second
            progress.failure(UNIT, UnitFailed(kind="storage", message="S3 is away", clip=""), again=True)
        progress.failure(UNIT, UnitFailed(kind="killed", message="died", clip=""), again=True)
        progress.failure(UNIT, UnitFailed(kind="storage", message="S3 is away", clip=""), again=False)
    lines = text.getvalue().splitlines()
    assert [line.partition(": ")[2] for line in lines] == [
        "S3 is away; trying again",
        "S3 is away; trying again (59 more since the last such line)",
        "S3 is away; trying again (59 more since the last such line)",
        "died; trying again",
        "S3 is away; left open",
    ]


def test_events_are_json_lines_that_tell_the_whole_run(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    with JobProgress(clips=4, units=1, events=file, quiet=True) as progress:
        progress.clip(UNIT, ClipDone(clip="c0", reason="unreadable", detail="über"))
        progress.failure(UNIT, UnitFailed(kind="storage", message="503", clip="c1"), again=True)
        progress.unit(UNIT, UnitDone(marker=MARKER))
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [row["event"] for row in rows] == ["reject", "failure", "unit"]
    assert rows[0]["detail"] == "über" and rows[1]["kind"] == "storage" and rows[2]["samples"] == 3


def test_notes_on_videos_are_said_once_each_and_ten_at_most(tmp_path: Path) -> None:
    stream, file = io.StringIO(), tmp_path / "events.jsonl"
    with JobProgress(clips=30, units=1, stream=stream, events=file, every_s=999) as progress:
        for k in range(30):
            note = f"{k // 2}.mkv: 2 video streams\x1b[31m"
            progress.clip(UNIT, ClipDone(clip=f"c{k}", frames=9, seconds=1.0, notes=(note,)))
    said = [line for line in stream.getvalue().splitlines() if "note" in line]
    assert [line[:14] for line in said[:2]] == [
        "note on 0.mkv:",
        "note on 1.mkv:",
    ] and "\x1b" not in stream.getvalue()
    assert len(said) == 11 and "--events" in said[-1]
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [row["note"].split(":")[0] for row in rows if row["event"] == "note"] == [
        f"{k}.mkv" for k in range(15)
    ]


class Metrics:
    """Takes what goes to Ray."""

    def __init__(self) -> None:
        self.values: Counter[str] = Counter()

    def add(self, name: str, value: float = 1, tags: dict[str, str] | None = None) -> None:
        self.values[" ".join([name, *(tags or {}).values()])] += value

    def set(self, name: str, value: float) -> None:
        self.values[name] = value


@pytest.mark.parametrize("terminal", [True, False])
def test_the_state_has_its_cost_by_stage_and_goes_to_rays_metrics(tmp_path: Path, terminal: bool) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    file, text = tmp_path / "events.jsonl", Stream()
    with JobProgress(
        clips=10,
        units=5,
        clips_before=2,
        units_before=1,
        events=file,
        stream=text,
        every_s=0.0,
        price_per_cpu_hour=1.8,
    ) as progress:
        progress.metrics = Metrics()
        progress.clip(UNIT, done("c0", decode=500.0, encode=1000.0))
        progress.clip(UNIT, ClipDone(clip="c1", reason="unreadable", stages={"decode": 500.0}))
        progress.unit(UNIT, UnitDone(marker=MARKER, stages={"commit": 20.0}))
    state = [
        row for line in file.read_text().splitlines() if (row := json.loads(line))["event"] == "progress"
    ][-1]
    assert state["cost"] == {"decode": 0.5, "encode": 0.5, "commit": 0.01}  # 1.8 an hour is 0.0005 a second
    assert (state["clips"], state["shards"], state["video_s"], state["frames"]) == (6, 2, 4.0, 100)
    assert state["rejects"] == {"unreadable": 1} and state["left_s"] > 0
    assert "cost 1.01 (decode 0.50 encode 0.50 commit 0.01)" in progress.line()
    values = progress.metrics.values
    assert (values["clips"], values["rejects unreadable"], values["shards"], values["shards_left"]) == (
        2,
        1,
        1,
        3,
    )
    assert (values["stage_seconds decode"], values["clips_left"], values["bytes"]) == (1000, 4, 9)


def test_without_a_price_there_is_no_cost() -> None:
    with JobProgress(clips=1, units=1, quiet=True) as progress:
        progress.clip(UNIT, done("c0", decode=5.0))
    assert progress.cost() == {} and "cost" not in progress.line()


def test_an_events_file_that_cannot_be_written_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--events"):
        JobProgress(clips=1, units=1, events=tmp_path / "none" / "events.jsonl")


def test_a_terminal_gets_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    text = Terminal()
    with JobProgress(clips=4, units=1, stream=text) as progress:
        progress.clip(UNIT, done("c0", decode=1.0))
        progress.say("a line of its own")
    assert "1 of 4 clips" in text.getvalue() and "a line of its own" in text.getvalue()


@given(st.text(st.characters()))
def test_a_label_is_ascii_and_keeps_plain_names(text):
    shown = label(text)
    assert shown.isascii() and shown.isprintable()
    if text.isascii() and text.isprintable() and ":/" not in text:
        assert shown == text


def test_a_label_tells_places_apart_without_secrets():
    assert label("/data/ünï") == "/data/%C3%BCn%C3%AF"
    assert label("s3://bucket/日本") != label("s3://bucket/日木")
    assert "hunter2" not in label("s3://u:hunter2@bucket/日本?x=hunter2")
