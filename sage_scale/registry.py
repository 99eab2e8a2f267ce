"""Models and objectives by name: the built-in ones, those of installed packages, and those of plug-in modules.

A model is one `ModelSpec` under its `model.kind`; an objective is one class under its `clcl.loss`. A built-in one is
imported when its name is first asked for. Others come from

    entry points        groups `sage_scale.models` and `sage_scale.objectives` of installed packages
    SAGE_SCALE_PLUGINS  names of modules, which call `register_model` or `register_objective` when they are imported

and from nothing else: no recipe, dataset or exported folder can name code to run.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import os
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sage_scale.errors import RecipeError, UsageError
from sage_scale.untrusted.display import shortened

PLUGINS = "SAGE_SCALE_PLUGINS"
"""Environment variable with the names of plug-in modules, separated by commas; launched ranks inherit it."""

Lazy = str | Callable[..., Any]
"""A function or class, or "module:name", which is imported when it is first used."""


@dataclass(frozen=True)
class Part:
    """One part of a model: its parameters, and how many of them each stage trains."""

    name: str
    parameters: int
    stage1: int
    stage2: int


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All that the program knows of a model. Signatures: R is the recipe."""

    name: str
    """The value of `model.kind`."""
    title: str
    """The model's name in reports."""
    pretrain: Lazy
    """Stage 1: a `training.stage.Task`."""
    finetune: Lazy
    """Stage 2: a `training.stage.Task`, usually a `training.translation.TranslationTask`."""
    load: Lazy
    """(export folder, device) -> (translator in evaluation mode, tokenizer, R)."""
    export_file: str
    """A file that every export of this model has."""
    describe: Lazy
    """R -> the model's `Part`s in the order of the data, without weights or a download."""
    describe_note: Lazy | None = None
    """R -> a line on parameters that the parts leave out."""
    language: Lazy | None = None
    """A `training.language.prepare.LanguageModelKind`, for models that prepare a language model."""

    def part(self, name: str) -> Any:
        """Returns the field `name`, imported where it is given as "module:name"."""
        value = getattr(self, name)
        return pkgutil.resolve_name(value) if isinstance(value, str) else value


class _Registry:
    """Objects by name; `key` is the recipe's key that names one."""

    def __init__(self, key: str, group: str, built_in: Mapping[str, str]) -> None:
        self.key, self.group, self.built_in = key, group, built_in
        self.registered: dict[str, Any] = {}

    def names(self) -> list[str]:
        """Names of all, sorted."""
        _import_plugins()
        return sorted({*self.built_in, *self.registered, *self._entry_points()})

    def get(self, name: str) -> Any:
        """The object of this name. Raises RecipeError, which lists the names, where there is none."""
        if name not in self.registered and name in self.built_in:
            self.registered[name] = pkgutil.resolve_name(self.built_in[name])
        if name not in self.registered:
            _import_plugins()
        if name not in self.registered and name in (points := self._entry_points()):
            self.registered[name] = points[name].load()
        if name not in self.registered:
            names = self.names()
            near = difflib.get_close_matches(shortened(name), names, n=1, cutoff=0.5)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise RecipeError(f"{self.key}={shortened(name)}: must be one of {', '.join(names)}{hint}")
        return self.registered[name]

    def register(self, name: str, value: Any) -> None:
        """Raises UsageError where another object has the name."""
        if name in self.built_in or self.registered.get(name, value) is not value:
            raise UsageError(f"{self.key}={name} is registered already: give the other one another name")
        self.registered[name] = value

    def _entry_points(self) -> dict[str, importlib.metadata.EntryPoint]:
        return {point.name: point for point in importlib.metadata.entry_points(group=self.group)}


_MODELS = _Registry(
    "model.kind",
    "sage_scale.models",
    {"sage": "sage_scale.models.sage:SPEC", "sign2gpt": "sage_scale.models.sign2gpt:SPEC"},
)


def model_spec(kind: str) -> ModelSpec:
    """Returns the model that `model.kind` names. Raises RecipeError, which lists the names, where there is none."""
    return _MODELS.get(kind)


def model_names() -> list[str]:
    """Returns the values that `model.kind` may have."""
    return _MODELS.names()


def register_model(spec: ModelSpec) -> None:
    """Makes a model known under its name. Raises UsageError where another model has it."""
    _MODELS.register(spec.name, spec)


def _import_plugins() -> None:
    for name in os.environ.get(PLUGINS, "").replace(",", " ").split():
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UsageError(
                f"{PLUGINS} names the module {name}, which cannot be imported: {error}"
            ) from None
