"""SAGE's own section of a run's report."""

from __future__ import annotations

from sage_scale.reporting import figures
from sage_scale.reporting.markup import escape, scroll, section
from sage_scale.reporting.runlog import RunRecord


def alignments(record: RunRecord) -> str:
    """The token similarity matrices (SAGE, Fig. 4)."""
    fps = float(record.setting("vision.fps", 25.0))
    parts = []
    for row in record.own.get("alignment.json", []):
        try:
            drawing = figures.matrix(
                row["similarity"], [str(t) for t in row["tokens"]], row.get("segments", []), fps
            )
        except (KeyError, TypeError, ValueError, IndexError):
            continue
        if drawing:
            values = [value for line in row["similarity"] for value in line]
            label = escape(row.get("sentence", ""))
            parts.append(
                f'<figure class="clip"><figcaption class="sentence">{label}</figcaption>'
                f'<p class="note">cosine from {min(values):.2f} (blank) to {max(values):.2f} (full)</p>'
                f"{scroll(drawing)}</figure>"
            )
    if not parts:
        return ""
    intro = (
        "<p>Cosine of each visual token with each pseudo-gloss subword, after stage 1 (SAGE, Fig. 4). "
        "The segment nearest to a subword is framed. A subword that was never signed has no good column.</p>"
    )
    return section("alignment", "Token similarity", intro + "".join(parts))
