"""Runs of one recipe are one group whatever their seeds; groups have names and the keys that tell them apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sage_scale.config import from_mapping, to_yaml
from sage_scale.reporting.groups import canonical, differing, grouped, letter, seeds_of, varying_seeds
from sage_scale.reporting.runlog import RunRecord, StageLog


def record(folder: str, dataset: str = "", **sections: Any) -> RunRecord:
    """A run with the recipe of some sections, on a dataset."""
    start = {"event": "start", "step": 0, "dataset": f"{dataset}-order"}
    logs = {"pretrain": StageLog(steps=[], dev=[], events=[start])} if dataset else {}
    return RunRecord(folder=Path("/runs") / folder, recipe=sections, logs=logs)


def seeded(folder: str, seed: int, **sections: Any) -> RunRecord:
    stage = {"pretrain": {"seed": seed}, "finetune": {"seed": seed}, "stream": {"seed": seed}}
    return record(
        folder, **{name: stage.get(name, {}) | sections.get(name, {}) for name in {*stage, *sections}}
    )


def test_runs_that_differ_in_seeds_alone_are_one_group():
    runs = [
        seeded(f"{loss}-{seed}", seed, clcl={"loss": loss}) for seed in (0, 1, 2) for loss in ("clcl", "clip")
    ]
    groups = grouped(runs)
    assert [(group.letter, group.label, [seeds_of(run) for run in group.records]) for group in groups] == [
        ("A", "clcl", ["0", "1", "2"]),
        ("B", "clip", ["0", "1", "2"]),
    ]
    assert differing(groups) == {"clcl.loss": ["clcl", "clip"]}


def test_seeds_that_never_vary_are_left_out():
    runs = [
        record(f"r-{seed}", stream={"seed": 0}, pretrain={"seed": seed}, finetune={"seed": seed})
        for seed in (1, 2)
    ]
    assert [seeds_of(run) for run in runs] == [
        "stream 0, pretrain 1, finetune 1",
        "stream 0, pretrain 2, finetune 2",
    ]
    varying = varying_seeds(grouped(runs))
    assert [seeds_of(run, varying) for run in runs] == ["1", "2"]


def test_resources_and_places_do_not_tell_recipes_apart():
    one = seeded("a-1", 1, precompute={"actors": 2}, corpus={"root": "/x"}, finetune={"save_every": 7})
    other = seeded("a-2", 2, precompute={"actors": 0}, corpus={"root": "/y"}, finetune={"checkpoints": "/z"})
    [group] = grouped([one, other])
    assert group.label == "a" and not differing([group])


def test_a_name_keeps_a_last_letter_that_is_no_number_of_runs():
    groups = grouped([seeded(f"uniform-tokens-{seed}", seed) for seed in range(2)])
    assert groups[0].label == "uniform-tokens"
    assert grouped([seeded(f"x/seed-{seed}", seed) for seed in range(2)])[0].label == "seed"


def test_the_seed_of_the_corpus_makes_other_clips_and_a_repeated_seed_is_no_replicate():
    made = [record("a", corpus={"seed": 0}), record("b", corpus={"seed": 1})]
    assert [group.label for group in grouped(made)] == ["a", "b"]
    assert len(grouped([seeded("first", 3), seeded("again", 3)])) == 2


def test_a_key_that_an_older_run_did_not_know_has_its_default():
    old, new = (
        record("old-1", pretrain={"seed": 1}),
        yaml.safe_load(to_yaml(from_mapping({"pretrain": {"seed": 2}}))),
    )
    assert "beta" in new["clcl"]
    assert len(grouped([old, record("new-2", **new)])) == 1


def test_a_recipe_of_an_unknown_model_is_compared_key_by_key():
    plugin = record("plugin", model={"kind": "not-here", "width": 3}, clcl={"loss": "own"})
    usual, unknown = record("usual", name="usual"), record("without a recipe")
    keys = differing(grouped([plugin, usual, unknown]))
    assert keys["model.width"] == [3, None, None] and keys["clcl.loss"] == ["own", "clcl", None]
    assert "clcl.beta" not in keys


def test_datasets_that_differ_make_groups_and_an_unknown_one_does_not():
    runs = [record("a", "abc", stream={"seed": 0}), record("b", "abd", stream={"seed": 1}),
            record("c", stream={"seed": 2})]  # fmt: skip
    assert [[run.name for run in group.records] for group in grouped(runs)] == [["a", "c"], ["b"]]


def test_names_tell_folders_apart():
    runs = [
        seeded(f"{cell}/seed-{seed}", seed, clcl={"loss": cell})
        for cell in ("clip", "maxsim")
        for seed in (0, 1)
    ]
    groups = grouped([*runs, runs[0]])
    assert [group.label for group in groups] == ["clip", "maxsim"]
    assert [run.name for group in groups for run in group.records] == [
        "clip/seed-0", "clip/seed-1", "maxsim/seed-0", "maxsim/seed-1",
    ]  # fmt: skip


def test_a_group_without_a_shared_name_is_called_by_its_recipe_or_its_values():
    def runs(names: tuple[str, str]) -> list[RunRecord]:
        members = (("alpha", 0), ("x", 1), ("beta", 0), ("y", 1))
        return [
            record(folder, name=names[of], clcl={"beta": (0.25, 0.75)[of]}, pretrain={"seed": seed})
            for seed, (folder, of) in enumerate(members)
        ]

    assert [group.label for group in grouped(runs(("one", "two")))] == ["one", "two"]
    assert [group.label for group in grouped(runs(("same", "same")))] == ["clcl.beta=0.25", "clcl.beta=0.75"]


def test_letters_go_on_after_z():
    assert [letter(n) for n in (0, 25, 26, 51, 52, 701, 702)] == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]


@given(
    st.recursive(st.integers(-9, 9) | st.booleans() | st.text(max_size=3), lambda v: st.lists(v, max_size=3))
)
def test_equal_values_have_one_text(value):
    as_tuple = tuple(value) if isinstance(value, list) else value
    assert canonical(value) == canonical(as_tuple) == canonical(json.loads(json.dumps(value)))
    if isinstance(value, int) and not isinstance(value, bool):
        assert canonical(value) == canonical(float(value))


@pytest.mark.parametrize("name", ["<b>", "‮abc", "x" * 300])
def test_odd_names_of_runs_are_kept_short(name):
    groups = grouped([record(name), record("b", clcl={"beta": 0.1})])
    assert len(groups[0].label) < 100 and "‮" not in groups[0].label
