"""A small mBART made from the training sentences by denoising, for machines that can download none.

A random frozen text encoder would make both levels of the alignment meaningless, so the demo first pretrains its
own language model, as mBART was (Liu et al. 2020, section 2: text infilling and permutation), on the training
split's text alone. One more noise function belongs to it: a sentence reduced to its pseudo-glosses, which drops
function words and inflection. So the encoder learns to read content lemmas, which is what the visual tokens are
aligned with, and the decoder learns to make sentences of them. Words exchanged between the training sentences
(recombine.py) keep it from learning the few hundred sentences by heart. Figures: docs/results/language_model.md.

The result is a Hugging Face folder in mBART-50's form, opened like mBART-large-50: labels "lang X </s>", the
decoder starts with </s>, and generation is forced to begin with the language code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import MBartConfig, MBartForConditionalGeneration

from sage_scale.config import Denoise, Recipe
from sage_scale.evaluation import score
from sage_scale.models.sage.mbart import language_id
from sage_scale.text.tokenizer import encode_texts, train_sentencepiece
from sage_scale.training.language.fitting import fit_new, training_rows
from sage_scale.training.language.noise import Example, Noise, Units, padded, units
from sage_scale.training.language.prepare import LanguageModelKind, Meta
from sage_scale.training.language.recombine import recombine

POSITIONS = 320
"""Longest input and output, subwords; more than `evaluation.max_tokens`, and than the segments of a demo clip."""
REPORT = "denoise.json"
_SMOOTHING = 0.1


def make_language_model(
    sentences: Sequence[str],
    glosses: Sequence[Sequence[str]],
    denoise: Denoise,
    folder: str | Path,
    language: str | Sequence[str] = "de",
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    dev: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None,
    dev_language: str | Sequence[str] | None = None,
) -> Path:
    """Train a SentencePiece model and a small mBART on `sentences` and their pseudo-glosses; returns `folder`.

    `language` (BCP 47) is that of all sentences, or one of each; `dev_language` the same of those of `dev`.
    The folder holds model, tokenizer and `denoise.json`: steps, seconds, final loss and, where `dev` (sentences,
    glosses) is given, the BLEU-4 of its sentences made from their glosses. Raises RecipeError where there is nothing to
    train on.
    """
    tags = [language] * len(sentences) if isinstance(language, str) else language
    rows = training_rows(sentences, glosses, tags)
    pairs, spoken = [(sentence, row) for sentence, row, _ in rows], [tag for _, _, tag in rows]
    say = progress or (lambda line: None)
    lemmas = sorted({lemma for _, row in pairs for lemma in row})
    tokenizer = train_sentencepiece(
        [*(sentence for sentence, _ in pairs), *lemmas], denoise.vocabulary, spoken[0]
    )
    codes = {tag: language_id(tokenizer, tag) for tag in spoken}
    new, new_spoken = [], []
    for tag in dict.fromkeys(spoken):  # words are exchanged within a language
        some = [pair for pair, other in zip(pairs, spoken) if other == tag]
        made = recombine([s for s, _ in some], [g for _, g in some], count=20 * len(some), seed=seed)
        new += made
        new_spoken += [tag] * len(made)
    say(f"{len(pairs):,} sentences, {len(new):,} recombined ones")
    noise = Noise(
        _examples(tokenizer, pairs), _examples(tokenizer, new), codes[spoken[0]], tokenizer, denoise, seed, POSITIONS,
        ([codes[tag] for tag in spoken], [codes[tag] for tag in new_spoken]),
    )  # fmt: skip

    def measure(model: Any) -> dict[str, float]:
        model.generation_config.forced_bos_token_id = codes[spoken[0]]
        if dev is None or not len(dev[0]):
            return {}
        asked = dev_language or spoken[0]
        tags = [asked] * len(dev[0]) if isinstance(asked, str) else list(asked)
        hypotheses = [""] * len(tags)
        for tag in dict.fromkeys(tags):
            rows = [row for row, other in enumerate(tags) if other == tag]
            code = language_id(tokenizer, tag)
            written = sentences_from_glosses(model, tokenizer, [dev[1][row] for row in rows], code)
            for row, sentence in zip(rows, written, strict=True):
                hypotheses[row] = sentence
        bleu4 = round(score(hypotheses, list(dev[0]), tags)["bleu4"], 2)
        say(f"BLEU-4 {bleu4} from the pseudo-glosses of dev")
        return {"dev_gloss_to_text_bleu4": bleu4}

    folder = Path(folder)
    fit_new(
        lambda: MBartForConditionalGeneration(_config(denoise, tokenizer)), tokenizer, noise.batch, _loss, measure,
        denoise, folder, REPORT, seed, say, "denoising",
    )  # fmt: skip
    return folder


@torch.no_grad()
def sentences_from_glosses(
    model: Any,
    tokenizer: Any,
    glosses: Sequence[Sequence[str]],
    code: int,
    beams: int = 4,
    batch: int = 32,
) -> list[str]:
    """Returns what the language model makes of pseudo-glosses alone, the ceiling of a translator that finds them all;
    `code` is the id of the language's code."""
    texts: list[str] = []
    for start in range(0, len(glosses), batch):
        rows = encode_texts(tokenizer, [" ".join(row) for row in glosses[start : start + batch]])
        inputs = padded(
            [[code, *row[: POSITIONS - 2], tokenizer.eos_token_id] for row in rows],
            tokenizer.pad_token_id,
        )
        ids = model.generate(
            inputs,
            attention_mask=inputs.ne(tokenizer.pad_token_id).long(),
            num_beams=beams,
            max_new_tokens=150,
            forced_bos_token_id=code,
            do_sample=False,
        )
        texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts


