"""A model with another reduction than SAGE's, from videos through both stages and an evaluation to a translation."""

from __future__ import annotations

import json

import pytest
from factories.precompute import run_here
from factories.training import make_language_folder
from training.test_keypoint_stages import SMALL, signed

from sage_scale.config import load_recipe, override
from sage_scale.errors import CheckpointError
from sage_scale.training import evaluate_run
from sage_scale.training.stage import run_stage
from sage_scale.translation.translate import Translator


@pytest.mark.system
def test_strided_frames_from_videos_to_a_translation(tmp_path) -> None:
    """T/4: as many tokens as a quarter of the frames, and `translate` gives the sentence that `evaluate` gave."""
    root, language = signed(tmp_path / "signed"), make_language_folder(tmp_path / "language")
    recipe = load_recipe("sage-keypoints", [
        *SMALL, f"corpus.root={root}", f"model.language_model={language}", "model.pooling=first",
        "segmentation.tagger=uniform", "segmentation.rule=plain", "segmentation.uniform_frames=4",
    ])  # fmt: skip
    data, run = str(tmp_path / "shards"), tmp_path / "run"
    run_here(recipe, data).execute()
    for stage in ("pretrain", "finetune"):
        run_stage(stage, recipe, run, data)
    evaluate_run.run(run, data, split="dev", controls=False)
    rows = [json.loads(line) for line in (run / "predictions" / "dev.jsonl").read_text().splitlines()]
    translator = Translator(run)
    assert translator.recipe.model.pooling == translator.model.visual.pooling == "first"
    sentences = {row["id"]: row["hypothesis"] for row in rows}
    for video in sorted((root / "dev").glob("*.pose")):
        translation = translator.translate(video)
        assert len(translation.segments) == round(translation.frames / 4)
        (stored,) = [
            sentence
            for name, sentence in sentences.items()
            if video.stem == name.split("/")[-1].split(".")[0]
        ]
        assert translation.sentence == stored
    with pytest.raises(CheckpointError, match=r"model\.pooling=max"):
        run_stage("finetune", override(recipe, ["model.pooling=max"]), run, data)
