"""The formulas of docs/clcl.md against what torch counts: bytes by its profiler, operations by its flop counter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from factories.datasets import make_stream_dataset
from factories.memory import peak_bytes
from torch.utils.flop_counter import FlopCounterMode
from training.cached_steps import cached_recipe, make_aligner, make_clips
from transformers import MBartConfig, MBartForConditionalGeneration
from typer.testing import CliRunner

from sage_scale.cli.main import app
from sage_scale.config import Clcl
from sage_scale.errors import UsageError
from sage_scale.losses import clcl_loss, objective_of, reference_similarity, tiled_clcl_similarity
from sage_scale.models.sage import plan as planned
from sage_scale.models.sage.model import SageTranslator
from sage_scale.models.sage.plan import ENCODER, TOKENS, Stage1, Stage2, clip_cost
from sage_scale.planning import LossSize, loss_bytes, loss_operations
from sage_scale.planning.loss import WAYS
from sage_scale.planning.measure import autocast
from sage_scale.planning.step import ClipSize, largest
from sage_scale.registry import Part
from sage_scale.streaming.subset import in_fraction
from sage_scale.vision.packed import PackedVideo

TOLERANCE = 0.25
"""Of a formula against the measurement; temporaries of single operations are not in it."""
ROOM = 4 << 20
"""Bytes that small sums and copies of a tile may take besides (on the CPU, where a tile is a megabyte)."""


EARLIER = """
import torch
from factories.memory import peak_bytes

