"""Which recipe keys a run takes from its datasets, which it may set otherwise, and what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_scale.config import Recipe, from_mapping, load_recipe, override, to_yaml
from sage_scale.errors import DatasetError, OtherDataset, RecipeError
from sage_scale.shards import Dataset, DatasetInfo
from sage_scale.shards.index import RECORD
from sage_scale.shards.merge import notes_of, shared_info
from sage_scale.shards.units import Units
from sage_scale.storage import open_store
from sage_scale.training.inherited import UNRECORDED, contradictions, inherit, recorded_keys

MINE = from_mapping({"name": "mine"})


def dataset(*changes: str, name: str = "shards", **info) -> Dataset:
    """A dataset without clips, made with the defaults and `changes`."""
    recipe = override(Recipe(), changes)
    values = {
        "kind": recipe.vision.kind,
        "recipe": recipe.dataset_fingerprint(),
        "manifest": "0" * 16,
        "units": (),
        "recipe_part": recipe.dataset_part(),
        "notes": {"corpus": recipe.corpus_part()},
        **info,
    }
    return Dataset(
        store=open_store(Path("/nowhere") / name), info=DatasetInfo(**values), units=Units.of((), ""),
        records=np.zeros(0, RECORD), unit_of_row=np.zeros(0, np.int32), finished=True, digest="",
    )  # fmt: skip


def of(recipe: Recipe, *datasets: Dataset, run: Path = Path("/nowhere/run")):
    return inherit(recipe, datasets, run)


def begun(folder: Path, *changes: str) -> Path:
    """A run that has trained, under the defaults and `changes`."""
    (folder / "pretrain").mkdir(parents=True)
    (folder / "pretrain" / "log.jsonl").touch()
    (folder / "recipe.yaml").write_text(to_yaml(override(Recipe(), changes)))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        ["segmentation.tagger=uniform", "segmentation.uniform_frames=12"],
        ["segmentation.tagger=precomputed", "segmentation.labels=/data/labels.pt"],
        ["segmentation.rule=plain", "segmentation.min_frames=2", "segmentation.max_frames=30"],
        ["text.target=sentence"],
        ["text.tagger=none", "text.target=sentence", "text.lowercase=false", "text.keep_pos=[NOUN]"],
        [
            "vision.fps=12.5",
            "vision.frame_stride=1",
            "vision.size=128",
            "vision.crop=112",
            "vision.fit=signer",
        ],
        ["vision.background=median", "vision.jpeg_quality=80"],
        ["vision.kind=features", "vision.backbone=dinov2-vits14", "vision.backbone_weights=/w"],
        ["vision.kind=features", "vision.backbone_dtype=bfloat16", "vision.feature_views=3"],
        ["corpus.name=csl_daily", "corpus.language=zh", "corpus.captions.min_seconds=2"],
    ],
)
def test_the_runs_recipe_is_the_datasets(changes):
    made = override(Recipe(), changes)
    inherited = of(MINE, dataset(*changes))
    assert inherited.recipe.dataset_fingerprint() == made.dataset_fingerprint()
    assert inherited.recipe.corpus_part() == made.corpus_part() and not inherited.differing
    assert inherited.recipe.name == "mine" and inherited.recipe.pretrain == MINE.pretrain
    key, _, value = changes[0].partition("=")
    (line,) = inherited.lines
    assert line.startswith("taken from /nowhere/shards: ") and f"{key}={value} (the recipe: " in line
    again = of(inherited.recipe, dataset(*changes))
    assert again.recipe == inherited.recipe and again.lines == []


def test_what_the_same_recipe_made_is_not_spoken_of():
    assert of(MINE, dataset()).lines == [] and of(MINE, dataset()).recipe is MINE


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("segmentation.tagger=motion", "segmentation.tagger=uniform"),
        ("segmentation.rule=sage", "segmentation.rule=plain"),
        ("segmentation={max_frames: 20}", "segmentation.max_frames=10"),
        ("vision.frame_stride=4", "vision.frame_stride=2"),
        ("vision.background=median", "vision.background=none"),
        ("vision.backbone=dinov2-vits14", "vision.backbone=keypoints"),
        ("text.tagger=spacy", "text.tagger=none"),
        ("corpus.name=how2sign", "corpus.name=openasl"),
        ("shards.clips_per_unit=9", "shards.clips_per_unit=8"),
    ],
)
def test_a_given_key_that_contradicts_is_refused(given, made):
    base = ["text.target=sentence"] if "text" in made else []
    with pytest.raises(OtherDataset) as caught:
        of(override(MINE, [given, *base]), dataset(made, *base))
    said = str(caught.value)
    key, _, value = made.partition("=")
    assert f"{key}=" in said and "is given" in said and f"was made with {key}={value}" in said
    assert caught.value.exit_code == 2 and isinstance(caught.value, DatasetError)
    of(override(MINE, [made, *base]), dataset(made, *base))  # given as it is


@pytest.mark.parametrize("made", ["motion", "uniform", "published"])
def test_auto_on_the_command_line_stands_for_the_datasets_tagger(made):
    run = of(override(MINE, ["segmentation.tagger=auto"]), dataset(f"segmentation.tagger={made}"))
    assert run.recipe.segmentation.tagger == made
    assert run.lines == [f"taken from /nowhere/shards: segmentation.tagger={made} (the recipe: auto)"]


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("text.target=sentence", []),
        ("vision.background=none", ["vision.background=median"]),
        ("vision.crop=192", []),
        ("vision.feature_views=2", ["vision.kind=features", "vision.feature_views=3"]),
        ("corpus.language=en", ["corpus.language=de"]),
        ("segmentation.labels=/moved.pt", ["segmentation.tagger=precomputed", "segmentation.labels=/old.pt"]),
    ],
)
def test_training_may_choose_otherwise_where_the_shards_allow_it(given, made):
    base = [change for change in made if change.startswith("vision.kind")]
    recipe = override(MINE, [*base, given])
    inherited = of(recipe, dataset(*made))
    key, _, value = given.partition("=")
    assert f"as given: {key}={value} (the dataset: " in " ".join(inherited.lines)
    section, _, name = key.partition(".")
    assert str(getattr(getattr(inherited.recipe, section), name)) == value


def test_a_crop_of_features_was_decided_with_them():
    with pytest.raises(OtherDataset, match=r"vision\.crop"):
        of(override(MINE, ["vision.crop=192"]), dataset("vision.kind=features"))


def test_a_run_keeps_what_it_was_begun_with(tmp_path):
    """Version 0.1.0 trained on what its recipe said; its runs go on with the same target, background and crop."""
    old = ["text.target=pseudo_gloss", "vision.background=none", "vision.crop=200"]
    run = begun(tmp_path, *old, "segmentation.tagger=motion")
    made = dataset("text.target=sentence", "vision.background=median", "segmentation.tagger=uniform")
    kept = of(load_recipe(run / "recipe.yaml"), made, run=run).recipe
    assert (kept.text.target, kept.vision.background, kept.vision.crop) == ("pseudo_gloss", "none", 200)
    assert kept.segmentation.tagger == "uniform"
    named = of(from_mapping({"text": {"target": "sentence"}}), made, run=run)
    assert named.recipe.text.target == "pseudo_gloss"
    (line,) = [line for line in named.lines if line.startswith("as this run was begun: ")]
    assert "text.target=pseudo_gloss (the recipe: sentence)" in line
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "recipe.yaml").write_text(to_yaml(MINE))  # a start that failed has trained nothing
    assert of(MINE, made, run=tmp_path / "new").recipe.text.target == "sentence"
    (run / "recipe.yaml").write_text("[")
    assert of(MINE, made, run=run).recipe.text.target == "sentence"


def test_several_datasets_that_differ():
    one, two = dataset("segmentation.tagger=uniform", "corpus.name=a"), dataset("corpus.name=b", name="two")
    inherited = of(from_mapping({"segmentation": {"tagger": "precomputed"}}), one, two)
    assert inherited.recipe.segmentation.tagger == "uniform"
    assert inherited.differing["segmentation.tagger"] == ["uniform", "motion"]
    assert "the datasets differ in " in inherited.lines[-1]
    assert (
        "segmentation.tagger (uniform, motion)" in inherited.lines[-1]
        and "corpus.name (a, b)" in inherited.lines[-1]
    )
    assert of(MINE, one, two).recipe.segmentation.tagger == "motion"  # the recipe's own is one of them
    assert (
        of(override(MINE, ["segmentation.tagger=uniform"]), two, one).recipe.segmentation.tagger == "uniform"
    )
    with pytest.raises(OtherDataset, match=r"tagger=precomputed is given"):
        of(override(MINE, ["segmentation.tagger=precomputed"]), one, two)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([], ["vision.frame_stride=1"]),
        ([], ["vision.fps=30"]),
        (["vision.size=300"], []),
        ([], ["vision.kind=features"]),
    ],
)
def test_datasets_of_other_shapes_are_not_mixed(first, second):
    with pytest.raises(OtherDataset, match=r"/nowhere/one was made with vision\..*, /nowhere/two with"):
        of(MINE, dataset(*first, name="one"), dataset(*second, name="two"))


def test_features_of_other_weights_are_not_mixed():
    one = dataset("vision.kind=features", versions={"backbone_sha256": "a"})
    with pytest.raises(OtherDataset, match="other backbone weights"):
        of(MINE, one, dataset("vision.kind=features", name="two", versions={"backbone_sha256": "b"}))
    two = dataset("vision.kind=features", "vision.backbone_weights=/moved", name="two",
                  versions={"backbone_sha256": "a"})  # fmt: skip
    assert of(MINE, one, two).recipe.vision.kind == "features"


def test_parts_of_a_merged_dataset_that_differ():
    sources = [dataset("segmentation.tagger=uniform"), dataset(name="two")]
    part = shared_info(sources)["recipe_part"]
    notes = notes_of("merge", sources)
    assert "tagger" not in part["segmentation"]
    merged = dataset(recipe_part=part, notes=notes)
    inherited = of(from_mapping({"segmentation": {"tagger": "precomputed"}}), merged)
    assert inherited.differing == {"segmentation.tagger": ["uniform", "motion"]}
    assert inherited.recipe.segmentation.tagger == "uniform"
    assert (
        "the parts of /nowhere/shards differ in segmentation.tagger (uniform, motion)" in inherited.lines[-1]
    )
    assert notes_of("", [merged])["differing"] == notes["differing"]  # a part of it, or merged once more
    of_0_1_0 = of(MINE, dataset(recipe_part=part, notes={"made_by": "merge"}))
    assert of_0_1_0.differing == {"segmentation.tagger": [UNRECORDED]} and UNRECORDED in of_0_1_0.lines[-1]
    assert "differing" not in notes_of("merge", [sources[0], replace(sources[0])])


def test_the_language_of_all_clips_is_the_datasets():
    from sage_scale.shards.layout import Marker

    unit = Marker(unit=0, split="train", dataset="", samples=0, frames=0, segments=0, rejects=0, reasons={}, bytes=0,
                sha256="", index_sha256="", languages=("zh",))  # fmt: skip
    made = replace(dataset(), units=Units.of([unit], ""))
    assert of(MINE, made).recipe.corpus.language == "zh"
    both = replace(made, units=Units.of([unit, replace(unit, unit=1, languages=("de", "en"))], ""))
    assert of(MINE, both).recipe.corpus.language == "de"


def test_evaluation_speaks_of_what_cuts_or_stores_a_clip_otherwise():
    run = override(
        Recipe(), ["segmentation.tagger=uniform", "vision.max_frames=90", "segmentation.labels=/x"]
    )
    (line,) = contradictions(
        run, [dataset("text.target=sentence", "corpus.name=other", "vision.jpeg_quality=70")]
    )
    assert line.endswith(": segmentation.tagger=motion (the run: uniform)")
    assert contradictions(MINE, [dataset()]) == []


def test_values_of_another_version_are_one_line():
    part = {
        "vision": {"kind": "frames", "gone": 1},
        "segmentation": {"tagger": "psychic", "new": {"a": 1}},
        "x": [],
    }
    made = dataset(recipe_part=part, notes={"corpus": "not a mapping", "differing": [1]})
    assert "vision.gone" not in recorded_keys(made) and "segmentation.tagger" in recorded_keys(made)
    with pytest.raises(RecipeError, match=r"psychic.*/nowhere/shards"):
        of(MINE, made)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)
keys = st.sampled_from(
    ["kind", "fps", "size", "crop", "feature_views", "background", "tagger", "labels", "rule"]
)
sections = st.dictionaries(keys, json_values, max_size=4)


@settings(max_examples=150, deadline=None)
@given(
    part=st.fixed_dictionaries(
        {}, optional={"vision": sections, "segmentation": sections, "text": json_values}
    ),
    notes=st.fixed_dictionaries({}, optional={"corpus": json_values, "differing": json_values}),
)
def test_any_dataset_json_gives_a_recipe_or_one_line(part, notes):
    try:
        inherited = of(MINE, dataset(recipe_part=part, notes=notes))
    except (RecipeError, DatasetError) as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(inherited.recipe, Recipe)


def test_a_run_takes_the_width_of_features_from_its_dataset():
    """Also of a backbone in a folder that this machine does not have."""
    made = dataset(
        "vision.kind=features",
        "vision.backbone=/elsewhere",
        notes={"corpus": Recipe().corpus_part(), "feature_dim": 768},
    )
    assert of(MINE, made).recipe.model.feature_dim == 768
    with pytest.raises(OtherDataset, match=r"model\.feature_dim=7 is given, and .* model\.feature_dim=768"):
        of(override(MINE, ["model.feature_dim=7"]), made)


@pytest.mark.parametrize(("versions", "lines"), [({}, 1), ({"keypoint_features": "2"}, 0)])
def test_keypoints_as_0_1_0_read_them_are_told(versions, lines):
    made = dataset("vision.kind=features", "vision.backbone=keypoints", versions=versions)
    told = [line for line in of(MINE, made).lines if "by 0.1.0" in line and ".pose" in line]
    assert len(told) == lines
