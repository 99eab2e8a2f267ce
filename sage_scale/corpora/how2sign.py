"""The corpus `how2sign`: How2Sign as its download script leaves it, American Sign Language with English.

    video_level/<train|val|test>/rgb_<front|side>/raw_videos/<VIDEO_NAME>.mp4            full videos, or
    sentence_level/<train|val|test>/rgb_<front|side>/raw_videos/<SENTENCE_NAME>.mp4      clips
    sentence_level/<split>/text/en/raw_text/re_aligned/how2sign_realigned_<split>.csv

The tables are separated by tabs, whatever their ending says: VIDEO_ID, VIDEO_NAME, SENTENCE_ID, SENTENCE_NAME,
START_REALIGNED, END_REALIGNED, SENTENCE. Where a split has no re-aligned table, `how2sign_<split>.csv` with START
and END is taken. Tables and videos are found by name, in whatever folders they lie. A clip is taken before a
stretch of the full video. Names end with the camera; the number before it is the signer's.
"""

from __future__ import annotations

import re
from pathlib import Path

from sage_scale.config import Corpus
from sage_scale.corpora.captions import parse_seconds
from sage_scale.corpora.clip import Clip, Manifest, Rejected
from sage_scale.corpora.folders import corpus_folder
from sage_scale.corpora.media import MediaIndex, find_files
from sage_scale.corpora.splits import NAMES
from sage_scale.corpora.tables import Table
from sage_scale.errors import UsageError
from sage_scale.untrusted.display import shortened

EXPECTED = (
    "how2sign_realigned_train.csv (val, test) and the videos or clips of rgb_front or rgb_side, unpacked"
)
KEYPOINTS = ("features", "openpose_output")
"""Folders of the release with a file for each frame of each clip: millions, none of them read."""
SPLITS = ("train", "val", "test")
_SIGNER = re.compile(r"-(\d+)-rgb_(?:front|side)$")


def read_corpus(corpus: Corpus) -> Manifest:
    """The clips of train, dev and test of one camera, in the order of the tables."""
    root = corpus_folder(corpus.root, "how2sign", EXPECTED)
    names = {split: (f"how2sign_realigned_{split}.csv", f"how2sign_{split}.csv") for split in SPLITS}
    found = find_files(root, (name for pair in names.values() for name in pair), skip=KEYPOINTS)
    if not found:
        raise UsageError(
            f"corpus how2sign: no how2sign_realigned_train.csv below {root}; expected: {EXPECTED}"
        )
    media = MediaIndex(root, prefer=("sentence_level",), skip=KEYPOINTS)
    if not media.videos:
        raise UsageError(
            f"corpus how2sign: no video below {root}{media.unpack_advice()}; expected: {EXPECTED}"
        )
    clips: dict[str, Clip] = {}
    rejected: list[Rejected] = []
    notes: list[tuple[str, int]] = []
    for split, (aligned, plain) in names.items():
        path = found.get(aligned) or found.get(plain)
        if path is None:
            notes.append((f"split without its table {aligned}", 1))
            continue
        _read_table(path, NAMES[split], corpus, media, clips, rejected)
    return Manifest(tuple(clips.values()), tuple(rejected), tuple(notes))


def _read_table(
    path: Path,
    split: str,
    corpus: Corpus,
    media: MediaIndex,
    clips: dict[str, Clip],
    rejected: list[Rejected],
) -> None:
    start, end = ("START_REALIGNED", "END_REALIGNED") if "realigned" in path.name else ("START", "END")
    table = Table(path, "\t", ("VIDEO_NAME", "SENTENCE_NAME", start, end, "SENTENCE"))
    for number, row in table.rows():
        name = row["SENTENCE_NAME"]
        here = f"{path.name} line {number}"

        def reject(reason: str, detail: str, name: str = name, here: str = here) -> None:
            rejected.append(Rejected(id=name or here, reason=reason, detail=detail))

        sentence = " ".join(row["SENTENCE"].split())
        if not name or not row["VIDEO_NAME"]:
            reject("bad-row", f"{here}: no name")
            continue
        if name in clips:
            reject("repeated-id", here)
            continue
        if not sentence:
            reject("no-sentence", here)
            continue
        try:
            start_s, end_s = parse_seconds(row[start]), parse_seconds(row[end])
        except ValueError as error:
            reject("bad-row", f"{here}: {error}")
            continue
        cut = media.find(of_view(name, corpus.view))
        whole = media.find(of_view(row["VIDEO_NAME"], corpus.view))
        if cut is None and whole is None:
            sought = [shortened(of_view(sought, corpus.view)) for sought in (name, row["VIDEO_NAME"])]
            reject("missing", f"neither {' nor '.join(sought)}{media.unpack_advice()}")
            continue
        if end_s <= start_s:
            reject("bad-interval", f"{here}: from {start_s:g} s to {end_s:g} s")
            continue
        signer = _SIGNER.search(row["VIDEO_NAME"])
        clips[name] = Clip(
            id=name,
            video=cut or whole or "",
            start_s=0.0 if cut else start_s,
            end_s=None if cut else end_s,
            sentence=sentence,
            language=corpus.language,
            signer=signer[1] if signer else "",
            split=split,
            # A clip's own length is not in the table's frames; 25 a second is near enough to plan with.
            frames=max(1, round((end_s - start_s) * 25)) if cut else 0,
        )
    rejected += table.rejected


def of_view(name: str, view: str) -> str:
    """A name of the tables, which are those of the front camera, for another camera."""
    return name.removesuffix("-rgb_front") + f"-rgb_{view}" if name.endswith("-rgb_front") else name
