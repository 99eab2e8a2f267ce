"""Reductions from frames to tokens (SAGE, Table 2) against loops over clips, segments and frames."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from factories.models import CLIPS, SENTENCES, features_recipe, moved_norms, recipe, small_mbart, video
from factories.models import small_tokenizer as tokenizer
from factories.properties import many
from hypothesis import strategies as st
from torch import Tensor, nn

from sage_scale.config import Augment, Recipe, Stage, override
from sage_scale.experiments.ablation_table import load_table
from sage_scale.models.sage.finetuning import SageOutputs
from sage_scale.models.sage.mbart import make_labels
from sage_scale.models.sage.model import SageTranslator
from sage_scale.models.sage.visual import VisualEncoder

POOLINGS = ("mean", "max", "window", "first")
lengths = st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=5), max_size=4)


def convolved(encoder: VisualEncoder, x_FC: Tensor) -> Tensor:
    """Convolution, norm and ReLU of one run of frames whose edges are repeated, (F, D)."""
    edge = encoder.temporal.kernel_size[0] // 2
    x_FC = torch.cat([x_FC[:1].expand(edge, -1), x_FC, x_FC[-1:].expand(edge, -1)])
    x_DF = nn.functional.conv1d(x_FC.T[None], encoder.temporal.weight, encoder.temporal.bias)[0]
    norm = encoder.norm
    scale_D = norm.weight / (norm.running_var + norm.eps).sqrt()
    return ((x_DF.T - norm.running_mean) * scale_D + norm.bias).relu()


def tokens_of_a_clip(encoder: VisualEncoder, x_FC: Tensor, frames_N: list[int]) -> list[Tensor]:
    """Tokens of one clip by the definition of each reduction."""
    starts = np.cumsum([0, *frames_N]).tolist()
    if encoder.pooling == "mean":
        return [convolved(encoder, x_FC[a:b]).mean(0) for a, b in itertools.pairwise(starts)]
    if encoder.pooling == "first":
        return list(convolved(encoder, x_FC[starts[:-1]]))
    y_FD = convolved(encoder, x_FC)
    if encoder.pooling == "max":
        return [torch.stack(list(y_FD[a:b])).amax(0) for a, b in itertools.pairwise(starts)]
    m = encoder.margin
    return [y_FD[max(0, a - m) : b + m].mean(0) for a, b in itertools.pairwise(starts)]


@pytest.mark.parametrize("pooling", POOLINGS)
@many(lengths, st.integers(0, 4))
def test_tokens_are_those_of_the_definition(pooling, clips, margin):
    torch.manual_seed(0)
    made = features_recipe(pooling=pooling, window_margin=margin)
    encoder = moved_norms(VisualEncoder(made)).double().eval()
    shown = video(kind="features", lengths=clips)
    shown = replace(shown, features_FC=shown.features_FC.double())
    parts = shown.features_FC.split([sum(clip) for clip in clips])
    wanted = [token for part, clip in zip(parts, clips) for token in tokens_of_a_clip(encoder, part, clip)]
    found = encoder(shown)
    assert len(found) == sum(map(len, clips))
    torch.testing.assert_close(found, torch.stack(wanted) if wanted else found)


@pytest.mark.parametrize("pooling", POOLINGS[1:])
def test_a_clips_tokens_ignore_its_neighbours_in_training(pooling):
    """Pictures, augmentation and frozen statistics; also no clip at all, and frames in chunks."""
    settings = Augment(rotation=20, translate=0.1, brightness=0.3)
    made = recipe(pooling=pooling, batchnorm="frozen")

    def encode(order: list[int] | None = None, chunk: int = 0) -> Tensor:
        torch.manual_seed(0)
        stage = Stage(augment=settings, chunk_frames=chunk)
        encoder = moved_norms(VisualEncoder(made, stage)).double().train()
        return encoder(video(order, background=True))

    together = encode().split([len(clip) for clip in CLIPS])
    for order in ([1], [2, 0]):
        for clip, tokens in zip(order, encode(order).split([len(CLIPS[clip]) for clip in order])):
            torch.testing.assert_close(tokens, together[clip], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(encode(chunk=4), torch.cat(together), rtol=1e-5, atol=1e-6)
    assert encode([]).shape == (0, 8)


def test_strided_frames_alone_pass_the_frame_encoder(monkeypatch):
    encoder = VisualEncoder(recipe(pooling="first")).eval()
    seen, backbone = [], encoder.backbone.forward
    monkeypatch.setattr(encoder.backbone, "forward", lambda x, **k: seen.append(len(x)) or backbone(x, **k))
    encoder(video())
    assert seen == [sum(map(len, CLIPS))]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_statistics_count_each_frame_once(pooling):
    """Windows overlap, but BatchNorm stands before them: a frame counts once, and a dropped one never."""
    torch.manual_seed(0)
    encoder = VisualEncoder(features_recipe(pooling=pooling, batchnorm="sync")).double().train()
    x = video(kind="features", lengths=[[2, 3, 4], [5, 1]])
    if pooling == "first":
        kept = [0, 2, 5, 9, 14]
        rows = encoder.temporal(x.features_FC[kept].double(), torch.tensor([3, 2]))
    else:
        runs = x.segment_frames_N if pooling == "mean" else torch.tensor([9, 6])
        rows = encoder.temporal(x.features_FC.double(), runs)
    encoder(x)
    torch.testing.assert_close(encoder.norm.running_mean, 0.1 * rows.mean(0).detach())


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_are_those_of_differences(pooling):
    torch.manual_seed(0)
    made = features_recipe(pooling=pooling, batchnorm="frozen")
    encoder = moved_norms(VisualEncoder(made)).double().train()
    shown = video(kind="features", lengths=[[2, 3], [1, 4, 2]])

    def tokens(features_FC: Tensor) -> Tensor:
        return encoder(replace(shown, features_FC=features_FC))

    assert torch.autograd.gradcheck(tokens, shown.features_FC.double().requires_grad_())


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("freeze", ["backbone", "visual"])
def test_outputs_kept_of_frozen_parts_give_the_same_loss(pooling, freeze):
    torch.manual_seed(0)
    made = recipe(pooling=pooling, dropout=0.0, batchnorm="frozen")
    model = moved_norms(SageTranslator(made, small_mbart())).eval()
    labels, inputs = make_labels(tokenizer(), SENTENCES[:3], ["de"] * 3)
    outputs = SageOutputs(model, Stage(freeze=freeze))
    kept, rows = outputs.values(video(background=True), augmented=False)
    assert sum(rows) == len(kept)
    bare = replace(video(background=True), frames_FCHW=None, background_BCHW=None)
    wanted, _ = model(video(background=True), labels, inputs, 0.1)
    torch.testing.assert_close(outputs.forward(bare, kept, labels, inputs, 0.1)[0], wanted)


@many(st.integers(8, 400), st.sampled_from([2, 4, 8]))
def test_token_ratio_of_equal_segments(total, frames):
    """T/2, T/4 and T/8 of one cutting: as many tokens for every reduction, each with a frame of the grid."""
    pytest.importorskip("av", reason="taggers read videos; a machine with a GPU may lack PyAV")
    from sage_scale.segmentation.rules import labels_to_segments
    from sage_scale.segmentation.tagger import uniform_labels

    segments = labels_to_segments(uniform_labels(total, frames), "plain")
    assert abs(len(segments) - total / frames) <= 0.5
    assert segments[0, 0] == 0 and segments[-1, 1] == total and (segments[1:, 0] == segments[:-1, 1]).all()
    lengths_N = segments[:, 1] - segments[:, 0]
    assert lengths_N.max() - lengths_N.min() <= 1


def test_the_table_changes_the_reduction_alone():
    """Every cell of `sage-2` is one tower on one corpus; those of a ratio share a dataset, whatever they pool by."""
    table = load_table("sage-2")
    reduction = ("segmentation.", "model.pooling", "model.window_margin")
    assert all(key.startswith(reduction) for cell in table.cells for key in cell.changes)
    datasets: dict[int, set[str]] = {}
    for cell in table.cells[1:]:
        made = table.recipe_of(cell, 0)
        datasets.setdefault(made.segmentation.uniform_frames, set()).add(made.dataset_fingerprint())
    assert sorted(datasets) == [2, 4, 8] and all(len(one) == 1 for one in datasets.values())


def test_a_reduction_is_a_breaking_key_and_older_recipes_pool_the_mean():
    from sage_scale.models.sage import SPEC

    assert {"model.pooling", "model.window_margin"} <= set(SPEC.breaking_keys)
    assert Recipe().model.pooling == "mean"
    assert override(Recipe(), ["model.pooling=mean"]).fingerprint() == Recipe().fingerprint()
    assert override(Recipe(), ["model.pooling=max"]).fingerprint() != Recipe().fingerprint()
    assert override(Recipe(), ["model.pooling=max"]).dataset_fingerprint() == Recipe().dataset_fingerprint()
