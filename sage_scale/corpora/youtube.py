"""The corpora `youtube_sl25` and `youtube_asl`: lists of YouTube videos, read as a downloader leaves them.

    youtube-sl-25-metadata.csv         id,sign language: no header line        (youtube_sl25)
    youtube_asl_video_ids.txt          one id a line; may be missing           (youtube_asl)
    <id>.mp4, <title> [<id>].webm, <id>.en.vtt, <id>.info.json ...             corpora/youtube_files.py

A caption is a clip: its id is `<id>@<start>-<end>`. Of a video's caption files the one written in the language of
the sign language's country is taken (corpora/sign_languages.py), English for youtube_asl; captions of a recogniser
are told by their name or by their words' times and set aside, unless `captions.automatic=fallback`. The captions
then pass the named filters (corpora/caption_filters.py). Videos of the list that are not there are `not-downloaded`:
most are gone from the web. No split is published: `corpora/splits.py`, by channel where it is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from sage_scale.config import Corpus
from sage_scale.corpora.caption_filters import filter_cues
from sage_scale.corpora.captions import BAD_CUE, CaptionFile, is_automatic, parse_captions
from sage_scale.corpora.clip import Clip, Manifest, Rejected
from sage_scale.corpora.folders import corpus_folder, table_text, unreadable_text
from sage_scale.corpora.media import walk
from sage_scale.corpora.rolling import merge_rolling
from sage_scale.corpora.sign_languages import UNKNOWN, WRITTEN
from sage_scale.corpora.splits import split_of
from sage_scale.corpora.youtube_files import (
    Downloads,
    Info,
    VideoFiles,
    automatic_by_name,
    language_of,
    order_tracks,
    read_info,
)
from sage_scale.errors import UsageError
from sage_scale.text.languages import matches
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import lines, read_text, text_fault

SL25_LIST = "youtube-sl-25-metadata.csv"
ASL_LIST = "youtube_asl_video_ids.txt"
EXPECTED_SL25 = f"{SL25_LIST} and the videos with their captions (ID.mp4, ID.en.vtt), in any folders below"
EXPECTED_ASL = (
    f"videos with their English captions (ID.mp4, ID.en.vtt), and {ASL_LIST} to tell what is missing"
)


def read_sl25(corpus: Corpus) -> Manifest:
    """The captions of YouTube-SL-25's videos, in the order of its list."""
    root = corpus_folder(corpus.root, "youtube_sl25", EXPECTED_SL25)
    path = _list_file(root, SL25_LIST)
    if path is None:
        raise UsageError(
            f"corpus youtube_sl25: no {SL25_LIST} below {root}; it tells each video's sign language; "
            f"expected: {EXPECTED_SL25}"
        )
    listed: dict[str, str] = {}
    repeated: list[Rejected] = []
    for number, line in _lines(path, repeated):
        video, comma, code = (part.strip().strip('"') for part in line.partition(","))
        if not comma or not video or not code:
            repeated.append(
                Rejected(id=f"{path.name} line {number}", reason="bad-row", detail=shortened(line))
            )
        elif video in listed:
            if listed[video] != code:
                detail = f"{path.name} line {number} says {shortened(code)}, an earlier line {shortened(listed[video])}"
                repeated.append(Rejected(id=video, reason="repeated-id", detail=detail))
        else:
            listed[video] = code
    return _read(corpus, "youtube_sl25", root, listed, repeated, EXPECTED_SL25)


def read_asl(corpus: Corpus) -> Manifest:
    """The captions of YouTube-ASL's videos, in the order of its list; without it, of all videos by id."""
    root = corpus_folder(corpus.root, "youtube_asl", EXPECTED_ASL)
    path = _list_file(root, ASL_LIST)
    rejected: list[Rejected] = []
    listed = {line.strip(): "ase" for _, line in _lines(path, rejected)} if path is not None else None
    return _read(corpus, "youtube_asl", root, listed, rejected, EXPECTED_ASL)


def _read(
    corpus: Corpus,
    name: str,
    root: Path,
    listed: Mapping[str, str] | None,
    rejected: list[Rejected],
    expected: str,
) -> Manifest:
    downloads = Downloads(root)
    if not downloads:
        raise UsageError(
            f"corpus {name}: no video with a YouTube id in its name below {root}; expected: {expected}"
        )
    rejected = [*downloads.rejected, *rejected]
    codes = listed if listed is not None else dict.fromkeys(sorted(downloads.videos), "ase")
    clips: list[Clip] = []
    merged = 0
    for video, code in codes.items():
        if corpus.sign_languages and code not in corpus.sign_languages:
            rejected.append(Rejected(id=video, reason="filter-sign-language", detail=shortened(code)))
            continue
        reader = _Video(corpus, video, code, downloads.videos.get(video, VideoFiles()))
        clips += reader.clips()
        rejected += reader.rejected
        merged += reader.merged
    for video, files in downloads.videos.items():
        if video not in codes and files.video:
            rejected.append(
                Rejected(id=video, reason="not-listed", detail="the release's list does not have it")
            )
    notes = (("cues of rolling captions brought to each line once", merged),) if merged else ()
    return Manifest(tuple(clips), tuple(rejected), notes)


