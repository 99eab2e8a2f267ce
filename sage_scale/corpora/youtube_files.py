"""YouTube videos, captions and notes as downloaders leave them, by video id.

    <id>.mp4, <title> [<id>].webm, <title>-<id>.mkv            the video
    <title> - 001 <chapter> [<id>].mp4                         a chapter of it (--split-chapters)
    <id>.en.vtt, <title> [<id>].en-US.srt                      its captions, the tag between dots
    <id>.info.json                                             yt-dlp's notes: channel, duration

The files of one video may lie in different folders. Remains of a broken download (`.part`, `.ytdl`, `.f137.mp4`,
`.temp.mp4`) are no video. Nor is a chapter: captions count from the start of the whole video.
"""

from __future__ import annotations

import json
import locale
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from sage_scale.corpora.adapters import Rows
from sage_scale.corpora.captions import SUFFIXES
from sage_scale.corpora.folder import VIDEO_SUFFIXES, is_text, walk
from sage_scale.corpora.manifest import MAX_SECONDS
from sage_scale.text.languages import language_tag, primary_subtag
from sage_scale.untrusted.files import read_bytes, text_fault

_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_IN_BRACKETS = re.compile(r"\[([A-Za-z0-9_-]{11})\]$")
_AFTER_HYPHEN = re.compile(r"-([A-Za-z0-9_-]{11})$")
_UNFINISHED = re.compile(r"\.(?:f(?:\d[\w+-]*|[A-Za-z]\w*[-+][\w+-]*|hls|dash|http)|temp)$")
"""Endings that yt-dlp gives to one stream of a video, by its format: f137, f303-drc, fhls-720."""
_CHAPTER = re.compile(r"(?P<title>.*?) - (?P<number>\d{3,4}) .+")
_PARTS = (".part", ".ytdl")
_PREFERRED = (".mp4", ".mkv", ".webm")
# `en-orig` is the recogniser's own text, `en-de` its translation from German, `a.en` an older name of both; a region
# is written in capitals.
_AUTOMATIC = re.compile(
    r"(?:^a\.|(?:^|[.-])auto(?:[.-]|$)|-orig$|^[a-z]{2,3}(?:-[A-Z][a-z]{3})?-[a-z]{2,3}$)"
)
_TAG = re.compile(r"[a-z]{2,3}(?:[-_][a-z]{4})?(?:[-_](?:[a-z]{2}|\d{3}))?(?=$|[-_])", re.I)


def video_id(stem: str) -> str:
    """Returns the YouTube id in a file name without its ending; empty where there is none."""
    if _ID.fullmatch(stem):
        return stem
    match = _IN_BRACKETS.search(stem) or _AFTER_HYPHEN.search(stem)
    return match[1] if match else ""


@dataclass
class VideoFiles:
    """The files of one video."""

    video: str = ""
    tracks: dict[str, Path] = field(default_factory=dict)
    """Caption tag as in the file's name -> file."""
    info: Path | None = None


@dataclass(frozen=True)
class Info:
    """Notes of yt-dlp on a video; empty and None where unknown."""

    channel: str = ""
    duration_s: float | None = None


