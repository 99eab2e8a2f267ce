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

from collections.abc import Callable, Mapping, Sequence
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
        # Parameters of one number stay whole under ZeRO-3, so any chunk's copy of them will do.
        numbers = {name: value.requires_grad_() for name, value in encoded[0][2].items()}
        tokens_ND = torch.cat([part[0] for part in encoded]).requires_grad_()
        leaves = [*numbers.values(), tokens_ND]
        hidden_ND = None
        if encoded[0][1] is not None:
            hidden_ND = torch.cat([part[1] for part in encoded]).requires_grad_()
            leaves.append(hidden_ND)
        del encoded
        counts = self.model.term_counts(batch.video, text)
        share, parts = self.model.loss(
            tokens_ND, hidden_ND, batch.video.clip_segments_B.to(device), text, text_ids_B,
            logit_parameters=numbers,
        )  # fmt: skip
        gradients = torch.autograd.grad(share, leaves)
        share = share.detach()
        del leaves, tokens_ND, hidden_ND

        sizes = [int(batch.video.clip_segments_B[rows].sum()) for rows in slices]
        of_numbers, of_tokens = gradients[: len(numbers)], gradients[len(numbers) :]
        pulled = [gradient.split(sizes) for gradient in of_tokens]
        nothing = [torch.zeros_like(gradient) for gradient in of_numbers]
        with statistics_kept(self.model), self.engine.coalesced_reduction():
            for number, rows in enumerate(slices):
                # The numbers belong to the whole batch: the first chunk brings their gradient, the others none.
                of_outputs = [part[number] for part in pulled]
                video = batch.select(rows).video.to(device)
                surrogate, terms = self.engine.forward(
                    self._pull,
                    video,
                    text.select(rows),
                    counts,
                    nothing if number else of_numbers,
                    of_outputs,
                )
                self.engine.backward(surrogate, last=number == chunks - 1)
                for name, term in terms.items():
                    share = share + self.model.term_weights[name] * term
                    parts[f"loss_{name}"] = parts.get(f"loss_{name}", 0) + term
        return share, parts

    def _encode(self, video: PackedVideo) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        tokens_ND, hidden_ND = self.model.encode(video)
        numbers = {name: value.detach().clone() for name, value in self.model.logit_parameters().items()}
        return (
            _at_least_float32(tokens_ND),
            hidden_ND if hidden_ND is None else _at_least_float32(hidden_ND),
            numbers,
        )

    def _pull(
        self,
        video: PackedVideo,
        text: TextTargets,
        counts: Mapping[str, int],
        of_numbers: Sequence[Tensor],
        of_outputs: list[Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns a number whose gradient is the share's, and the chunk's added terms, detached.

        The number is the outputs weighted with the share's gradient of them, and the terms, which are sums over clips
        and have a gradient of their own.
        """
        tokens_ND, hidden_ND, terms = self.model.encode_with_terms(video, text, counts)
        outputs = [tokens_ND, *([] if hidden_ND is None else [hidden_ND])]
        outputs += self.model.logit_parameters().values()
        products = [
            (_at_least_float32(output) * gradient).sum()
            for output, gradient in zip(outputs, [*of_outputs, *of_numbers], strict=True)
        ]
        products += [self.model.term_weights[name] * term for name, term in terms.items()]
        return torch.stack(products).sum(), {name: term.detach() for name, term in terms.items()}


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
