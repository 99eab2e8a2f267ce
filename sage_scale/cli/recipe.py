"""`sage-scale recipe`: show, list and explain recipes.

sage-scale recipe show demo pretrain.batch_size=32
sage-scale recipe explain clcl
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import textwrap
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from sage_scale import config
from sage_scale.cli import Overrides, RecipeToShow
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
    name: RecipeToShow,
    overrides: Overrides = None,
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
    """Explain a key: its type or choices, its default, and its source."""
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
    """Returns every key of a recipe in the order of its fields."""
    return list(_keys(config.Recipe(), ""))


def _keys(section: Any, path: str) -> Iterator[Key]:
    hints = typing.get_type_hints(type(section))
    meanings = _docstrings(type(section))
    for field in dataclasses.fields(section):
        key, value = f"{path}{field.name}", getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from _keys(value, f"{key}.")
        else:
            yield Key(key, _kind(key, hints[field.name]), value, meanings.get(field.name, ""))


def _docstrings(section: type) -> dict[str, str]:
    """Returns field -> the string below it, which Python does not keep at run time."""
    found: dict[str, str] = {}
    for kind in filter(dataclasses.is_dataclass, reversed(section.__mro__)):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
        except (OSError, TypeError):  # the class that holds registered sections is made at run time
            continue
        for statement, below in itertools.pairwise(body):
            match statement, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


def _kind(key: str, hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return " | ".join(config.choices(key, hint))
    if origin is tuple:
        return f"list of {typing.get_args(hint)[0].__name__}"
    return getattr(hint, "__name__", str(hint))


def _yaml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(str(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return '""' if value == "" else str(value)
