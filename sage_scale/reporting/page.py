"""`write_report`: one self-contained HTML page of a run, from the templates in `templates/`.

The page loads nothing: style is inline, figures are SVG in the page, thumbnails are data URIs, and a content policy
forbids the rest. It needs no JavaScript. All that a template shows is escaped, and `printable` and `redacted` before.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from markupsafe import Markup

from sage_scale.errors import StorageError, UsageError
from sage_scale.registry import resolve
from sage_scale.reporting import sections
from sage_scale.reporting.curves import curves
from sage_scale.reporting.examples import examples
from sage_scale.reporting.run_scores import scores
from sage_scale.reporting.runlog import RunRecord, read_run
from sage_scale.untrusted.display import printable, redacted, shortened

_PACKAGE = Path(__file__).parents[1]
CSS = (_PACKAGE / "reporting/templates/style.css").read_text(encoding="utf-8")
"""System fonts, light and dark by the reader's setting, readable on paper and on a phone."""
T = TypeVar("T")
Maker = tuple[str, str, Callable[[], str]]
"""Anchor, name in the table of contents, and the function that makes a section."""
Missing = list[tuple[str, str]]
"""(what, why): parts of a page that are not there."""


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run to `out` (RUN/report.html unless given), atomically; returns its path.

    Raises UsageError where `run` is no run folder, StorageError where the page cannot be written.
    """
    record = read_run(run)
    page = Path(out) if out else record.folder / "report.html"
    return write_page(render(record, page), page)


def write_page(html: str, path: Path) -> Path:
    """Write a page atomically. Raises StorageError where that is not possible."""
    if path.is_dir():
        raise UsageError(f"{shortened(path, 300)} is a folder: name the file of the page")
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # another process may write the same page
    try:
        partial.write_text(html, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from None
    return path


def render(record: RunRecord, page: Path) -> str:
    """Returns the whole page of a run as text; its links start at the folder of `page`."""
    missing = record.missing
    empty = Markup()
    about = readable(lambda: html("about", sections.about(record)), empty, missing, "the run")
    tiles = readable(lambda: html("tiles", sections.tiles(record)), empty, missing, "figures of the head")
    own: list[Maker] = [
        (part.anchor, part.title, functools.partial(resolve(part.make), record))
        for part in record.spec.report
    ]
    makers: list[Maker] = [
        ("scores", "Scores", lambda: html("scores", scores(record, page))),
        ("examples", "Examples", lambda: html("examples", examples(record))),
        ("curves", "Training", lambda: html("curves", curves(record))),
        *own,
        ("timelines", "Segments", lambda: html("timelines", sections.timelines(record))),
        ("cost", "Time and memory", lambda: html("cost", sections.cost(record))),
        ("recipe", "Recipe", lambda: html("recipe", sections.recipe(record))),
    ]
    parts = [(at, title, Markup(readable(make, "", missing, title.lower()))) for at, title, make in makers]
    return document(record.name, about, tiles, parts, missing)


def document(
    name: str, about: Markup, tiles: Markup, parts: Sequence[tuple[str, str, Markup]], missing: Missing
) -> str:
    """Returns a page of sections (anchor, name in the table of contents, HTML; empty ones are left out), with a last
    one of missing parts, so that no gap is taken for a result."""
    absent = ("absent", "Not in this report", html("absent", missing))
    version = importlib.metadata.version("sage-scale")
    values = {"name": name, "about": about, "tiles": tiles, "parts": [*parts, absent], "version": version}
    return _environment().get_template("reporting/templates/page.html").render(values)


def html(macro: str, values: Any, template: str = "reporting/templates/sections.html") -> Markup:
    """Returns a macro of a template (a path in sage_scale) with `values`; nothing where there are none."""
    return getattr(_environment().get_template(template).module, macro)(values) if values else Markup()


def readable(make: Callable[[], T], otherwise: T, missing: Missing, what: str) -> T:
    """Returns the result of `make`; where a run's values are not of the kinds that a run writes, adds (`what`, why) to
    `missing` and returns `otherwise`."""
    try:
        return make()
    except (AttributeError, LookupError, ArithmeticError, TypeError, ValueError):
        missing.append((what, "the run's files hold values of another kind than a run writes"))
        return otherwise


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PACKAGE),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else redacted(printable(value)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
