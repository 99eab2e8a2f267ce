"""SignCL's term against its equation, frame by frame in numpy, and its properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_scale.losses.neighbours import neighbour_loss


def by_the_paper(clips: list[np.ndarray], texts: list[int]) -> float:
    """Equations 4 and 5 with the expectation over the drawn frames; distances stretched to a width of 1,024."""
    total = 0.0
    for x, words in zip(clips, texts):
        F, margin = len(x), max(10, len(x) / words * 2.3)
        d = np.linalg.norm(x[:, None] - x[None], axis=2) * np.sqrt(1024 / x.shape[1])
        for i in range(F):
            near = [d[i, j] for j in range(F) if abs(i - j) == 1]
            far = [max(0.0, 64 - d[i, j]) for j in range(F) if abs(i - j) > 2 * margin]
            total += (np.mean(near) if near else 0) / F + (np.mean(far) if far else 0) / F
    return total


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=4), st.integers(0, 99),
    st.sampled_from([0.1, 1.0, 5.0]),
)  # fmt: skip
def test_it_is_the_papers_equation(sizes, seed, spread):
    draw = np.random.default_rng(seed)
    clips = [draw.normal(size=(frames, 6)) * spread for frames, _ in sizes]
    lengths, texts = (torch.tensor(column) for column in zip(*sizes))
    found = neighbour_loss(torch.from_numpy(np.concatenate(clips)), lengths, texts)
    assert found.item() == pytest.approx(by_the_paper(clips, texts.tolist()), rel=1e-9, abs=1e-9)


def test_gradients_where_frames_differ_and_where_they_are_equal():
    x = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    lengths, texts = torch.tensor([30, 1, 9]), torch.tensor([6, 2, 3])
    assert torch.autograd.gradcheck(lambda x: neighbour_loss(x, lengths, texts), x)
    still = torch.ones(50, 3, requires_grad=True)
    neighbour_loss(still, torch.tensor([50]), torch.tensor([9])).backward()
    assert still.grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    lengths, texts = torch.tensor([60]), torch.tensor([12])
    with torch.autocast("cpu", torch.bfloat16):
        found = neighbour_loss(x, lengths, texts)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(neighbour_loss(x.double(), lengths, texts).item(), rel=1e-5)


def test_no_clips_give_zero_with_a_gradient():
    empty, none = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    loss = neighbour_loss(empty, none, none)
    loss.backward()
    assert loss.item() == 0 and empty.grad.shape == (0, 4)
