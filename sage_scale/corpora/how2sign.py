"""The corpus `how2sign`: How2Sign as its download script leaves it, American Sign Language with English.

    video_level/<train|val|test>/rgb_<front|side>/raw_videos/<VIDEO_NAME>.mp4            full videos, or
    sentence_level/<train|val|test>/rgb_<front|side>/raw_videos/<SENTENCE_NAME>.mp4      clips
    sentence_level/<split>/text/en/raw_text/re_aligned/how2sign_realigned_<split>.csv

The tables are separated by tabs, whatever their ending says: VIDEO_ID, VIDEO_NAME, SENTENCE_ID, SENTENCE_NAME,
START_REALIGNED, END_REALIGNED, SENTENCE. Where a split has no re-aligned table, `how2sign_<split>.csv` with START
and END is taken. Tables and videos are found by name, in any folders. A clip is taken before an interval of the full
video. Names end with the camera; the number before it is the signer's.
"""

from __future__ import annotations

import re
from pathlib import Path

from sage_scale.config import Corpus
from sage_scale.corpora.adapters import SPLIT_NAMES, Rows, Table, cut_or_whole, require, row_times
from sage_scale.corpora.folder import CorpusFolder, MediaIndex
from sage_scale.corpora.manifest import Clip, Manifest
from sage_scale.untrusted.display import shortened

EXPECTED = (
    "how2sign_realigned_train.csv (val, test) and the videos or clips of rgb_front or rgb_side, unpacked"
)
KEYPOINTS = ("features", "openpose_output")
"""Folders of the release with a file for each frame of each clip: millions, none of them read."""
SPLITS = ("train", "val", "test")
_SIGNER = re.compile(r"-(\d+)-rgb_(?:front|side)$")


def read_corpus(corpus: Corpus) -> Manifest:
    """Returns the clips of train, dev and test of one camera, in the order of the tables."""
    folder = CorpusFolder(corpus, EXPECTED)
    names = {split: (f"how2sign_realigned_{split}.csv", f"how2sign_{split}.csv") for split in SPLITS}
    found = folder.find((name for pair in names.values() for name in pair), skip=KEYPOINTS)
    if not found:
        raise folder.fault(f"no how2sign_realigned_train.csv below {folder.root}")
    media = folder.media(prefer=("sentence_level",), skip=KEYPOINTS)
    rows = Rows()
    for split, (aligned, plain) in names.items():
        path = found.get(aligned) or found.get(plain)
        if path is None:
            rows.notes.append((f"split without its table {aligned}", 1))
        else:
            _read_table(path, SPLIT_NAMES[split], corpus, media, rows)
    return rows.manifest()


def _read_table(path: Path, split: str, corpus: Corpus, media: MediaIndex, rows: Rows) -> None:
    start, end = ("START_REALIGNED", "END_REALIGNED") if "realigned" in path.name else ("START", "END")
    table = Table(path, "\t", ("VIDEO_NAME", "SENTENCE_NAME", start, end, "SENTENCE"))
    for here, row in table.rows():
        name, video, sentence = row["SENTENCE_NAME"], row["VIDEO_NAME"], " ".join(row["SENTENCE"].split())
        with rows.row(name or here):
            require(name and video, "bad-row", f"{here}: no name")
            require(name not in rows.clips, "repeated-id", here)
            require(sentence, "no-sentence", here)
            start_s, end_s = row_times(row[start], row[end], here)
            sought = [of_view(name, corpus.view), of_view(video, corpus.view)]
            cut, whole = map(media.find, sought)
            absent = f"neither {' nor '.join(map(shortened, sought))}{media.unpack_advice()}"
            require(cut or whole, "missing", absent)
            require(end_s > start_s, "bad-interval", f"{here}: from {start_s:g} s to {end_s:g} s")
            signer = _SIGNER.search(video)
            rows.add(
                Clip(id=name, sentence=sentence, language=corpus.language, signer=signer[1] if signer else "",
                     split=split, **cut_or_whole(cut, whole, start_s, end_s))
            )  # fmt: skip
    rows.rejected += table.rejected


def of_view(name: str, view: str) -> str:
    """Returns a name of the tables, which are those of the front camera, for another camera."""
    return name.removesuffix("-rgb_front") + f"-rgb_{view}" if name.endswith("-rgb_front") else name