size, seen = 40_000_000, []
peak_bytes(lambda: seen.append(torch.empty(size, dtype=torch.uint8)))
place = seen.pop().data_ptr()
before = [torch.empty(size, dtype=torch.uint8)]
assert before[0].data_ptr() == place, "the allocator gives no block twice"
print(peak_bytes(lambda: [before.clear(), torch.empty(5_000, dtype=torch.uint8)]))
"""


def test_the_measurement_does_not_depend_on_earlier_ones():
    """A block from before `work`, where an earlier profile saw another one; in a process whose memory nobody else has
    divided, so that the second block lies where the first one did."""
    tests = Path(__file__).parents[1]
    assert subprocess.check_output([sys.executable, "-c", EARLIER], cwd=tests, text=True) == "5000\n"


def loss_step(way: str, B: int, N: int, M: int, D: int) -> Callable[[], object]:
    """Forward and backward of one level, text frozen, full lengths."""
    torch.manual_seed(0)
    visual, text = torch.randn(B * N, D, requires_grad=True), torch.randn(B * M, D)
    lengths = torch.full((B,), N), torch.full((B,), M)
    scale = torch.tensor([14.0], requires_grad=True)
    given = (visual, text, *lengths)

    def work() -> None:
        if way == "ring":
            settings = replace(Clcl(), implementation="tiled")
            objective_of(settings).share(*given, scale).backward()
        else:
            similarity = tiled_clcl_similarity if way == "tiled" else reference_similarity
            clcl_loss(*similarity(*given), scale).backward()

    return work


@pytest.mark.parametrize(
    ("way", "size"),
    [
        ("naive", (24, 16, 8, 64)),
        ("naive", (48, 8, 8, 16)),
        ("tiled", (256, 16, 4, 256)),
        ("tiled", (1536, 2, 1, 64)),
        ("ring", (256, 16, 4, 256)),
        ("ring", (1536, 2, 1, 64)),
    ],
)
def test_memory_of_the_loss(way, size):
    B, N, M, D = size
    wanted = loss_bytes(LossSize(B, N, M, D), way, device="cpu")
    found = peak_bytes(loss_step(way, *size))
    assert abs(found - wanted) < TOLERANCE * wanted + (0 if way == "naive" else ROOM)


def test_memory_of_the_ring_has_no_square():
    """From 1,024 to 3,072 clips of one token: the ring grows with the clips, the tiled way with their square."""
    grown = {}
    for way in ("tiled", "ring"):
        small, large = (peak_bytes(loss_step(way, B, 1, 1, 32)) for B in (1024, 3072))
        grown[way] = large - small
    squares = 4 * (3072**2 - 1024**2)
    assert grown["tiled"] > 3 * squares
    assert grown["ring"] < 0.5 * squares


@pytest.mark.parametrize("way", WAYS)
def test_operations_of_the_loss(way):
    B, N, M, D = 40, 16, 8, 32
    with FlopCounterMode(display=False) as counter:
        loss_step(way, B, N, M, D)()
    assert counter.get_total_flops() == pytest.approx(loss_operations(LossSize(B, N, M, D), way), rel=0.01)


def test_operations_of_a_rank_fall_with_the_ranks():
    sizes = [LossSize(4096, 16, 12, 512, ranks) for ranks in (1, 4)]
    assert loss_operations(sizes[0], "ring") == 4 * loss_operations(sizes[1], "ring")
    # Texts of three ranks are there at once.
    assert loss_bytes(sizes[0], "ring", "cpu") > 2 * loss_bytes(sizes[1], "ring", "cpu")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("frames", ["model.backbone.widths=[16,32]"]),
        (
            "frames",
            ["model.backbone.widths=[16,32]", "model.backbone.depths=[2,1]", "model.backbone.pool=flatten"],
        ),
        ("features", ["model.context_layers=0", "clcl.beta=1"]),
        ("features", ["model.token_dim=64"]),
        ("features", ["model.pooling=max"]),
        ("features", ["model.pooling=window"]),
        ("frames", ["model.backbone.widths=[16,32]", "model.pooling=first"]),
    ],
)
def test_memory_and_operations_of_the_encoder(kind, changes):
    recipe = cached_recipe(kind, "frozen", "vision.size=64", "vision.crop=64", *changes)
    model, clips = make_aligner(recipe).train(), 16
    batch, _, _ = make_clips(recipe, clips, equal=True)  # of 4 segments of 5 frames
    language = MBartConfig(d_model=256, encoder_ffn_dim=64, encoder_attention_heads=4)
    cost = clip_cost(recipe, ClipSize(20, 4, 3), bf16=False, language=language)

    def step() -> None:
        sum(values.sum() for values in model.encode(batch.video) if values is not None).backward()

    step()  # gradients are there before
    with FlopCounterMode(display=False) as counter:
        model.encode(batch.video)
    assert counter.get_total_flops() == pytest.approx(clips * cost.operations, rel=0.01)
    assert peak_bytes(step) == pytest.approx(clips * cost.activation_bytes, rel=TOLERANCE)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    ("width", "feed", "layers", "vocabulary", "tokens", "words"),
    [(128, 512, (4, 4), 400, 8, 6), (256, 512, (2, 6), 300, 16, 10), (128, 256, (1, 1), 6000, 6, 8)],
)
def test_memory_of_the_translator(width, feed, layers, vocabulary, tokens, words, bf16, monkeypatch):
    """Stage 2 from features: language model, logits, and the visual side, forward and backward."""
    config = MBartConfig(
        vocab_size=vocabulary, d_model=width, encoder_layers=layers[0], decoder_layers=layers[1],
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=feed, decoder_ffn_dim=feed,
        max_position_embeddings=64, dropout=0.1, attention_dropout=0.1, attn_implementation="sdpa",
    )  # fmt: skip
    monkeypatch.setattr(planned, "language_model_config", lambda _: config)
    monkeypatch.setattr(planned, "describe", lambda _: [Part("language model", 0, 0, 0)])
    torch.manual_seed(0)
    recipe = cached_recipe("features", "frozen", "model.dropout=0.1")
    model, clips = SageTranslator(recipe, MBartForConditionalGeneration(config)).train(), 24
    video = PackedVideo(
        segment_frames_N=torch.full((clips * tokens,), 3),
        clip_segments_B=torch.full((clips,), tokens),
        features_FC=torch.randn(clips * tokens * 3, recipe.model.feature_dim),
        clip_seeds_B=torch.arange(clips),
    )
    labels = torch.randint(4, vocabulary, (clips, words))

    def step() -> None:
        with autocast("bf16" if bf16 else "fp32"):
            loss, _ = model(video, labels, labels.roll(1, 1), 0.1)
        loss.backward()

    step()  # gradients are there before
    plan = Stage2(recipe, ClipSize(3 * tokens, tokens, words - 2), ranks=1, bf16=bf16).plan(clips)
    rounded = 2 * sum(weight.numel() for weight in model.parameters()) if bf16 else 0
    assert peak_bytes(step) == pytest.approx(plan.device_bytes + rounded, rel=TOLERANCE)


def test_chunks_of_frames_bound_what_the_encoder_holds():
    """The published recipe on a 24 GB card: with chunks its memory does not follow the clip's length."""
    from sage_scale.config import load_recipe

    recipe = load_recipe("sage-phoenix14t", ["model.batchnorm=frozen", "pretrain.chunk_frames=64"])
    short, long = (Stage1(recipe, ClipSize(n, 16, 12), ranks=1, bf16=True).plan(16) for n in (58, 580))
    frames = 16 * (580 - 58)
    assert (
        long.parts[ENCODER] - short.parts[ENCODER]
        < 0.01 * frames * Stage1(recipe, ClipSize(58, 16, 12), ranks=1, bf16=True).cost.frame_bytes
    )
    assert long.device_bytes < 24e9
    direct = Stage1(load_recipe("sage-phoenix14t"), ClipSize(580, 16, 12), ranks=1, bf16=True).plan(16)
    assert direct.device_bytes > 10 * long.device_bytes
    assert long.operations == pytest.approx(direct.operations * 4 / 3, rel=0.05)


