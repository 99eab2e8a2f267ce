"""Our BatchNorm against torch's, in one process."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sage_scale.nn.batchnorm import BatchNorm, _Normalise, convert_batchnorm


def pair(features: int, dims: int, mode: str = "sync") -> tuple[BatchNorm, nn.Module]:
    theirs = (nn.BatchNorm1d if dims == 2 else nn.BatchNorm2d)(features).double()
    nn.init.uniform_(theirs.weight)
    nn.init.uniform_(theirs.bias)
    holder = nn.Sequential((nn.BatchNorm1d if dims == 2 else nn.BatchNorm2d)(features).double())
    holder[0].load_state_dict(theirs.state_dict())
    ours = convert_batchnorm(holder, mode)[0]
    assert isinstance(ours, BatchNorm)
    return ours, theirs


@pytest.mark.parametrize("shape", [(9, 4), (5, 3, 6, 2)])
@pytest.mark.parametrize("mode", ["sync", "group"])
def test_one_process_equals_torch(shape, mode):
    torch.manual_seed(0)
    ours, theirs = pair(shape[1], len(shape), mode)
    for _ in range(3):
        x = torch.randn(shape, dtype=torch.float64) * 3 + 5
        weights = torch.randn(shape, dtype=torch.float64)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        left, right = ours(a), theirs(b)
        torch.testing.assert_close(left, right)
        (left * weights).sum().backward()
        (right * weights).sum().backward()
        torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 2, 2)])
def test_the_gradient_that_ranks_use(shape):
    """The function behind `sync` on several ranks: gradients flow through mean and variance as well."""
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=torch.float64)
    weight, bias = torch.rand(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64)

    def normalise(x, weight, bias):
        dims = [0, *range(2, x.dim())]
        mean, var = x.detach().mean(dims), x.detach().var(dims, correction=0)
        return _Normalise.apply(x, weight, bias, mean, var, x.numel() / 3, 1e-5, True)

    plain = nn.functional.batch_norm(x, None, None, weight, bias, True)
    torch.testing.assert_close(normalise(x, weight, bias), plain)
    inputs = [value.clone().requires_grad_() for value in (x, weight, bias)]
    others = [value.clone().requires_grad_() for value in (x, weight, bias)]
    pull = torch.randn(shape, dtype=torch.float64)
    found = torch.autograd.grad((normalise(*inputs) * pull).sum(), inputs)
    y = nn.functional.batch_norm(others[0], None, None, others[1], others[2], True)
    wanted = torch.autograd.grad((y * pull).sum(), others)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b)


def test_frozen_uses_and_keeps_the_running_statistics():
    ours, _ = pair(4, 2, "frozen")
    ours.running_mean.uniform_()
    ours.running_var.uniform_(0.5, 2)
    before = ours.running_mean.clone()
    x = torch.randn(7, 4, dtype=torch.float64)
    out = ours.train()(x)
    torch.testing.assert_close(out, ours.eval()(x))
    torch.testing.assert_close(ours.running_mean, before)
    by_hand = (x - before) / (ours.running_var + 1e-5).sqrt() * ours.weight + ours.bias
    torch.testing.assert_close(out, by_hand)


def test_one_row_and_no_row():
    norm = BatchNorm(3)
    nn.init.uniform_(norm.bias)
    torch.testing.assert_close(norm(torch.randn(1, 3)), norm.bias[None])
    assert torch.isfinite(norm.running_var).all()
    before = norm.running_mean.clone()
    x = torch.zeros(0, 3, requires_grad=True)
    out = norm(x)
    out.sum().backward()
    assert out.shape == (0, 3) and norm.weight.grad.abs().sum() == 0
    assert torch.equal(norm.running_mean, before)


def test_a_large_mean_does_not_swallow_the_variance():
    """Sums of squares in float32 would lose a deviation of 1 around 10,000 altogether."""
    torch.manual_seed(0)
    x = torch.randn(400, 2) + 10_000
    norm = BatchNorm(2)
    wanted = nn.functional.batch_norm(x.double(), None, None, None, None, True)
    torch.testing.assert_close(norm(x).double(), wanted, rtol=0, atol=1e-2)


def test_half_precision_maps_keep_float32_statistics():
    torch.manual_seed(0)
    x = torch.randn(8, 4, 5, 5).bfloat16()
    norm = BatchNorm(4)
    out = norm(x)
    assert out.dtype == torch.bfloat16 and norm.running_mean.dtype == torch.float32
    torch.testing.assert_close(norm.running_mean, 0.1 * x.float().mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
