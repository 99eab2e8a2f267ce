"""A tiny dataset with something to learn, and a tiny mBART of the real form, for tests of the trainer.

Each clip shows a handful of colours for a few frames each; its sentence names them. Clips differ in length, so that
ranks get unequal parts.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from factories.datasets import write_dataset
from PIL import Image
from transformers import MBartConfig, MBartForConditionalGeneration, XGLMConfig, XGLMForCausalLM

from sage_scale.config import Recipe, from_mapping, override
from sage_scale.shards import Sample, sample_key
from sage_scale.text.tokenizer import train_sentencepiece, train_xglm_tokenizer

COLOURS = {
    "rot": (220, 30, 30),
    "blau": (30, 30, 220),
    "grau": (120, 120, 120),
    "weiss": (250, 250, 250),
    "gold": (230, 190, 40),
    "lila": (150, 40, 170),
}
SIZE = 16


def tiny_recipe(kind: str = "frames", *overrides: str) -> Recipe:
    """Real classes, smallest sizes; float32 and no dropout unless overridden."""
    stage = {
        "optimizer": "sgd",
        "lr": 0.003,
        "epochs": 4,
        "batch_size": 6,
        "evaluate_every": -1,
        "save_every": -1,
    }
    recipe = from_mapping(
        {
            "name": "tiny",
            "vision": {"kind": kind, "size": SIZE, "crop": SIZE, "frame_stride": 2},
            "stream": {"lanes": 8, "window": 8},
            "text": {"trim_vocabulary": False},
            "model": {
                "backbone": {"depths": [1, 1], "widths": [8, 16]},
                "feature_dim": 12,
                "token_dim": 24,
                "context_layers": 1,
                "dropout": 0.0,
            },
            "pretrain": stage,
            "finetune": {**stage, "label_smoothing": 0.1},
            "evaluation": {"beams": 2, "max_tokens": 20, "batch_size": 8},
        }
    )
    return override(recipe, overrides)


def make_language_folder(folder: Path, width: int = 16, texts: Sequence[str] = ()) -> Path:
    """A random mBART of one layer with a tokenizer trained on `texts` (the colours), as a Hugging Face folder."""
    tokenizer = train_sentencepiece(list(texts) or [" ".join(COLOURS)] * 4 + list(COLOURS), 60)
    torch.manual_seed(0)
    config = MBartConfig(
        vocab_size=len(tokenizer),
        d_model=width,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )
    MBartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_translator(run: Path) -> Path:
    """A run whose model has learnt nothing, for videos of any size; returns its folder."""
    from sage_scale.models.sage.export import save_translator
    from sage_scale.models.sage.mbart import load_language_model
    from sage_scale.models.sage.model import SageTranslator

    language_model, tokenizer = load_language_model(make_language_folder(run / "language_model"))
    recipe = override(tiny_recipe(), ["vision.size=24", "vision.crop=16"])
    save_translator(SageTranslator(recipe, language_model), tokenizer, recipe, run / "model")
    return run


def make_sample(number: int, split: str, kind: str) -> Sample:
    """A clip of 2 to 5 colours, each shown for 6 to 10 frames."""
    rng = np.random.default_rng([number, len(split)])
    words = [list(COLOURS)[i] for i in rng.integers(0, len(COLOURS), rng.integers(2, 6))]
    lengths = rng.integers(6, 11, len(words))
    edges = np.concatenate([[0], np.cumsum(lengths)])
    segments = np.stack([edges[:-1], edges[1:]], axis=1).astype(np.int32)
    shown = np.repeat(words, lengths)
    grid = range(0, len(shown), 2)
    content: dict = {}
    if kind == "frames":
        content["frames"] = {frame: _jpeg(COLOURS[shown[frame]], rng) for frame in grid}
    else:
        base = {word: np.random.default_rng(i).standard_normal(12) for i, word in enumerate(COLOURS)}
        rows = [base[shown[frame]] + 0.1 * rng.standard_normal(12) for frame in grid]
        content["features"] = np.array(rows, dtype=np.float16)
    meta = {
        "id": f"{split}-{number}",
        "sentence": " ".join(words),
        "pseudo_glosses": words,
        "language": "de",
        "fps": 25.0,
        "frame_stride": 2,
        "frames": len(shown),
        "source": "made",
        "signer": "s1",
        "split": split,
    }
    return Sample(key=sample_key(meta["id"]), meta=meta, segments=segments, **content)


def make_shards(url: str | Path, recipe: Recipe, plan: list[tuple[str, int]]) -> str:
    """Write a dataset of (split, clips) units at `url`, which is returned as text."""
    number = itertools.count()
    units = [
        (split, [make_sample(next(number), split, recipe.vision.kind) for _ in range(clips)])
        for split, clips in plan
    ]
    write_dataset(url, units, recipe)
    return str(url)


def _jpeg(colour: tuple[int, int, int], rng: np.random.Generator) -> bytes:
    pixels = np.clip(np.array(colour) + rng.integers(-40, 41, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


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


def log_rows(run: Path, stage: str = "pretrain", event: str = "") -> list[dict]:
    """The rows of a stage's log, or those of one event."""
    rows = map(json.loads, (run / stage / "log.jsonl").read_text().splitlines())
    return [row for row in rows if event in ("", row["event"])]


def losses(run: Path, stage: str = "pretrain") -> list[float]:
    """The loss of each step."""
    return [row["loss"] for row in log_rows(run, stage, "step")]
