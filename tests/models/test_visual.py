"""The packed visual encoder against loops over segments and clips."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from factories.models import CLIPS, features_recipe, moved_norms, recipe, small_mbart_config, video
from torch import nn
from transformers import MBartForConditionalGeneration

from sage_scale.config import Augment, Stage
from sage_scale.models.sage.context import ContextEncoder
from sage_scale.models.sage.visual import Mapper, TemporalConv, VisualEncoder


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_temporal_convolution_equals_one_conv_on_each_segment(kernel):
    """Edge frames repeated after the backbone: nn.Conv1d on each segment padded by its own edges."""
    torch.manual_seed(0)
    lengths = [1, 2, 7, 3, 1]
    x = torch.randn(sum(lengths), 6, dtype=torch.float64)
    packed = TemporalConv(6, 4, kernel).double()
    conv = nn.Conv1d(6, 4, kernel).double()
    conv.load_state_dict(packed.state_dict())
    edge = kernel // 2
    wanted = []
    for part in x.split(lengths):
        padded = torch.cat([part[:1].expand(edge, -1), part, part[-1:].expand(edge, -1)])
        wanted.append(conv(padded.T[None])[0].T)
    torch.testing.assert_close(packed(x, torch.tensor(lengths)), torch.cat(wanted))


def test_encoder_equals_a_loop_over_segments():
    torch.manual_seed(0)
    encoder = moved_norms(VisualEncoder(recipe())).double().eval()
    tokens = encoder(video())
    wanted, start = [], 0
    pictures = video().frames_FCHW[:, :, 2:18, 2:18].double()  # the middle 16 of 20
    for length in video().segment_frames_N.tolist():
        x = encoder.backbone(pictures[start : start + length])
        x = torch.cat([x[:1], x[:1], x, x[-1:], x[-1:]])
        x = nn.functional.conv1d(x.T[None], encoder.temporal.weight, encoder.temporal.bias)[0].T
        norm = encoder.norm
        x = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        wanted.append(x.relu().mean(0))
        start += length
    torch.testing.assert_close(tokens, torch.stack(wanted))


@pytest.mark.parametrize("kind", ["frames", "features"])
def test_a_clips_tokens_follow_it_and_ignore_its_neighbours(kind):
    torch.manual_seed(0)
    made = recipe() if kind == "frames" else features_recipe()
    encoder = moved_norms(VisualEncoder(made)).double().eval()
    together = encoder(video(kind=kind)).split([len(clip) for clip in CLIPS])
    for order in ([0], [1], [2, 0], [2, 1, 0]):
        found = encoder(video(order, kind)).split([len(CLIPS[clip]) for clip in order])
        for clip, tokens in zip(order, found):
            torch.testing.assert_close(tokens, together[clip])
    assert encoder(video([], kind)).shape == (0, 8)


def test_batch_statistics_count_each_frame_once_and_no_padding():
    torch.manual_seed(0)
    encoder = VisualEncoder(features_recipe()).double()
    x = encoder.temporal(video(kind="features").features_FC.double(), video().segment_frames_N)
    wanted = nn.functional.batch_norm(x, None, None, training=True).relu()
    segments = [part.mean(0) for part in wanted.split(video().segment_frames_N.tolist())]
    torch.testing.assert_close(encoder(video(kind="features")), torch.stack(segments))


def test_the_background_is_what_does_not_count():
    """Adding the same picture to frames and background changes nothing."""
    torch.manual_seed(0)
    encoder = moved_norms(VisualEncoder(recipe())).double().eval()
    base = video(background=True)
    frames, background = base.frames_FCHW // 2, base.background_BCHW // 2
    extra = torch.randint(0, 128, (3, 3, 20, 20), dtype=torch.uint8)
    first = encoder(replace(base, frames_FCHW=frames, background_BCHW=background))
    second = encoder(
        replace(base, frames_FCHW=frames + extra[base.frame_clip_F()], background_BCHW=background + extra)
    )
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, encoder(replace(base, frames_FCHW=frames, background_BCHW=None)))


def test_training_draws_follow_the_clip_in_any_batch():
    """Augmentation and dropout are functions of a clip's draw: no batch around it changes its tokens."""
    torch.manual_seed(0)
    made = recipe(batchnorm="frozen", dropout=0.4)
    settings = Augment(rotation=20, translate=0.1, scale=0.1, brightness=0.3, contrast=0.3, saturation=0.3)
    encoder = moved_norms(VisualEncoder(made, Stage(augment=settings))).double()
    together = encoder(video(background=True)).split([len(clip) for clip in CLIPS])
    for order in ([1], [2, 0]):
        found = encoder(video(order, background=True)).split([len(CLIPS[clip]) for clip in order])
        for clip, tokens in zip(order, found):
            torch.testing.assert_close(tokens, together[clip], rtol=1e-5, atol=1e-6)
    other = encoder(replace(video([0], background=True), clip_seeds_B=torch.tensor([5])))
    assert not torch.allclose(other, together[0], atol=1e-3)
    plain = encoder(replace(video([0], background=True), clip_seeds_B=None))
    torch.testing.assert_close(plain, encoder.eval()(video([0], background=True)))
    kept = encoder.frame_features(
        video([0], background=True), augmented=True
    )  # a view kept from a frozen backbone
    torch.testing.assert_close(encoder.tokens(kept, video([0])), together[0], rtol=1e-5, atol=1e-6)


