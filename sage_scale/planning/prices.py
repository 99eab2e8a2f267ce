"""Prices of a user's own: this package knows none.

A prices file is YAML (`launch/prices.yaml` is an example, whose figures are placeholders):

    currency: EUR
    source: offer of 2026-11-20        # shown beside every sum
    placeholder: false                 # true: every sum says that it means nothing
    gpu_hour: {h100: 2.50}             # one GPU for an hour, by the names of `sage-scale plan --gpu`
    cpu_hour: 0.04                     # one CPU of a node for an hour
    storage_gb_month: 0.02             # 10^9 bytes for a month
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sage_scale.errors import UsageError
from sage_scale.planning.step import GPUS
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import expanded, read_bytes
from sage_scale.untrusted.yaml_values import MAX_BYTES, InvalidYAML, parse_yaml

_NUMBERS = ("cpu_hour", "storage_gb_month")
_KEYS = {"currency", "source", "placeholder", "gpu_hour", *_NUMBERS}


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Prices in one currency; a price that is not given is None or absent."""

    currency: str
    source: str
    placeholder: bool = False
    """Whether the figures stand for none."""
    gpu_hour: Mapping[str, float] = field(default_factory=dict)
    cpu_hour: float | None = None
    storage_gb_month: float | None = None

    def shown(self, amount: float | None) -> str:
        """Returns an amount with its currency; a dash where the price is not given."""
        if amount is None:
            return "–"
        return f"{amount:,.2f} {self.currency}" + (" (placeholder)" if self.placeholder else "")


def read_prices(path: str) -> Prices:
    """Returns the prices of a file. Raises UsageError with the key where it is no such file."""
    where = f"--prices {shortened(path)}"

    def refuse(reason: str) -> UsageError:
        return UsageError(f"{where}: {reason} (launch/prices.yaml shows the form)")

    try:
        values = parse_yaml(read_bytes(expanded(path), MAX_BYTES + 1))
    except OSError as error:
        raise UsageError(f"{where}: {error.strerror or error}") from None
    except InvalidYAML as error:
        raise refuse(str(error)) from None
    if not isinstance(values, dict) or not {"currency", "source"} <= values.keys() <= _KEYS:
        raise refuse(f"needs currency and source, and of the rest only {', '.join(sorted(_KEYS))}")
    gpus = values.get("gpu_hour", {})
    if not isinstance(gpus, dict) or not gpus.keys() <= GPUS.keys():
        raise refuse(f"gpu_hour: a price for each of {', '.join(GPUS)} that you may rent")
    for name, price in [*gpus.items(), *((key, values[key]) for key in _NUMBERS if key in values)]:
        if not _is_price(price):
            raise refuse(f"{shortened(name)}: a price must be a number from 0 on")
    if not isinstance(values.get("placeholder", False), bool):
        raise refuse("placeholder: true or false")
    return Prices(**{**values, "currency": str(values["currency"]), "source": str(values["source"])})


def _is_price(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9
