"""A small XGLM made from the training sentences by predicting their next subword, where none can be downloaded.

Sign2GPT needs a language model that is frozen; the demo pretrains its own, as XGLM was (Lin et al. 2021, section 2), on
the training split's text alone, with words exchanged between sentences (recombine.py), which give way to the true ones.
The result is a Hugging Face folder in XGLM's form: texts are "</s> X </s>".
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import XGLMConfig, XGLMForCausalLM

from sage_scale.config import Denoise, Recipe
from sage_scale.models.sign2gpt.decoder import load_causal_model, make_texts
from sage_scale.text.tokenizer import train_xglm_tokenizer
from sage_scale.text.vocabulary import expand_vocabulary
from sage_scale.training.language.fitting import fit_new, training_rows
from sage_scale.training.language.prepare import LanguageModelKind, Meta
from sage_scale.training.language.recombine import recombine

POSITIONS = 160
"""Longest text, subwords."""
REPORT = "language.json"
_SMOOTHING = 0.1
"""Stage 2 smooths its labels as much: adapters of a model that is surer of itself would first learn to doubt."""


def make_causal_model(
    sentences: Sequence[str],
    glosses: Sequence[Sequence[str]],
    denoise: Denoise,
    folder: str | Path,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    dev: Sequence[str] = (),
) -> Path:
    """Train a SentencePiece model and a small XGLM on `sentences`; returns `folder`.

    The pseudo-glosses of each sentence say which of its words may be exchanged. The folder holds model, tokenizer and
    `language.json`: steps, seconds, final loss and, of `dev` sentences, the perplexity of a subword. Raises RecipeError
    where there is nothing to train on.
    """
    rows = training_rows(sentences, glosses, [""] * len(sentences))
    say = progress or (lambda line: None)
    true = [sentence for sentence, _, _ in rows]
    tokenizer = train_xglm_tokenizer(true, denoise.vocabulary)
    new = [s for s, _ in recombine(true, [g for _, g, _ in rows], count=20 * len(rows), seed=seed)]
    say(f"{len(true):,} sentences, {len(new):,} recombined ones")

    def measure(model: Any) -> dict[str, float]:
        if not dev:
            return {}
        with torch.no_grad():
            perplexity = round(math.exp(float(_loss(model, _batch(tokenizer, list(dev))))), 3)
        say(f"perplexity {perplexity:.2f} of a subword of dev")
        return {"dev_perplexity": perplexity}

    folder = Path(folder)
    batch_of = _Texts(tokenizer, true, new, denoise, seed).batch
    fit_new(
        lambda: XGLMForCausalLM(_config(denoise, tokenizer)), tokenizer, batch_of, _loss, measure, denoise, folder,
        REPORT, seed, say, "language",
    )  # fmt: skip
    return folder


class _Texts:
    """The sentences of each step, a function of seed and step."""

    def __init__(
        self, tokenizer: Any, true: Sequence[str], new: Sequence[str], denoise: Denoise, seed: int
    ) -> None:
        self.tokenizer, self.true, self.new, self.denoise, self.seed = tokenizer, true, new, denoise, seed

    def batch(self, step: int) -> dict[str, Tensor]:
        # Recombined sentences teach what may stand where, but some are odd: they give way to the true ones.
        chance = self.denoise.recombined * max(0.0, 1 - step / self.denoise.steps)
        rng = random.Random(f"{self.seed}/{step}")
        some = [
            rng.choice(self.new) if self.new and rng.random() < chance else rng.choice(self.true)
            for _ in range(self.denoise.batch_size)
        ]
        return _batch(self.tokenizer, some)


def _batch(tokenizer: Any, sentences: Sequence[str]) -> dict[str, Tensor]:
    labels_BL, inputs_BL = make_texts(tokenizer, sentences, POSITIONS)
    return {"input_ids_BL": inputs_BL, "labels_BL": labels_BL}


def _loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    # Texts are padded at their ends, which a causal model does not see.
    logits_BLV = model(input_ids=batch["input_ids_BL"], use_cache=False).logits
    return F.cross_entropy(
        logits_BLV.float().flatten(0, 1),
        batch["labels_BL"].flatten(),
        ignore_index=-100,
        label_smoothing=_SMOOTHING if model.training else 0.0,
    )


def _config(denoise: Denoise, tokenizer: Any) -> XGLMConfig:
    width = denoise.width
    return XGLMConfig(
        vocab_size=len(tokenizer), d_model=width, ffn_dim=4 * width, num_layers=denoise.layers,
        attention_heads=denoise.heads, max_position_embeddings=POSITIONS, dropout=denoise.dropout,
        attention_dropout=0.0, activation_dropout=0.0, layerdrop=0.0, scale_embedding=True, init_std=width**-0.5,
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, decoder_start_token_id=tokenizer.eos_token_id,
    )  # fmt: skip


def _make(texts: list[Meta], recipe: Recipe, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    train = [meta for meta in texts if meta["split"] == "train"]
    make_causal_model(
        [meta["sentence"] for meta in train],
        [list(meta["pseudo_glosses"]) for meta in train],
        recipe.denoise,
        folder,
        seed=recipe.pretrain.seed,
        progress=say,
        dev=[meta["sentence"] for meta in texts if meta["split"] == "dev"],
    )
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    return {"made": "next-subword prediction of the training sentences", **report}


def _expand(texts: Callable[[], list[Meta]], recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Adds the characters of the training sentences that the model lacks (Sign2GPT, appendix A.2)."""
    name = recipe.model.language_model
    sentences = [meta["sentence"] for meta in texts() if meta["split"] == "train"]
    model, tokenizer = load_causal_model(name, recipe.model.sign2gpt.language_dtype)
    _, _, added = expand_vocabulary(model, tokenizer, sentences, folder, seed=recipe.pretrain.seed)
    return {"used": name, "added_characters": list(added.characters)}


XGLM = LanguageModelKind(
    published="an XGLM",
    make=_make,
    adapt=_expand,
    unknown="its characters get embeddings that are never trained",
)
