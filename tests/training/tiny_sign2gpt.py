"""A tiny Sign2GPT over the tiny dataset: real classes, smallest sizes, a random XGLM of one layer."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_world import COLOURS, tiny_recipe
from transformers import XGLMConfig, XGLMForCausalLM

from sage_scale.config import Recipe
from sage_scale.text.tokenizer import train_xglm_tokenizer


def sign2gpt_recipe(kind: str = "frames", *overrides: str) -> Recipe:
    """Vision transformer with adapters, AdamW, random prototypes; float32, dropout on."""
    return tiny_recipe(
        kind,
        "model.kind=sign2gpt",
        *(
            f"model.sign2gpt.{change}"
            for change in (
                "vit_width=16", "vit_layers=2", "vit_heads=2", "vit_patch=8", "vit_image=16", "vit_adapted=1",
                "width=16", "layers=2", "downsample_after=1", "heads=2", "ffn=32", "layer_scale=0.5", "lora_rank=2",
            )
        ),
        "prototypes.vectors=random",
        "prototypes.dim=12",
        "pretrain.optimizer=adamw",
        "finetune.optimizer=adamw",
        *overrides,
    )  # fmt: skip


def make_causal_folder(folder: Path) -> Path:
    """A random XGLM of one layer with a tokenizer trained on the colours, as a Hugging Face folder."""
    tokenizer = train_xglm_tokenizer([" ".join(COLOURS)] * 4 + list(COLOURS), 60)
    torch.manual_seed(0)
    config = XGLMConfig(
        vocab_size=len(tokenizer), d_model=16, ffn_dim=32, num_layers=1, attention_heads=2,
        max_position_embeddings=64, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, layerdrop=0.0,
        init_std=0.2, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, decoder_start_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    XGLMForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
