"""`write_report`: one self-contained HTML page of a run.

The page loads nothing: style is inline, figures are SVG in the page, thumbnails are data URIs, and a content policy
forbids the rest. It needs no JavaScript.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from sage_scale.config import from_mapping
from sage_scale.errors import RecipeError, StorageError
from sage_scale.registry import resolve
from sage_scale.reporting import examples, scores, sections
from sage_scale.reporting.markup import escape, if_readable
from sage_scale.reporting.runlog import RunRecord, read_run
from sage_scale.reporting.style import CSS

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

Section = tuple[str, str, Callable[[RunRecord], str]]
"""Anchor, name in the table of contents, and maker."""
ABSENT = ("absent", "Not in this report")


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run to `out` (RUN/report.html unless given), atomically; returns where it lies.

    Raises UsageError where `run` is no run folder, StorageError where the page cannot be written.
    """
    record = read_run(run)
    return write_page(render(record), Path(out) if out else record.folder / "report.html")


def write_page(html: str, path: Path) -> Path:
    """Write a page atomically. Raises StorageError where that is not possible."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(html, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from None
    return path


def _parts(record: RunRecord) -> list[Section]:
    """The sections in the order of the page."""
    return [
        ("scores", "Scores", scores.scores_table),
        ("examples", "Examples", examples.examples),
        ("curves", "Training", sections.curves),
        *((own.anchor, own.title, resolve(own.make)) for own in record.spec.report),
        ("timelines", "Segments", sections.timelines),
        ("cost", "Time and memory", sections.cost),
        ("recipe", "Recipe", sections.recipe),
    ]


def render(record: RunRecord) -> str:
    """The whole page as text."""
    missing = record.missing
    about = if_readable(lambda: _about(record), "what was run", missing)
    tiles = if_readable(lambda: sections.tiles(record), "figures of the head", missing)
    made = [
        (at, name, if_readable(partial(make, record), name.lower(), missing))
        for at, name, make in _parts(record)
    ]
    return document(record.name, about, tiles, [*made, (*ABSENT, sections.absent(missing))])


def document(name: str, about: str, tiles: str, parts: Sequence[tuple[str, str, str]]) -> str:
    """A page of sections: anchor, name in the table of contents, HTML; empty ones are left out.

    `name` is escaped here, `about` and `tiles` are HTML.
    """
    links = "".join(f'<li><a href="#{anchor}">{words}</a></li>' for anchor, words, html in parts if html)
    title = escape(name)
    version = importlib.metadata.version("sage-scale")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} · sage-scale report</title>
<style>{CSS}</style>
</head>
<body>
<a class="skip" href="#content">To the content</a>
<header class="top">
<p class="kicker">sage-scale report</p>
<h1>{title}</h1>
<p class="sub">{about}</p>
{tiles}
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main id="content">
{"".join(html for _, _, html in parts)}
</main>
<footer>Made by sage-scale {escape(version)}. This page is one file and loads nothing.</footer>
</body>
</html>
"""


def _about(record: RunRecord) -> str:
    """What was run, in one line."""
    parts = []
    if name := record.setting("name"):
        parts.append(f"recipe <b>{escape(name)}</b>")
    try:
        parts.append(
            f"fingerprint <code>{from_mapping(record.recipe).fingerprint()}</code>" if record.recipe else ""
        )
    except RecipeError:
        parts.append("recipe of another version")
    for path, words in (
        ("corpus.name", "corpus {}"),
        ("corpus.language", "language {}"),
        ("segmentation.tagger", "segments by {}"),
    ):
        if value := record.of_datasets(path):
            parts.append(escape(words.format(value)))
    return " · ".join(part for part in parts if part)
