"""The corpora `youtube_sl25` and `youtube_asl`: lists of YouTube videos, read as a downloader leaves them.

    youtube-sl-25-metadata.csv         id,sign language: no header line        (youtube_sl25)
    youtube_asl_video_ids.txt          one id a line; may be missing           (youtube_asl)
    <id>.mp4, <title> [<id>].webm, <id>.en.vtt, <id>.info.json ...             corpora/youtube_files.py

A caption is a clip, `<id>@<start>-<end>`. Read are captions in a language written where the sign language is used
(`WRITTEN`; English for youtube_asl), not translations. A recogniser's captions, which their name or the words' times
show, are rejected unless `captions.automatic=fallback`. Named filters follow (corpora/caption_filters.py). Videos of
the list without a file are `not-downloaded`: most are gone from the web. No split is published: the hash of the channel
decides where it is known, else the video's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from sage_scale.config import Corpus
from sage_scale.corpora.adapters import Rows, hash_split, require
from sage_scale.corpora.caption_filters import filter_cues
from sage_scale.corpora.captions import BAD_CUE, CaptionFile, parse_captions
from sage_scale.corpora.folder import CorpusFolder, table_text, unreadable_text, walk
from sage_scale.corpora.manifest import Clip, Manifest
from sage_scale.corpora.roll_up import is_automatic, merge_roll_up
from sage_scale.corpora.videos import MERGED
from sage_scale.corpora.youtube_files import (
    Downloads,
    Info,
    VideoFiles,
    automatic_by_name,
    language_of,
    order_tracks,
    read_info,
)
from sage_scale.errors import ClipRejected
from sage_scale.text.languages import matches
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import lines, read_text, text_fault

SL25_LIST = "youtube-sl-25-metadata.csv"
ASL_LIST = "youtube_asl_video_ids.txt"
EXPECTED_SL25 = f"{SL25_LIST} and the videos with their captions (ID.mp4, ID.en.vtt), in any folders below"
EXPECTED_ASL = (
    f"videos with their English captions (ID.mp4, ID.en.vtt), and {ASL_LIST} to name missing videos"
)

UNKNOWN = "???"
"""Code in the list of YouTube-SL-25 of an unknown sign language; others are ISO 639-3 codes, two of them countries."""
_SIGN_LANGUAGES = {
    "ar": "jos",  # Jordan
    "ca es": "csc",  # Catalonia
    "cs": "cse",
    "da": "dsl",
    "de": "asq gsg sgg",  # Austria, Germany, Switzerland
    "el": "gss",
    "en": "ase asf bfi ils nzs sls",  # America, Australia, Britain, International Sign, New Zealand, Singapore
    "en ga": "isg",  # Ireland
    "en hi": "ins",  # India
    "es": "aed csg csn mfs prl ssp",  # Argentina, Chile, Colombia, Mexico, Peru, Spain
    "et": "eso",
    "fi": "fse",
    "fil tl en": "psp",  # Philippines
    "fr": "fcs fsl sfb ssr",  # Quebec, France, Belgium, Switzerland
    "he": "isr",
    "hr": "csq",
    "hu": "hsh",
    "id": "inl",
    "is": "icl",
    "it": "ise slf",  # Italy, Switzerland
    "ja": "jsl",
    "ko": "kvk",
    "lt": "lls",
    "lv": "lsl",
    "nl": "dse vgt",  # Netherlands, Flanders
    "no nb nn": "nsl",
    "pl": "pso",
    "pt": "bzs psr",  # Brazil, Portugal
    "ro": "rms",
    "ru": "rsl",
    "sk": "svk",
    "sl": "slovenia",
    "sv": "swl",
    "sv fi": "fss",  # Swedish speakers of Finland
    "th": "tsq",
    "tr": "tsm",
    "uk": "ukl",
    "ur en": "pks",  # Pakistan
    "vi": "vietnam",
    "zh": "csl tss",  # China, Taiwan
    "zh yue en": "hks",  # Hong Kong
}
WRITTEN = {
    code: tuple(written.split()) for written, codes in _SIGN_LANGUAGES.items() for code in codes.split()
}
"""Code of a sign language -> primary subtags of the languages written there, in order of preference."""


def read_sl25(corpus: Corpus) -> Manifest:
    """Returns the captions of YouTube-SL-25's videos, in the order of its list."""
    folder = CorpusFolder(corpus, EXPECTED_SL25)
    path = _list_file(folder.root, SL25_LIST)
    if path is None:
        raise folder.fault(f"no {SL25_LIST} below {folder.root}; it tells each video's sign language")
    listed: dict[str, str] = {}
    rows = Rows()
    for here, line in _lines(path, rows):
        video, comma, code = (part.strip().strip('"') for part in line.partition(","))
        if not comma or not video or not code:
            rows.reject(here, "bad-row", shortened(line))
        elif listed.setdefault(video, code) != code:
            detail = f"{here} says {shortened(code)}, an earlier line {shortened(listed[video])}"
            rows.reject(video, "repeated-id", detail)
    return _read(corpus, folder, listed, rows)


def read_asl(corpus: Corpus) -> Manifest:
    """Returns the captions of YouTube-ASL's videos, in the order of its list; without it, of all videos by id."""
    folder = CorpusFolder(corpus, EXPECTED_ASL)
    path = _list_file(folder.root, ASL_LIST)
    rows = Rows()
    listed = {line.strip(): "ase" for _, line in _lines(path, rows)} if path is not None else None
    return _read(corpus, folder, listed, rows)


