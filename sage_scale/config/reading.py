"""Reading a recipe: YAML and `section.key=value` overrides, every key and value checked against its field's type."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from sage_scale.config.checks import check
from sage_scale.config.extension import choices
from sage_scale.config.recipe import Recipe, flat, to_mapping
from sage_scale.errors import RecipeError
from sage_scale.untrusted.display import MAX_SHOWN, shortened
from sage_scale.untrusted.files import open_regular
from sage_scale.untrusted.yaml_values import MAX_BYTES, InvalidYAML, parse_yaml

_PACKAGE = Path(__file__).resolve().parents[1]
LAUNCH_FOLDER = next(
    (place / "launch" for place in (_PACKAGE, _PACKAGE.parent) if (place / "launch" / "recipes").is_dir()),
    _PACKAGE / "launch",
)
"""The scripts that launchers are given, and the recipes: in an installed package, else in the checkout beside it."""
RECIPE_FOLDER = LAUNCH_FOLDER / "recipes"


_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_RENAMED = {("clcl.variant", "released"): "one_direction"}
"""Values that version 0.1.0 had, and what they are called since: recipes of its runs must open."""


def from_mapping(values: Mapping[str, Any], base: Recipe | None = None) -> Recipe:
    """A recipe from nested dictionaries over `base` (the defaults). Raises RecipeError with the key's path."""
    base = base or Recipe()
    recipe = _build(base, values, "")
    check(recipe)
    object.__setattr__(recipe, "given", base.given)
    return recipe


def load_recipe(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe by name (`demo`) or by path to a YAML file, with `section.key=value` overrides applied.

    Raises RecipeError for an unknown recipe, key or value; the message names the nearest known one.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        known = recipe_names()
        if str(name) not in known:
            near = _nearest(str(name), known)
            raise RecipeError(f"no recipe '{shortened(name)}'{near}; known: {', '.join(known)}")
        path = RECIPE_FOLDER / f"{name}.yaml"
    shown = shortened(path, 300)
    try:
        with open_regular(path) as file:
            values = parse_yaml(file.read(MAX_BYTES + 1)) or {}
    except FileNotFoundError:
        raise RecipeError(f"no recipe file {shown}") from None
    except InvalidYAML as error:
        raise RecipeError(f"{shown}: {error}") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{shown} cannot be read: {getattr(error, 'strerror', error)}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{shown} must hold a mapping of sections")
    values.setdefault("name", path.stem)
    return override(from_mapping(values), overrides)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the product."""
    return sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml"))


def override(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """The recipe with `section.key=value` assignments applied; values are read as YAML."""
    values: dict[str, Any] = {}
    for assignment in overrides:
        key, sign, text = assignment.partition("=")
        if not sign or not key:
            raise RecipeError(f"'{shortened(assignment)}' is no override: write section.key=value")
        try:
            value = parse_yaml(text) if text else ""
        except InvalidYAML as error:
            raise RecipeError(f"the value of '{shortened(assignment)}': {error}") from None
        node = values
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise RecipeError(f"'{shortened(key)}': '{shortened(parent)}' has been given a value already")
        node[last] = value
    changed = from_mapping(values, recipe)
    object.__setattr__(changed, "given", recipe.given | flat(values).keys())
    return changed


def _build(base: Any, values: Any, path: str) -> Any:
    if not isinstance(values, Mapping):
        raise RecipeError(f"'{path.rstrip('.')}' is a section: write {path}KEY=VALUE")
    hints = typing.get_type_hints(type(base))
    known = [f.name for f in dataclasses.fields(base)]
    changes = {}
    for key, value in values.items():
        if key not in known:
            where = f" in section '{path.rstrip('.')}'" if path else ""
            raise RecipeError(
                f"unknown key '{path}{shortened(key)}'{_nearest(str(key), known) or _elsewhere(str(key))}{where}"
            )
        if dataclasses.is_dataclass(section := getattr(base, key)):
            changes[key] = _build(section, value, f"{path}{key}.")
        else:
            changes[key] = _convert(hints[key], value, f"{path}{key}")
    return dataclasses.replace(base, **changes)


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin = get_origin(hint)
    value = _RENAMED.get((path, str(value)), value)
    if origin is Literal:
        if isinstance(value, bool):
            value = str(value).lower()
        if value is None:
            value = "none"
        allowed = choices(path, hint)
        if value in allowed:
            return value
        raise RecipeError(
            f"{path}={_shown(value)}: must be one of {', '.join(allowed)}{_nearest(str(value), allowed)}"
        )
    if origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_convert(get_args(hint)[0], item, f"{path}[{i}]") for i, item in enumerate(value))
        raise RecipeError(f"{path}={_shown(value)}: must be a list")
    if hint is bool and str(value).lower() in _BOOLEANS:
        return _BOOLEANS[str(value).lower()]
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:  # YAML 1.1 reads 3e-4 as a string
            number = float(value) if str(value).isascii() else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    if hint is int and isinstance(value, str) and re.fullmatch(r"[+-]?[0-9](_?[0-9]){0,17}", value):
        return int(value)
    if hint is str and not isinstance(value, Mapping | list):
        if isinstance(value, bool):
            return str(value).lower()
        return "" if value is None else str(value)
    wanted = {float: "a finite number", int: "a whole number (int)"}.get(hint, hint.__name__)
    raise RecipeError(f"{path}={_shown(value)}: must be {wanted}")


def _shown(value: Any) -> str:
    return shortened(value if isinstance(value, str | int | float) else repr(value))


def _nearest(name: str, known: Iterable[str]) -> str:
    if len(name) > MAX_SHOWN:
        return ""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""


def _elsewhere(name: str) -> str:
    paths = list(flat(to_mapping(Recipe())))
    exact = [path for path in paths if path.rsplit(".", 1)[-1] == name]
    return f" (did you mean '{exact[0]}'?)" if exact else _nearest(name, paths)