def test_cached_steps_hold_a_chunk_and_the_tokens():
    """The published recipe: what grows with the batch are tokens, not activations."""
    from sage_scale.config import load_recipe

    stage = Stage1(load_recipe("sage-phoenix14t"), ClipSize(58, 16, 12), ranks=8, bf16=True)
    small, large = (stage.plan(batch, micro_batch=16) for batch in (1024, 16384))
    assert large.parts[ENCODER] == small.parts[ENCODER] == 16 * stage.cost.activation_bytes
    assert large.parts[TOKENS] == 16 * small.parts[TOKENS]
    assert stage.plan(1024).parts[ENCODER] == 8 * small.parts[ENCODER]
    room = 80e9
    found = stage.largest_batch(room, "ring", micro_batch=16)
    assert stage.plan(found, micro_batch=16).device_bytes <= room
    assert stage.plan(int(1.1 * found), micro_batch=16).device_bytes > 0.92 * room
    assert found > 100 * stage.largest_batch(room, "ring")


def test_largest_finds_the_edge():
    for edge in (0, 1, 2, 3, 7, 8, 1000):
        assert largest(lambda number, edge=edge: number <= edge) == edge
    assert largest(lambda _: True, limit=64) >= 64


def test_plan_on_the_command_line(tmp_path):
    made = make_stream_dataset(tmp_path / "set", "features", [("train", 100), ("dev", 3)])
    key_S = np.array([int(key, 16) for key, s in made.items() if s.meta["split"] == "train"], np.uint64)
    clips = int(in_fraction(key_S, 0.4).sum())
    options = ["--gpu", "a100", "--batch", "64", "--tokens", "14", "--data", str(tmp_path / "set")]
    said = CliRunner().invoke(app, ["plan", "demo", *options, "stream.fraction=0.4"])
    assert said.exit_code == 0, said.output
    assert "largest batch in 80 GB" in said.output and "64" in said.output
    assert f"{clips} of 100 training clips (stream.fraction=0.4)" in said.output
    assert f"stages 1 and 2: {-(-clips // 32)} and {-(-clips // 32)}" in " ".join(said.output.split())
    wrong = CliRunner().invoke(app, ["plan", "demo", "--gpu", "abacus"])
    assert isinstance(wrong.exception, UsageError) and "abacus" in str(wrong.exception)
