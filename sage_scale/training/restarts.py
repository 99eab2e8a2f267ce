"""Restarts a stage from its last checkpoint, up to `--restarts` times.

A wrong recipe, damaged data or a step that fails repeatedly is not restarted. Each restart writes one line to the
terminal and one to `RUN/restarts.jsonl`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sage_scale.errors import SageError
from sage_scale.training.launcher import AttemptResult
from sage_scale.untrusted.display import json_text
from sage_scale.untrusted.json_values import parse_json
from sage_scale.untrusted.printer import echo_row, tell

LOG = "restarts.jsonl"
PERMANENT_CODES = (2, 3, 4, 130)
"""Exit codes without restart: a restart would end with the same code, or the user requested the stop."""
MAX_STARTS_WITHOUT_PROGRESS = 2
"""Starts in a row without a further step, after which the stage is not started again."""
_TAIL = 1 << 18


class StageEndedEarly(SageError):
    """The stage ended early; an empty message means that the ranks have printed the reason."""


def run_with_restarts(
    stage: str,
    run: Path,
    attempt: Callable[[], AttemptResult],
    restarts: int = 0,
    say: Callable[[str], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Run `attempt` until the stage is done, with at most `restarts` restarts after pauses of 1, 2, 4 ... 60 seconds.

    Raises KeyboardInterrupt if this process was told to stop and the ranks did, StageEndedEarly (with the ranks' exit
    code) if the stage failed and is not restarted.
    """
    say = say or (lambda line: tell(f"sage-scale {stage}: {line}"))
    furthest, stalled, started = last_step(run, stage), 0, 0
    while True:
        ended = attempt()
        if ended.code == 0:
            return
        # A requested stop whose save failed is a failure.
        if ended.asked and (ended.code == 130 or ended.code < 0):
            raise KeyboardInterrupt
        now = last_step(run, stage)
        stalled = 0 if now > furthest else stalled + 1
        furthest = max(furthest, now)
        # The line of a diagnosis stands on the terminal already.
        unsaid = "" if ended.why else f"{ended.line}; "
        if ended.code in PERMANENT_CODES or ended.why.get("permanent") or restarts == 0 or ended.asked:
            raise _error(ended, unsaid.removesuffix("; "))
        if stalled >= MAX_STARTS_WITHOUT_PROGRESS:
            raise _error(
                ended, f"{unsaid}{stalled} starts in a row got no further, so it is not started again"
            )
        if started >= restarts:
            raise _error(ended, f"{unsaid}all {restarts} restarts are used up")
        started += 1
        pause = min(60.0, 2.0 ** (started - 1))
        if run.is_dir():
            cause: dict[str, Any] = {
                name: ended.why[name] for name in ("kind", "rank", "host", "at") if name in ended.why
            }
            row: dict[str, Any] = {
                "event": "restart", "stage": stage, "start": started, "of": restarts, "reached_step": now,
                "pause_s": pause, "reason": ended.line, "code": ended.code, **cause,
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            }  # fmt: skip
            with (run / LOG).open("a", encoding="utf-8") as log:
                log.write(json_text(row) + "\n")
            echo_row(stage, row)
        how_far = f"step {now} was reached" if now >= 0 else "no step was made"
        say(
            f"{unsaid}starting again from the last checkpoint in {pause:.0f} s ({started} of {restarts}; {how_far})"
        )
        sleep(pause)


def last_step(run: Path, stage: str) -> int:
    """Returns the highest step in the latest part of the stage's log; -1 if there is none."""
    try:
        with (run / stage / "log.jsonl").open("rb") as log:
            log.seek(0, 2)
            log.seek(max(0, log.tell() - _TAIL))
            lines = log.read().splitlines()
    except OSError:
        return -1
    steps = [-1]
    for line in lines:
        try:
            row = parse_json(line)
        except ValueError:
            continue  # the first may be cut by us, the last by a kill
        if isinstance(row, dict) and row.get("event") == "step" and type(row.get("step")) is int:
            steps.append(row["step"])
    return max(steps)


def _error(ended: AttemptResult, line: str) -> StageEndedEarly:
    error = StageEndedEarly(line)
    error.exit_code = ended.code if 0 < ended.code < 126 or ended.code == 130 else 1
    return error
