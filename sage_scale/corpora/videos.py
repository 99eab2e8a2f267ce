"""The corpus `videos`: any folder of videos with their sentences beside them.

For `name.mp4` (or a keypoint file `name.npz`, `name.pose`) the first of these is taken:
- rows of any `.tsv` in the same folder: `filename<TAB>sentence` or `filename<TAB>start<TAB>end<TAB>sentence`, times in
  seconds or h:mm:ss; a first line of column names (video, start, end, sentence, split, signer, language) may reorder;
- `name.vtt`, `name.srt`, or with a language, `name.de.vtt`: a clip a caption;
- `name.txt`: one sentence for the whole file.

A caption file belongs to the video with the longest name that it begins with; a language tag may follow the name.
Caption files without a video are reported. Names are compared in NFC.

Captions pass the named filters of corpora/caption_filters.py; rows and texts, written as sentences, do not.

A video with none of them gets an empty sentence and the split `unlabelled`: it can be translated, not trained
on. Folders called train, dev or test below the root give the split.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sage_scale.config import Corpus
from sage_scale.corpora.adapters import Rows, require
from sage_scale.corpora.caption_filters import filter_cues
from sage_scale.corpora.captions import BAD_CUE, SUFFIXES, parse_captions, parse_seconds
from sage_scale.corpora.folder import (
    KEYPOINT_SUFFIXES,
    VIDEO_SUFFIXES,
    CorpusFolder,
    file_key,
    is_text,
    unreadable_text,
    walk,
)
from sage_scale.corpora.manifest import Clip, Manifest
from sage_scale.corpora.roll_up import merge_roll_up
from sage_scale.errors import ClipRejected, UsageError
from sage_scale.storage import on_this_machine
from sage_scale.text.languages import language_tag, primary_subtag, tag_distance
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import expanded, lines, read_text, text_fault

SPLITS = ("train", "dev", "test")
UNLABELLED = "unlabelled"
"""Split of the videos without a sentence."""
UNMATCHED = "unmatched"
"""Reject reason of a caption file that belongs to no video."""
MERGED = "cues of rolling captions brought to each line once"
"""Note on the cues that roll-up captions lost."""
EXPECTED = "videos (.mp4, .mov, .webm, ...) with sentences in .txt, .tsv, .vtt or .srt beside them"
_COLUMNS = {
    "video": "video", "filename": "video", "file": "video", "name": "video", "start": "start", "end": "end",
    "sentence": "sentence", "text": "sentence", "translation": "sentence", "split": "split", "signer": "signer",
    "language": "language",
}  # fmt: skip


def read_corpus(corpus: Corpus) -> Manifest:
    """Returns the clips of a folder of videos, in the order of their paths and times."""
    root = CorpusFolder(corpus, EXPECTED).root
    rows = Rows()
    merged = 0
    for folder, listed in walk(root):
        for name in listed:
            if not is_text(f"{folder}{name}"):
                rows.reject_name(root, folder / name)
        found = _Folder(root, folder, [name for name in listed if is_text(f"{folder}{name}")], corpus)
        for clip in found.clips():
            if clip.id in rows.clips:
                rows.reject(clip.id, "repeated-id", "the same stretch of the same video twice")
            else:
                rows.add(clip)
        rows.rejected += found.rows.rejected
        merged += found.merged
    clips = sorted(rows.clips.values(), key=lambda clip: (clip.video, clip.start_s, clip.id))
    return Manifest(tuple(clips), tuple(rows.rejected), ((MERGED, merged),) if merged else ())


def whole_videos(root: str | Path) -> Manifest:
    """Returns each video below a folder (or a single video) as one clip without a sentence, in the order of their
    paths. A keypoint file without a video beside it counts as one.

    A clip's id is the path below the folder without the ending, with it where another video has the same. Raises
    UsageError where there is none.
    """
    path = expanded(on_this_machine(root, "a folder of videos"))
    if not path.exists():
        raise UsageError(f"there is no {path}")
    base, walked = (path, walk(path)) if path.is_dir() else (path.parent, [(path.parent, [path.name])])
    rows = Rows()
    for folder, listed in walked:
        media = [name for name in listed if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES]
        for name in media:
            if not is_text(f"{folder}{name}"):
                rows.reject_name(base, folder / name)
        found = _Folder(base, folder, [name for name in media if is_text(f"{folder}{name}")], Corpus())
        for name in found.videos:
            whole = found.video_id(name)
            short = os.path.splitext(whole)[0]
            given = whole if short in rows.clips else short
            rows.add(Clip(id=given, video=f"{folder}/{name}", split=UNLABELLED))
    if not rows.clips:
        raise UsageError(f"no video and no keypoint file (.pose, .npz) in {path}")
    return rows.manifest()


class _Folder:
    """The videos, sentences and rejects of one folder."""

    def __init__(self, root: Path, folder: Path, names: list[str], corpus: Corpus) -> None:
        self.folder, self.language, self.options = folder, corpus.language, corpus.captions
        self.rows = Rows()
        self.merged = 0
        self.inside = "/".join(file_key(part) for part in folder.relative_to(root).parts)
        self.split = next((part for part in self.inside.split("/") if part in SPLITS), "train")
        parts = [(name, *os.path.splitext(name)) for name in names]
        media = [(name, stem, end.lower()) for name, stem, end in parts if end.lower() in VIDEO_SUFFIXES]
        pictures = {file_key(stem) for _, stem, end in media if end not in KEYPOINT_SUFFIXES}
        # Keypoints beside a video of the same name belong to it and are no clip of their own.
        kept = [
            (name, stem)
            for name, stem, end in media
            if end not in KEYPOINT_SUFFIXES or file_key(stem) not in pictures
        ]
        self.videos = [name for name, _ in kept]
        self.by_name = {file_key(name): name for name, _ in kept}
        self.by_stem: dict[str, list[str]] = {}
        for name, stem in kept:
            self.by_stem.setdefault(file_key(stem), []).append(name)
        self.tables = [name for name, _, end in parts if end.lower() == ".tsv"]
        self.captions: dict[str, list[tuple[str, str]]] = {}
        """Video -> caption files with the language tag in their names, "" where there is none."""
        self.texts: dict[str, str] = {}
        """Video -> text file."""
        for name, stem, end in parts:
            if end.lower() in (*SUFFIXES, ".txt"):
                self._match(name, stem, end.lower() == ".txt")

    def _match(self, name: str, stem: str, text: bool) -> None:
        """Gives a caption or text file to the videos with the longest name that it begins with."""
        base, between = file_key(stem), ""
        while base and base not in self.by_stem and base not in self.by_name:
            base, _, part = base.rpartition(".")
            between = f"{part}.{between}" if between else part
        owners = self.by_stem.get(base) or ([self.by_name[base]] if base in self.by_name else [])
        tag = language_tag(between, registered=True) if between and not text else ""
        if text and not between:
            self.texts |= dict.fromkeys(owners, name)
        elif text and owners:
            detail = f"a .txt has the name of {owners[0]} alone; .vtt and .srt may have a language"
            self._reject(name, UNMATCHED, detail)
        elif text:
            return
        elif not owners:
            self._reject(name, UNMATCHED, "no video's name begins it; capitals count")
        elif between and not tag:
            detail = f"'{shortened(between)}' after the name of {owners[0]} is not a language tag"
            self._reject(name, UNMATCHED, detail)
        else:
            for video in owners:
                self.captions.setdefault(video, []).append((name, tag))

    def clips(self) -> Iterator[Clip]:
        """Yields the clips of every video; rejects join `rows`."""
        tabled: dict[str, list[Clip]] = {}
        for name in self.tables:
            for video, clip in self._table(name):
                tabled.setdefault(video, []).append(clip)
        for video in self.videos:
            yield from tabled.get(video) or self._beside(video)

    def video_id(self, name: str) -> str:
        """Returns the path of a video below the root, names in NFC."""
        return f"{self.inside}/{file_key(name)}" if self.inside else file_key(name)

    def _id(self, name: str, start_s: float = 0.0, end_s: float | None = None) -> str:
        name = self.video_id(name)
        if start_s == 0.0 and end_s is None:
            return name
        return f"{name}@{start_s:.3f}-{'' if end_s is None else f'{end_s:.3f}'}"

    def _clip(
        self, video: str, sentence: str, start_s: float = 0.0, end_s: float | None = None, **more: str
    ) -> Clip:
        values: dict[str, Any] = {"language": self.language, "split": self.split if sentence else UNLABELLED}
        return Clip(
            id=self._id(video, start_s, end_s),
            video=f"{self.folder}/{video}",
            start_s=start_s,
            end_s=end_s,
            sentence=sentence,
            **(values | more),
        )

    def _reject(self, name: str, reason: str, detail: str = "") -> None:
        self.rows.reject(self._id(name), reason, detail)

    def _beside(self, video: str) -> Iterator[Clip]:
        """Yields the clips of a video from its caption or text file."""
        found = self.captions.get(video)
        name, language = min(found, key=self._preference) if found else (self.texts.get(video, ""), "")
        if not name:
            yield self._clip(video, "")
            return
        text = self._read(video, name)
        if text is None:
            return
        sentence = " ".join(text.split())
        if found:
            yield from self._captioned(video, name, text, language or self.language)
        elif fault := text_fault(text):
            self._reject(video, "bad-row", f"{fault} in {name}")
        elif sentence:
            yield self._clip(video, sentence)
        else:
            self._reject(video, "no-sentence", f"{name} is empty")

    def _read(self, owner: str, name: str) -> str | None:
        """Returns the text of a file; None, with a reject, where it cannot be read."""
        try:
            return read_text(self.folder / name)
        except (OSError, UnicodeDecodeError) as error:
            self._reject(owner, *unreadable_text(name, error))
            return None

    def _preference(self, file: tuple[str, str]) -> tuple[bool, int, str]:
        """Ranks caption files: the corpus' language, or none named, first, then its region and script, then by name."""
        name, tag = file
        same = primary_subtag(tag or self.language) == primary_subtag(self.language)
        regional = same and tag != "" and "-" in self.language
        return not same, tag_distance(self.language, tag) if regional else 0, name

    def _captioned(self, video: str, name: str, text: str, language: str) -> Iterator[Clip]:
        cues, broken = parse_captions(text)
        for line in broken:
            self._reject(video, BAD_CUE, f"{name} {line}")
        if not cues and "\0" in text:
            self._reject(video, "not-utf8", f"{name} is UTF-16 or UTF-32 without its mark; save it as UTF-8")
        elif not cues:
            self._reject(video, "no-captions", f"{name} has no readable cue")
        if self.options.rolling:
            cues, merged = merge_roll_up(sorted(cues, key=lambda cue: cue.start_s))
            self.merged += merged
        kept, dropped = filter_cues(cues, self.options, language)
        for cue in kept:
            yield self._clip(video, cue.text, cue.start_s, cue.end_s, language=language)
        for one in dropped:
            detail = f"{name} at {one.cue.start_s:.3f} s" + (f": {one.detail}" if one.detail else "")
            self._reject(video, one.reason, detail)

    def _table(self, name: str) -> list[tuple[str, Clip]]:
        """Returns the clips of a .tsv, each with its video."""
        found: list[tuple[str, Clip]] = []
        columns: list[str] | None = None
        for number, line in enumerate(lines(self._read(name, name) or ""), start=1):
            cells = [cell.strip() for cell in line.split("\t")]
            if not line.strip():
                continue
            here = f"{name} line {number}"
            if number == 1 and cells[0].lower() in _COLUMNS and "sentence" in map(_column, cells):
                columns = [_column(cell) for cell in cells]
                if "video" not in columns:
                    self._reject(here, "bad-row", "no column video among the names of columns")
                    break
                continue
            with self.rows.row(self._id(here)):
                found.append(self._table_row(line, cells, columns))
        return found

    def _table_row(self, line: str, cells: list[str], columns: list[str] | None) -> tuple[str, Clip]:
        names = columns or (
            ["video", "sentence"] if len(cells) == 2 else ["video", "start", "end", "sentence"]
        )
        fault = text_fault(line)
        require(not fault, "bad-row", fault)
        require(len(cells) == len(names), "bad-row", f"{len(cells)} columns, expected {len(names)}")
        row = dict(zip(names, cells))
        wanted = file_key(row["video"].removeprefix("./"))
        video = self.by_name.get(wanted) or self.by_stem.get(wanted, [""])[-1]
        require(video, "missing", f"there is no {shortened(wanted)}")
        require(row["sentence"], "no-sentence")
        try:
            start_s = parse_seconds(row["start"]) if row.get("start") else 0.0
            end_s = parse_seconds(row["end"]) if row.get("end") else None
        except ValueError as error:
            raise ClipRejected("bad-row", str(error)) from None
        require(end_s is None or end_s > start_s, "bad-interval", f"from {start_s:g} s to {end_s or 0:g} s")
        more = {key: row[key] for key in ("split", "signer", "language") if row.get(key)}
        if "language" in more:
            more["language"] = language_tag(row["language"])
            require(
                more["language"], "bad-row", f"language '{shortened(row['language'])}' is not a BCP 47 tag"
            )
        return video, self._clip(video, row["sentence"], start_s, end_s, **more)


def _column(cell: str) -> str:
    return _COLUMNS.get(cell.lower(), cell.lower())
