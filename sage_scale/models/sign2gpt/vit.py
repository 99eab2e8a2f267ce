"""DINOv2 with LoRA in its top blocks (Sign2GPT, section 3.1, Figure 2 left).

The blocks below are frozen: they run without a graph, and what enters the first adapted block is all that is kept of
them. Nothing but the class token leaves, so the last block computes its queries and its feed-forward part for it alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings

from sage_scale.config import Sign2Gpt
from sage_scale.models.sign2gpt.lora import Lora, LoraLinear, RowSeeds
from sage_scale.nn.frame_encoder import IMAGENET_MEAN, IMAGENET_STD, in_chunks
from sage_scale.untrusted.files import expanded
from sage_scale.vision.packed import mix
from sage_scale.vision.pretrained_weights import load_exactly, read_dinov2_weights

LORA_STD = 0.02
"""Deviation of the pairs' first matrix in the spatial model (released code)."""
OFFSET = 0.1
"""Added to the patches of a side before positions are interpolated (DINOv2, `interpolate_offset`)."""
_SALT = 20_000


class VisionTransformer(nn.Module):
    """Frames to class tokens (F, vit_width); F may be 0."""

    def __init__(self, settings: Sign2Gpt) -> None:
        """Raises CheckpointError where `vit_weights` are missing or of another shape."""
        super().__init__()
        self.width = settings.vit_width
        self.dino = Dinov2Model(
            Dinov2Config(
                hidden_size=settings.vit_width,
                num_hidden_layers=settings.vit_layers,
                num_attention_heads=settings.vit_heads,
                patch_size=settings.vit_patch,
                image_size=settings.vit_image,
                mlp_ratio=4,
            )
        ).requires_grad_(False)
        # Kept within the module, whose forward pass ZeRO-3 gathers the positions for.
        self.dino.embeddings.__class__ = PublishedPositions
        if settings.vit_weights:
            path = expanded(settings.vit_weights)
            load_exactly(self.dino, read_dinov2_weights(path), path)
        self.frozen = settings.vit_layers - settings.vit_adapted
        """Blocks below the adapted ones."""
        self._seeds = RowSeeds()
        blocks: Any = self.dino.encoder.layer
        for number in range(self.frozen, settings.vit_layers):
            self._adapt(blocks[number], settings, _SALT + 10 * number)
        mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def _adapt(self, block: Any, settings: Sign2Gpt, salt: int) -> None:
        block.attention = AdaptedAttention(block.attention, settings, self._seeds, salt)
        for index, name in enumerate(("fc1", "fc2")):
            base = getattr(block.mlp, name)
            lora = Lora(
                base.in_features, base.out_features, settings, LORA_STD, self._seeds, salt + 2 + index
            )
            setattr(block.mlp, name, LoraLinear(base, lora))

    def frozen_blocks(self, x_FCHW: Tensor, centred: bool = False) -> Tensor:
        """Returns (F, patches + 1, width), the input of the first adapted block; no gradient.

        Frames are floats from 0 to 255, or, `centred`, their difference to a background.
        """
        if not x_FCHW.shape[0]:
            # A rank without frames goes through the same blocks, whose weights ZeRO-3 gathers in step with the others.
            return self.frozen_blocks(x_FCHW.new_zeros(1, *x_FCHW.shape[1:]), centred)[:0]
        with torch.no_grad():
            x = x_FCHW * self.scale if centred else torch.addcmul(self.shift, x_FCHW, self.scale)
            hidden_FPD = self.dino.embeddings(x)
            for block in self.dino.encoder.layer[: self.frozen]:
                hidden_FPD = block(hidden_FPD)
        return hidden_FPD

    def adapted_blocks(self, hidden_FPD: Tensor, seeds_F: Tensor | None = None) -> Tensor:
        """Returns (F, width): the class token behind the adapted blocks and the final norm."""
        self._seeds.seeds_BL = None
        if seeds_F is not None:
            position_P = torch.arange(hidden_FPD.shape[1], device=hidden_FPD.device)
            self._seeds.seeds_BL = mix(seeds_F[:, None], position_P)
        blocks: Any = list(self.dino.encoder.layer[self.frozen :])
        for number, block in enumerate(blocks, start=1):
            queries = 1 if number == len(blocks) else hidden_FPD.shape[1]
            attended = block.attention(block.norm1(hidden_FPD), queries)
            hidden_FPD = hidden_FPD[:, :queries] + block.layer_scale1(attended)
            hidden_FPD = hidden_FPD + block.layer_scale2(block.mlp(block.norm2(hidden_FPD)))
        return self.dino.layernorm(hidden_FPD[:, 0])

    def forward(self, frames: Any, count: int, seeds_F: Tensor | None, chunk: int, centred: bool) -> Tensor:
        """Returns class tokens of `count` frames, which `frames(slice)` gives; `chunk` at once, 0 for all.

        In training with chunks every rank must call it, one without frames too.
        """
        if not chunk:
            return self.adapted_blocks(self.frozen_blocks(frames(slice(0, count)), centred), seeds_F)
        if self.training and seeds_F is None:
            raise ValueError("chunks are computed twice, so their dropout needs PackedVideo.clip_seeds_B")
        with torch.no_grad():
            below_FPD = in_chunks(self, lambda rows: self.frozen_blocks(frames(rows), centred), count, chunk)

        def some(rows: slice) -> Tensor:
            return self.adapted_blocks(below_FPD[rows], None if seeds_F is None else seeds_F[rows])

        return in_chunks(self, some, count, chunk)


class PublishedPositions(Dinov2Embeddings):
    """Embeddings whose positions are interpolated as the published DINOv2 does it, to other sizes than `vit_image`.

    It scales by (patches + 0.1) / positions, which moves positions by up to 0.6% of the side; transformers scales to
    the number of patches.
    """

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        """Returns (1, patches + 1, width): the class token's position and those of the patches, row by row."""
        table_1PD = self.position_embeddings
        side = math.isqrt(table_1PD.shape[1] - 1)
        patch_height, patch_width = self.patch_embeddings.patch_size
        rows, columns = height // patch_height, width // patch_width
        if rows == columns == side:
            return table_1PD
        grid_1DHW = table_1PD[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
        scales = (rows + OFFSET) / side, (columns + OFFSET) / side
        grid_1DHW = F.interpolate(grid_1DHW, scale_factor=scales, mode="bicubic")
        return torch.cat((table_1PD[:, :1], grid_1DHW.flatten(2).transpose(1, 2).to(table_1PD.dtype)), dim=1)


class AdaptedAttention(nn.Module):
    """DINOv2's attention with one pair over the joined queries, keys and values, as its own layer is joined, and one on
    the output. transformers keeps the three apart, under whose names the frozen weights stay."""

    def __init__(self, attention: Any, settings: Sign2Gpt, seeds: RowSeeds, salt: int) -> None:
        super().__init__()
        width = attention.q_proj.in_features
        self.heads = attention.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj = attention.q_proj, attention.k_proj, attention.v_proj
        self.qkv_lora = Lora(width, 3 * width, settings, LORA_STD, seeds, salt)
        self.o_proj = LoraLinear(attention.o_proj, Lora(width, width, settings, LORA_STD, seeds, salt + 1))

    def forward(self, x_FPD: Tensor, queries: int) -> Tensor:
        """Returns (F, queries, D): of the first `queries` rows."""
        added_q, added_k, added_v = self.qkv_lora(x_FPD).chunk(3, dim=-1)
        q = self.q_proj(x_FPD[:, :queries]) + added_q[:, :queries]
        k, v = self.k_proj(x_FPD) + added_k, self.v_proj(x_FPD) + added_v
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
