"""FLOPs of one training step of Sign2GPT's stages, counted from the architecture, for MFU.

As in `planning.step`, a matrix product with trained weights, or of two activations, counts three times: the forward
pass and the gradients of both factors. A product with frozen weights counts twice if gradients pass through it, once
below all adapters. Local attention counts the products inside its window, not the larger blocks of its implementation.
"""

from __future__ import annotations

from typing import Any

from sage_scale.config import Recipe
from sage_scale.planning.measure import frame_operations
from sage_scale.planning.step import StepSize
from sage_scale.vision.backbone_choice import encoder_width

FORWARD, FROZEN, TRAINED = 1, 2, 3
"""Factors on the forward FLOPs: forward only; frozen weights with a gradient of the input; trained weights."""
_GATED = ("qwen2", "llama", "mistral")
"""Model types with a gated feed-forward layer: three matrices instead of two."""


class Sign2GptOperations:
    """Returns, when called, the FLOPs of a step of a stage (`pretrain` or `finetune`)."""

    def __init__(self, recipe: Recipe, stage: str, language: Any = None, prototypes: int = 0) -> None:
        """`language` is the configuration of stage 2's language model, `prototypes` the number for stage 1."""
        self._recipe, self._settings = recipe, recipe.model.sign2gpt
        self._first = stage == "pretrain"
        self._frozen = "none" if self._first else recipe.finetune.freeze
        self._language, self._prototypes = language, prototypes

    def __call__(self, size: StepSize) -> float:
        """Returns the FLOPs of forward and backward of the global batch."""
        signs = 0.0
        if self._settings.spatial != "signs" and self._frozen != "visual":
            signs = size.frames * self._frame() + self._sign_encoder(size)
        return signs + (self._head(size) if self._first else self._decoder(size))

    def _frame(self) -> float:
        """Returns the FLOPs of a frame, from pixels or stored features to its row of Z*."""
        settings, recipe = self._settings, self._recipe
        if recipe.vision.kind == "features":
            # The features need no gradient.
            return 2 * FROZEN * recipe.model.feature_dim * settings.width
        trained = self._frozen != "backbone"
        if settings.spatial == "resnet":
            width = encoder_width(recipe.model.backbone)
            below = frame_operations(recipe)[1] if trained else 0.0
        else:
            width, below = settings.vit_width, self._vit() if trained else 0.0
        adapted = trained and (settings.spatial == "resnet" or settings.vit_adapted > 0)
        return below + 2 * (TRAINED if adapted else FROZEN) * width * settings.width

    def _vit(self) -> float:
        """Returns the FLOPs of a frame.

        Blocks below the adapted ones run forward only; the last block computes its class token only.
        """
        g = self._settings
        D, rank = g.vit_width, g.lora_rank
        patches = (self._recipe.vision.crop // g.vit_patch) ** 2
        rows = patches + 1

        def products(queries: int) -> float:
            return 4 * D * D * (rows + queries) + 16 * D * D * queries

        def attention(queries: int) -> float:
            return 4 * D * rows * queries

        below = (g.vit_layers - g.vit_adapted) * (products(rows) + attention(rows))
        total = FORWARD * (2 * 3 * g.vit_patch**2 * D * patches + below)
        for number in range(g.vit_adapted):
            queries = 1 if number == g.vit_adapted - 1 else rows
            pairs = rows * 4 * D + queries * (2 * D + 5 * D + 5 * D)  # on qkv; on the output, fc1 and fc2
            total += FROZEN * products(queries) + TRAINED * (attention(queries) + 2 * rank * pairs)
            if number == 0:  # its input has no gradient
                total -= 2 * D * D * (2 * rows + queries)
        return total

    def _sign_encoder(self, size: StepSize) -> float:
        g = self._settings
        W, clips = g.width, max(size.clips, 1.0)

        def layer(rows: float) -> float:
            seen = min(g.window, rows / clips) if g.window else rows / clips
            return rows * (8 * W * W + 4 * W * seen + 4 * W * g.ffn)

        before = g.downsample_after or g.layers
        return TRAINED * (before * layer(size.frames) + (g.layers - before) * layer(size.visual_tokens))

    def _head(self, size: StepSize) -> float:
        width, dim = self._settings.width, self._recipe.prototypes.dim
        return size.visual_tokens * 2 * dim * (TRAINED * width + FROZEN * self._prototypes)

    def _decoder(self, size: StepSize) -> float:
        g, config = self._settings, self._language
        H, layers, clips = config.hidden_size, config.num_hidden_layers, max(size.clips, 1.0)
        heads = config.num_attention_heads
        head = getattr(config, "head_dim", None) or H // heads
        Q, KV = heads * head, (getattr(config, "num_key_value_heads", None) or heads) * head
        N, M, rank = size.visual_tokens, size.text_tokens, g.lora_rank
        feed = getattr(config, "ffn_dim", None) or config.intermediate_size
        matrices = 3 if config.model_type in _GATED else 2
        # Queries and output, keys and values, feed-forward part; scores of text and signs, and their sums over values.
        text = M * (4 * H * Q + 4 * H * KV + 2 * matrices * H * feed)
        attention = M * 4 * Q * (M + N) / clips
        signs = N * 4 * H * KV
        # A fused QKV projection has one pair of adapters, and the sign tokens pass through all of it.
        joined = config.model_type == "gpt_neox"
        inputs = H + Q + 2 * KV if joined else 3 * H + Q + 2 * KV
        pairs = M * (inputs + (Q + H) + (H + Q)) + N * 2 * (H + KV)
        if joined:
            signs += N * 2 * H * Q
        own = TRAINED if g.language_lr_scale else FROZEN
        total = layers * (own * (text + signs) + TRAINED * (attention + 2 * rank * pairs))
        if own == FROZEN:
            # The input of the first layer has no gradient, nor, where both branches see it, that of its second product.
            total -= (
                M * 2 * H * (Q + 2 * KV + (feed if getattr(config, "use_parallel_residual", False) else 0))
            )
        taught = self._frozen != "visual" and g.spatial != "signs"
        total += N * 2 * (TRAINED if taught else FROZEN) * g.width * H
        return total + own * M * 2 * H * config.vocab_size
