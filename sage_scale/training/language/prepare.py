"""Prepares a run's language model, once, in `runs/NAME/language_model/`: trimmed to the corpus, or trained on it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sage_scale.config import Recipe
from sage_scale.errors import CheckpointError, DatasetError, NoModel, RecipeError, UsageError
from sage_scale.registry import model_spec
from sage_scale.shards import HAS_SENTENCE, Dataset, read_metadata
from sage_scale.text.hub import loading, model_source
from sage_scale.text.languages import has_mbart50_code
from sage_scale.training import distributed
from sage_scale.training.distributed import Ranks, run_on_rank0
from sage_scale.training.stage_log import record_timing
from sage_scale.training.throughput import memory_mb
from sage_scale.untrusted.files import expanded
from sage_scale.untrusted.printer import tell

DONE = "prepared.json"
SAMPLE = 4000
"""Training sentences, at most, in which unknown tokens are counted before a stage begins."""
WARN_UNKNOWN, MOST_UNKNOWN = 0.02, 0.30
"""Shares of unknown tokens: a warning above the first, no training above the second."""


Meta = dict[str, Any]
"""Description of a clip: `sentence`, `pseudo_glosses`, `language`, `split` and more."""


@dataclass(frozen=True)
class LanguageModelKind:
    """The functions that make, adapt and check a model's language model (`ModelSpec.language`)."""

    published: str
    """The kind of checkpoint that `model.language_model` names, for messages."""
    make: Callable[[list[Meta], Recipe, Path, Callable[[str], None]], dict[str, Any]]
    """Trains a language model on the clips' texts into a folder (`denoise.enabled`); returns the figures to report."""
    adapt: Callable[[Callable[[], list[Meta]], Recipe, Path], dict[str, Any]]
    """Writes the recipe's language model, adapted to the texts, to a folder; returns the figures to report. Writes
    nothing if the model is used unchanged."""
    unknown: str
    """Consequence of tokens that the tokenizer does not know."""
    reads_glosses: bool = False
    """Whether it reads pseudo-glosses as well as sentences."""


def language_kind(recipe: Recipe) -> LanguageModelKind:
    """Returns the LanguageModelKind of the recipe's model."""
    return model_spec(recipe.model.kind).part("language")


def open_language_model(
    kind: Any, folder: str | Path, dtype: torch.dtype, published: str
) -> tuple[Any, str | Path]:
    """Returns the language model of a Hugging Face folder, or of a name in the local cache or hub, and its source.

    `kind` is a class of transformers, `published` its name in messages. Raises CheckpointError, with one line, where
    the model is missing or incomplete.
    """
    source = model_source(folder)
    if isinstance(source, Path) and not (source / "config.json").is_file():
        raise CheckpointError(
            f"no language model at '{source}': it has no config.json and is no Hugging Face model folder; give one "
            f"with {published}"
        )
    with loading(source):
        model, report = kind.from_pretrained(source, dtype=dtype, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"language model '{folder}' lacks {len(missing)} weights, such as {missing[0]}")
    return model, source


def check_language_model(recipe: Recipe, run: Path, datasets: Sequence[Dataset]) -> None:
    """Check, before anything is written, that the run has or can make a fitting language model (a collective).

    Raises RecipeError or CheckpointError if there is none or it does not cover the training text, DatasetError if it
    lacks a language of the datasets. Takes seconds, also without access to the hub.
    """
    spec = model_spec(recipe.model.kind)
    if spec.language is None:
        return
    if spec.language_codes:
        for dataset in datasets:
            _check_languages(dataset)
    prepared = run / "language_model"
    if (prepared / DONE).is_file():
        source: str | Path = prepared if (prepared / "config.json").is_file() else recipe.model.language_model
        run_on_rank0(lambda: _check_unknown(recipe, source, datasets))
        return
    if recipe.denoise.enabled:
        if recipe.model.language_model:
            raise RecipeError(
                f"model.language_model={recipe.model.language_model} would not be used, since denoise.enabled=true "
                "makes one from the corpus: set denoise.enabled=false, or model.language_model= to nothing"
            )
        return
    kind = language_kind(recipe).published
    if not recipe.model.language_model:
        raise RecipeError(
            f"model.language_model is empty: give a folder with {kind}, or set denoise.enabled=true"
        )
    source = model_source(recipe.model.language_model)
    if isinstance(source, Path) and not (source / "config.json").is_file():
        raise NoModel(
            f"model.language_model={source} has no config.json: give a Hugging Face folder with {kind}"
        )
    run_on_rank0(lambda: _check_unknown(recipe, source, datasets))


