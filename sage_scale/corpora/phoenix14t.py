"""The corpus `phoenix14t`: RWTH-PHOENIX-Weather 2014 T as published (release 3).

    features/fullFrame-210x260px/<split>/<name>/images0001.png ...
    annotations/manual/PHOENIX-2014-T.<split>.corpus.csv     name|video|start|end|speaker|orth|translation

25 frames a second; the files' `start` and `end` are -1. Sentences stay as they are: lower case, without full
stop. Glosses (`orth`) are not read: the training is gloss-free.
"""

from __future__ import annotations

import os
from pathlib import Path

from sage_scale.config import Corpus
from sage_scale.corpora.clip import Clip, Manifest, Rejected
from sage_scale.corpora.folders import corpus_folder
from sage_scale.corpora.tables import Table
from sage_scale.errors import UsageError
from sage_scale.untrusted.display import shortened

SPLITS = ("train", "dev", "test")
FRAMES = Path("features", "fullFrame-210x260px")
TABLES = Path("annotations", "manual")
EXPECTED = f"{FRAMES.as_posix()}/ and {TABLES.as_posix()}/ as in PHOENIX-2014-T-release-v3/PHOENIX-2014-T"


def read_corpus(corpus: Corpus) -> Manifest:
    """Returns the clips of train, dev and test in the order of the published tables."""
    root = _base(corpus_folder(corpus.root, "phoenix14t", EXPECTED))
    clips: list[Clip] = []
    rejected: list[Rejected] = []
    seen: set[str] = set()
    notes: list[tuple[str, int]] = []
    tables = [(split, root / TABLES / f"PHOENIX-2014-T.{split}.corpus.csv") for split in SPLITS]
    if not any(table.is_file() for _, table in tables):
        raise UsageError(
            f"corpus phoenix14t: no {tables[0][1].name} in {root / TABLES}; expected: {EXPECTED}"
        )
    for split, path in tables:
        if not path.is_file():
            notes.append((f"split without its table {path.name}", 1))
            continue
        table = Table(path, "|", ("name", "speaker", "translation"))
        for _, row in table.rows():
            name = f"{split}/{row['name']}"
            folder = root / FRAMES / split / row["name"]
            sentence = " ".join(row["translation"].split())
            if name in seen:
                rejected.append(Rejected(id=name, reason="repeated-id", detail=path.name))
            elif "/" in row["name"] or "\\" in row["name"] or row["name"] in ("", ".", ".."):
                rejected.append(Rejected(id=name, reason="bad-row", detail="not the name of a folder"))
            elif not os.path.isdir(folder):
                rejected.append(
                    Rejected(
                        id=name,
                        reason="missing",
                        detail=f"no folder {(FRAMES / split).as_posix()}/{shortened(row['name'])}",
                    )
                )
            elif not sentence:
                rejected.append(Rejected(id=name, reason="no-sentence", detail=path.name))
            else:
                clips.append(
                    Clip(
                        id=name,
                        video=str(folder),
                        sentence=sentence,
                        language=corpus.language,
                        signer=row["speaker"],
                        split=split,
                        frames=sum(entry.name.endswith(".png") for entry in os.scandir(folder)),
                    )
                )
            seen.add(name)
        rejected += table.rejected
    return Manifest(tuple(clips), tuple(rejected), tuple(notes))


def _base(root: Path) -> Path:
    """The folder that holds features and annotations; the release wraps it in one or two more."""
    for inner in (".", "PHOENIX-2014-T", "PHOENIX-2014-T-release-v3/PHOENIX-2014-T"):
        if (root / inner / TABLES).is_dir():
            return root / inner
    raise UsageError(f"corpus phoenix14t: {root} has no {TABLES.as_posix()}; expected: {EXPECTED}")
