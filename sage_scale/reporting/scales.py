"""The temperature's course in a stage's log: logit scales of both levels, SigLIP's biases, temperatures of Sign2GPT.

A value that training clamps to its bound no longer learns; the number of such steps is told.
"""

from __future__ import annotations

from dataclasses import dataclass

from sage_scale.reporting.runlog import RunRecord, StageLog, number

CHARTS = (("scale", "Logit scales"), ("bias", "Biases"), ("tau", "Temperatures"))
"""First word of the logged keys, and title of their chart."""
_KINDS = {"scale": "logit scale", "bias": "bias", "tau": "temperature"}
LEVELS = {
    "": "both levels", "embedding": "embeddings", "hidden": "hidden states", "time": "over time",
    "class": "over classes",
}  # fmt: skip
_BOUNDS = {"scale": ("", "clcl.scale_max"), "tau": ("prototypes.tau_min", "prototypes.tau_max")}
"""Recipe keys of the least and the largest value."""
_CLOSE = 1e-5
"""Relative distance to a bound of a value that was clamped to it: the log has six digits behind the point."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """The course of one trained scale, bias or temperature over the steps of a stage."""

    kind: str
    """`scale`, `bias` or `tau`."""
    key: str
    level: str
    start: float
    end: float
    steps: int
    """Steps whose log has it."""
    clamped: int
    """Those at a bound."""
    bounds: tuple[str, ...]
    """The reached bounds, as `clcl.scale_max=100`."""

    @property
    def name(self) -> str:
        """What it is the course of: `logit scale, embeddings`."""
        return f"{_KINDS[self.kind]}, {self.level}"

    @property
    def words(self) -> str:
        """The course in a line."""
        inverse = f" (temperature {1 / self.end:.3g})" if self.kind == "scale" and self.end > 0 else ""
        line = f"{self.name}: {self.start:.4g} at the start, {self.end:.4g} at the end{inverse}"
        if self.clamped:
            line += f"; clamped to {' and '.join(self.bounds)} in {self.clamped:,} of {self.steps:,} steps"
        elif self.kind in _BOUNDS:
            line += "; never clamped"
        return line


def courses(record: RunRecord, log: StageLog) -> list[Course]:
    """Returns the courses that a stage has logged, by kind."""
    found = []
    for kind, _ in CHARTS:
        for key in keys_of(log, kind):
            points = log.curve(key)
            bounds = _bounds(record, kind)
            reached = [
                f"{name}={bound:.6g}" for name, bound in bounds if any(_at(y, bound) for _, y in points)
            ]
            clamped = sum(any(_at(y, bound) for _, bound in bounds) for _, y in points)
            found.append(
                Course(kind=kind, key=key, level=level(key), start=points[0][1], end=points[-1][1], steps=len(points),
                       clamped=clamped, bounds=tuple(reached))
            )  # fmt: skip
    return found


def keys_of(log: StageLog, kind: str) -> list[str]:
    """Returns the logged keys of a kind that have a number."""
    wanted = [key for key in log.columns if key == kind or key.startswith(f"{kind}_")]
    return [key for key in sorted(wanted) if log.curve(key)]


def level(key: str) -> str:
    """Returns the name of the level that a key is of: `embeddings` of `scale_embedding`."""
    name = key.partition("_")[2]
    return LEVELS.get(name, name.replace("_", " "))


def _bounds(record: RunRecord, kind: str) -> list[tuple[str, float]]:
    named = ((key, record.setting(key)) for key in _BOUNDS.get(kind, ()) if key)
    return [(key, float(value)) for key, value in named if number(value)]


def _at(value: float, bound: float) -> bool:
    return abs(value - bound) <= _CLOSE * abs(bound)
