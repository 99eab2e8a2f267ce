"""The corpus `openasl`: OpenASL as published, American Sign Language of the web with English.

    openasl-v1.0.tsv         vid, yid, start, end, raw-text, tokenized-text, gloss, split     (train, valid, test)
    <yid>.mp4                full videos as a downloader leaves them, or
    <vid>.mp4                clips as the release's own script cuts them (a colon is written %, - or _ there)

Table and videos are found by name, in any folders. A clip is taken before an interval of the full video; `start` and
`end` are times as 00:00:03.203. `raw-text` is the sentence; glosses are not read.
"""

from __future__ import annotations

from collections import Counter

from sage_scale.config import Corpus
from sage_scale.corpora.adapters import SPLIT_NAMES, Rows, Table, cut_or_whole, require, row_times
from sage_scale.corpora.folder import CorpusFolder
from sage_scale.corpora.manifest import Clip, Manifest
from sage_scale.corpora.youtube_files import video_id
from sage_scale.untrusted.display import shortened

TABLE = "openasl-v1.0.tsv"
EXPECTED = f"{TABLE} and the videos (YID.mp4) or clips (VID.mp4) below one folder"


def read_corpus(corpus: Corpus) -> Manifest:
    """Returns the clips of train, dev and test in the order of the table; one reject a video not downloaded."""
    folder = CorpusFolder(corpus, EXPECTED)
    path = folder.table(TABLE)
    media = folder.media()
    full = {found: video for stem, video in media.videos.items() if (found := video_id(stem))}
    table = Table(path, "\t", ("vid", "yid", "start", "end", "raw-text", "split"))
    rows = Rows()
    absent: Counter[str] = Counter()
    for here, row in table.rows():
        name, sentence = row["vid"], " ".join(row["raw-text"].split())
        with rows.row(name or here):
            split = SPLIT_NAMES.get(row["split"].lower(), "")
            require(name, "bad-row", f"{here}: no vid")
            require(name not in rows.clips, "repeated-id", here)
            require(split, "no-split", f"{here}: '{shortened(row['split'])}'")
            require(sentence, "no-sentence", here)
            start_s, end_s = row_times(row["start"], row["end"], here)
            require(end_s > start_s, "bad-interval", f"{here}: from {start_s:g} s to {end_s:g} s")
            cut, whole = next(filter(None, map(media.find, clip_names(name))), None), full.get(row["yid"])
            if cut is None and whole is None:
                absent[row["yid"]] += 1
                continue
            rows.add(
                Clip(id=name, sentence=sentence, language=corpus.language, split=split,
                     **cut_or_whole(cut, whole, start_s, end_s))
            )  # fmt: skip
    rows.rejected = table.rejected + rows.rejected
    for video, count in absent.items():
        rows.reject(video, "not-downloaded", f"{count} sentences")
    return rows.manifest()


def clip_names(vid: str) -> list[str]:
    """Returns the file names that the clip `vid` may have: not every file system allows a colon."""
    return [vid, *(vid.replace(":", mark) for mark in "%-_")] if ":" in vid else [vid]
