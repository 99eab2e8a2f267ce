"""New keys change no fingerprint while they are at their default; other packages add models, sections and choices."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field, make_dataclass, replace

import pytest
from typer.testing import CliRunner

from sage_scale.cli.recipe import app
from sage_scale.config import (
    Augment,
    Clcl,
    Recipe,
    Vision,
    extension,
    from_mapping,
    load_recipe,
    override,
    register_choice,
    register_model,
    since,
    to_mapping,
    to_yaml,
)
from sage_scale.errors import RecipeError


def with_keys(section: str, parent: type, *fields: tuple[str, type, object]) -> type[Recipe]:
    """Returns a recipe whose section has more keys than this version's."""
    longer = make_dataclass(parent.__name__, fields, bases=(parent,), frozen=True, kw_only=True)
    more = [(section, longer, field(default_factory=longer))]
    return make_dataclass("Recipe", more, bases=(Recipe,), frozen=True, kw_only=True)


@dataclass(frozen=True, kw_only=True)
class Section:
    depth: int = 2


def test_a_new_key_at_its_default_changes_no_fingerprint():
    new = with_keys("clcl", Clcl, ("hard", int, since("0.2.0", 0)))
    assert new().fingerprint() == Recipe().fingerprint()
    other = override(new(), ["clcl.hard=3"])
    assert other.clcl.hard == 3 and other.fingerprint() != Recipe().fingerprint()
    unmarked = with_keys("clcl", Clcl, ("hard", int, 0))
    assert unmarked().fingerprint() != Recipe().fingerprint()


def test_a_new_key_of_a_dataset_and_a_new_section_change_no_fingerprint():
    new = with_keys("vision", Vision, ("denoised", bool, since("0.2.0", False)),
                    ("cleaning", Section, since("0.2.0", factory=Section)))  # fmt: skip
    assert new().dataset_fingerprint() == Recipe().dataset_fingerprint()
    assert new().fingerprint() == Recipe().fingerprint()
    for change in ("vision.denoised=true", "vision.cleaning.depth=3"):
        other = override(new(), [change])
        assert other.dataset_fingerprint() != Recipe().dataset_fingerprint()
        assert other.fingerprint() != Recipe().fingerprint()


def test_keys_of_views_count_only_where_there_are_views():
    """As in 0.1.0, whose datasets keep their fingerprints."""
    keys = Recipe(vision=Vision(kind="features", feature_views=3)).dataset_part()["vision"].keys()
    assert {"feature_views", "view_augment"} <= keys and "backbone_dtype" not in keys
    plain = Recipe(vision=Vision(view_augment=Augment(rotation=3.0)))
    assert plain.dataset_fingerprint() == Recipe().dataset_fingerprint()


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A registered model with its own section and check."""
    for table in ("sections", "checks", "_choices"):
        monkeypatch.setattr(extension, table, {k: v for k, v in getattr(extension, table).items()})

    def check(recipe, need) -> None:
        need(recipe.model.toy.depth < 5, f"model.toy.depth={recipe.model.toy.depth} must be below 5")

    register_model("toy", Section, check)


def test_a_registered_model_brings_its_section(toy):
    recipe = load_recipe("demo", ["model.kind=toy", "model.toy.depth=3"])
    assert recipe.model.toy.depth == 3
    assert from_mapping(to_mapping(recipe)) == recipe == pickle.loads(pickle.dumps(recipe))
    assert replace(recipe.model, toy=Section()).toy.depth == 2
    assert "  toy:\n    depth: 3\n" in to_yaml(recipe)
    assert load_recipe("demo", ["model.kind=toy"]).fingerprint() != recipe.fingerprint()
    with pytest.raises(RecipeError, match=r"model\.toy\.depth=7 must be below 5"):
        load_recipe("demo", ["model.kind=toy", "model.toy.depth=7"])
    assert load_recipe("demo", ["model.toy.depth=7"]).model.kind == "sage", "another model's check"
    with pytest.raises(RecipeError, match=r"unknown key 'model\.toy\.dept' \(did you mean 'depth'\?\)"):
        load_recipe("demo", ["model.toy.dept=7"])
    shown = CliRunner().invoke(app, ["explain", "model"]).output
    assert "model.toy.depth = 2   [int]" in shown and "[sage | sign2gpt | toy]" in shown


def test_a_registered_model_changes_no_fingerprint_of_others(request):
    before = [load_recipe("sage-phoenix14t").fingerprint(), Recipe().dataset_fingerprint()]
    request.getfixturevalue("toy")
    assert [load_recipe("sage-phoenix14t").fingerprint(), Recipe().dataset_fingerprint()] == before
    assert "toy" in to_yaml(Recipe())


def test_a_registered_choice_stands_beside_those_of_the_type(toy):
    with pytest.raises(RecipeError, match=r"clcl\.loss=mine: must be one of clcl, clip, maxsim"):
        load_recipe("demo", ["clcl.loss=mine"])
    register_choice("clcl.loss", "mine")
    assert load_recipe("demo", ["clcl.loss=mine"]).clcl.loss == "mine"
    with pytest.raises(RecipeError, match=r"must be one of clcl, .*, mine"):
        load_recipe("demo", ["clcl.loss=yours"])
