"""Glosses of clips, which stage 2 reads in place of visual tokens (`finetune.glosses`): the ceiling of translation."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sage_scale.config import Recipe
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import UsageError
from sage_scale.shards import Dataset, read_metadata
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import expanded, is_file, is_folder, read_bytes
from sage_scale.untrusted.json_values import InvalidJSON, parse_json_object
from sage_scale.untrusted.printer import tell


class GoldGlosses:
    """Glosses by clip, from a folder of gold files (`signs` with `gloss`) or a table of glossed sentences."""

    def __init__(self, source: str, lowercase: bool) -> None:
        """Raises UsageError where there is neither a folder nor a readable table of this name."""
        path = expanded(source)
        self.path = path / "gold" if is_folder(path / "gold") else path
        self.lowercase = lowercase
        self._table: dict[str, Sequence[str]] | None = None
        self._texts: dict[str, str] = {}
        if is_file(self.path):
            from sage_scale.corpora.acted.table import read_gloss_tables

            try:
                self._table = {row.id: row.glosses for row in read_gloss_tables([self.path], "und").rows}
            except UsageError as error:
                raise UsageError(f"finetune.glosses: {str(error).removeprefix('--table ')}") from None
        elif not is_folder(self.path):
            raise UsageError(f"finetune.glosses: there is no {shortened(self.path, 300)}")

    def text(self, meta: Mapping[str, Any]) -> str:
        """Returns the glosses of a clip between blanks, given its description; empty where there are none."""
        name = str(meta["id"])
        if name not in self._texts:
            glosses = " ".join(self._glosses(Clip(id=name, video=meta["source"], split=meta["split"])))
            self._texts[name] = glosses.lower() if self.lowercase else glosses
        return self._texts[name]

    def _glosses(self, clip: Clip) -> Sequence[str]:
        from sage_scale.segmentation.label_files import clip_names  # with PyAV, which training does without
        from sage_scale.segmentation.precomputed import file_of

        if self._table is not None:
            names = clip_names(clip.id, clip.split)
            return next((self._table[name] for name in names if name in self._table), ())
        file = file_of(self.path, clip, (".json",))
        return () if file is None else _signs_of(file)


def gold_glosses(recipe: Recipe) -> GoldGlosses | None:
    """Returns the reader of `finetune.glosses`; None where stage 2 reads visual tokens."""
    source = recipe.finetune.glosses
    return _opened(source, recipe.text.lowercase) if source else None


def check_glosses(recipe: Recipe, datasets: Sequence[Dataset]) -> None:
    """Raise UsageError where no clip has glosses; a line says how many have none, which are read as nothing."""
    glosses = gold_glosses(recipe)
    if glosses is None:
        return
    metas = [meta for dataset in datasets for meta in read_metadata(dataset) if meta["sentence"]]
    lacking = [meta["id"] for meta in metas if not glosses.text(meta)]
    if not lacking:
        return
    line = (
        f"finetune.glosses: {shortened(glosses.path, 300)} has none for {len(lacking):,} of {len(metas):,} clips, the "
        f"first: '{shortened(lacking[0])}'"
    )
    if len(lacking) == len(metas):
        raise UsageError(line)
    tell(line)


@functools.lru_cache(maxsize=1)
def _opened(source: str, lowercase: bool) -> GoldGlosses:
    return GoldGlosses(source, lowercase)


def _signs_of(file: Path) -> list[str]:
    try:
        signs = parse_json_object(read_bytes(file)).get("signs", [])
    except (OSError, InvalidJSON):
        return []
    named = (sign.get("gloss") for sign in signs if isinstance(sign, dict)) if isinstance(signs, list) else ()
    return [gloss for gloss in named if isinstance(gloss, str)]
