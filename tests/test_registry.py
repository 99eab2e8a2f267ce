"""No code outside a model's folder knows the model; models and objectives are found by their names alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sage_scale
from sage_scale import registry
from sage_scale.config import extension, load_recipe
from sage_scale.errors import RecipeError, UsageError
from sage_scale.registry import ModelSpec, model_names, model_spec, register_model

PACKAGE = Path(sage_scale.__file__).resolve().parent
NAMED = {
    "registry.py": "the table of the built-in models",
    "deprecated.py": "the table of old import names",
    "config/learning.py": "the recipe's type of model.kind, and its section model",
    "config/sign2gpt.py": "the recipe's section model.sign2gpt",
    "segmentation/rules.py": "a segment rule has the name of the paper",
    "config/data.py": "a segment rule has the name of the paper",
    "evaluation/presets.py": "a publication's way to score has its name",
}
"""Files outside models/ with a constant that equals a model's name, and why."""


def outside() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if PACKAGE / "models" not in path.parents]


def model_questions(tree: ast.AST) -> Iterator[ast.Compare]:
    """Comparisons of `model.kind`, or a `kind` of the recipe's or run's model, with another value."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
            for side in (node.left, *node.comparators):
                if isinstance(side, ast.Attribute) and side.attr == "kind":
                    owner = ast.unparse(side.value)
                    if owner.rpartition(".")[2] in ("model", "m", "record", "r", "run"):
                        yield node


def test_nothing_outside_a_models_folder_asks_which_model_it_is():
    found = []
    for path in outside():
        for node in model_questions(ast.parse(path.read_text(encoding="utf-8"))):
            found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}")
    # A report's `kind` of a failed rank is no model's.
    assert [line for line in found if not line.startswith("training/monitor/")] == []


def test_nothing_outside_a_models_folder_names_one():
    names, found = set(model_names()), []
    for path in outside():
        inside = str(path.relative_to(PACKAGE))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in names and inside not in NAMED:
                found.append(f"{inside}:{node.lineno}: {node.value!r}")
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sage_scale.models."):
                found.append(f"{inside}:{node.lineno}: import of {node.module}")
    assert found == []


def test_an_unknown_model_is_told_the_registered_ones(tmp_path):
    with pytest.raises(RecipeError, match="must be one of sage, sign2gpt"):
        model_spec("gloss2gpt")
    with pytest.raises(
        RecipeError, match=r"model\.kind=sag: must be one of sage, sign2gpt.*did you mean 'sage'"
    ):
        load_recipe("demo", ["model.kind=sag"])


@pytest.mark.parametrize("name", ["sage", "sign2gpt"])
def test_every_part_of_a_built_in_model_is_there(name):
    spec = model_spec(name)
    for field, value in vars(spec).items():
        if isinstance(value, str) and ":" in value:
            assert callable(spec.part(field)) or field == "language", field
    for section in spec.report:
        assert callable(registry.resolve(section.make))


def spec(**changes: object) -> ModelSpec:
    given = {
        "name": "toy",
        "title": "Toy",
        "pretrain": dict,
        "finetune": dict,
        "load": dict,
        "export_file": "toy.bin",
    }
    return ModelSpec(**{**given, **changes})


def test_a_name_belongs_to_one_model(monkeypatch):
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setattr(extension, "_choices", dict(extension._choices))
    with pytest.raises(UsageError, match=r"model\.kind=sage is registered already"):
        register_model(spec(name="sage"))
    register_model(spec())
    register_model(spec())  # imported a second time
    assert model_spec("toy").title == "Toy" and "toy" in model_names()
    with pytest.raises(UsageError, match="another name"):
        register_model(spec(title="Another"))


def test_plugins_come_from_the_environment_alone(tmp_path, monkeypatch):
    (tmp_path / "a_plugin.py").write_text(
        "from sage_scale.config import register_choice\nregister_choice('segmentation.rule', 'of_the_plugin')\n"
    )
    monkeypatch.setattr(extension, "_choices", dict(extension._choices))
    monkeypatch.setattr(extension, "_imported", set())
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RecipeError, match="must be one of sage, "):
        load_recipe("demo", ["segmentation.rule=of_the_plugin"])
    monkeypatch.setenv(extension.PLUGINS, "a_plugin")
    assert load_recipe("demo", ["segmentation.rule=of_the_plugin"]).segmentation.rule == "of_the_plugin"
    monkeypatch.setenv(extension.PLUGINS, "no_such_plugin_anywhere")
    with pytest.raises(UsageError, match=r"no_such_plugin_anywhere .*cannot be imported"):
        load_recipe("demo")
