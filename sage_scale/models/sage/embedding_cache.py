"""The embedding cache: a contrastive batch of any size through an encoder that holds one chunk (GradCache's idea).

A contrastive loss needs the tokens of all clips at once, but only their values. So a step of stage 1 is

    1. every chunk through the encoder without a graph; tokens are kept             tokens = f(clips; weights)
    2. the loss on all of them, both levels, over all ranks, and its gradient       G = d loss / d tokens
    3. every chunk again, with a graph, and backward from its own part of G         sum of G . df/dweights

That is the chain rule, no approximation, where f is the same function in 1 and 3: dropout and augmentation follow
from the clips' own numbers, BatchNorm takes the chunk's statistics (`group`) or the running ones (`frozen`). One more
forward pass is the price; the activations of one chunk, and tokens with their gradient, are what is held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sage_scale.models.sage.mbart import TextTargets
from sage_scale.models.sage.model import SageAligner
from sage_scale.nn.batchnorm import statistics_kept, statistics_of_chunks
from sage_scale.streaming import Batch
from sage_scale.training.engine import Engine
from sage_scale.training.stage import even_slices
from sage_scale.vision.packed import PackedVideo


def run_task(task: Callable, *arguments: Any) -> Any:
    """Returns `task(*arguments)`; the engine's forward pass where a step has several kinds of them."""
    return task(*arguments)


class EmbeddingCache:
    """Loss and gradients of a batch whose clips pass the aligner in chunks."""

    def __init__(self, model: SageAligner, engine: Engine) -> None:
        """`engine` holds `model` and was made with `forward=run_task`."""
        self.model, self.engine = model, engine

    def backward(
        self, batch: Batch, text: TextTargets, text_ids_B: Tensor | None, chunks: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns this rank's share of the loss and its parts, as `SageAligner.forward` gives them, detached, with the
        gradients in the engine, reduced over ranks once. A collective: `chunks` must be the same on every rank."""
        device = self.engine.ranks.device
        slices = list(even_slices(len(batch.keys), chunks))
        with torch.no_grad(), statistics_of_chunks(self.model):
            encoded = [
                self.engine.forward(self._encode, batch.select(rows).video.to(device)) for rows in slices
            ]
        # Parameters of one number stay whole under ZeRO-3, so any chunk's copy of the scales will do.
        log_scales = [log_scale.requires_grad_() for log_scale in encoded[0][2:]]
        tokens_ND = torch.cat([part[0] for part in encoded]).requires_grad_()
        leaves = [*log_scales, tokens_ND]
        hidden_ND = None
        if encoded[0][1] is not None:
            hidden_ND = torch.cat([part[1] for part in encoded]).requires_grad_()
            leaves.append(hidden_ND)
        del encoded
        share, parts = self.model.loss(
            tokens_ND, hidden_ND, batch.video.clip_segments_B.to(device), text, text_ids_B,
            log_scales=(log_scales[0], log_scales[1]),
        )  # fmt: skip
        gradients = torch.autograd.grad(share, leaves)
        share = share.detach()
        del leaves, tokens_ND, hidden_ND

        sizes = [int(batch.video.clip_segments_B[rows].sum()) for rows in slices]
        pulled = [gradient.split(sizes) for gradient in gradients[2:]]
        nothing = [torch.zeros_like(gradient) for gradient in gradients[:2]]
        with statistics_kept(self.model), self.engine.coalesced_reduction():
            for number, rows in enumerate(slices):
                # Scales belong to the whole batch: the first chunk brings their gradient, the others none.
                of_scales = nothing if number else gradients[:2]
                of_outputs = [part[number] for part in pulled]
                video = batch.select(rows).video.to(device)
                surrogate = self.engine.forward(self._pull, video, of_scales, of_outputs)
                self.engine.backward(surrogate, last=number == chunks - 1)
        return share, parts

    def _encode(self, video: PackedVideo) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        tokens_ND, hidden_ND = self.model.encode(video)
        log_scales = (
            self.model.log_scale_embedding.detach().clone(),
            self.model.log_scale_hidden.detach().clone(),
        )
        return (
            _at_least_float32(tokens_ND),
            hidden_ND if hidden_ND is None else _at_least_float32(hidden_ND),
            *log_scales,
        )

    def _pull(self, video: PackedVideo, of_scales: list[Tensor], of_outputs: list[Tensor]) -> Tensor:
        """Returns a number whose gradient is the share's: the outputs weighted with the share's gradient of them."""
        outputs = [output for output in self.model.encode(video) if output is not None]
        outputs += [self.model.log_scale_embedding, self.model.log_scale_hidden]
        products = [
            (_at_least_float32(output) * gradient).sum()
            for output, gradient in zip(outputs, [*of_outputs, *of_scales], strict=True)
        ]
        return torch.stack(products).sum()


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
