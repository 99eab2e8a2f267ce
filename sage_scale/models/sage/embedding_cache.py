"""The embedding cache: the gradient cache (`losses.gradient_cache`) of a step of stage 1.

Tokens and hidden states of all chunks are kept; both levels of the loss are computed over all ranks. The encoder is
the same function in both passes: dropout and augmentation follow from the clips' own numbers, BatchNorm takes the
chunk's statistics (`group`) or the running ones (`frozen`). A step costs one more forward pass, and holds the
activations of one chunk, and tokens with their gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sage_scale.losses.gradient_cache import cached_gradients, surrogate
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
        names = list(self.model.logit_parameters())
        counts = self.model.term_counts(batch.video, text)
        parts: dict[str, Tensor] = {}

        def encoded() -> Iterator[Sequence[Tensor]]:
            with statistics_of_chunks(self.model):
                for rows in slices:
                    yield self.engine.forward(self._encode, batch.select(rows).video.to(device))

        def loss(tokens_ND: Tensor, *others: Tensor) -> Tensor:
            hidden_ND = others[0] if len(others) > len(names) else None
            share, found = self.model.loss(
                tokens_ND, hidden_ND, batch.video.clip_segments_B.to(device), text, text_ids_B,
                logit_parameters=dict(zip(names, others[-len(names):])),
            )  # fmt: skip
            parts.update(found)
            return share

        share, gradients = cached_gradients(encoded(), loss, shared=len(names))
        with statistics_kept(self.model), self.engine.coalesced_reduction():
            for number, (rows, pulled) in enumerate(zip(slices, gradients, strict=True)):
                video = batch.select(rows).video.to(device)
                part, terms = self.engine.forward(self._pull, video, text.select(rows), counts, pulled)
                self.engine.backward(part, last=number == chunks - 1)
                for name, term in terms.items():
                    share = share + self.model.term_weights[name] * term
                    parts[f"loss_{name}"] = parts.get(f"loss_{name}", 0) + term
        return share, parts

    def _encode(self, video: PackedVideo) -> list[Tensor]:
        # ZeRO-3 empties a parameter after the pass: copies.
        outputs = self._outputs(*self.model.encode(video))
        return [output.clone() if isinstance(output, nn.Parameter) else output for output in outputs]

    def _pull(
        self, video: PackedVideo, text: TextTargets, counts: Mapping[str, int], gradients: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns a number whose gradient is the share's, and the chunk's added terms, detached.

        The number is the surrogate of the outputs, and the terms, which are sums over clips and have a gradient of
        their own.
        """
        tokens_ND, hidden_ND, terms = self.model.encode_with_terms(video, text, counts)
        parts = [surrogate(self._outputs(tokens_ND, hidden_ND), gradients)]
        parts += [self.model.term_weights[name] * term for name, term in terms.items()]
        return torch.stack(parts).sum(), {name: term.detach() for name, term in terms.items()}

    def _outputs(self, tokens_ND: Tensor, hidden_ND: Tensor | None) -> list[Tensor]:
        """Returns tokens, hidden states if there are any, and the numbers of the whole batch."""
        rows = [tokens_ND] if hidden_ND is None else [tokens_ND, hidden_ND]
        return [*rows, *self.model.logit_parameters().values()]