def _read(corpus: Corpus, folder: CorpusFolder, listed: Mapping[str, str] | None, rows: Rows) -> Manifest:
    """Reads the downloads of the listed videos, id -> sign language; of all videos without a list."""
    downloads = Downloads(folder.root)
    if not downloads:
        raise folder.fault(f"no video with a YouTube id in its name below {folder.root}")
    rows.rejected = downloads.rows.rejected + rows.rejected
    codes = listed if listed is not None else dict.fromkeys(sorted(downloads.videos), "ase")
    merged = 0
    for video, code in codes.items():
        with rows.row(video):
            wanted = not corpus.sign_languages or code in corpus.sign_languages
            require(wanted, "filter-sign-language", shortened(code))
            files = downloads.videos.get(video, VideoFiles())
            merged += _read_video(corpus, video, code, files, rows)
    for video, files in downloads.videos.items():
        if video not in codes and files.video:
            rows.reject(video, "not-listed", "the release's list does not have it")
    if merged:
        rows.notes.append((MERGED, merged))
    return rows.manifest()


def _read_video(corpus: Corpus, video: str, code: str, files: VideoFiles, rows: Rows) -> int:
    """Adds the clips of one video, by time, and returns the number of cues that roll-up captions lost.

    Raises ClipRejected where it has no captions to read.
    """
    require(files.video, "not-downloaded", "captions only" if files.tracks else "")
    options = corpus.captions
    language, (cues, broken) = _captions(files.tracks, code, options.automatic)
    wanted = not corpus.languages or any(matches(language, wanted) for wanted in corpus.languages)
    require(wanted, "filter-language", language)
    for line in broken:
        rows.reject(video, BAD_CUE, line)
    require(cues, "no-captions", "no readable cue")
    merged = 0
    if options.rolling:
        cues, merged = merge_roll_up(sorted(cues, key=lambda cue: cue.start_s))
    by_channel = corpus.split_by == "channel"
    info = read_info(files.info) if by_channel or options.beyond_end else Info()
    group = info.channel if by_channel and info.channel else video
    split = hash_split(group, corpus.dev_share, corpus.test_share)
    kept, dropped = filter_cues(cues, options, language, info.duration_s)
    for cue in kept:
        name = f"{video}@{cue.start_s:.3f}-{cue.end_s:.3f}"
        with rows.row(name):
            require(name not in rows.clips, "repeated-id", "another caption of the same times")
            rows.add(
                Clip(id=name, video=files.video, start_s=cue.start_s, end_s=cue.end_s, sentence=cue.text,
                     language=language, split=split)
            )  # fmt: skip
    for one in dropped:
        rows.reject(f"{video}@{one.cue.start_s:.3f}-{one.cue.end_s:.3f}", one.reason, one.detail)
    return merged


def _captions(tracks: Mapping[str, Path], code: str, automatic: str) -> tuple[str, CaptionFile]:
    """Returns language and cues of the caption file to read of a video in the sign language `code`.

    `automatic` is the recipe's `captions.automatic`. Raises ClipRejected where no file is to be read.
    """
    wanted = _wanted_languages(tracks, code)
    require(tracks, "no-captions", "no .vtt or .srt of this video")
    # Uploaders name captions by the sign language, and a file without a tag has no other language.
    ordered = [tag for tag in (code, "") if tag in tracks and wanted] + order_tracks(tracks, wanted)
    shown = shortened(", ".join(sorted(tracks)[:8]))
    require(ordered, "no-captions", f"none in {' or '.join(wanted) or 'one language'}, there is {shown}")
    recognised: tuple[str, CaptionFile] | None = None
    unreadable: tuple[str, str] | None = None
    for tag in ordered:
        language = wanted[0] if tag in ("", code) else language_of(tag)
        by_name = automatic_by_name(tag, tracks)
        if by_name and (recognised or automatic == "skip"):
            recognised = recognised or (language, CaptionFile([], []))
            continue
        try:
            text = read_text(tracks[tag])
        except (UnicodeDecodeError, OSError) as error:
            unreadable = unreadable or unreadable_text(tracks[tag].name, error)
            continue
        found = parse_captions(text)
        if not by_name and not is_automatic(text, found.cues):
            return language, found
        recognised = recognised or (language, found)
    if recognised and automatic == "fallback":
        return recognised
    if unreadable:
        raise ClipRejected(*unreadable)
    raise ClipRejected(
        "filter-automatic", "a recogniser's captions only; captions.automatic=fallback takes them"
    )


def _wanted_languages(tracks: Mapping[str, Path], code: str) -> tuple[str, ...]:
    """Returns the languages of captions to take, the preferred one first."""
    if code != UNKNOWN and code in WRITTEN:
        return WRITTEN[code]
    # Of an unknown sign language, captions in a single language are taken for the video's own.
    found = {language_of(tag).split("-")[0] for tag in tracks if not automatic_by_name(tag, tracks)} - {""}
    return tuple(found) if len(found) == 1 else ()


def _list_file(root: Path, name: str) -> Path | None:
    """Returns the path of the release's list; browsers put the bucket's name before the file's."""
    for folder, names in walk(root):
        for here in names:
            if here == name or here.endswith(f"_{name}"):
                return folder / here
    return None


def _lines(path: Path, rows: Rows) -> Iterator[tuple[str, str]]:
    """Yields ("FILE line N", line) of a list, without empty lines; lines with a NUL are rejected."""
    for number, line in enumerate(lines(table_text(path)), start=1):
        here = f"{path.name} line {number}"
        if fault := text_fault(line):
            rows.reject(here, "bad-row", fault)
        elif line.strip():
            yield here, line