def _check_unknown(recipe: Recipe, source: str | Path, datasets: Sequence[Dataset]) -> None:
    """Warn where many tokens of the training sentences, or of their pseudo-glosses, are unknown to the tokenizer that
    the language model has; raise RecipeError where most of the text would be lost."""
    from sage_scale.text.tokenizer import load_tokenizer, unknown_share

    texts = [
        meta
        for dataset in datasets
        for meta in read_metadata(dataset, "train", most=-(-SAMPLE // len(datasets)))
        if meta["sentence"]
    ]
    tokenizer = load_tokenizer(source)
    shares = {"sentences": unknown_share(tokenizer, (meta["sentence"] for meta in texts))}
    if language_kind(recipe).reads_glosses and recipe.text.target == "pseudo_gloss":
        shares["pseudo-glosses"] = unknown_share(
            tokenizer, (" ".join(meta["pseudo_glosses"]) for meta in texts)
        )
    what, share = max(shares.items(), key=lambda item: item[1])
    if share <= WARN_UNKNOWN:
        return
    line = f"{share:.1%} of the tokens of the training {what} are unknown to the tokenizer of language model '{source}'"
    if share > MOST_UNKNOWN:
        raise RecipeError(
            f"{line} ({len(texts):,} clips read): it is of another language or script; give another "
            "model.language_model, or make one from the corpus with denoise.enabled=true"
        )
    tell(f"language model: warning: {line}: {language_kind(recipe).unknown}")


def _check_languages(dataset: Dataset) -> None:
    # A dataset from before languages stood in its markers tells none.
    unknown = {tag for tag in dataset.languages if tag and not has_mbart50_code(tag)}
    splits = [split for split in ("train", "dev") if split in dataset.splits]
    if not unknown or not splits:
        return
    table = dataset.samples(*splits)
    written = table.language[table.flags & HAS_SENTENCE != 0]
    counts = {
        dataset.languages[source]: int(number)
        for source, number in zip(*np.unique(written, return_counts=True))
    }
    found = sorted(unknown & counts.keys())
    if found:
        raise DatasetError(
            f"{dataset.url} has {counts[found[0]]:,} sentences in '{found[0]}' to train on, a language that mBART-50 "
            "has no code for: give the sentences' language in corpus.language or in the manifest, precompute into a "
            "new folder, or train model.kind=sign2gpt"
        )


def prepare_language_model(
    recipe: Recipe,
    run: Path,
    data: Sequence[Dataset],
    ranks: Ranks,
    say: Callable[[str], None] | None = None,
    threads: int = 0,
    share: Callable[[], None] = lambda: None,
) -> Path:
    """Returns the Hugging Face folder that both stages load; rank 0 makes it if it does not exist, with `threads`
    (0: one a core), and `share` brings it to the other hosts (`TaskContext.share`).

    With `denoise.enabled` a small model is pretrained on the training sentences; otherwise `model.language_model` is
    adapted to them, or used unchanged (`LanguageModelKind`).
    """
    folder = run / "language_model"
    failure: Exception | None = None
    waiting = distributed.long_timeout_group()
    if ranks.is_main and not (folder / DONE).is_file():
        before = torch.get_num_threads()
        torch.set_num_threads(threads or os.cpu_count() or 1)  # the other ranks wait meanwhile
        try:
            _prepare(recipe, run, folder, data, ranks, say)
        except Exception as error:
            failure = error
        finally:
            torch.set_num_threads(before)
    failed = distributed.broadcast_object(str(failure) if failure else None, waiting)
    if failure is not None:
        raise failure
    if failed is not None:
        raise CheckpointError(f"rank 0 could not prepare the language model: {failed}")
    share()
    made = (folder / "config.json").is_file()
    seen = distributed.gather_objects((made, socket.gethostname()))
    if blind := next((host for there, host in seen if there != seen[0][0]), ""):
        raise UsageError(
            f"{blind} does not see the language model that rank 0 made in {folder}: give --run a place that all hosts "
            "share, or s3://bucket/runs/NAME"
        )
    return folder if made else expanded(recipe.model.language_model)


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
    kind = language_kind(recipe)

    def texts() -> list[Meta]:
        return [meta for dataset in data for meta in read_metadata(dataset) if meta["sentence"]]

    if recipe.denoise.enabled:
        report = kind.make(texts(), recipe, partial, say or (lambda line: tell(f"language model: {line}")))
    else:
        report = kind.adapt(texts, recipe, partial)
    report["seconds"] = round(time.monotonic() - started, 1)
    (partial / DONE).write_text(
        json.dumps(report, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8"
    )
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    memory = memory_mb(ranks.device)
    record_timing(run, "language model", report["seconds"], memory, report.get("cut_short", ""))
