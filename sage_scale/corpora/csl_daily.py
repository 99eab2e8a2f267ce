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
from sage_scale.corpora.clip import Clip, Manifest, Rejected
from sage_scale.corpora.folders import corpus_folder
from sage_scale.corpora.media import find_files
from sage_scale.corpora.splits import NAMES
from sage_scale.corpora.tables import Table
from sage_scale.errors import UsageError
from sage_scale.untrusted.display import shortened

EXPECTED = "sentence/frames_512x512/NAME/*.jpg and sentence_label/ with video_map.txt and split_1.txt"
FRAME_FOLDERS = (
    "sentence/frames_512x512",
    "sentence_frames-512x512/frames_512x512",
    "sentence_frames-512x512",
    "frames_512x512",
)
VIDEO_FOLDERS = ("sentence-crop", "sentence/sentence-crop")
_NAME = re.compile(r"S\d+_(P\d+)_T\d+")


def read_corpus(corpus: Corpus) -> Manifest:
    """The clips of train, dev and test in the order of video_map.txt; each named folder is looked up once."""
    root = corpus_folder(corpus.root, "csl_daily", EXPECTED)
    labels, splits = _labels(root)
    frames = next((root / place for place in FRAME_FOLDERS if (root / place).is_dir()), None)
    videos = next((root / place for place in VIDEO_FOLDERS if (root / place).is_dir()), None)
    if frames is None and videos is None:
        raise UsageError(
            f"corpus csl_daily: {root} has no folder {FRAME_FOLDERS[0]} (nor {VIDEO_FOLDERS[0]}); unpack the "
            f"archives of frames there; expected: {EXPECTED}"
        )
    split_table = Table(splits, "|", ("name", "split"))
    split_of = {row["name"]: row["split"] for _, row in split_table.rows()}
    table = Table(labels, "|", ("name", "length", "char"))
    clips: dict[str, Clip] = {}
    rejected: list[Rejected] = []
    seen: set[str] = set()
    for number, row in table.rows():
        name, split = row["name"], NAMES.get(split_of.get(row["name"], "").lower(), "")
        sentence = "".join(row["char"].split())
        named = _NAME.fullmatch(name)
        reason = detail = ""
        place = None
        if not named:
            reason, detail = "bad-row", f"{labels.name} line {number}: not a name as S000007_P0003_T00"
        elif name in seen:
            reason, detail = "repeated-id", f"{labels.name} line {number}"
        elif not split:
            reason, detail = "no-split", f"{splits.name} has no train, dev or test for it"
        elif not sentence:
            reason, detail = "no-sentence", f"{labels.name} line {number}"
        else:
            place = _place(frames, videos, name)
            if place is None:
                reason, detail = "missing", f"no folder {(frames or videos or root).name}/{shortened(name)}"
        seen.add(name)
        if reason or place is None or named is None:
            rejected.append(Rejected(id=name or f"line {number}", reason=reason, detail=detail))
            continue
        clips[name] = Clip(
            id=name,
            video=str(place),
            sentence=sentence,
            language=corpus.language,
            signer=named[1],
            split=split,
            frames=int(row["length"]) if re.fullmatch("[0-9]{1,6}", row["length"]) else 0,
        )
    rejected += [
        Rejected(id=name, reason="no-label", detail=f"in {splits.name}, not in {labels.name}")
        for name in split_of
        if name not in seen
    ]
    return Manifest(tuple(clips.values()), tuple(table.rejected + split_table.rejected + rejected))


def _labels(root: Path) -> tuple[Path, Path]:
    for folder in (root / "sentence_label", root):
        if (folder / "video_map.txt").is_file() and (folder / "split_1.txt").is_file():
            return folder / "video_map.txt", folder / "split_1.txt"
    absent = [
        name for name in ("video_map.txt", "split_1.txt") if not (root / "sentence_label" / name).is_file()
    ]
    elsewhere = find_files(root, absent) if not (root / "sentence").is_dir() else {}
    hint = f"; it is in {next(iter(elsewhere.values())).parent}" if elsewhere else ""
    raise UsageError(
        f"corpus csl_daily: no {' and '.join(absent)} in {root / 'sentence_label'}{hint}; expected: {EXPECTED}"
    )


def _place(frames: Path | None, videos: Path | None, name: str) -> Path | None:
    if frames is not None and os.path.isdir(frames / name):  # also False for names that are too long
        return frames / name
    if videos is not None and os.path.isfile(videos / f"{name}.mp4"):
        return videos / f"{name}.mp4"
    return None
