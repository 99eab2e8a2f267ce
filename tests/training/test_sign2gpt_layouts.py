"""Sign2GPT's stages on two ranks under ZeRO 1, 2 and 3, and resumed elsewhere, learn what one rank does; what is frozen
stays, byte for byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sign2gpt_layout
from factories.ranks import run_ranks
from factories.training import make_causal_folder, make_shards, sign2gpt_recipe

from sage_scale.config import override, to_yaml

STEPS = 10


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """One run in this process under ZeRO-0, and one for each other ZeRO stage on two ranks."""
    root = tmp_path_factory.mktemp("layouts")
    language = make_causal_folder(root / "language")
    recipe = sign2gpt_recipe(
        "frames", f"model.language_model={language}", "pretrain.augment.brightness=0.2",
        *(f"{stage}.{change}" for stage in ("pretrain", "finetune")
          for change in (f"max_steps={STEPS}", "batch_size=5", "save_every=4", "keep_checkpoints=9")),
    )  # fmt: skip
    (root / "tiny.yaml").write_text(to_yaml(recipe))
    data = make_shards(root / "shards", recipe, [("train", 20), ("train", 9), ("dev", 4)])
    sign2gpt_layout.train(zero(recipe, 0), root / "alone", data)
    run_ranks(Path(sign2gpt_layout.__file__), 2, [root / "tiny.yaml", data, root, 1, 2, 3])
    return root, recipe, data


def zero(recipe, stage):
    return override(recipe, [f"pretrain.zero_stage={stage}", f"finetune.zero_stage={stage}"])


def losses(run: Path, stage: str) -> dict[int, float]:
    rows = map(json.loads, (run / stage / "log.jsonl").read_text().splitlines())
    found = {row["step"]: row["loss"] for row in rows if row["event"] == "step"}
    assert len(found) == STEPS
    return found


def assert_same(root: Path, run: str) -> None:
    frozen = json.loads((root / run / "frozen.json").read_text())
    alone = json.loads((root / "alone" / "frozen.json").read_text())
    assert frozen["before"] == frozen["after"] == alone["before"] == alone["after"], (
        f"a frozen weight changed: {run}"
    )
    for stage in ("pretrain", "finetune"):
        expected = losses(root / "alone", stage)
        assert losses(root / run, stage) == pytest.approx(expected, rel=1e-4), f"{run}, {stage}"


@pytest.mark.system
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_ranks_learn_what_one_does_and_frozen_weights_stay(world, stage):
    assert_same(world[0], f"zero-{stage}")


@pytest.mark.system
@pytest.mark.parametrize(
    ("begun", "ended", "stage"), [(3, 1, "finetune"), (2, 3, "pretrain"), (1, 0, "finetune")]
)
def test_what_two_ranks_began_one_ends_under_another_zero_stage(world, tmp_path, begun, ended, stage):
    """The later checkpoints of a stage are taken away, and its log behind the fourth step."""
    root, recipe, data = world
    run = shutil.copytree(root / f"zero-{begun}", root / f"resumed-{begun}-{ended}")
    if stage == "pretrain":  # another stage 1, by its last digits, is another frozen part of stage 2
        shutil.rmtree(run / "finetune")
    for state in (run / stage / "checkpoints").glob("step-*/state.json"):
        if state.parent.name != "step-00000004":
            state.unlink()
    log = run / stage / "log.jsonl"
    kept = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= 4]
    log.write_text("\n".join(kept) + "\n")
    sign2gpt_layout.train(zero(recipe, ended), run, data)
    assert_same(root, run.name)
