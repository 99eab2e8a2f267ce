"""Corpora and datasets of an ablation, each made once; and the digests by which runs know what they may share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from sage_scale.config import Recipe, to_yaml
from sage_scale.config.extension import FIRST_RELEASE
from sage_scale.config.reading import changed
from sage_scale.config.recipe import digest, flat, to_mapping, without_younger_defaults
from sage_scale.errors import UsageError
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.printer import tell
from sage_scale.untrusted.progress import Progress

CORPUS = "$corpus"
"""Stands for the corpus' folder in the values of a table, as in `segmentation.labels: $corpus/gold`."""


class Corpora:
    """Corpora and datasets of a home."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._digests: dict[str, str] = {}
        self._made: set[Path] = set()

    def digest(self, recipe: Recipe) -> str:
        """Returns the identity of the recipe's clips: of the synthetic corpus by its keys, else by the manifest."""
        if made_here(recipe):
            return digest({"corpus": recipe.corpus.name, **recipe.corpus_part()})
        from sage_scale.corpora.registry import read_corpus

        key = repr(recipe.corpus)
        if key not in self._digests:
            self._digests[key] = read_corpus(recipe.corpus).digest()[:16]
        return self._digests[key]

    def make(self, recipe: Recipe) -> Path:
        """Returns the folder of the recipe's corpus; the synthetic one is made, with keypoints."""
        if not made_here(recipe):
            return Path(recipe.corpus.root)
        from sage_scale.corpora.synthetic import make_corpus, write_keypoints

        root = self._home / f"corpus-{self.digest(recipe)}"
        done = root / "keypoints" / "done"
        if root not in self._made and not done.is_file():
            with Progress("clips rendered") as progress:
                make_corpus(recipe.corpus, root, progress=progress)
            with Progress("keypoints", "clips") as progress:
                write_keypoints(recipe.corpus, root, progress)
            done.touch()
        self._made.add(root)
        return root

    def dataset(self, recipe: Recipe, placed: Recipe, split: str) -> str:
        """Returns the folder of the dataset of `recipe`, made or completed by `placed`, the recipe with its paths.

        Raises UsageError where it has no clip of the split.
        """
        from sage_scale.precompute import precompute_corpus
        from sage_scale.shards import open_dataset

        folder = self._home / "shards" / digest([recipe.dataset_fingerprint(), self.digest(recipe)])
        if folder not in self._made:
            given = folder.with_suffix(".yaml")
            given.parent.mkdir(parents=True, exist_ok=True)
            given.write_text(to_yaml(placed), encoding="utf-8")
            tell(f"shards of {recipe.segmentation.tagger} segments in {folder}")
            corpus, root = placed.corpus.name, placed.corpus.root
            precompute_corpus(corpus=corpus, root=root, out=folder, recipe=given, quiet=True)
            if split not in (there := open_dataset(folder).splits):
                raise UsageError(
                    f"the table's split '{shortened(split)}' has no clip in {folder}: it has {', '.join(there)}"
                )
            self._made.add(folder)
        return str(folder)


@contextlib.contextmanager
def alone_in(home: Path) -> Iterator[None]:
    """Holds the lock of a home while what its runs share is made: a second call waits."""
    with (home / "lock").open("a") as file:
        told = False
        while not locked(file):
            if not told:
                tell(f"waiting for another `sage-scale ablate`, which makes corpus or shards in {home}")
            told = True
            time.sleep(0.5)
        yield


def locked(file: IO[str]) -> bool:
    """Returns whether this process has, or now takes, the lock of an open file; true where there are no locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True


def identity_of(recipe: Recipe, stages: Sequence[str], split: str, corpus: str) -> str:
    """Returns 16 hex digits of all that decides a run's scores: its recipe without resources and `corpus.root`, its
    stages, the scored split, and the corpus. Other paths, such as `segmentation.weights`, count as they are written."""
    values = without_younger_defaults(recipe, FIRST_RELEASE)
    for section in ("name", "precompute", "watch"):
        values.pop(section, None)
    values["corpus"].pop("root", None)
    return digest([values, list(stages), split, corpus])


def language_digest(recipe: Recipe, corpus: str) -> str:
    """Returns 16 hex digits of all that decides the language model, seeds left out."""
    parts = without_younger_defaults(recipe, FIRST_RELEASE)
    model = {key: parts["model"][key] for key in ("kind", "language_model")}
    return digest([parts["denoise"], parts["text"], model, corpus])


def made_here(recipe: Recipe) -> bool:
    """Returns whether the corpus is the synthetic one, to be made in the home."""
    return recipe.corpus.name == "synthetic" and not recipe.corpus.root


def in_place(recipe: Recipe, root: Path) -> Recipe:
    """Returns the recipe with the corpus' folder: as corpus.root, for `$corpus`, and for the keypoints of a synthetic
    corpus."""
    values: dict[str, Any] = {"corpus.root": str(root)}
    if made_here(recipe) and not recipe.vision.keypoints:
        values["vision.keypoints"] = str(root / "keypoints")
    for key, value in flat(to_mapping(recipe)).items():
        if isinstance(value, str) and CORPUS in value:
            values[key] = value.replace(CORPUS, str(root))
    return changed(recipe, values)
