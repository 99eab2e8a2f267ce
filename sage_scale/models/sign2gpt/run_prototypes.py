"""The prototypes of a run: its vocabulary of pseudo-glosses and their vectors, made once in `RUN/pretrain/prototypes/`.

prototypes.safetensors   prototypes_UD, float32
prototypes.json          "glosses" (U, in row order); without a prototype: "frequent" and "missing"; "settings"
cooccurrence.vec         with prototypes.vectors=cooccurrence: the word vectors
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from sage_scale.config import Recipe
from sage_scale.config.recipe import to_mapping
from sage_scale.errors import CheckpointError, RecipeError
from sage_scale.nn.weights import write_weights
from sage_scale.shards import read_metadata
from sage_scale.text import words
from sage_scale.text.fasttext import write_vec
from sage_scale.text.prototype_vocabulary import (
    PrototypeVocabulary,
    cooccurrence_vectors,
    fasttext_prototypes,
    random_prototypes,
    select_prototypes,
)
from sage_scale.training.distributed import run_on_rank0
from sage_scale.training.stage import TaskContext
from sage_scale.untrusted.files import expanded, read_bytes
from sage_scale.untrusted.json_values import InvalidJSON, build, parse_json_object

FOLDER = "pretrain/prototypes"
_RECORDED_KEYS = ("vectors", "fasttext", "dim", "max_frequency", "splits")


@dataclass(frozen=True)
class RunPrototypes:
    """The vocabulary and the prototypes of a run's stage 1."""

    vocabulary: PrototypeVocabulary
    prototypes_UD: Tensor
    file: Path
    """File of the prototypes; checkpoints store its hash."""


def check_vectors(recipe: Recipe, run: Path) -> None:
    """Raise RecipeError if the recipe names no word vectors, CheckpointError if their file is missing.

    Writes nothing. A run that already has its prototypes does not need the file.
    """
    settings = recipe.prototypes
    if settings.vectors != "fasttext":
        return
    if not settings.fasttext:
        raise RecipeError(
            "prototypes.fasttext is empty: give the language's vectors (cc.de.300.bin of fasttext.cc), or set "
            "prototypes.vectors=cooccurrence, vectors made of the corpus itself"
        )
    made = (run / FOLDER / "prototypes.json").is_file()
    if not made and not expanded(settings.fasttext).is_file():
        raise CheckpointError(
            f"prototypes.fasttext={settings.fasttext}: there is no such file; fetch the language's vectors "
            "(cc.de.300.bin of fasttext.cc), or set prototypes.vectors=cooccurrence"
        )


def load_or_make_prototypes(context: TaskContext) -> RunPrototypes:
    """Returns the run's prototypes; rank 0 makes them if they do not exist (a collective).

    Raises CheckpointError if the file of word vectors is invalid.
    """
    folder = context.folder / FOLDER
    run_on_rank0(lambda: _make_prototypes(context, folder))
    context.share()
    description = _description(folder)
    file = folder / "prototypes.safetensors"
    vocabulary = PrototypeVocabulary(tuple(description["glosses"]), tuple(description["frequent"]))
    return RunPrototypes(vocabulary, load_file(file)["prototypes_UD"], file)


def target_glosses(recipe: Recipe, meta: Mapping[str, Any]) -> list[str]:
    """Returns the targets of a clip: its pseudo-glosses, or with text.target=sentence all words (Sign2GPT, Table 9)."""
    if recipe.text.target == "pseudo_gloss":
        return list(meta["pseudo_glosses"])
    found = words(meta["sentence"], meta["language"])
    return [word.lower() for word in found] if recipe.text.lowercase else found


def _description(folder: Path) -> dict[str, Any]:
    path = folder / "prototypes.json"
    try:
        description = parse_json_object(read_bytes(path))
        build(PrototypeVocabulary, description)
        return description
    except (OSError, InvalidJSON) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}): delete it to have the prototypes made anew"
        ) from None


def _make_prototypes(context: TaskContext, folder: Path) -> None:
    settings = context.recipe.prototypes
    settings_used: dict[str, Any] = {name: to_mapping(settings)[name] for name in _RECORDED_KEYS}
    settings_used["target"] = context.recipe.text.target
    settings_used["datasets"] = [dataset.digest for dataset in context.datasets]
    done = folder / "prototypes.json"
    if done.is_file() and _description(folder).get("settings") == settings_used:
        return
    metas = [meta for dataset in context.datasets for meta in read_metadata(dataset)]
    chosen = [meta for meta in metas if meta["split"] in settings.splits]
    vocabulary = select_prototypes(
        ((meta["sentence"], target_glosses(context.recipe, meta)) for meta in chosen), settings.max_frequency
    )
    missing: tuple[str, ...] = ()
    folder.mkdir(parents=True, exist_ok=True)
    if settings.vectors == "random":
        prototypes_UD = random_prototypes(vocabulary, settings.dim)
    else:
        path = Path(settings.fasttext)
        if settings.vectors == "cooccurrence":
            path = folder / "cooccurrence.vec"
            glosses = [target_glosses(context.recipe, meta) for meta in metas if meta["split"] == "train"]
            write_vec(path, *cooccurrence_vectors(glosses, settings.dim))
        vocabulary, prototypes_UD, missing = fasttext_prototypes(vocabulary, path)
    write_weights({"prototypes_UD": prototypes_UD.contiguous()}, folder / "prototypes.safetensors")
    description = {
        "vectors": settings.vectors,
        "settings": settings_used,
        "glosses": vocabulary.glosses,
        "frequent": vocabulary.frequent,
        "missing": missing,
    }
    done.write_text(json.dumps(description, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
