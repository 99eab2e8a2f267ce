"""`sage-scale recipe`: show, list and explain recipes.

sage-scale recipe show demo pretrain.batch_size=32
sage-scale recipe explain clcl
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import textwrap
import typing
from collections.abc import Iterator
from typing import Annotated

import typer

from sage_scale import config
from sage_scale.errors import UsageError
from sage_scale.untrusted.printer import echo

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Show, list and explain recipes.")


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a recipe, as `explain` prints it."""

    path: str
    """`section.key`, as it is written in an override."""
    kind: str
    """Type or choices."""
    default: object
    """Value where a recipe does not name it."""
    meaning: str
    """The field's docstring."""


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A recipe's name, or a path to a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes.")] = None,
) -> None:
    """Print the whole recipe as YAML, with its fingerprints."""
    recipe = config.load_recipe(name, overrides or [])
    echo(f"# fingerprint {recipe.fingerprint()}   dataset fingerprint {recipe.dataset_fingerprint()}")
    echo(*config.to_yaml(recipe).rstrip("\n").split("\n"))


@app.command("list")
def list_recipes() -> None:
    """List the recipes that come with the product, with their first comment line."""
    names = config.recipe_names()
    width = max(map(len, names), default=0)
    for name in names:
        first = (config.RECIPE_FOLDER / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
        echo(f"{name:<{width}}  {first.lstrip('# ') if first.startswith('#') else ''}".rstrip())


@app.command("keys")
def list_keys() -> None:
    """List every key with its default, one a line."""
    for key in keys():
        echo(f"{key.path}={_yaml(key.default)}")


@app.command("explain")
def explain(
    name: Annotated[str, typer.Argument(metavar="[KEY]", help="A key, a section, or nothing for all.")] = "",
) -> None:
    """Say what a key means: its type or choices, its default, and where it comes from."""
    chosen = [key for key in keys() if not name or key.path == name or key.path.startswith(f"{name}.")]
    if not chosen:
        known = [key.path for key in keys()]
        same_end = [path for path in known if path.rsplit(".", 1)[-1] == name]
        near = same_end or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f" (did you mean '{near[0]}'?)" if near else "; `sage-scale recipe keys` lists them"
        raise UsageError(f"no recipe key '{name}'{hint}")
    for key in chosen:
        echo(f"{key.path} = {_yaml(key.default)}   [{key.kind}]")
        echo(*textwrap.wrap(key.meaning, width=100, initial_indent="    ", subsequent_indent="    "))


def keys() -> list[Key]:
    """Every key of a recipe in the order of its fields."""
    return list(_keys(config.Recipe, config.Recipe(), ""))


def _keys(kind: type, defaults: object, path: str) -> Iterator[Key]:
    hints = typing.get_type_hints(kind)
    meanings = _docstrings()[kind.__name__]
    for field in dataclasses.fields(kind):
        hint, value = hints[field.name], getattr(defaults, field.name)
        if dataclasses.is_dataclass(hint):
            yield from _keys(typing.cast(type, hint), value, f"{path}{field.name}.")
        else:
            yield Key(f"{path}{field.name}", _kind(hint), value, meanings.get(field.name, ""))


@functools.cache
def _docstrings() -> dict[str, dict[str, str]]:
    """Class to field to the string below the field, of which Python keeps no trace at run time."""
    found: dict[str, dict[str, str]] = {}
    modules = (config.augmentation, config.data, config.learning, config.sign2gpt, config.recipe)
    sources = (inspect.getsource(module) for module in modules)
    for node in (node for source in sources for node in ast.parse(source).body):
        if not isinstance(node, ast.ClassDef):
            continue
        fields = found.setdefault(node.name, {})
        for statement, below in zip(node.body, node.body[1:]):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                fields[statement.target.id] = " ".join(below.value.value.split())
    return found


def _kind(hint: typing.Any) -> str:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return " | ".join(str(choice) for choice in typing.get_args(hint))
    if origin is tuple:
        return f"list of {typing.get_args(hint)[0].__name__}"
    return getattr(hint, "__name__", str(hint))


def _yaml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(str(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return '""' if value == "" else str(value)
