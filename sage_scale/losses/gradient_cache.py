"""Gradient caching (Gao et al. 2021): a contrastive batch of any size through an encoder that holds one chunk of it.

A contrastive loss needs the tokens of all clips at once, but only their values:

    1. every chunk through the encoder without a graph; outputs are kept            outputs = f(chunks; weights)
    2. the loss on all of them, over all ranks, and its gradient                    G = d loss / d outputs
    3. every chunk again, with a graph, and backward from its own part of G         sum of G . df/dweights

That is the chain rule, no approximation, where f is the same function in 1 and 3. `cached_backward` repeats the random
numbers of torch (dropout) in 3; BatchNorm in training takes the statistics of a chunk, and would count them twice
(`nn.batchnorm.statistics_of_chunks` does not). `models.sage.embedding_cache` is the same for an aligner of a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor


def cached_backward(
    encode: Callable[[Any], Sequence[Tensor]],
    chunks: Sequence[Any],
    loss: Callable[..., Tensor],
    backward: Callable[[Tensor, bool], object],
    *,
    shared: int = 0,
    reduce_once: Callable[[], AbstractContextManager] = nullcontext,
) -> Tensor:
    """Returns the loss of a batch given in chunks, detached; `backward` has brought its gradient to all weights.

    `encode(chunk)` returns tensors whose rows belong to the chunk, of any number, and at the end `shared` trained
    numbers of the whole batch, such as the logit scale (`log_scale.exp()`; a parameter itself is empty after the pass
    under ZeRO-3). `loss` gets the rows of all chunks, and the numbers, and returns a scalar. `backward(part, last)`
    runs once a chunk, within `reduce_once()`; the parts' gradients sum to the loss's. Under `torch.distributed` every
    rank calls it with the same number of chunks, of which some may be empty, and `loss` returns the rank's share, as
    `Objective.share` does.
    """
    states: list[list[Tensor]] = []

    def first_pass() -> Iterator[Sequence[Tensor]]:
        for chunk in chunks:
            states.append(_random_states())
            yield encode(chunk)

    value, gradients = cached_gradients(first_pass(), loss, shared)
    with reduce_once():
        for number, (chunk, state, pulled) in enumerate(zip(chunks, states, gradients, strict=True)):
            with _repeated(state):
                part = surrogate(encode(chunk), pulled)
            backward(part, number == len(chunks) - 1)
    return value


def cached_gradients(
    encoded: Iterable[Sequence[Tensor]], loss: Callable[..., Tensor], shared: int = 0
) -> tuple[Tensor, list[list[Tensor]]]:
    """Returns the loss, detached, and for each chunk its gradient with respect to the chunk's outputs.

    `encoded` gives the outputs of each chunk, as `encode` in `cached_backward`, and is read without a graph. The
    gradient of the last `shared` outputs, which belong to the whole batch, goes to the first chunk; the others get
    zeros.
    """
    with torch.no_grad():
        chunks = [list(outputs) for outputs in encoded]
    columns = len(chunks[0]) - shared
    sizes = [[len(outputs[column]) for outputs in chunks] for column in range(columns)]
    leaves = [
        torch.cat([_at_least_float32(outputs[column]) for outputs in chunks]).requires_grad_()
        for column in range(columns)
    ]
    leaves += [number.detach().clone().requires_grad_() for number in chunks[0][columns:]]
    number_of_chunks = len(chunks)
    del chunks
    value = loss(*leaves)
    gradients = torch.autograd.grad(value, leaves, materialize_grads=True)
    of_numbers = list(gradients[columns:])
    nothing = [torch.zeros_like(gradient) for gradient in of_numbers]
    parts = [gradient.split(rows) for gradient, rows in zip(gradients, sizes)]
    return value.detach(), [
        [*(part[chunk] for part in parts), *(nothing if chunk else of_numbers)]
        for chunk in range(number_of_chunks)
    ]


def surrogate(outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Returns a scalar whose gradient is the loss's: the outputs weighted with the loss's gradient of them."""
    products = [
        (_at_least_float32(output) * gradient).sum()
        for output, gradient in zip(outputs, gradients, strict=True)
    ]
    return torch.stack(products).sum()


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _random_states() -> list[Tensor]:
    """Returns the states of torch's generators: the CPU's, and the present GPU's where CUDA is in use."""
    gpu = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *gpu]


@contextmanager
def _repeated(states: Sequence[Tensor]) -> Iterator[None]:
    """Draw the random numbers again that followed these states; afterwards the present ones go on."""
    devices = [torch.cuda.current_device()] if len(states) > 1 else []
    with torch.random.fork_rng(devices):
        torch.set_rng_state(states[0])
        if devices:
            torch.cuda.set_rng_state(states[1])
        yield
