"""The sign encoder: a clip is a function of itself alone, or of the published code's padding where asked for."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from factories.sign2gpt import settings
from torch import Tensor

from sage_scale.models.sign2gpt.positions import rotate, rotations, sine_positions
from sage_scale.models.sign2gpt.sign_encoder import SignEncoder


def encoder(**changed) -> SignEncoder:
    torch.manual_seed(1)
    module = SignEncoder(settings(**changed)).eval()
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.2 * torch.randn(parameter.shape))
    return module


def clips(lengths: list[int], width: int = 16) -> list[Tensor]:
    return [
        torch.randn(length, width, generator=torch.Generator().manual_seed(100 + length))
        for length in lengths
    ]


def by_torch(module: SignEncoder, x_TD: Tensor, padded_to: int) -> Tensor:
    """The released code's way, with torch's own modules: pad, mask, average-pool; the tokens that its mask leaves."""
    g = module.settings
    real = x_TD.shape[0]
    x = F.pad(x_TD, (0, 0, 0, padded_to - real)) + sine_positions(torch.arange(padded_to), g.width)
    mask = torch.arange(padded_to) < real
    for number, layer in enumerate(module.layers, start=1):
        length = x.shape[0]
        place = torch.arange(length)
        near = (place[:, None] - place).abs() <= (g.window // 2 if g.window else length)
        allowed = (near & mask) | torch.eye(length, dtype=torch.bool)
        cos, sin = rotations(place, g.width // g.heads)
        q, k, v = (linear(x).view(length, g.heads, -1) for linear in (layer.query, layer.key, layer.value))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        products = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(g.width // g.heads)
        weights = products.masked_fill(~allowed, -math.inf).softmax(-1)
        attended = layer.out(torch.einsum("hqk,khd->qhd", weights, v).flatten(1))
        x = layer.norm1(x + layer.scale1 * attended)
        x = layer.norm2(x + layer.scale2 * layer.fc2(F.gelu(layer.fc1(x))))
        if number == g.downsample_after:
            x = F.avg_pool1d(x.T, 3, stride=2, padding=1).T
            share = F.avg_pool1d(mask.float()[None], 3, stride=2, padding=1, count_include_pad=False)[0]
            mask = share > 0
    return x[mask]


@pytest.mark.parametrize(
    "changed", [{}, {"window": 0}, {"downsample_after": 0}, {"window": 3, "heads": 4}], ids=str
)
@torch.no_grad()
def test_packed_clips_equal_each_clip_by_itself_through_torchs_own_modules(changed):
    module = encoder(**changed)
    alone = clips([7, 12, 1, 33])
    lengths_B = torch.tensor([len(x) for x in alone])
    tokens_ND, tokens_B = module(torch.cat(alone), lengths_B)
    wanted = [by_torch(module, x, len(x)) for x in alone]
    assert tokens_B.tolist() == [len(x) for x in wanted] == module.token_lengths(lengths_B).tolist()
    torch.testing.assert_close(tokens_ND, torch.cat(wanted), atol=1e-5, rtol=0)


def test_clip_of_n_frames_has_half_as_many_tokens_rounded_up():
    lengths_B = torch.arange(1, 50)
    assert encoder().token_lengths(lengths_B).tolist() == [-(-n // 2) for n in range(1, 50)]


@torch.no_grad()
def test_released_padding_equals_the_released_way_and_differs_from_ours():
    lengths = [7, 12, 1, 33, 32]
    alone = clips(lengths)
    ours = encoder(padding="none")(torch.cat(alone), torch.tensor(lengths))
    module = encoder(padding="released")
    tokens_ND, tokens_B = module(torch.cat(alone), torch.tensor(lengths))
    wanted = [by_torch(module, x, max(lengths)) for x in alone]
    # An even clip shorter than the longest gets a token that is mostly padding.
    assert tokens_B.tolist() == [4, 7, 1, 17, 17] and ours[1].tolist() == [4, 6, 1, 17, 16]
    assert tokens_B.tolist() == module.token_lengths(torch.tensor(lengths)).tolist()
    torch.testing.assert_close(tokens_ND, torch.cat(wanted), atol=1e-5, rtol=0)
    first, first_ours = tokens_ND[:4], ours[0][:4]
    assert (first - first_ours).abs().max() > 1e-3, "padding is seen in the last token"


@torch.no_grad()
def test_window_and_pooling_bound_what_a_token_sees():
    """Two layers of 3 on either side, pooling, two layers of 3: frames beyond 6 + 1 + 2 * 6 do not matter."""
    module = encoder()
    x = clips([80])[0]
    before = module(x, torch.tensor([80]))[0]
    changed = x.clone()
    changed[40] += 1
    after = module(changed, torch.tensor([80]))[0]
    touched = (before != after).any(dim=1).nonzero()[:, 0] * 2
    assert touched.min() >= 40 - 19 and touched.max() <= 40 + 19 and len(touched) > 10


def test_draws_decide_dropout_and_depth_clip_by_clip():
    module = encoder(dropout=0.3, drop_path=0.5).train()
    alone = clips([7, 12, 9])
    clip_seeds_B = torch.tensor([5, 6, 7])
    together, tokens_B = module(torch.cat(alone), torch.tensor([7, 12, 9]), clip_seeds_B)
    parts = [module(x, torch.tensor([len(x)]), clip_seeds_B[[b]])[0] for b, x in enumerate(alone)]
    torch.testing.assert_close(together, torch.cat(parts), atol=1e-5, rtol=0)
    other, _ = module(torch.cat(alone), torch.tensor([7, 12, 9]), clip_seeds_B + 1)
    assert (together - other).abs().max() > 1e-3
    with pytest.raises(ValueError, match="clip_seeds_B"):
        module(torch.cat(alone), torch.tensor([7, 12, 9]))
    assert tokens_B.tolist() == [4, 6, 5]


def test_no_clips_reach_every_parameter_with_a_zero_gradient():
    for padding in ("none", "released"):
        module = encoder(padding=padding).train()
        empty = torch.zeros(0, dtype=torch.int64)
        tokens_ND, _ = module(torch.zeros(0, 16, requires_grad=True), empty, empty)
        tokens_ND.sum().backward()
        assert tokens_ND.shape == (0, 16)
        assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_rotated_products_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 3, 8, generator=torch.Generator().manual_seed(0))

    def product(a: int, b: int) -> Tensor:
        turned = [rotate(x, *rotations(torch.tensor([place]), 8)) for x, place in ((q, a), (k, b))]
        return (turned[0] * turned[1]).sum(-1)

    torch.testing.assert_close(product(3, 8), product(203, 208), atol=1e-4, rtol=0)
    assert (product(3, 8) - product(3, 9)).abs().max() > 1e-3
