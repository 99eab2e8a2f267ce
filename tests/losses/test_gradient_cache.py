"""The gradient cache against one graph of the whole batch."""

from __future__ import annotations

import pytest
import torch
from made_tokens import Options
from torch import nn

from sage_scale.losses import cached_backward, objective_of
from sage_scale.losses.gradient_cache import cached_gradients, surrogate

WIDTH = 12


class Encoder(nn.Module):
    """Both sides through one layer each, and a logit scale."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.visual, self.text = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8)
        self.dropout = nn.Dropout(dropout)
        self.log_scale = nn.Parameter(torch.tensor([2.0]))

    def forward(self, chunk):
        visual, text, _, _ = chunk
        return self.dropout(self.visual(visual)), self.text(text), self.log_scale.exp()


def made(sizes, dropout=0.0, seed=0):
    """An encoder in float64, and chunks of so many clips: tokens of both sides and their lengths."""
    torch.manual_seed(seed)
    chunks = []
    for clips in sizes:
        n, m = torch.randint(1, 5, (clips,)), torch.randint(1, 4, (clips,))
        tokens = [torch.randn(int(lengths.sum()), WIDTH).double() for lengths in (n, m)]
        chunks.append((*tokens, n, m))
    return Encoder(dropout).double(), chunks


def loss_of(chunks):
    n, m = (torch.cat([chunk[side] for chunk in chunks]) for side in (2, 3))
    objective = objective_of(Options())
    return lambda visual, text, scale: objective.share(visual, text, n, m, scale)


def gradients(encoder):
    found = [parameter.grad.clone() for parameter in encoder.parameters()]
    encoder.zero_grad()
    return found


@pytest.mark.parametrize(("sizes", "dropout"), [((5, 4, 6), 0.0), ((5, 0, 3), 0.3), ((7,), 0.3)])
def test_gradients_are_those_of_one_graph(sizes, dropout):
    """Dropout too: the random numbers of a chunk are those of its first pass, in any number of chunks."""
    encoder, chunks = made(sizes, dropout)
    torch.manual_seed(1)
    visual, text, scales = zip(*(encoder(chunk) for chunk in chunks))
    wanted = loss_of(chunks)(torch.cat(visual), torch.cat(text), scales[0])
    wanted.backward()
    after = torch.rand(1)
    expected = gradients(encoder)

    torch.manual_seed(1)
    lasts = []

    def backward(part, last):
        lasts.append(last)
        part.backward()

    value = cached_backward(encoder, chunks, loss_of(chunks), backward, shared=1)
    assert torch.rand(1) == after  # the generator stands where one pass leaves it
    assert not value.requires_grad and lasts == [False] * (len(sizes) - 1) + [True]
    torch.testing.assert_close(value, wanted.detach())
    for found, one in zip(gradients(encoder), expected, strict=True):
        torch.testing.assert_close(found, one)


def test_an_output_that_the_loss_does_not_read_has_no_gradient():
    value, ((of_read, of_other),) = cached_gradients(
        [(torch.ones(3), torch.ones(2))], lambda read, _: read.sum()
    )
    assert value == 3 and of_read.tolist() == [1, 1, 1] and of_other.tolist() == [0, 0]


def test_half_precision_outputs_meet_the_loss_in_float32():
    outputs = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    seen = []
    _, ((gradient,),) = cached_gradients(
        [(outputs,)], lambda rows: seen.append(rows.dtype) or rows.square().sum()
    )
    surrogate([outputs], [gradient]).backward()
    assert seen == [torch.float32] and torch.equal(outputs.grad, torch.full_like(outputs, 2))
