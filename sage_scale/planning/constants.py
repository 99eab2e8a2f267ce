"""Rates and sizes that a plan is computed with: measured ones with device, date and command, all others `assumed`.

`constants.yaml` ships with the package; `sage-scale bench calibrate` writes a file of the same form, whose entries
replace those of the package (`sage-scale plan --calibration FILE`). An entry is

    decode.frames_per_cpu_s:
      value: {260: 2694, 480: 990}      # a number, or numbers by a size or a name
      unit: frames a CPU second, by the picture's height
      device: 2 cores (Xeon with AMX)   # with date and command; or `assumed: REASON`
      date: 2026-11-22
      command: python benchmarks/decode.py
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sage_scale.errors import UsageError
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import expanded, read_bytes
from sage_scale.untrusted.yaml_values import MAX_BYTES, InvalidYAML, parse_yaml

PACKAGED = Path(__file__).with_name("constants.yaml")
_KEYS = {"value", "unit", "device", "date", "command", "assumed"}
_MEASURED = ("device", "date", "command")


@dataclass(frozen=True, kw_only=True)
class Constant:
    """One rate or size."""

    name: str
    value: float | Mapping[str, float]
    """A number, or numbers by a size (a picture's height or side) or by a name."""
    unit: str
    device: str = ""
    date: str = ""
    command: str = ""
    assumed: str = ""
    """Reason for the figure where nothing was measured."""

    @property
    def source(self) -> str:
        """Returns device, date and command, or `assumed` with the reason."""
        return f"assumed: {self.assumed}" if self.assumed else f"{self.device}, {self.date}, `{self.command}`"

    @property
    def shown(self) -> str:
        """Returns the value as text."""
        if isinstance(self.value, Mapping):
            return ", ".join(f"{key}: {value:,.6g}" for key, value in self.value.items())
        return f"{self.value:,.6g}"


class Constants:
    """The constants of a plan; remembers which of them were used."""

    def __init__(self, constants: Mapping[str, Constant]) -> None:
        self._constants = dict(constants)
        self._used: dict[str, Constant] = {}

    @property
    def used(self) -> list[Constant]:
        """Returns the constants that were asked for, in that order."""
        return list(self._used.values())

    def knows(self, name: str, key: str = "") -> bool:
        """Returns whether there is a constant, with this key where one is given."""
        found = self._constants.get(name)
        return found is not None and (not key or (isinstance(found.value, Mapping) and key in found.value))

    def number(self, name: str, key: str = "") -> float:
        """Returns a constant, or one of its numbers by name."""
        value = self._use(name)
        return value[key] if isinstance(value, Mapping) else value

    def seconds(self, name: str, size: float) -> float:
        """Returns 1 / rate at a picture's side or height.

        Seconds are linear in the picture's area between the sizes of the table, and proportional to it beyond.
        """
        table = self._use(name)
        if not isinstance(table, Mapping):
            return 1 / table
        return _by_area({float(side): 1 / rate for side, rate in table.items()}, size)

    def by_area(self, name: str, size: float) -> float:
        """Returns a table's number at a picture's side, by the same rule."""
        table = self._use(name)
        return (
            _by_area({float(k): v for k, v in table.items()}, size) if isinstance(table, Mapping) else table
        )

    def _use(self, name: str) -> float | Mapping[str, float]:
        found = self._used[name] = self._constants[name]
        return found.value


def _by_area(table: Mapping[float, float], size: float) -> float:
    sides = sorted(table)
    if size <= sides[0] or size >= sides[-1]:
        near = sides[0] if size <= sides[0] else sides[-1]
        return table[near] * (size / near) ** 2
    above = next(number for number, side in enumerate(sides) if side >= size)
    low, high = sides[above - 1], sides[above]
    share = (size**2 - low**2) / (high**2 - low**2)
    return table[low] + share * (table[high] - table[low])


@functools.cache
def _packaged() -> Mapping[str, Constant]:
    return parse_constants(PACKAGED.read_bytes(), str(PACKAGED))


def load_constants(calibration: str = "") -> Constants:
    """Returns the package's constants, those in the file `calibration` in place of them.

    Raises UsageError where the file is missing, or is no file of constants.
    """
    if not calibration:
        return Constants(_packaged())
    try:
        data = read_bytes(expanded(calibration), MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"--calibration {shortened(calibration)}: {error.strerror or error}") from None
    return Constants({**_packaged(), **parse_constants(data, f"--calibration {shortened(calibration)}")})


def parse_constants(data: bytes, where: str) -> dict[str, Constant]:
    """Returns the constants of a file's bytes by name. Raises UsageError, with `where`, for anything else."""

    def refuse(reason: str) -> UsageError:
        return UsageError(f"{where}: {reason} (`sage-scale bench calibrate` writes such a file)")

    try:
        values = parse_yaml(data)
    except InvalidYAML as error:
        raise refuse(str(error)) from None
    if not isinstance(values, dict):
        raise refuse("no mapping of constants")
    found = {}
    for name, entry in values.items():
        shown = shortened(name)
        if not isinstance(entry, dict) or not {"value", "unit"} <= entry.keys() <= _KEYS:
            raise refuse(f"{shown}: needs value and unit, and device, date and command, or assumed")
        if bool(entry.get("assumed")) == any(entry.get(key) for key in _MEASURED):
            raise refuse(f"{shown}: either device, date and command, or assumed")
        if not entry.get("assumed") and not all(entry.get(key) for key in _MEASURED):
            raise refuse(f"{shown}: a measured constant needs device, date and command")
        texts = {key: str(entry[key]) for key in entry.keys() - {"value"}}
        found[str(name)] = Constant(name=str(name), value=_value(entry["value"], shown, refuse), **texts)
    return found


def _value(value: Any, name: str, refuse: Any) -> float | Mapping[str, float]:
    numbers = value.values() if isinstance(value, dict) else [value]
    good = all(
        isinstance(n, int | float) and not isinstance(n, bool) and n > 0 and math.isfinite(n) for n in numbers
    )
    if not good or not numbers:
        raise refuse(f"{name}: its value must be a positive number, or a mapping to such")
    if isinstance(value, dict):
        return {str(key): float(n) for key, n in value.items()}
    return float(value)
