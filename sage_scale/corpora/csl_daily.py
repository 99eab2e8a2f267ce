"""The corpus `csl_daily`: CSL-Daily as published, Chinese Sign Language of daily life.

    sentence/frames_512x512/<name>/000000.jpg ...            (or sentence_frames-512x512/frames_512x512/)
    sentence_label/video_map.txt                             index|name|length|gloss|char|word|postag
    sentence_label/split_1.txt                               name|split

`name` is S<sentence>_P<signer>_T<time>. The sentence is the characters of `char` without the blanks between them;
glosses are not read. The label folder's pickle holds the same and is never opened. 30 frames a second. Where only
the cut videos were made, `sentence-crop/<name>.mp4` is taken.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sage_scale.config import Corpus
from sage_scale.corpora.adapters import SPLIT_NAMES, Rows, Table, require
from sage_scale.corpora.folder import CorpusFolder
from sage_scale.corpora.manifest import Clip, Manifest
from sage_scale.untrusted.display import shortened

EXPECTED = "sentence/frames_512x512/NAME/*.jpg and sentence_label/ with video_map.txt and split_1.txt"
TABLES = ("video_map.txt", "split_1.txt")
FRAME_FOLDERS = (
    "sentence/frames_512x512",
    "sentence_frames-512x512/frames_512x512",
    "sentence_frames-512x512",
    "frames_512x512",
)
VIDEO_FOLDERS = ("sentence-crop", "sentence/sentence-crop")
_NAME = re.compile(r"S\d+_(P\d+)_T\d+")


def read_corpus(corpus: Corpus) -> Manifest:
    """Returns the clips of train, dev and test in the order of video_map.txt."""
    folder = CorpusFolder(corpus, EXPECTED)
    labels, splits = _tables(folder)
    frames, videos = (
        next((path for name in names if (path := folder.root / name).is_dir()), None)
        for names in (FRAME_FOLDERS, VIDEO_FOLDERS)
    )
    if frames is None and videos is None:
        raise folder.fault(
            f"{folder.root} has no folder {FRAME_FOLDERS[0]} (nor {VIDEO_FOLDERS[0]}); unpack the "
            "archives of frames there"
        )
    split_table = Table(splits, "|", ("name", "split"))
    split_of = {row["name"]: row["split"] for _, row in split_table.rows()}
    table = Table(labels, "|", ("name", "length", "char"))
    rows = Rows()
    seen: set[str] = set()
    for here, row in table.rows():
        name, sentence = row["name"], "".join(row["char"].split())
        repeated = name in seen
        seen.add(name)
        with rows.row(name or here.removeprefix(f"{labels.name} ")):
            split, named = SPLIT_NAMES.get(split_of.get(name, "").lower(), ""), _NAME.fullmatch(name)
            require(named, "bad-row", f"{here}: not a name as S000007_P0003_T00")
            require(not repeated, "repeated-id", here)
            require(split, "no-split", f"{splits.name} has no train, dev or test for it")
            require(sentence, "no-sentence", here)
            video = _video(frames, videos, name)
            require(video, "missing", f"no folder {(frames or videos or folder.root).name}/{shortened(name)}")
            length = int(row["length"]) if re.fullmatch("[0-9]{1,6}", row["length"]) else 0
            rows.add(
                Clip(id=name, video=video, sentence=sentence, language=corpus.language, signer=name.split("_")[1],
                     split=split, frames=length)
            )  # fmt: skip
    for name in split_of:
        if name not in seen:
            rows.reject(name, "no-label", f"in {splits.name}, not in {labels.name}")
    rows.rejected = table.rejected + split_table.rejected + rows.rejected
    return rows.manifest()


def _tables(folder: CorpusFolder) -> tuple[Path, Path]:
    root = folder.root
    for base in (root / "sentence_label", root):
        labels, splits = (base / name for name in TABLES)
        if labels.is_file() and splits.is_file():
            return labels, splits
    absent = [name for name in TABLES if not (root / "sentence_label" / name).is_file()]
    elsewhere = folder.find(absent) if not (root / "sentence").is_dir() else {}
    hint = f"; it is in {next(iter(elsewhere.values())).parent}" if elsewhere else ""
    raise folder.fault(f"no {' and '.join(absent)} in {root / 'sentence_label'}{hint}")


def _video(frames: Path | None, videos: Path | None, name: str) -> str:
    if frames is not None and os.path.isdir(frames / name):  # also False for names that are too long
        return str(frames / name)
    if videos is not None and os.path.isfile(videos / f"{name}.mp4"):
        return str(videos / f"{name}.mp4")
    return ""
