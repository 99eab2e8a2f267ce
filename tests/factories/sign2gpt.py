"""What the tests of Sign2GPT share: small recipes, clips, and small language models of every form that is adapted."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from factories import models
from torch import nn
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    XGLMConfig,
    XGLMForCausalLM,
    XGLMTokenizer,
)

from sage_scale.config import Recipe, from_mapping
from sage_scale.config.sign2gpt import Sign2Gpt
from sage_scale.vision.packed import PackedVideo

SMALL = {
    "vit_width": 16, "vit_layers": 3, "vit_heads": 2, "vit_patch": 4, "vit_image": 24, "vit_adapted": 2,
    "width": 16, "layers": 4, "heads": 2, "ffn": 32, "layer_scale": 0.7, "lora_rank": 2, "lora_alpha": 3.0,
}  # fmt: skip
"""LayerScale starts large, so that every part of the sign encoder shows in what it gives."""
FRAMES = (7, 12, 1)
"""Frames of the clips of `video`."""


def settings(**changed: Any) -> Sign2Gpt:
    return Sign2Gpt(**{**SMALL, **changed})


def recipe(kind: str = "frames", feature_dim: int = 5, **changed: Any) -> Recipe:
    model = {"kind": "sign2gpt", "feature_dim": feature_dim, "sign2gpt": {**SMALL, **changed}}
    model["backbone"] = {"depths": [1, 1], "widths": [4, 6]}
    return from_mapping(
        {"vision": {"size": 20, "crop": 16, "kind": kind}, "model": model, "prototypes": {"dim": 6}}
    )


def video(clips: tuple[int, ...] = (0, 1, 2), kind: str = "frames") -> PackedVideo:
    """Some of the clips of FRAMES, each one segment, with pictures or features and a draw of its own."""
    return models.video(clips, kind, lengths=[[frames] for frames in FRAMES])


@cache
def xglm_tokenizer() -> XGLMTokenizer:
    """XGLM's class over a unigram model of a few sentences."""
    return XGLMTokenizer(vocab=models.unigram(models.SENTENCES))


def language_model(kind: str, seed: int = 5) -> Any:
    """A small model of a form, with weights large enough to show; three layers, four heads."""
    torch.manual_seed(seed)
    words = len(xglm_tokenizer())
    common = {"vocab_size": words, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    if kind == "xglm":
        config = XGLMConfig(
            d_model=16, ffn_dim=24, num_layers=3, attention_heads=4, max_position_embeddings=64, init_std=0.3,
            scale_embedding=False, **common
        )  # fmt: skip
        return XGLMForCausalLM(config).eval()
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24}
    more = {**sizes, "max_position_embeddings": 64, "initializer_range": 0.3, **common}
    if kind == "gpt_neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(**more)).eval()
    config, model = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
        "mistral": (MistralConfig, MistralForCausalLM),
    }[kind]
    return model(config(**more, num_key_value_heads=2)).eval()


def moved(module: nn.Module, seed: int = 9) -> nn.Module:
    """Trained parameters, LoRA's zeros and gates among them, somewhere else than where they start."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and not name.endswith(("tau_time", "tau_class")):
            noise = 0.3 * torch.rand(parameter.shape, generator=generator)
            parameter.data.add_(noise if name.endswith("gate") else noise - 0.15)
    return module
