"""The corpus `openasl`: OpenASL as published, American Sign Language of the web with English.

    openasl-v1.0.tsv         vid, yid, start, end, raw-text, tokenized-text, gloss, split     (train, valid, test)
    <yid>.mp4                full videos as a downloader leaves them, or
    <vid>.mp4                clips as the release's own script cuts them (a colon is written %, - or _ there)

Table and videos are found by name, in whatever folders they lie. A clip is taken before a stretch of the full
video; `start` and `end` are times as 00:00:03.203. `raw-text` is the sentence; glosses are not read.
"""

from __future__ import annotations

from sage_scale.config import Corpus
from sage_scale.corpora.captions import parse_seconds
from sage_scale.corpora.clip import Clip, Manifest, Rejected
from sage_scale.corpora.folders import corpus_folder
from sage_scale.corpora.media import MediaIndex, find_files
from sage_scale.corpora.splits import NAMES
from sage_scale.corpora.tables import Table
from sage_scale.corpora.youtube_files import video_id
from sage_scale.errors import UsageError
from sage_scale.untrusted.display import shortened

TABLE = "openasl-v1.0.tsv"
EXPECTED = f"{TABLE} and the videos (YID.mp4) or clips (VID.mp4) below one folder"


def read_corpus(corpus: Corpus) -> Manifest:
    """The clips of train, dev and test in the order of the table; one row a video that was not downloaded."""
    root = corpus_folder(corpus.root, "openasl", EXPECTED)
    path = find_files(root, (TABLE,)).get(TABLE)
    if path is None:
        raise UsageError(f"corpus openasl: no {TABLE} below {root}; expected: {EXPECTED}")
    media = MediaIndex(root)
    if not media.videos:
        raise UsageError(
            f"corpus openasl: no video below {root}{media.unpack_advice()}; expected: {EXPECTED}"
        )
    full = {found: place for stem, place in media.videos.items() if (found := video_id(stem))}
    table = Table(path, "\t", ("vid", "yid", "start", "end", "raw-text", "split"))
    clips: dict[str, Clip] = {}
    rejected: list[Rejected] = []
    absent: dict[str, int] = {}
    for number, row in table.rows():
        here = f"{TABLE} line {number}"
        name, sentence = row["vid"], " ".join(row["raw-text"].split())
        split = NAMES.get(row["split"].lower(), "")
        reason = detail = ""
        start_s = end_s = 0.0
        try:
            start_s, end_s = parse_seconds(row["start"]), parse_seconds(row["end"])
        except ValueError as error:
            reason, detail = "bad-row", f"{here}: {error}"
        cut = next(filter(None, map(media.find, clip_names(name))), None)
        place = cut or full.get(row["yid"])
        if not name:
            reason, detail = "bad-row", f"{here}: no vid"
        elif name in clips:
            reason, detail = "repeated-id", here
        elif not split:
            reason, detail = "no-split", f"{here}: '{shortened(row['split'])}'"
        elif not sentence:
            reason, detail = "no-sentence", here
        elif not reason and end_s <= start_s:
            reason, detail = "bad-interval", f"{here}: from {start_s:g} s to {end_s:g} s"
        if not reason and place is None:
            absent[row["yid"]] = absent.get(row["yid"], 0) + 1
        elif reason or place is None:
            rejected.append(Rejected(id=name or here, reason=reason, detail=detail))
        else:
            clips[name] = Clip(
                id=name,
                video=place,
                start_s=0.0 if cut else start_s,
                end_s=None if cut else end_s,
                sentence=sentence,
                language=corpus.language,
                split=split,
                frames=max(1, round((end_s - start_s) * 25)) if cut else 0,
            )
    rejected += [
        Rejected(id=name, reason="not-downloaded", detail=f"{count} sentences")
        for name, count in absent.items()
    ]
    return Manifest(tuple(clips.values()), tuple(table.rejected + rejected))


def clip_names(vid: str) -> list[str]:
    """How the clip `vid` may be called in a file system: a colon is no character of a name everywhere."""
    return [vid, *(vid.replace(":", mark) for mark in "%-_")] if ":" in vid else [vid]
