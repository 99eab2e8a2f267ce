"""The embedding cache: gradients are those of a direct step, in memory that the batch does not move."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cached_steps
import pytest
import torch
from factories.ranks import free_port
from factories.training import log_rows, make_language_folder, make_shards, tiny_recipe

from sage_scale.config import override
from sage_scale.errors import RecipeError
from sage_scale.models.sage import pretraining as alignment
from sage_scale.models.sage.embedding_cache import EmbeddingCache, even_slices, run_task
from sage_scale.training import distributed
from sage_scale.training.engine import Engine
from sage_scale.training.stage import run_stage

WORST = 3e-5
"""A single weight's gradient against float64: small groups make float32 itself lose a digit in BatchNorm."""


TERMS = ("clcl.loss=siglip_tokens", "clcl.neighbours=0.2", "clcl.sentence=0.5")
"""An objective with a bias, and both added terms."""


@pytest.mark.parametrize(
    ("kind", "batchnorm", "changes"),
    [
        *((kind, mode, ()) for kind in ("frames", "features") for mode in ("frozen", "group")),
        ("features", "group", ("model.pooling=max",)),
        ("features", "group", ("model.pooling=window",)),
        ("frames", "group", ("model.pooling=first",)),
        ("frames", "group", TERMS),
        ("features", "frozen", TERMS),
    ],
)
def test_gradients_are_those_of_one_graph(kind, batchnorm, changes):
    """Against float64 torch with the graphs of all chunks at once; dropout, augmentation and both levels included."""
    recipe = cached_steps.recipe_of(kind, batchnorm, *changes)
    found = cached_steps.one_step(recipe, [24], zero=1, cached=True)
    loss, wanted = cached_steps.expected(recipe, [24])
    assert cached_steps.chunks_of([24]) == 3
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert cached_steps.whole_distance(found["gradients"], wanted) < 1e-5
    assert cached_steps.distance(found["gradients"], wanted) < WORST


def test_running_statistics_move_once_and_by_all_clips():
    """The first BatchNorm sees the features through one linear layer, so that its statistics can be made by hand."""
    recipe = cached_steps.cached_recipe("features", "group")
    stage = recipe.pretrain
    engine = Engine(cached_steps.make_aligner(recipe), stage, distributed.initialise(), forward=run_task)
    model = engine.model.train()
    batch, text, ids = cached_steps.make_clips(recipe, 12)
    old = model.visual.norm.running_mean.clone(), model.visual.norm.running_var.clone()
    with torch.no_grad():
        rows = model.visual.temporal(batch.video.features_FC, batch.video.segment_frames_N).double()
    EmbeddingCache(model, engine).backward(batch, text, ids, 5)
    norm = model.visual.norm
    torch.testing.assert_close(norm.running_mean.double(), 0.9 * old[0].double() + 0.1 * rows.mean(0))
    torch.testing.assert_close(norm.running_var.double(), 0.9 * old[1].double() + 0.1 * rows.var(0))


@pytest.mark.parametrize("kind", ["frames", "features"])
def test_peak_memory_does_not_follow_the_batch(kind):
    """At 1, 4 and 16 times the chunk; what grows are the tokens, a hundredth of what a direct step adds."""
    chunk = 4
    one, four, sixteen = (cached_steps.peak_bytes(kind, times * chunk, chunk) for times in (1, 4, 16))
    direct = cached_steps.peak_bytes(kind, 16 * chunk, 16 * chunk)
    tokens = 16 * chunk * 4  # of 4 segments a clip
    kept = 4 * 256 * tokens * 4  # tokens and hidden states, and the gradients of both, d_model 256, float32
    assert four < one + kept and sixteen < one + 1.5 * kept
    assert direct > 3 * sixteen


def test_even_slices_cover_all_clips():
    for clips in range(12):
        for parts in range(1, 8):
            slices = list(even_slices(clips, parts))
            assert [clip for rows in slices for clip in range(clips)[rows]] == list(range(clips))
            sizes = [rows.stop - rows.start for rows in slices]
            assert len(sizes) == parts and max(sizes) - min(sizes) <= 1


def test_synchronised_statistics_are_refused():
    with pytest.raises(RecipeError, match="group"):
        tiny_recipe("frames", "pretrain.micro_batch=4", "model.batchnorm=sync")


