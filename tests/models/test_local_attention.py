"""Attention in a window equals a dense masked reference, for values and gradients, whatever the clips' lengths."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sage_scale.models.sign2gpt.local_attention import DenseMask, Windows


def dense_reference(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], window: int) -> Tensor:
    """Each clip by itself, the whole matrix of products, what is out of the window at minus infinity."""
    parts, start = [], 0
    for length in lengths:
        rows = slice(start, start + length)
        products = torch.einsum("qhd,khd->hqk", q[rows], k[rows]) / math.sqrt(q.shape[-1])
        place = torch.arange(length)
        if window:
            far = (place[:, None] - place).abs() > window // 2
            products = products.masked_fill(far, -math.inf)
        parts.append(torch.einsum("hqk,khd->qhd", products.softmax(-1), v[rows]))
        start += length
    return torch.cat(parts)


@pytest.mark.parametrize("window", [3, 7, 21, 0])
@pytest.mark.parametrize(
    "lengths", [[1], [2, 1, 40], [16, 32], [5, 16, 17, 100, 3], [300]], ids=lambda lengths: f"{sum(lengths)}"
)
def test_window_equals_dense_reference_forward_and_backward(lengths, window):
    rows = sum(lengths)
    generator = torch.Generator().manual_seed(rows)
    q, k, v, grad = torch.randn(4, rows, 8, 16, generator=generator)
    mine, other = ([x.clone().requires_grad_() for x in (q, k, v)] for _ in range(2))
    lengths_B = torch.tensor(lengths)
    if window:
        attention = Windows(torch.repeat_interleave(lengths_B), window)
    else:
        attention = DenseMask(lengths_B)
    got, wanted = attention.attend(*mine), dense_reference(*other, lengths, window)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    for ours, theirs in zip(torch.autograd.grad(got, mine, grad), torch.autograd.grad(wanted, other, grad)):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_dense_mask_with_a_window_equals_blocks():
    lengths_B = torch.tensor([9, 30, 1])
    q, k, v = torch.randn(3, 40, 2, 4, generator=torch.Generator().manual_seed(0))
    blocks = Windows(torch.repeat_interleave(lengths_B), 7).attend(q, k, v)
    torch.testing.assert_close(DenseMask(lengths_B, window=7).attend(q, k, v), blocks, atol=1e-6, rtol=0)


def test_products_grow_with_the_frames_not_with_their_square():
    """What is computed: queries times keys of all blocks."""
    computed = [
        Windows(torch.zeros(frames, dtype=torch.int64), 7).mask_N1QK.numel() for frames in (256, 1024, 8192)
    ]
    assert computed[1] == 4 * computed[0] and computed[2] == 32 * computed[0]
    assert computed[0] < 4 * 256 * 7


def test_no_rows():
    empty = torch.zeros(0, 2, 4, requires_grad=True)
    for attention in (
        Windows(torch.zeros(0, dtype=torch.int64), 7),
        DenseMask(torch.zeros(0, dtype=torch.int64)),
    ):
        out = attention.attend(empty, empty, empty)
        assert out.shape == (0, 2, 4) and out.requires_grad
