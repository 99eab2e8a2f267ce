"""Charts with a line a group: the mean of its runs, in a band from the lowest to the highest of them."""

from __future__ import annotations

from collections.abc import Sequence

from sage_scale.reporting import figures, scales
from sage_scale.reporting.figures import LINE_COLOURS, Line, clipped, short, smooth
from sage_scale.reporting.groups import Group
from sage_scale.reporting.runlog import RunRecord

Chart = tuple[str, list[tuple[int, str]], str]
"""Title, colour and words of each line's key, drawing."""
_CHARTS = (
    ("BLEU-4 on dev", "finetune", "bleu4", "dev"),
    ("Loss of stage 2", "finetune", "loss", "step"),
    ("Loss of stage 1", "pretrain", "loss", "step"),
    ("R@1 of stage 1 on dev, video to text, %", "pretrain", "r1_v2t", "dev"),
)
"""Title, stage, logged key and event."""
MOST_NAMES = 4
"""Lines of a chart whose key has names; of more it has letters, and the names stand above the charts."""


def legend(groups: Sequence[Group]) -> list[tuple[int, Group]]:
    """Returns the colour of each group, where the charts' keys have letters alone."""
    return (
        [(look % LINE_COLOURS, group) for look, group in enumerate(groups)]
        if len(groups) > MOST_NAMES
        else []
    )


def charts(groups: Sequence[Group]) -> list[Chart]:
    """Returns charts of scores and losses, then of the scales, biases and temperatures of stage 1."""
    drawn = [_chart(groups, *chart) for chart in _CHARTS]
    logs = [
        record.logs["pretrain"] for group in groups for record in group.records if "pretrain" in record.logs
    ]
    for kind, title in scales.CHARTS:
        for key in dict.fromkeys(key for log in logs for key in scales.keys_of(log, kind)):
            drawn.append(_chart(groups, f"{title}, {scales.level(key)}", "pretrain", key, "step"))
    return [chart for chart in drawn if chart[2]]


def _chart(groups: Sequence[Group], title: str, stage: str, key: str, event: str) -> Chart:
    alone = len(groups) == 1
    members = [(record.name, "", [record]) for record in groups[0].records] if alone else [
        (group.label, group.letter, list(group.records)) for group in groups
    ]  # fmt: skip
    lines = [_line(*member, look, stage, key, event) for look, member in enumerate(members)]
    drawing = figures.line_chart(title, lines)
    short_keys = len(lines) > MOST_NAMES and not alone
    keys = [
        (line.colour % LINE_COLOURS,
         " ".join(filter(None, (line.letter, "" if short_keys else clipped(line.name), short(line.points[-1][1])))))
        for line in lines if line.points
    ]  # fmt: skip
    return title, keys, drawing


def _line(
    name: str, letter: str, records: Sequence[RunRecord], look: int, stage: str, key: str, event: str
) -> Line:
    curves = [record.logs[stage].curve(key, event) for record in records if stage in record.logs]
    curves = [smooth(curve) if event == "step" and len(curve) >= 40 else curve for curve in curves if curve]
    if len(curves) < 2:
        points = curves[0] if curves else []
        return Line(name, points, look, event == "dev", letter=letter)
    band = mean_and_band(curves)
    return Line(name, [(x, mean) for x, mean, _, _ in band], look, event == "dev",
                [(x, low, high) for x, _, low, high in band], letter)  # fmt: skip


def mean_and_band(curves: Sequence[figures.Points]) -> list[tuple[float, float, float, float]]:
    """Returns (step, mean, lowest, highest) at each step that at least half of the curves have."""
    at: dict[float, list[float]] = {}
    for curve in curves:
        for x, y in curve:
            at.setdefault(x, []).append(y)
    return [
        (x, sum(values) / len(values), min(values), max(values))
        for x, values in sorted(at.items()) if 2 * len(values) >= len(curves)
    ]  # fmt: skip
