"""The prototypes of a run: which pseudo-glosses have one, and its vector; made once, in `RUN/pretrain/prototypes/`.

prototypes.safetensors   prototypes_UD, float32
prototypes.json          "glosses" (U, in that order), "frequent" and "missing" ones without a prototype, "settings"
cooccurrence.vec         where prototypes.vectors=cooccurrence: the vectors they were read from
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from sage_scale.config import Recipe
from sage_scale.config.recipe import to_mapping
from sage_scale.errors import CheckpointError, RecipeError
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
from sage_scale.training.distributed import on_first
from sage_scale.training.stage import TaskContext
from sage_scale.untrusted.files import expanded, read_bytes
from sage_scale.untrusted.json_values import InvalidJSON, build, parse_json_object

FOLDER = "pretrain/prototypes"
_DECIDE = ("vectors", "fasttext", "dim", "max_frequency", "splits")


@dataclass(frozen=True)
class RunPrototypes:
    """What stage 1 compares with."""

    vocabulary: PrototypeVocabulary
    prototypes_UD: Tensor
    file: Path
    """Where they lie; its hash stands in the checkpoints."""


def check_vectors(recipe: Recipe, run: Path) -> None:
    """Raise RecipeError where the recipe names no vectors, CheckpointError where their file is not there; nothing is
    written. A run that has its prototypes needs the file no more."""
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


def run_prototypes(context: TaskContext) -> RunPrototypes:
    """The run's prototypes, made by rank 0 where they are not there yet (a collective).

    Raises CheckpointError where the vectors' file is no such file.
    """
    folder = context.folder / FOLDER
    on_first(lambda: _make(context, folder), context.ranks.first)
    said = _description(folder)
    file = folder / "prototypes.safetensors"
    vocabulary = PrototypeVocabulary(tuple(said["glosses"]), tuple(said["frequent"]))
    return RunPrototypes(vocabulary, load_file(file)["prototypes_UD"], file)


def targets_of(recipe: Recipe, meta: Mapping[str, Any]) -> list[str]:
    """What a clip's prototypes are asked for: its pseudo-glosses, or, text.target=sentence, all words of its sentence
    (Sign2GPT, Table 9)."""
    if recipe.text.target == "pseudo_gloss":
        return list(meta["pseudo_glosses"])
    found = words(meta["sentence"], meta["language"])
    return [word.lower() for word in found] if recipe.text.lowercase else found


def _description(folder: Path) -> dict[str, Any]:
    path = folder / "prototypes.json"
    try:
        said = parse_json_object(read_bytes(path))
        build(PrototypeVocabulary, said)
        return said
    except (OSError, InvalidJSON) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}): delete it to have the prototypes made anew"
        ) from None


def _make(context: TaskContext, folder: Path) -> None:
    settings = context.recipe.prototypes
    decided: dict[str, Any] = {name: to_mapping(settings)[name] for name in _DECIDE}
    decided["target"] = context.recipe.text.target
    decided["datasets"] = [dataset.digest for dataset in context.datasets]
    done = folder / "prototypes.json"
    if done.is_file() and _description(folder).get("settings") == decided:
        return
    metas = [meta for dataset in context.datasets for meta in read_metadata(dataset)]
    chosen = [meta for meta in metas if meta["split"] in settings.splits]
    vocabulary = select_prototypes(
        ((meta["sentence"], targets_of(context.recipe, meta)) for meta in chosen), settings.max_frequency
    )
    missing: tuple[str, ...] = ()
    folder.mkdir(parents=True, exist_ok=True)
    if settings.vectors == "random":
        prototypes_UD = random_prototypes(vocabulary, settings.dim)
    else:
        path = Path(settings.fasttext)
        if settings.vectors == "cooccurrence":
            path = folder / "cooccurrence.vec"
            glosses = [targets_of(context.recipe, meta) for meta in metas if meta["split"] == "train"]
            write_vec(path, *cooccurrence_vectors(glosses, settings.dim))
        vocabulary, prototypes_UD, missing = fasttext_prototypes(vocabulary, path)
    save_file({"prototypes_UD": prototypes_UD.contiguous()}, folder / "prototypes.safetensors")
    said = {
        "vectors": settings.vectors,
        "settings": decided,
        "glosses": vocabulary.glosses,
        "frequent": vocabulary.frequent,
        "missing": missing,
    }
    done.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
