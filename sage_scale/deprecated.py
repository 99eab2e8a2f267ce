"""Import names that README and docs of older versions show: they still work, with one DeprecationWarning each."""

from __future__ import annotations

import pkgutil
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

MOVED = {
    "sage_scale.models.sign2gpt:Sign2GptTranslator": "sage_scale.models.sign2gpt.model:Sign2GptTranslator",
    "sage_scale.models.sign2gpt:load_causal_model": "sage_scale.models.sign2gpt.decoder:load_causal_model",
    "sage_scale.models.sign2gpt:make_texts": "sage_scale.models.sign2gpt.decoder:make_texts",
    "sage_scale.text.prototypes:select_prototypes": "sage_scale.text.prototype_vocabulary:select_prototypes",
    "sage_scale.text.prototypes:fasttext_prototypes": "sage_scale.text.prototype_vocabulary:fasttext_prototypes",
    "sage_scale.text.expansion:expand_vocabulary": "sage_scale.text.vocabulary:expand_vocabulary",
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


def moved_module(module: str) -> types.ModuleType:
    """Registers and returns a module that no longer exists as a file, with its old names (`moved_names`)."""
    made = sys.modules[module] = types.ModuleType(module)
    made.__dict__["__getattr__"] = moved_names(module)
    return made
