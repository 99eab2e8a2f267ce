"""Import names that README and docs of older versions show: they still work, with one DeprecationWarning each."""

from __future__ import annotations

import pkgutil
import warnings
from collections.abc import Callable
from typing import Any

MOVED = {
    "sage_scale.models.sign2gpt:Sign2GptTranslator": "sage_scale.models.sign2gpt.model:Sign2GptTranslator",
    "sage_scale.models.sign2gpt:load_causal_model": "sage_scale.models.sign2gpt.decoder:load_causal_model",
    "sage_scale.models.sign2gpt:make_texts": "sage_scale.models.sign2gpt.decoder:make_texts",
}
"""The old name of each object, and its present one."""


def moved_names(module: str) -> Callable[[str], Any]:
    """Returns the `__getattr__` of a module (PEP 562) that finds its old names."""

    def find(name: str) -> Any:
        new = MOVED.get(f"{module}:{name}")
        if new is None:
            raise AttributeError(f"module '{module}' has no attribute '{name}'")
        where, _, called = new.partition(":")
        warnings.warn(
            f"{module}.{name} is now {called} of {where}: import it from there", DeprecationWarning, 2
        )
        return pkgutil.resolve_name(new)

    return find