@pytest.mark.parametrize(
    "changes", [(), (*TERMS, "clcl.beta=0"), ("clcl.beta=1",)], ids=["clcl", "terms", "one"]
)
def test_a_run_in_chunks_is_the_run_without(tmp_path, changes):
    """Frozen statistics: 20 steps with batches of 6 in chunks of 2; shares, scales, biases and terms are in the log."""
    language = make_language_folder(tmp_path / "language")
    recipe = tiny_recipe(
        "features",
        f"model.language_model={language}",
        "model.batchnorm=frozen",
        "model.dropout=0.1",
        *changes,
    )
    data = make_shards(tmp_path / "shards", recipe, [("train", 20), ("train", 9), ("dev", 6)])
    rows = {}
    for micro in (0, 2):
        changed = override(recipe, [f"pretrain.micro_batch={micro}"])
        run_stage("pretrain", changed, tmp_path / str(micro), data)
        rows[micro] = log_rows(tmp_path / str(micro), event="step")
    assert len(rows[0]) == 20
    names = ["loss", "grad_norm", "same_text_share", "scale_embedding", "scale_hidden"]
    names += [f"loss_{level}" for level, weight in (("hidden", recipe.clcl.beta < 1), ("embedding", recipe.clcl.beta))
              if weight]  # fmt: skip
    if TERMS[0] in changes:
        names += ["bias_embedding", "bias_hidden", "loss_neighbours", "loss_sentence"]
    assert {name for name in rows[0][-1] if name.startswith(("loss_", "bias_"))} <= set(names)
    dev = log_rows(tmp_path / "0", event="dev")[-1]
    assert 0 <= dev["r1_v2t"] <= 100 and ("loss_hidden" in dev) == (recipe.clcl.beta < 1)
    for name in names:
        assert [row[name] for row in rows[2]] == pytest.approx([row[name] for row in rows[0]], rel=1e-4)


def test_share_of_repeated_texts():
    """Every clip whose text another clip has counts, each of them."""
    texts = ["a", "b", "a", "c", "d", "b", "a"]
    ids = alignment.text_ids(texts, torch.device("cpu"))
    assert alignment.repeated_texts(ids) == ([7], 5)
    assert alignment.repeated_texts(ids[:2]) == ([2], 0)
    assert alignment.repeated_texts(ids[:0]) == ([0], 0)


@pytest.mark.system
@pytest.mark.timeout(400)
def test_two_ranks_under_every_zero_stage(tmp_path):
    """Under the `deepspeed` launcher, unequal parts and an empty one: gradients, and one reduction a step.

    A step in three chunks reduces what a direct step does, in as many calls. An empty rank's direct step is held to the
    same gradients: under ZeRO-2 and 3 its backward pass must keep the others' order.
    """
    cached_steps.write_expected("frames", tmp_path)
    program = [
        str(Path(sys.executable).with_name("deepspeed")),
        "--num_gpus",
        "2",
        "--master_port",
        str(free_port()),
    ]
    finished = subprocess.run(
        [*program, cached_steps.__file__, "gradients", "frames", str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "DS_LOG_LEVEL": "error"},
        capture_output=True, text=True, timeout=350, check=False,
    )  # fmt: skip
    output = finished.stdout + finished.stderr
    assert finished.returncode == 0, output[-4000:]
    rows = [json.loads(line.split("RESULT ")[1]) for line in output.splitlines() if "RESULT " in line]
    assert len(rows) == sum(len(stages) for *_, stages in cached_steps.CASES)
    weights = sum(
        value.numel()
        for value in cached_steps.make_aligner(cached_steps.recipe_of("frames", "group")).parameters()
    )
    for row in rows:
        assert row["loss"] < 1e-6 and row["gradients"] < 1e-5 and row["worst"] < WORST, row
        # All gradients once, in float32, and besides them the rows of the loss, a few kilobytes each.
        assert 4 * weights <= row["bytes"] < 4.1 * weights, row
        if "direct" in row:
            assert row["direct"] < 1e-5 and row["weights"] < 1e-6, row
            assert (row["calls"], row["bytes"]) == (row["direct_calls"], row["direct_bytes"]), row
