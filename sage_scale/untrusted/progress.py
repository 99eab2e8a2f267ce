"""Progress of long commands: a bar of rich's on a terminal, elsewhere a plain line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import IO, Any

from sage_scale.untrusted.display import duration, size
from sage_scale.untrusted.printer import console, tell


class Progress:
    """Shows done, total, rate and time left on stderr or `stream`. Use as a context manager."""

    def __init__(
        self,
        name: str = "",
        unit: str = "",
        *,
        stream: IO[str] | None = None,
        every_s: float = 5.0,
        quiet: bool = False,
    ) -> None:
        """Lines begin with `name`; `unit` is the plural of the things counted. `quiet` shows nothing."""
        self._name, self._unit = name, unit
        self._stream, self._every_s, self._quiet = stream or sys.stderr, every_s, quiet
        self._started = self._shown = time.monotonic()
        self._before: int | None = None
        self._shows_lines = False
        self._bar: Any = None
        self._task: Any = None
        if not quiet and self._stream.isatty():
            self._bar, self._task = _bar(self._stream)

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, done: int, total: int, read: int = 0) -> None:
        """`done` of `total` are done, for which `read` bytes were read. The first call tells of earlier runs' work."""
        if self._before is None:
            self._before = 0 if read else done
        here, elapsed = done - self._before, max(time.monotonic() - self._started, 1e-9)

        def line() -> str:
            parts = [f"{self._name}: {done:,} of {total:,}{self._unit and ' ' + self._unit}"]
            if read:
                parts += [size(read), f"{size(read / elapsed)}/s"]
            elif here:
                parts.append(f"{here / elapsed:.1f}/s")
            parts.append(f"{duration(elapsed / here * (total - done))} left" if here else "time left unknown")
            return ", ".join(parts)

        if not self.update(done, total, line) and done >= total and self._shows_lines:
            tell(line(), stream=self._stream)

    def update(self, done: int, total: int, line: Callable[[], str]) -> bool:
        """Show another line than the standard one. Returns whether `every_s` seconds have passed since it last did."""
        if self._bar:
            self._bar.update(self._task, completed=done, total=total, line=line())
        now = time.monotonic()
        if now - self._shown < self._every_s:
            return False
        self._shown = now
        if not self._bar and not self._quiet:
            tell(line(), stream=self._stream)
            self._shows_lines = True
        return True

    def say(self, text: str) -> None:
        """Print a line of its own, above the bar."""
        if self._bar:
            self._bar.console.print(text)
        elif not self._quiet:
            tell(text, stream=self._stream)


def _bar(stream: IO[str]) -> tuple[Any, Any]:
    from rich.progress import BarColumn, Progress, TextColumn

    line = TextColumn("{task.fields[line]}", markup=False)
    # Rich would print what goes to stdout on the terminal, above the bar, even where stdout is a file.
    aside = sys.stdout.isatty()
    columns = BarColumn(bar_width=20), line
    bar = Progress(*columns, console=console(stream), transient=True, redirect_stdout=aside)
    return bar, bar.add_task("", total=None, line="starting")
