"""Frames through the backbone some at a time, and again in the backward pass, so that long clips need no more memory.

What the backward pass needs is kept of one chunk only; of the others their output. BatchNorm takes the running
statistics (`frozen`) or those of a chunk (`group`), which move once a step, and not when a chunk comes again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sage_scale.losses.collectives import gather_counts
from sage_scale.nn.batchnorm import statistics_kept, statistics_of_chunks


def in_chunks(module: nn.Module, some: Callable[[slice], Tensor], rows: int, chunk: int) -> Tensor:
    """`some(slice(0, rows))`, a function of each row alone but for BatchNorm in `module`, by `chunk` rows at a time.

    In training every rank must call it, one without rows too.
    """
    count = max(1, -(-rows // chunk))
    if module.training:  # under ZeRO-3 every pass gathers weights: ranks must make as many
        device = next(module.parameters()).device
        count = max(counts[0] for counts in gather_counts([count], device=device))
    edges = [min(number * chunk, rows) for number in range(count + 1)]
    slices = [slice(begin, end) for begin, end in pairwise(edges)]

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), statistics_kept(module)

    with statistics_of_chunks(module) if module.training else nullcontext():
        if len(slices) == 1 or not torch.is_grad_enabled():
            parts = [some(part) for part in slices]
        else:
            # Nothing random happens in a backbone. ZeRO-3 holds parts of the weights between passes, which a
            # comparison of what was saved would take for a difference.
            parts = [
                checkpoint(
                    some, part, use_reentrant=False, context_fn=contexts, preserve_rng_state=False,
                    determinism_check="none",
                )
                for part in slices
            ]  # fmt: skip
    return torch.cat(parts)
