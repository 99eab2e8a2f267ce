"""Keys younger than released fingerprints, and the sections and choices that other packages register."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
from collections.abc import Callable
from dataclasses import MISSING, field
from typing import Any, get_args

from sage_scale.errors import UsageError

PLUGINS = "SAGE_SCALE_PLUGINS"
"""Environment variable with names of modules, separated by commas; launched ranks inherit it."""
ENTRY_POINTS = "sage_scale.plugins"
"""Group of entry points that name modules of installed packages."""
FIRST_DATASETS = (0, 0)
"""Dataset fingerprints leave out keys of later versions (`since`) that stand at their default."""
FIRST_RELEASE = (0, 1, 0)
"""Recipe fingerprints do the same."""

Need = Callable[[bool, str], None]
"""Raises RecipeError with the message (the second argument) unless the condition holds."""
Check = Callable[[Any, Need], None]
"""Checks a recipe."""

sections: dict[str, type] = {}
"""Name -> dataclass of the sections `model.NAME` of registered models."""
checks: dict[str, Check] = {}
"""`model.kind` -> further checks of its recipes: called with the recipe and `need(condition, message)`."""
_choices: dict[str, tuple[str, ...]] = {}
_imported: set[str] = set()


def since(version: str, default: Any = MISSING, factory: Callable[[], Any] | Any = MISSING) -> Any:
    """Returns a field that came with `version`: at its default it does not change fingerprints of older recipes.

    Every key that 0.1.0 did not have needs it. On a section the mark covers all keys below.
    """
    marks = {"since": tuple(map(int, version.split(".")))}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=marks)
    return field(default=default, metadata=marks)


def register_model(
    kind: str,
    section: type | None = None,
    check: Check | None = None,
) -> None:
    """Make `model.kind=KIND` a choice, with its own section `model.KIND` (a frozen dataclass with defaults for all
    fields) and a check of its recipes, called with the recipe and `need(condition, message)`.
    """
    register_choice("model.kind", kind)
    if section is not None:
        sections[kind] = section
    if check is not None:
        checks[kind] = check


def register_choice(key: str, name: str) -> None:
    """Make `name` a value of a key with choices, beside those of its type: `register_choice("clcl.loss", "mine")`."""
    _choices[key] = (*_choices.get(key, ()), name)


def import_plugins() -> list[str]:
    """Imports, once, the modules that register models, objectives and choices, and returns their names: those of
    SAGE_SCALE_PLUGINS and of installed packages. Nothing else can name code: no recipe, dataset or exported folder.

    Raises UsageError where one cannot be imported.
    """
    names = [*os.environ.get(PLUGINS, "").replace(",", " ").split(), *_installed()]
    for name in names:
        if name in _imported:
            continue
        _imported.add(name)  # before the import, which may read a recipe
        try:
            importlib.import_module(name)
        except (ImportError, SyntaxError) as error:
            raise UsageError(
                f"the plug-in {name} ({PLUGINS}) cannot be imported: {error}; PYTHONPATH names folders of modules"
            ) from None
    return names


@functools.cache
def _installed() -> tuple[str, ...]:
    return tuple(point.value for point in importlib.metadata.entry_points(group=ENTRY_POINTS))


def choices(key: str, hint: Any) -> list[str]:
    """Returns the values of a key of the type `hint`, a Literal, and those that packages have registered."""
    import_plugins()
    return list(dict.fromkeys([*get_args(hint), *_choices.get(key, ())]))


def check_chunks_of_frames(recipe: Any, need: Need) -> None:
    """Check models with BatchNorm in the frame encoder: no statistics over all frames where they pass in chunks."""
    for name, stage in (("pretrain", recipe.pretrain), ("finetune", recipe.finetune)):
        trained = name == "pretrain" or stage.freeze == "none"
        need(not (stage.chunk_frames and trained and recipe.model.batchnorm == "sync"), f"{name}.chunk_frames passes "
             "frames through the frame encoder in chunks, and model.batchnorm=sync needs all of them at once: set "
             f"model.batchnorm=frozen or group (the statistics of a chunk), or {name}.chunk_frames=0")  # fmt: skip