def _examples(tokenizer: Any, pairs: Sequence[tuple[str, Sequence[str]]]) -> list[Example]:
    lemmas: dict[str, Units] = {}  # a few thousand, each in many sentences
    for _, row in pairs:
        lemmas |= {lemma: units(tokenizer, lemma) for lemma in row if lemma not in lemmas}
    return [(units(tokenizer, sentence), [lemmas[lemma] for lemma in row]) for sentence, row in pairs]


def _config(denoise: Denoise, tokenizer: Any) -> MBartConfig:
    width, layers, heads = denoise.width, denoise.layers, denoise.heads
    # mBART's deviation of .02 suits a width of 1,024. Here attention would start flat and reading a lemma off the
    # encoder, instead of guessing it, would be learnt late or, within these few steps, by some seeds not at all.
    return MBartConfig(
        vocab_size=len(tokenizer), d_model=width, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width, max_position_embeddings=POSITIONS, dropout=denoise.dropout,
        attention_dropout=0.0, activation_dropout=0.0, scale_embedding=True, use_cache=True,
        bos_token_id=tokenizer.bos_token_id or 0, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id, init_std=width**-0.5,
    )  # fmt: skip


def _loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    logits_BLV = model(
        input_ids=batch["input_ids_BM"],
        attention_mask=batch["mask_BM"],
        decoder_input_ids=batch["decoder_input_ids_BL"],
        use_cache=False,
    ).logits
    return F.cross_entropy(
        logits_BLV.float().flatten(0, 1),
        batch["labels_BL"].flatten(),
        ignore_index=-100,
        label_smoothing=_SMOOTHING,
    )


def _make(texts: list[Meta], recipe: Recipe, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    train, dev = ([meta for meta in texts if meta["split"] == split] for split in ("train", "dev"))
    make_language_model(
        [meta["sentence"] for meta in train],
        [list(meta["pseudo_glosses"]) for meta in train],
        recipe.denoise,
        folder,
        [meta["language"] or recipe.corpus.language for meta in train],
        seed=recipe.pretrain.seed,
        progress=say,
        dev=([meta["sentence"] for meta in dev], [meta["pseudo_glosses"] for meta in dev]) if dev else None,
        dev_language=[meta["language"] or recipe.corpus.language for meta in dev],
    )
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    return {"made": "denoising of the training sentences", **report}


def _trim(texts: Callable[[], list[Meta]], recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Trims the vocabulary to the training sentences and lemmas (`text.trim_vocabulary`)."""
    if not recipe.text.trim_vocabulary:
        return {"used": recipe.model.language_model}
    from sage_scale.text.vocabulary import trim_vocabulary

    metas = texts()
    train = [meta for meta in metas if meta["split"] == "train"]
    trimmed = trim_vocabulary(
        recipe.model.language_model,
        folder,
        [meta["sentence"] for meta in train],
        sorted({gloss for meta in train for gloss in meta["pseudo_glosses"]}),
        recipe.corpus.language,
        check={name: [m["sentence"] for m in metas if m["split"] == name] for name in ("dev", "test")},
    )
    return {"trimmed": asdict(trimmed)}


MBART = LanguageModelKind(
    published="mBART-large-50",
    make=_make,
    adapt=_trim,
    unknown="they cannot be learned or written",
    reads_glosses=True,
)
