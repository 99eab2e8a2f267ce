"""The corpus `csl_news`: CSL-News as published, Chinese Sign Language of news with the spoken sentences.

    CSL_News_Labels.json     a list of {"video": "Common-Concerns_20201113_0-287_14330.mp4", "pose": ..., "text": ...}
    archive_001.zip ...      436 archives of mp4 files, as they are or unpacked

The label file and the videos are found by name, in whatever folders they lie, else in the archives, which are read in
place (vision/archives.py). No split is published: broadcasts (programme and date, the name up to the interval) are
divided by their hash (corpora/splits.py). The interval in a name is in frames of the broadcast; it serves for
planning alone.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

from sage_scale.config import Corpus
from sage_scale.corpora.clip import Clip, Manifest, Rejected
from sage_scale.corpora.folders import corpus_folder, table_text
from sage_scale.corpora.media import VIDEO_SUFFIXES, MediaIndex, file_key, find_files
from sage_scale.corpora.splits import split_of
from sage_scale.errors import UsageError
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import open_regular, text_fault

LABELS = "CSL_News_Labels.json"
EXPECTED = f"{LABELS} and the archives, or their mp4 files, below one folder"
_INTERVAL = re.compile(r"_(\d{1,9})-(\d{1,9})_\d+$")


def read_corpus(corpus: Corpus) -> Manifest:
    """The labelled clips in the order of the label file."""
    root = corpus_folder(corpus.root, "csl_news", EXPECTED)
    path = find_files(root, (LABELS,)).get(LABELS)
    if path is None:
        raise UsageError(f"corpus csl_news: no {LABELS} below {root}; expected: {EXPECTED}")
    rows = _rows(path)
    media = MediaIndex(root)
    packed, broken = _packed(media.archives)
    videos = {**packed, **media.videos}
    if not videos:
        raise UsageError(f"corpus csl_news: no video below {root}; expected: {EXPECTED}")
    clips: dict[str, Clip] = {}
    rejected: list[Rejected] = []
    for number, row in enumerate(rows, start=1):
        here = f"{path.name} entry {number}"
        video, text = (row.get("video"), row.get("text")) if isinstance(row, dict) else (None, None)
        if not isinstance(video, str) or not isinstance(text, str) or not video:
            rejected.append(Rejected(id=here, reason="bad-row", detail="no video and text"))
            continue
        if fault := text_fault(video + text):
            rejected.append(Rejected(id=here, reason="bad-row", detail=fault))
            continue
        name = file_key(Path(video.replace("\\", "/")).stem)
        sentence = " ".join(text.split())
        if name in clips:
            rejected.append(Rejected(id=name, reason="repeated-id", detail=here))
        elif not sentence:
            rejected.append(Rejected(id=name, reason="no-sentence", detail=here))
        elif name not in videos:
            rejected.append(Rejected(id=name, reason="missing", detail=f"no {shortened(name)}.mp4"))
        else:
            named = _INTERVAL.search(name)
            group = name[: named.start()].rstrip("_") if named else ""
            clips[name] = Clip(
                id=name,
                video=videos[name],
                sentence=sentence,
                language=corpus.language,
                split=split_of(group or name, corpus.dev_share, corpus.test_share),
                frames=max(0, int(named[2]) - int(named[1])) if named else 0,
            )
    if any(row.reason == "missing" for row in rejected):  # else everything lies there unpacked as well
        rejected += [
            Rejected(
                id=archive.name,
                reason="unfinished-download",
                detail="not a whole zip archive: download it again",
            )
            for archive in broken
        ]
    return Manifest(tuple(clips.values()), tuple(rejected))


def _rows(path: Path) -> list[Any]:
    def ignored(_: str) -> None:  # no number is read, whatever its size
        return None

    try:
        rows = json.loads(table_text(path), parse_int=ignored, parse_float=ignored, parse_constant=ignored)
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply; download it again") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not whole JSON ({error}); download it again") from None
    if not isinstance(rows, list):
        raise UsageError(f"{path}: expected a list of video, pose and text")
    return rows


def _packed(archives: list[Path]) -> tuple[dict[str, str], list[Path]]:
    """Name of a clip -> path through the zip archive that holds it; and the zip archives that cannot be listed."""
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
