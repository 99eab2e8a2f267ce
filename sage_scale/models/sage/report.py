"""SAGE's own section of a run's report."""

from __future__ import annotations

from markupsafe import Markup

from sage_scale.reporting import clip_figures
from sage_scale.reporting.page import html
from sage_scale.reporting.runlog import RunRecord
from sage_scale.reporting.sections import BROKEN


def alignments(record: RunRecord) -> Markup:
    """Returns the token similarity matrices (SAGE, Fig. 4)."""
    fps = float(record.setting("vision.fps", 25.0))
    found = []
    for row in record.own.get("alignment.json", []):
        try:
            tokens = [str(token) for token in row["tokens"]]
            drawing = clip_figures.matrix(row["similarity"], tokens, row.get("segments", []), fps)
        except BROKEN:
            continue
        if drawing:
            values = [value for line in row["similarity"] for value in line]
            found.append({"sentence": row.get("sentence", ""), "drawing": drawing, "low": f"{min(values):.2f}",
                          "high": f"{max(values):.2f}"})  # fmt: skip
    return html("alignment", found, "models/sage/report.html")
