"""sage_scale: gloss-free sign language translation at scale.

The names below are imported when they are first used (PEP 562), so that `import sage_scale` costs nothing and no name
needs Ray, spaCy or DeepSpeed. docs/python.md shows their use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; at run time `__getattr__` imports the same names
    from sage_scale.config import load_recipe
    from sage_scale.evaluation import score, score_as
    from sage_scale.losses import cached_backward, clcl_loss, clcl_similarity, objective_of
    from sage_scale.shards import open_dataset
    from sage_scale.streaming import open_evaluation, open_stream, open_webdataset
    from sage_scale.translation.translate import Translator

_MODULES = {
    "cached_backward": "sage_scale.losses",
    "clcl_loss": "sage_scale.losses",
    "clcl_similarity": "sage_scale.losses",
    "load_recipe": "sage_scale.config",
    "objective_of": "sage_scale.losses",
    "open_dataset": "sage_scale.shards",
    "open_evaluation": "sage_scale.streaming",
    "open_stream": "sage_scale.streaming",
    "open_webdataset": "sage_scale.streaming",
    "score": "sage_scale.evaluation",
    "score_as": "sage_scale.evaluation",
    "Translator": "sage_scale.translation.translate",
}
"""Name -> module that it comes from."""

__all__ = [
    "Translator",
    "cached_backward",
    "clcl_loss",
    "clcl_similarity",
    "load_recipe",
    "objective_of",
    "open_dataset",
    "open_evaluation",
    "open_stream",
    "open_webdataset",
    "score",
    "score_as",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'sage_scale' has no attribute '{name}'")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
