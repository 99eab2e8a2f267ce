"""Frames in chunks: the same tokens and gradients as all at once, and memory that clips do not make grow."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from factories.models import moved_norms, recipe, video

from sage_scale.config import Augment, Stage
from sage_scale.errors import RecipeError
from sage_scale.models.sage.visual import VisualEncoder
from sage_scale.nn.batchnorm import BatchNorm, statistics_kept, statistics_of_chunks
from sage_scale.nn.frame_encoder import frame_pixels
from sage_scale.vision.packed import PackedVideo

AUGMENT = Augment(rotation=20, translate=0.1, scale=0.1, brightness=0.3, contrast=0.3, saturation=0.3)


def encoder_of(mode: str, chunk: int, **settings: object) -> VisualEncoder:
    torch.manual_seed(0)
    made = recipe(batchnorm=mode)
    return moved_norms(VisualEncoder(made, Stage(chunk_frames=chunk, augment=AUGMENT, **settings))).double()


def gradients(encoder: VisualEncoder, shown: PackedVideo) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(1)
    tokens = encoder(shown)
    (tokens * torch.randn_like(tokens)).sum().backward()
    return tokens, [parameter.grad for parameter in encoder.parameters()]


@pytest.mark.parametrize("chunk", [1, 4, 20, 21, 100])
@pytest.mark.parametrize("background", [False, True])
def test_with_fixed_statistics_chunks_change_nothing(chunk, background):
    wanted, wanted_gradients = gradients(encoder_of("frozen", 0), video(background=background))
    found, found_gradients = gradients(encoder_of("frozen", chunk), video(background=background))
    torch.testing.assert_close(found, wanted)
    for one, other in zip(found_gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_group_is_a_chunk_and_running_statistics_move_once_by_all_frames():
    """The first norm of the backbone sees the same values in every layout, so its statistics are known."""
    shown, chunk = video(), 8
    encoder = encoder_of("group", chunk)
    plain = encoder_of("group", 0)
    rows, clip_F = slice(0, None), shown.frame_clip_F()
    pixels = frame_pixels(shown, rows, clip_F, plain.settings, plain.crop, True, plain.norm.weight.dtype)
    with statistics_of_chunks(plain.backbone):
        parts = [plain.backbone(part, centred=False) for part in pixels.split(chunk)]
    torch.testing.assert_close(encoder.frame_features(shown), torch.cat(parts))
    encoder = encoder_of("group", chunk)
    gradients(encoder, shown)  # the second pass of each chunk must not move them again
    norms = zip(encoder.backbone.modules(), plain.backbone.modules(), strict=True)
    for norm, other in norms:
        if isinstance(norm, BatchNorm):
            torch.testing.assert_close(norm.running_mean, other.running_mean)
            torch.testing.assert_close(norm.running_var, other.running_var)


def test_contexts_of_a_step_and_of_a_chunk_lie_inside_each_other():
    """The embedding cache's passes go on after a chunk was computed again within them."""
    encoder = encoder_of("group", 8)
    before = copy.deepcopy(encoder.state_dict())
    with statistics_kept(encoder):
        gradients(encoder, video())
        gradients(encoder, video())
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    with statistics_of_chunks(encoder), torch.no_grad():
        encoder(video())
        moved_within = copy.deepcopy(encoder.state_dict())
        encoder(video())
    for name, value in moved_within.items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(
        encoder.backbone.state_dict()[_running(encoder)], before["backbone." + _running(encoder)]
    )


def _running(encoder: VisualEncoder) -> str:
    return next(name for name in encoder.backbone.state_dict() if name.endswith("running_mean"))


def kept_bytes(encoder: VisualEncoder, shown: PackedVideo) -> int:
    """Bytes kept for the backward pass, weights and buffers aside."""
    held: dict[int, int] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return value

    own = {value.untyped_storage().data_ptr() for value in encoder.state_dict().values()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        encoder.frame_features(shown)
    return sum(size for place, size in held.items() if place not in own)


def test_what_is_kept_does_not_grow_with_the_clip():
    shown = video()

    def longer(times: int) -> PackedVideo:
        return replace(
            shown,
            segment_frames_N=shown.segment_frames_N * times,
            frames_FCHW=shown.frames_FCHW.repeat_interleave(times, dim=0),
        )

    direct = [kept_bytes(encoder_of("frozen", 0), longer(times)) for times in (1, 4, 16)]
    assert direct[2] > 12 * direct[0]
    chunked = [kept_bytes(encoder_of("frozen", 8), longer(times)) for times in (1, 4, 16)]
    inputs = [longer(times).frames_FCHW.numel() for times in (1, 4, 16)]
    # Nothing but the frames themselves, if those, is kept of chunks that come again.
    assert all(size <= given for size, given in zip(chunked, inputs))


def test_no_frames_are_no_chunks():
    encoder = encoder_of("group", 8)
    tokens, found = gradients(encoder, video([]))
    assert tokens.shape == (0, 8)
    assert all(gradient is None or not gradient.any() for gradient in found)


def test_chunks_and_statistics_over_all_frames_exclude_each_other():
    from sage_scale.config import override

    made = recipe(batchnorm="sync")
    with pytest.raises(RecipeError, match="chunk_frames"):
        override(made, ["pretrain.chunk_frames=8"])
    assert override(made, ["model.batchnorm=frozen", "pretrain.chunk_frames=8"]).pretrain.chunk_frames == 8


@pytest.mark.system
@pytest.mark.timeout(300)
@pytest.mark.parametrize("chunk", [0, 8])
def test_the_compiled_backbone_gives_the_same(chunk):
    """Needs a C++ compiler where there is no GPU; padding of the last chunk is seen by no frame."""
    import shutil

    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler")
    wanted, wanted_gradients = gradients(encoder_of("frozen", 0), video())
    found, found_gradients = gradients(encoder_of("frozen", chunk, compile=True), video())
    torch.testing.assert_close(found, wanted)
    for one, other in zip(found_gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(one, other)