class Downloads:
    """All files of YouTube videos below a folder, by id."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.videos: dict[str, VideoFiles] = {}
        self.rows = Rows()
        """Rejects: videos without an id, second files of one video, broken downloads."""
        self._paths: dict[str, list[str]] = {}
        """Id -> paths of its videos."""
        for folder, names in walk(root):
            for name in names:
                if is_text(str(folder / name)):
                    self._add(folder, name)
                else:
                    self.rows.reject_name(root, folder / name)
        for known, paths in self._paths.items():
            self._choose(known, paths)

    def __bool__(self) -> bool:
        return any(files.video for files in self.videos.values())

    def _add(self, folder: Path, name: str) -> None:
        """Gives a file to its video, by the id in its name."""
        stem, suffix = os.path.splitext(name)
        suffix = suffix.lower()
        known = video_id(stem)
        if suffix in VIDEO_SUFFIXES:
            if _UNFINISHED.search(stem):
                if video_id(_UNFINISHED.sub("", stem)):
                    detail = "one stream of a video that was not joined"
                    self._reject(folder / name, "unfinished-download", detail)
            elif known:
                self.videos.setdefault(known, VideoFiles())
                self._paths.setdefault(known, []).append(str(folder / name))
            else:
                self._reject(folder / name, "no-video-id", "expected ID.mp4 or TITLE [ID].mp4")
        elif suffix in SUFFIXES:
            base, _, last = stem.rpartition(".")
            inner, _, first = base.rpartition(".")
            # A tag may have two parts, <id>.a.en.vtt, or be absent.
            for title, tag in ((base, last), (inner, f"{first}.{last}"), (stem, "")):
                if owner := video_id(title):
                    self.videos.setdefault(owner, VideoFiles()).tracks.setdefault(tag, folder / name)
                    break
            else:
                self._reject(folder / name, "unmatched", "no YouTube id in its name")
        elif name.endswith(".info.json"):
            if owner := video_id(name.removesuffix(".info.json")):
                self.videos.setdefault(owner, VideoFiles()).info = folder / name
        elif suffix in _PARTS:
            detail = "the download was cut off; run the downloader again"
            self._reject(folder / name, "unfinished-download", detail)

    def _choose(self, known: str, paths: list[str]) -> None:
        """Takes one file of a video: a whole one before chapters, .mp4 before others."""
        files = self.videos[known]
        stems = {path: _title(Path(path).stem, known) for path in paths}
        beside = [*files.tracks.values(), *([files.info] if files.info else [])]
        titles = {*stems.values(), *(_title(path.name, known) for path in beside)}
        cut = {path: match for path, stem in stems.items() if (match := _CHAPTER.fullmatch(stem))}
        numbers = {(match["title"], match["number"]) for match in cut.values()}
        # A title may look like a chapter's. It is one where another file of the video shows the whole title.
        chapters = {
            path
            for path, match in cut.items()
            if len(cut) < len(paths)
            or match["title"] in titles
            or sum(title == match["title"] for title, _ in numbers) > 1
        }
        whole = sorted((path for path in paths if path not in chapters), key=_preference)
        files.video = whole[0] if whole else ""
        for path in map(Path, paths):
            if str(path) in chapters:
                self._reject(path, "chapter", "captions count from the start of the whole video")
            elif str(path) != files.video:
                self._reject(path, "second-file", f"{Path(files.video).name} is taken")

    def _reject(self, path: Path, reason: str, detail: str) -> None:
        self.rows.reject(path.relative_to(self.root).as_posix(), reason, detail)


def _preference(path: str) -> tuple[int, str]:
    suffix = os.path.splitext(path)[1].lower()
    return (_PREFERRED.index(suffix) if suffix in _PREFERRED else len(_PREFERRED), path)


def _title(name: str, known: str) -> str:
    """Returns a file's name up to its video's id, in brackets or after a hyphen."""
    return name.rpartition(known)[0].rstrip("[-").rstrip()


def automatic_by_name(tag: str, beside: Collection[str] = ()) -> bool:
    """Returns whether downloaders give a caption file's tag to a recogniser's captions or translations.

    `en-de` is a translation from German. `pt-br` may be one from Breton, or a region in small letters: a pair
    that is a locale counts as a region, unless captions of the other language are among the tags `beside`.
    """
    if not _AUTOMATIC.search(tag):
        return False
    source = tag.rpartition("-")[2]
    is_locale = tag.replace("-", "_") in locale.locale_alias
    return not is_locale or any(primary_subtag(other) == source for other in beside if other != tag)


@lru_cache(maxsize=1024)
def language_of(tag: str) -> str:
    """Returns the BCP 47 tag of a caption file's tag, without the letters that YouTube appends for a named track.

    `en-US` and `en_us` give `en-US`, `en-eEY6OEpapPo` and the translation `en-de` give `en`, `iw` gives `he`; empty
    where there is none.
    """
    match = _TAG.match(tag.removeprefix("a.").removesuffix("-orig"))
    if match is None:
        return ""
    language = language_tag(match[0], registered=True)
    if not language or automatic_by_name(tag):
        return language_tag(re.split("[-_]", match[0])[0], registered=True)
    return language


def order_tracks(tags: Collection[str], wanted: Collection[str]) -> list[str]:
    """Returns the tags whose primary language is among `wanted`, in their order; the plain tag before regional ones."""
    ranks = {primary_subtag(language): rank for rank, language in reversed(list(enumerate(wanted)))}
    found = []
    for tag in tags:
        language = language_of(tag)
        primary = primary_subtag(language)
        if primary in ranks:
            found.append((ranks[primary], tag != primary, language != tag, tag))
    return [tag for *_, tag in sorted(found)]


def read_info(path: Path | None) -> Info:
    """Returns channel and duration of a video, unknown where its notes cannot be read: nothing needs them."""
    if path is None:
        return Info()
    try:
        # Not parse_json: half a character in a description is no reason to forget the channel.
        values = json.loads(read_bytes(path))
    except (OSError, ValueError, RecursionError):
        return Info()
    if not isinstance(values, dict):
        return Info()
    channel, duration = values.get("channel_id"), values.get("duration")
    known = isinstance(duration, int | float) and 0 < duration < MAX_SECONDS
    named = channel if isinstance(channel, str) and not text_fault(channel) else ""
    return Info(named, duration if known else None)
