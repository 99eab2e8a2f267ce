"""The corpus `csl_news`: CSL-News as published, Chinese Sign Language of news with the spoken sentences.

    CSL_News_Labels.json     a list of {"video": "Common-Concerns_20201113_0-287_14330.mp4", "pose": ..., "text": ...}
    archive_001.zip ...      436 archives of mp4 files, as they are or unpacked

The label file and the videos are found by name, in any folders, else in the archives, which are read in place
(vision/archives.py). No split is published: broadcasts (programme and date, the name up to the interval) are divided by
their hash. The interval in a name is in frames of the broadcast; it serves for planning alone.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

from sage_scale.config import Corpus
from sage_scale.corpora.adapters import Rows, hash_split, require
from sage_scale.corpora.folder import VIDEO_SUFFIXES, CorpusFolder, MediaIndex, file_key, table_text
from sage_scale.corpora.manifest import Clip, Manifest
from sage_scale.errors import UsageError
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import open_regular, text_fault

LABELS = "CSL_News_Labels.json"
EXPECTED = f"{LABELS} and the archives, or their mp4 files, below one folder"
_INTERVAL = re.compile(r"_(\d{1,9})-(\d{1,9})_\d+$")


def read_corpus(corpus: Corpus) -> Manifest:
    """Returns the labelled clips in the order of the label file."""
    folder = CorpusFolder(corpus, EXPECTED)
    path = folder.table(LABELS)
    entries = _entries(path)
    media = MediaIndex(folder.root)
    packed, broken = _packed(media.archives)
    videos = {**packed, **media.videos}
    if not videos:
        raise folder.fault(f"no video below {folder.root}")
    rows = Rows()
    for number, entry in enumerate(entries, start=1):
        here = f"{path.name} entry {number}"
        video, text = (entry.get("video"), entry.get("text")) if isinstance(entry, dict) else (None, None)
        if not isinstance(video, str) or not isinstance(text, str) or not video:
            rows.reject(here, "bad-row", "no video and text")
            continue
        if fault := text_fault(video + text):
            rows.reject(here, "bad-row", fault)
            continue
        name, sentence = file_key(Path(video.replace("\\", "/")).stem), " ".join(text.split())
        with rows.row(name):
            require(name not in rows.clips, "repeated-id", here)
            require(sentence, "no-sentence", here)
            require(name in videos, "missing", f"no {shortened(name)}.mp4")
            named = _INTERVAL.search(name)
            broadcast = name[: named.start()].rstrip("_") if named else ""
            split = hash_split(broadcast or name, corpus.dev_share, corpus.test_share)
            frames = max(0, int(named[2]) - int(named[1])) if named else 0
            rows.add(
                Clip(id=name, video=videos[name], sentence=sentence, language=corpus.language, split=split,
                     frames=frames)
            )  # fmt: skip
    if any(row.reason == "missing" for row in rows.rejected):  # else all videos are unpacked as well
        for archive in broken:
            rows.reject(archive.name, "unfinished-download", "not a whole zip archive: download it again")
    return rows.manifest()


def _entries(path: Path) -> list[Any]:
    def ignored(_: str) -> None:  # no number is read, whatever its size
        return None

    try:
        entries = json.loads(table_text(path), parse_int=ignored, parse_float=ignored, parse_constant=ignored)
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply; download it again") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not whole JSON ({error}); download it again") from None
    if not isinstance(entries, list):
        raise UsageError(f"{path}: expected a list of video, pose and text")
    return entries


def _packed(archives: list[Path]) -> tuple[dict[str, str], list[Path]]:
    """Returns name of a clip -> path through the zip archive that holds it, and the archives that cannot be listed."""
    packed: dict[str, str] = {}
    broken: list[Path] = []
    for archive in archives:
        if archive.suffix.lower() != ".zip":
            continue
        try:
            with open_regular(archive) as file, zipfile.ZipFile(file) as opened:
                names = opened.namelist()
        except (zipfile.BadZipFile, NotImplementedError, OSError):
            broken.append(archive)
            continue
        for member in names:
            stem, suffix = os.path.splitext(member.rpartition("/")[2])
            if suffix.lower() in VIDEO_SUFFIXES:
                packed.setdefault(file_key(stem), f"{archive}/{member}")
    return packed, broken
