"""The language model of a run: trimmed to the corpus, or made from it, once, in `runs/NAME/language_model/`."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sage_scale.config import Recipe
from sage_scale.errors import CheckpointError, DatasetError, NoModel, RecipeError
from sage_scale.shards import HAS_SENTENCE, Dataset, read_texts
from sage_scale.text.hub import model_place
from sage_scale.text.languages import has_code
from sage_scale.training import distributed
from sage_scale.training.distributed import Ranks, on_first
from sage_scale.training.stage_log import memory_mb, record_timing
from sage_scale.untrusted.files import expanded
from sage_scale.untrusted.printer import tell

DONE = "prepared.json"
SAMPLE = 4000
"""Training sentences, at most, in which unknown tokens are counted before a stage begins."""
WARN_UNKNOWN, MOST_UNKNOWN = 0.02, 0.30
"""Shares of unknown tokens: a warning above the first, no training above the second."""


def check_language_model(recipe: Recipe, run: Path, datasets: Sequence[Dataset]) -> None:
    """Raise RecipeError or CheckpointError where the run has no language model and could not get one, or one that does
    not know the training text; DatasetError where it would be asked for a language that it has not.

    A collective, before anything is written: seconds, also where a name of the hub cannot be looked up.
    """
    if recipe.model.kind == "sage":
        for dataset in datasets:
            _check_languages(dataset)
    prepared = run / "language_model"
    if (prepared / DONE).is_file():
        place: str | Path = prepared if (prepared / "config.json").is_file() else recipe.model.language_model
        on_first(lambda: _check_unknown(recipe, place, datasets), distributed.initialise().first)
        return
    if recipe.denoise.enabled:
        if recipe.model.language_model:
            raise RecipeError(
                f"model.language_model={recipe.model.language_model} would not be used, since denoise.enabled=true "
                "makes one from the corpus: set denoise.enabled=false, or model.language_model= to nothing"
            )
        return
    kind = "an XGLM" if recipe.model.kind == "sign2gpt" else "mBART-large-50"
    if not recipe.model.language_model:
        raise RecipeError(
            f"model.language_model is empty: give a folder with {kind}, or set denoise.enabled=true"
        )
    place = model_place(recipe.model.language_model)
    if isinstance(place, Path) and not (place / "config.json").is_file():
        raise NoModel(
            f"model.language_model={place} has no config.json: give a Hugging Face folder with {kind}"
        )
    on_first(lambda: _check_unknown(recipe, place, datasets), distributed.initialise().first)


def _check_unknown(recipe: Recipe, place: str | Path, datasets: Sequence[Dataset]) -> None:
    """Warn where many tokens of the training sentences, or of their pseudo-glosses, are unknown to the tokenizer that
    the language model has; raise RecipeError where most of the text would be lost."""
    from sage_scale.text.tokenizer import load_tokenizer, unknown_share

    texts = [
        meta
        for dataset in datasets
        for meta in read_texts(dataset, "train", most=-(-SAMPLE // len(datasets)))
        if meta["sentence"]
    ]
    tokenizer = load_tokenizer(place)
    shares = {"sentences": unknown_share(tokenizer, (meta["sentence"] for meta in texts))}
    if recipe.model.kind == "sage" and recipe.text.target == "pseudo_gloss":
        shares["pseudo-glosses"] = unknown_share(
            tokenizer, (" ".join(meta["pseudo_glosses"]) for meta in texts)
        )
    what, share = max(shares.items(), key=lambda item: item[1])
    if share <= WARN_UNKNOWN:
        return
    line = f"{share:.1%} of the tokens of the training {what} are unknown to the tokenizer of language model '{place}'"
    if share > MOST_UNKNOWN:
        raise RecipeError(
            f"{line} ({len(texts):,} clips read): it is of another language or script; give another "
            "model.language_model, or make one from the corpus with denoise.enabled=true"
        )
    loss = (
        "its characters get embeddings that are never trained"
        if recipe.model.kind == "sign2gpt"
        else "they cannot be learned or written"
    )
    tell(f"language model: warning: {line}: {loss}")


def _check_languages(dataset: Dataset) -> None:
    # A dataset from before languages stood in its markers tells none.
    unknown = {tag for tag in dataset.languages if tag and not has_code(tag)}
    splits = [split for split in ("train", "dev") if split in dataset.splits]
    if not unknown or not splits:
        return
    table = dataset.samples(*splits)
    written = table.language[table.flags & HAS_SENTENCE != 0]
    counts = {
        dataset.languages[place]: int(number)
        for place, number in zip(*np.unique(written, return_counts=True))
    }
    found = sorted(unknown & counts.keys())
    if found:
        raise DatasetError(
            f"{dataset.url} has {counts[found[0]]:,} sentences in '{found[0]}' to train on, a language that mBART-50 "
            "has no code for: give the sentences' language in corpus.language or in the manifest, precompute into a "
            "new place, or train model.kind=sign2gpt"
        )


def prepare_language_model(
    recipe: Recipe, run: Path, data: Sequence[Dataset], ranks: Ranks, say: Callable[[str], None] | None = None
) -> Path:
    """The Hugging Face folder that both stages load; made by rank 0 where it is not there yet.

    With `denoise.enabled` a small mBART (Sign2GPT: XGLM) is pretrained on the training sentences; otherwise
    `model.language_model` is trimmed to the training sentences and lemmas (`text.trim_vocabulary`) or
    used as it is; Sign2GPT's, which is frozen, gets the characters that it lacks.
    """
    folder = run / "language_model"
    failure: Exception | None = None
    waiting = distributed.long_timeout_group()
    if ranks.first and not (folder / DONE).is_file():
        threads = torch.get_num_threads()
        torch.set_num_threads(os.cpu_count() or 1)  # the other ranks wait meanwhile
        try:
            _prepare(recipe, run, folder, data, ranks, say)
        except Exception as error:
            failure = error
        finally:
            torch.set_num_threads(threads)
    failed = distributed.from_first(str(failure) if failure else None, waiting)
    if failure is not None:
        raise failure
    if failed is not None:
        raise CheckpointError(f"rank 0 could not prepare the language model: {failed}")
    if (folder / "config.json").is_file():
        return folder
    return expanded(recipe.model.language_model)


def _prepare(
    recipe: Recipe,
    run: Path,
    folder: Path,
    data: Sequence[Dataset],
    ranks: Ranks,
    say: Callable[[str], None] | None,
) -> None:
    started = time.monotonic()
    partial = folder.with_name("language_model.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    texts: list[dict[str, Any]] = []
    causal = recipe.model.kind == "sign2gpt"
    if recipe.denoise.enabled or recipe.text.trim_vocabulary or causal:
        texts = [meta for dataset in data for meta in read_texts(dataset) if meta["sentence"]]
    train = [meta for meta in texts if meta["split"] == "train"]
    sentences = [meta["sentence"] for meta in train]
    glosses = [list(meta["pseudo_glosses"]) for meta in train]
    report: dict[str, Any] = {}
    if recipe.denoise.enabled and causal:
        from sage_scale.training.language.causal_model import make_causal_model

        make_causal_model(
            sentences,
            glosses,
            recipe.denoise,
            partial,
            seed=recipe.pretrain.seed,
            progress=say or (lambda line: tell(f"language model: {line}")),
            dev=[meta["sentence"] for meta in texts if meta["split"] == "dev"],
        )
        report["made"] = "next-subword prediction of the training sentences"
    elif recipe.denoise.enabled:
        from sage_scale.training.language.language_model import make_language_model

        dev = [meta for meta in texts if meta["split"] == "dev"]
        make_language_model(
            sentences,
            glosses,
            recipe.denoise,
            partial,
            [meta["language"] or recipe.corpus.language for meta in train],
            seed=recipe.pretrain.seed,
            progress=say or (lambda line: tell(f"language model: {line}")),
            dev=([meta["sentence"] for meta in dev], [meta["pseudo_glosses"] for meta in dev])
            if dev
            else None,
            dev_language=[meta["language"] or recipe.corpus.language for meta in dev],
        )
        report["made"] = "denoising of the training sentences"
    elif causal:
        report["used"] = recipe.model.language_model
        report["added_characters"] = _add_characters(recipe, sentences, partial)
    elif recipe.text.trim_vocabulary:
        from sage_scale.text.vocabulary import trim_vocabulary

        check = {name: [m["sentence"] for m in texts if m["split"] == name] for name in ("dev", "test")}
        lemmas = {gloss for clip in glosses for gloss in clip}
        trimmed = trim_vocabulary(
            recipe.model.language_model,
            partial,
            sentences,
            sorted(lemmas),
            recipe.corpus.language,
            check=check,
        )
        report["trimmed"] = asdict(trimmed)
    else:
        report["used"] = recipe.model.language_model
    if recipe.denoise.enabled:
        report |= json.loads(
            (partial / ("language.json" if causal else "denoise.json")).read_text(encoding="utf-8")
        )
    report["seconds"] = round(time.monotonic() - started, 1)
    (partial / DONE).write_text(
        json.dumps(report, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8"
    )
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    memory = memory_mb(ranks.device)
    record_timing(run, "language model", report["seconds"], memory, report.get("cut_short", ""))


def _add_characters(recipe: Recipe, sentences: Sequence[str], folder: Path) -> list[str]:
    """Characters of the training sentences that a causal model lacks; where there are any, it is written to `folder`
    with them (Sign2GPT, appendix A.2)."""
    from sage_scale.models.sign2gpt import load_causal_model
    from sage_scale.text.expansion import expand_vocabulary

    name = recipe.model.language_model
    model, tokenizer = load_causal_model(name, recipe.model.sign2gpt.language_dtype)
    _, _, added = expand_vocabulary(model, tokenizer, sentences, folder, seed=recipe.pretrain.seed)
    return list(added.characters)