class _Video:
    """One video's clips and complaints."""

    def __init__(self, corpus: Corpus, video: str, code: str, files: VideoFiles) -> None:
        self.corpus, self.video, self.code, self.files = corpus, video, code, files
        self.rejected: list[Rejected] = []
        self.merged = 0

    def clips(self) -> list[Clip]:
        """The clips of the video, by time; complaints are gathered in `rejected`."""
        if not self.files.video:
            self._reject("not-downloaded", "captions only" if self.files.tracks else "")
            return []
        chosen = self._track()
        if chosen is None:
            return []
        language, (cues, broken) = chosen
        if self.corpus.languages and not any(matches(language, wanted) for wanted in self.corpus.languages):
            self._reject("filter-language", language)
            return []
        for line in broken:
            self._reject(BAD_CUE, line)
        if not cues:
            self._reject("no-captions", "no readable cue")
            return []
        options = self.corpus.captions
        if options.rolling:
            cues, self.merged = merge_rolling(sorted(cues, key=lambda cue: cue.start_s))
        by_channel = self.corpus.split_by == "channel"
        info = read_info(self.files.info) if by_channel or options.beyond_end else Info()
        kept, dropped = filter_cues(cues, options, language, info.duration_s)
        group = info.channel if by_channel and info.channel else self.video
        split = split_of(group, self.corpus.dev_share, self.corpus.test_share)
        clips: dict[str, Clip] = {}
        for cue in kept:
            name = _clip_id(self.video, cue.start_s, cue.end_s)
            if name in clips:
                self._reject("repeated-id", "another caption of the same times", name)
                continue
            clips[name] = Clip(
                id=name,
                video=self.files.video,
                start_s=cue.start_s,
                end_s=cue.end_s,
                sentence=cue.text,
                language=language,
                split=split,
            )
        for one in dropped:
            self._reject(one.reason, one.detail, _clip_id(self.video, one.cue.start_s, one.cue.end_s))
        return list(clips.values())

    def _track(self) -> tuple[str, CaptionFile] | None:
        """Returns language and cues of the caption file to read, or None with the reason noted."""
        tracks = self.files.tracks
        wanted = self._wanted()
        if not tracks:
            self._reject("no-captions", "no .vtt or .srt of this video")
            return None
        ordered = order_tracks(tracks, wanted)
        # Uploaders name captions by the sign language, and a file without a tag has no other language.
        ordered = [tag for tag in (self.code, "") if tag in tracks and wanted] + ordered
        if not ordered:
            shown = ", ".join(sorted(tracks)[:8])
            self._reject(
                "no-captions", f"none in {' or '.join(wanted) or 'one language'}, there is {shortened(shown)}"
            )
            return None
        automatic: tuple[str, CaptionFile] | None = None
        unreadable: tuple[str, str] | None = None
        for tag in ordered:
            language = wanted[0] if tag in ("", self.code) else language_of(tag)
            by_name = automatic_by_name(tag, tracks)
            if by_name and (automatic or self.corpus.captions.automatic == "skip"):
                automatic = automatic or (language, CaptionFile([], []))
                continue
            try:
                text = read_text(tracks[tag])
            except (UnicodeDecodeError, OSError) as error:
                unreadable = unreadable or unreadable_text(tracks[tag].name, error)
                continue
            found = parse_captions(text)
            if not by_name and not is_automatic(text, found.cues):
                return language, found
            automatic = automatic or (language, found)
        if automatic and self.corpus.captions.automatic == "fallback":
            return automatic
        if unreadable:
            self._reject(*unreadable)
        else:
            self._reject(
                "filter-automatic", "a recogniser's captions only; captions.automatic=fallback takes them"
            )
        return None

    def _wanted(self) -> tuple[str, ...]:
        if self.code == UNKNOWN or self.code not in WRITTEN:
            # Not told: a single language is taken for the video's own.
            languages = {
                language_of(tag).split("-")[0]
                for tag in self.files.tracks
                if language_of(tag) and not automatic_by_name(tag, self.files.tracks)
            }
            return tuple(languages) if len(languages) == 1 else ()
        return WRITTEN[self.code]

    def _reject(self, reason: str, detail: str = "", name: str = "") -> None:
        self.rejected.append(Rejected(id=name or self.video, reason=reason, detail=detail))


def _clip_id(video: str, start_s: float, end_s: float) -> str:
    return f"{video}@{start_s:.3f}-{end_s:.3f}"


def _list_file(root: Path, name: str) -> Path | None:
    """The release's list; browsers put the bucket's name before that of the file."""
    for folder, names in walk(root):
        for here in names:
            if here == name or here.endswith(f"_{name}"):
                return folder / here
    return None


def _lines(path: Path, rejected: list[Rejected]) -> Iterator[tuple[int, str]]:
    """Yields (number from 1, line) of a list; empty lines are passed over, lines with a NUL join `rejected`."""
    for number, line in enumerate(lines(table_text(path)), start=1):
        if fault := text_fault(line):
            rejected.append(Rejected(id=f"{path.name} line {number}", reason="bad-row", detail=fault))
        elif line.strip():
            yield number, line
