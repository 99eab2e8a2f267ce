"""The corpus `videos`: any folder of videos with their sentences beside them.

For `name.mp4` (or a keypoint file `name.npz`, `name.pose`) the first of these is taken:
- a row of any `.tsv` in the same folder: `filename<TAB>sentence` or
`filename<TAB>start<TAB>end<TAB>sentence`, times in
  seconds or h:mm:ss; a first line of column names (video, start, end, sentence, split, signer, language) may
  reorder;
- `name.vtt`, `name.srt`, or with a language, `name.de.vtt`: a clip a caption;
- `name.txt`: one sentence for the whole file.

Captions pass the named filters of corpora/caption_filters.py; rows and texts are what somebody wrote as sentences
and pass none.

A video with none of them gets an empty sentence and the split `unlabelled`: it can be translated, not trained
on. Folders called train, dev or test below the root give the split.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sage_scale.config import Corpus
from sage_scale.corpora.caption_filters import filter_cues
from sage_scale.corpora.captions import BAD_CUE, SUFFIXES, parse_seconds, read_captions
from sage_scale.corpora.clip import Clip, Manifest, Rejected
from sage_scale.corpora.folders import corpus_folder, read_text
from sage_scale.corpora.media import KEYPOINT_SUFFIXES, VIDEO_SUFFIXES, is_text, walk
from sage_scale.corpora.rolling import merge_rolling

SPLITS = ("train", "dev", "test")
UNLABELLED = "unlabelled"
"""Split of the videos without a sentence."""

EXPECTED = "videos (.mp4, .mov, .webm, ...) with sentences in .txt, .tsv, .vtt or .srt beside them"
_COLUMNS = {
    "video": "video",
    "filename": "video",
    "file": "video",
    "name": "video",
    "start": "start",
    "end": "end",
    "sentence": "sentence",
    "text": "sentence",
    "translation": "sentence",
    "split": "split",
    "signer": "signer",
    "language": "language",
}


def read_corpus(corpus: Corpus) -> Manifest:
    """The clips of a folder of videos, in the order of their paths and times."""
    root = corpus_folder(corpus.root, "videos", EXPECTED)
    clips: dict[str, Clip] = {}
    rejected: list[Rejected] = []
    merged = 0
    for folder, listed in walk(root):
        names = [name for name in listed if is_text(str(folder / name))]
        rejected += [_nameless(root, folder / name) for name in listed if not is_text(str(folder / name))]
        found = _Folder(root, folder, names, corpus)
        for clip in found.clips():
            if clip.id in clips:
                rejected.append(
                    Rejected(
                        id=clip.id, reason="repeated-id", detail="the same stretch of the same video twice"
                    )
                )
            else:
                clips[clip.id] = clip
        rejected += found.rejected
        merged += found.merged
    ordered = sorted(clips.values(), key=lambda clip: (clip.video, clip.start_s, clip.id))
    notes = (("cues of rolling captions brought to each line once", merged),) if merged else ()
    return Manifest(tuple(ordered), tuple(rejected), notes)


def _nameless(root: Path, path: Path) -> Rejected:
    name = str(path.relative_to(root)).encode(errors="replace").decode()
    return Rejected(id=name, reason="bad-name", detail="its name is no UTF-8; rename it")


def _plain(name: str) -> str:
    """One form for umlauts: macOS stores them as letter and mark, other systems as one character."""
    return unicodedata.normalize("NFC", name)


def _without_sidecars(names: list[str]) -> list[str]:
    """The videos without the keypoint files that lie beside one of the same name and belong to it."""
    pictures = {Path(name).stem for name in names if Path(name).suffix.lower() not in KEYPOINT_SUFFIXES}
    return [
        name
        for name in names
        if Path(name).suffix.lower() not in KEYPOINT_SUFFIXES or Path(name).stem not in pictures
    ]


class _Folder:
    """One folder's videos, sentences and complaints."""

    def __init__(self, root: Path, folder: Path, names: list[str], corpus: Corpus) -> None:
        self.folder, self.language, self.options = folder, corpus.language, corpus.captions
        self.merged = 0
        self.place = "/".join(_plain(part) for part in folder.relative_to(root).parts)
        self.split = next((part for part in self.place.split("/") if part in SPLITS), "train")
        self.names = names
        self.videos = _without_sidecars(
            [name for name in names if Path(name).suffix.lower() in VIDEO_SUFFIXES]
        )
        self.rejected: list[Rejected] = []

    def clips(self) -> Iterator[Clip]:
        """The clips of every video here; complaints are gathered in `rejected`."""
        tabled: dict[str, list[Clip]] = {}
        for name in self.names:
            if name.lower().endswith(".tsv"):
                for video, clip in self._table(name):
                    tabled.setdefault(video, []).append(clip)
        for video in self.videos:
            yield from tabled.get(video) or self._beside(video)

    def _id(self, name: str, start_s: float = 0.0, end_s: float | None = None) -> str:
        place = f"{self.place}/{_plain(name)}" if self.place else _plain(name)
        if start_s == 0.0 and end_s is None:
            return place
        return f"{place}@{start_s:.3f}-{'' if end_s is None else f'{end_s:.3f}'}"

    def _clip(
        self, video: str, sentence: str, start_s: float = 0.0, end_s: float | None = None, **more: str
    ) -> Clip:
        values: dict[str, Any] = {
            "language": self.language,
            "split": self.split if sentence else UNLABELLED,
        } | more
        return Clip(
            id=self._id(video, start_s, end_s),
            video=str(self.folder / video),
            start_s=start_s,
            end_s=end_s,
            sentence=sentence,
            **values,
        )

    def _reject(self, name: str, reason: str, detail: str = "") -> None:
        self.rejected.append(Rejected(id=self._id(name), reason=reason, detail=detail))

    def _beside(self, video: str) -> Iterator[Clip]:
        stem = Path(video).stem
        captions = self._caption_file(stem)
        text = f"{stem}.txt"
        source = captions[0] if captions else text
        try:
            if captions:
                yield from self._captioned(video, *captions)
            elif text in self.names:
                sentence = " ".join(read_text(self.folder / text).split())
                if sentence:
                    yield self._clip(video, sentence)
                else:
                    self._reject(video, "no-sentence", f"{text} is empty")
            else:
                yield self._clip(video, "")
        except UnicodeDecodeError:
            self._reject(video, "not-utf8", f"{source} is not UTF-8; save it as UTF-8")

    def _caption_file(self, stem: str) -> tuple[str, str] | None:
        """(file name, language) of a video's captions: the recipe's language first, then a name without
        one."""
        found = []
        for name in self.names:
            if not name.lower().endswith(SUFFIXES) or not name.startswith(f"{stem}."):
                continue
            tag = name[len(stem) + 1 : -4].strip(".")
            language = tag or self.language
            same = language.split("-")[0].lower() == self.language.split("-")[0].lower()
            found.append((not same, tag != "" and not same, name, language))
        if not found:
            return None
        _, _, name, language = min(found)
        return name, language

    def _captioned(self, video: str, name: str, language: str) -> Iterator[Clip]:
        cues, broken = read_captions(self.folder / name)
        for line in broken:
            self._reject(video, BAD_CUE, f"{name} {line}")
        if not cues:
            self._reject(video, "no-captions", f"{name} has no readable cue")
        if self.options.rolling:
            cues, merged = merge_rolling(sorted(cues, key=lambda cue: cue.start_s))
            self.merged += merged
        kept, dropped = filter_cues(cues, self.options, language)
        for cue in kept:
            yield self._clip(video, cue.text, cue.start_s, cue.end_s, language=language)
        for one in dropped:
            detail = f"{name} at {one.cue.start_s:.3f} s" + (f": {one.detail}" if one.detail else "")
            self._reject(video, one.reason, detail)

    def _table(self, name: str) -> Iterator[tuple[str, Clip]]:
        try:
            lines = read_text(self.folder / name).splitlines()
        except UnicodeDecodeError:
            self._reject(name, "not-utf8", "save it as UTF-8")
            return
        columns: list[str] | None = None
        by_name = {_plain(video): video for video in self.videos}
        by_stem = {_plain(Path(video).stem): video for video in self.videos}
        for number, line in enumerate(lines, start=1):
            cells = [cell.strip() for cell in line.split("\t")]
            if not line.strip():
                continue
            if number == 1 and cells[0].lower() in _COLUMNS and "sentence" in map(_column, cells):
                columns = [_column(cell) for cell in cells]
                continue
            here = f"{name} line {number}"
            names = columns or (
                ["video", "sentence"] if len(cells) == 2 else ["video", "start", "end", "sentence"]
            )
            if len(cells) != len(names):
                self._reject(here, "bad-row", f"{len(cells)} columns, expected {len(names)}")
                continue
            row = dict(zip(names, cells))
            wanted = _plain(row["video"].removeprefix("./"))
            video = by_name.get(wanted) or by_stem.get(wanted)
            if video is None:
                self._reject(here, "missing", f"there is no {wanted}")
                continue
            if not row["sentence"]:
                self._reject(here, "no-sentence")
                continue
            try:
                start_s = parse_seconds(row["start"]) if row.get("start") else 0.0
                end_s = parse_seconds(row["end"]) if row.get("end") else None
            except ValueError as error:
                self._reject(here, "bad-row", str(error))
                continue
            if end_s is not None and end_s <= start_s:
                self._reject(here, "bad-interval", f"from {start_s:g} s to {end_s:g} s")
                continue
            more = {key: row[key] for key in ("split", "signer", "language") if row.get(key)}
            yield video, self._clip(video, row["sentence"], start_s, end_s, **more)


def _column(cell: str) -> str:
    return _COLUMNS.get(cell.lower(), cell.lower())