def test_the_other_kind_of_video_is_refused():
    with pytest.raises(ValueError, match="kind=features, but the video holds frames"):
        VisualEncoder(features_recipe())(video())


def test_features_kept_from_a_frozen_backbone_give_the_same_tokens():
    encoder = moved_norms(VisualEncoder(recipe())).eval()
    kept = encoder.frame_features(video())
    again = replace(video(), frames_FCHW=None, features_FC=kept)
    torch.testing.assert_close(encoder(again), encoder(video()))


@pytest.mark.parametrize("last, norm, parts", [("full", "layer", 4), ("linear", "batch", 3)])
def test_mapper_blocks(last, norm, parts):
    """LayerNorm or BatchNorm, Linear, GELU three times; the released code's third block is its Linear alone."""
    torch.manual_seed(0)
    mapper = Mapper(recipe(mapper_last=last, mapper_norm=norm, dropout=0.3).model, 12).double().eval()
    x = wanted = torch.randn(7, 8, dtype=torch.float64)
    for block, linear in enumerate(mapper.linears):
        if last == "full" or block < 2:
            if norm == "layer":
                wanted = nn.functional.layer_norm(wanted, wanted.shape[1:])
            else:
                wanted = wanted / (1 + 1e-5) ** 0.5
        wanted = wanted @ linear.weight.T + linear.bias
        if last == "full" or block < 2:
            wanted = nn.functional.gelu(wanted)
    torch.testing.assert_close(mapper(x), wanted)
    assert mapper(x).shape == (7, 12)
    with pytest.raises(ValueError, match="needs PackedVideo"):
        mapper.train()(x)


def test_context_encoder_is_mbarts_encoder():
    """All layers copied, the packed context encoder equals transformers' MBartEncoder on one clip at a time."""
    torch.manual_seed(0)
    config = small_mbart_config(d_model=16, encoder_layers=3, max_position_embeddings=9)
    model = MBartForConditionalGeneration(config).double().eval()
    ours = ContextEncoder(config, 3, dropout=0.2).double().eval()
    ours.copy_from(model)
    lengths = [3, 9, 1]
    x = torch.randn(13, 16, dtype=torch.float64)
    found = ours(x, torch.tensor(lengths)).split(lengths)
    for part, hidden in zip(x.split(lengths), found):
        torch.testing.assert_close(hidden, model.model.encoder(inputs_embeds=part[None]).last_hidden_state[0])
    first = ContextEncoder(config, 1, dropout=0.0)
    first.copy_from(model)
    for name, value in first.layers.state_dict().items():
        assert torch.equal(value, model.model.encoder.layers.state_dict()[name].float())
    with pytest.raises(ValueError, match="10 visual tokens, the language model only 9 positions"):
        ours(torch.randn(10, 16, dtype=torch.float64), torch.tensor([10]))
