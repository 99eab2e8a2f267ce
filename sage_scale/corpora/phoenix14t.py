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
from sage_scale.corpora.adapters import Rows, Table, require
from sage_scale.corpora.folder import CorpusFolder
from sage_scale.corpora.manifest import Clip, Manifest
from sage_scale.untrusted.display import shortened

SPLITS = ("train", "dev", "test")
FRAMES = Path("features", "fullFrame-210x260px")
TABLES = Path("annotations", "manual")
RELEASE = ("", "PHOENIX-2014-T", "PHOENIX-2014-T-release-v3/PHOENIX-2014-T")
"""Folders of the archive around features and annotations."""
EXPECTED = f"{FRAMES.as_posix()}/ and {TABLES.as_posix()}/ as in PHOENIX-2014-T-release-v3/PHOENIX-2014-T"


def read_corpus(corpus: Corpus) -> Manifest:
    """Returns the clips of train, dev and test in the order of the published tables."""
    folder = CorpusFolder(corpus, EXPECTED)
    root = next((path for name in RELEASE if ((path := folder.root / name) / TABLES).is_dir()), None)
    if root is None:
        raise folder.fault(f"{folder.root} has no {TABLES.as_posix()}")
    tables = {split: root / TABLES / f"PHOENIX-2014-T.{split}.corpus.csv" for split in SPLITS}
    if not any(path.is_file() for path in tables.values()):
        raise folder.fault(f"no {tables['train'].name} in {root / TABLES}")
    rows = Rows()
    seen: set[str] = set()
    for split, path in tables.items():
        if not path.is_file():
            rows.notes.append((f"split without its table {path.name}", 1))
            continue
        table = Table(path, "|", ("name", "speaker", "translation"))
        for _, row in table.rows():
            name, clip, sentence = row["name"], f"{split}/{row['name']}", " ".join(row["translation"].split())
            video = root / FRAMES / split / name
            repeated = clip in seen
            seen.add(clip)
            with rows.row(clip):
                require(not repeated, "repeated-id", path.name)
                is_name = not {"/", "\\"} & set(name) and name not in ("", ".", "..")
                require(is_name, "bad-row", "not the name of a folder")
                absent = f"no folder {(FRAMES / split).as_posix()}/{shortened(name)}"
                require(os.path.isdir(video), "missing", absent)
                require(sentence, "no-sentence", path.name)
                frames = sum(entry.name.endswith(".png") for entry in os.scandir(video))
                rows.add(
                    Clip(id=clip, video=str(video), sentence=sentence, language=corpus.language,
                         signer=row["speaker"], split=split, frames=frames)
                )  # fmt: skip
        rows.rejected += table.rejected
    return rows.manifest()
