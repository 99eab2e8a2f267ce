"""Reading a recipe: YAML and `section.key=value` overrides, every key and value checked against its field's type."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from sage_scale.config.checks import check
from sage_scale.config.data import feature_width
from sage_scale.config.extension import choices
from sage_scale.config.learning import Model
from sage_scale.config.recipe import Recipe, flat, nested, to_mapping
from sage_scale.errors import RecipeError
from sage_scale.untrusted.display import MAX_SHOWN, shortened
from sage_scale.untrusted.files import open_regular
from sage_scale.untrusted.yaml_values import MAX_BYTES, InvalidYAML, parse_yaml

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED, _CHECKOUT = _PACKAGE / "launch", _PACKAGE.parent / "launch"
LAUNCH_FOLDER = _INSTALLED if _INSTALLED.is_dir() or not (_CHECKOUT / "recipes").is_dir() else _CHECKOUT
"""The scripts that launchers are given, and the recipes: in an installed package, else in the checkout beside it."""
RECIPE_FOLDER = LAUNCH_FOLDER / "recipes"

_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_INTEGER = re.compile(r"[+-]?[0-9](_?[0-9]){0,17}\Z")
_WANTED = {bool: "bool", str: "str", int: "a whole number (int)", float: "a finite number", tuple: "a list"}
_RENAMED = {("clcl.variant", "released"): "one_direction"}
"""Renamed values of version 0.1.0, whose recipes still open."""


def from_mapping(values: Mapping[str, Any], base: Recipe | None = None) -> Recipe:
    """Returns `base` (by default Recipe()) with the values of nested dictionaries. `model.feature_dim`, unless stated,
    is the width of the features of `vision.backbone`. Raises RecipeError with the key."""
    base = base or Recipe()
    recipe = _with_feature_width(_build(base, values, ""), base, values)
    check(recipe)
    object.__setattr__(recipe, "given", base.given)
    return recipe


def _with_feature_width(recipe: Recipe, base: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Returns the recipe with the width that its backbone's features have, where no width is given."""
    stated = values.get("model")
    width, usual = (
        feature_width(one.vision) if one.vision.kind == "features" else None for one in (recipe, base)
    )
    if (
        width is None
        or (isinstance(stated, Mapping) and "feature_dim" in stated)
        or "model.feature_dim" in base.given
        or base.model.feature_dim != (usual or Model.feature_dim)
    ):
        return recipe
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, feature_dim=width))


def load_recipe(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Returns a recipe by name (`demo`) or by path to a YAML file, with `section.key=value` overrides applied.

    Raises RecipeError for an unknown recipe, key or value; the message names the nearest known one.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        known = recipe_names()
        if str(name) not in known:
            near = nearest(str(name), known)
            raise RecipeError(f"no recipe '{shortened(name)}'{near}; known: {', '.join(known)}")
        path = RECIPE_FOLDER / f"{name}.yaml"
    values = read_mapping(path, "recipe")
    values.setdefault("name", path.stem)
    return override(from_mapping(values), overrides)


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """Returns the mapping of a YAML file that is a `what` (recipe, table); raises RecipeError."""
    shown = shortened(path, 300)
    try:
        with open_regular(path) as file:
            values = parse_yaml(file.read(MAX_BYTES + 1)) or {}
    except FileNotFoundError:
        raise RecipeError(f"no {what} file {shown}") from None
    except InvalidYAML as error:
        raise RecipeError(f"{shown}: {error}") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{shown} cannot be read: {getattr(error, 'strerror', error)}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{shown} must hold a mapping of sections")
    return values


def recipe_names() -> list[str]:
    """Returns the names of the recipes that come with the product."""
    return sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml"))


def override(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """Returns the recipe with `section.key=value` assignments applied; values are read as YAML."""
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
    return changed(recipe, flat(values))


def changed(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Returns the recipe with values by `section.key`, which count as given (`Recipe.given`)."""
    for key in values:
        if longer := next((other for other in values if other.startswith(f"{key}.")), None):
            raise RecipeError(f"'{shortened(longer)}': '{shortened(key)}' has been given a value already")
    result = from_mapping(nested(values), recipe)
    object.__setattr__(result, "given", recipe.given | values.keys())
    return result


def _build(base: Any, values: Any, path: str) -> Any:
    """Returns the section `base` with `values` in place of its own."""
    if not isinstance(values, Mapping):
        raise RecipeError(f"'{path.rstrip('.')}' is a section: write {path}KEY=VALUE")
    hints = typing.get_type_hints(type(base))
    known = [f.name for f in dataclasses.fields(base)]
    changes = {}
    for key, value in values.items():
        if key not in known:
            where = f" in section '{path.rstrip('.')}'" if path else ""
            near = nearest(str(key), known) or _elsewhere(str(key))
            raise RecipeError(f"unknown key '{path}{shortened(key)}'{near}{where}")
        if dataclasses.is_dataclass(section := getattr(base, key)):
            changes[key] = _build(section, value, f"{path}{key}.")
        else:
            changes[key] = converted(hints[key], value, f"{path}{key}")
    return dataclasses.replace(base, **changes)


def converted(hint: Any, value: Any, path: str) -> Any:
    """Returns a value that YAML gave as the type of its key."""
    value = _RENAMED.get((path, str(value)), value)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    kind, number = get_origin(hint) or hint, not isinstance(value, bool)
    wanted, near = _WANTED.get(kind, ""), ""
    if kind is Literal:
        value, allowed = "none" if value is None else text, choices(path, hint)
        if value in allowed:
            return value
        wanted, near = f"one of {', '.join(allowed)}", nearest(value, allowed)
    elif kind is tuple and isinstance(value, list | tuple):
        return tuple(converted(get_args(hint)[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    elif kind is str and not isinstance(value, Mapping | list):
        return "" if value is None else text
    elif kind is bool and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    elif (
        kind is int
        and number
        and (isinstance(value, int) or (isinstance(value, str) and _INTEGER.match(value)))
    ):
        return int(value)
    elif kind is float and number and text.isascii():
        with suppress(ValueError, OverflowError, TypeError):  # YAML 1.1 reads 3e-4 as a string
            if math.isfinite(float(value)):
                return float(value)
    raise RecipeError(f"{path}={_shown(value)}: must be {wanted}{near}")


def _shown(value: Any) -> str:
    return shortened(value if isinstance(value, str | int | float) else repr(value))


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ' (did you mean ...?)' with the most similar known name; empty where none is similar."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5) if len(name) <= MAX_SHOWN else ()
    return f" (did you mean '{match[0]}'?)" if match else ""


def _elsewhere(name: str) -> str:
    paths = list(flat(to_mapping(Recipe())))
    exact = [path for path in paths if path.rsplit(".", 1)[-1] == name]
    return f" (did you mean '{exact[0]}'?)" if exact else nearest(name, paths)
