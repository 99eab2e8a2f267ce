"""The manifest: the clips of a corpus, which every adapter returns and every later stage starts from.

A manifest file is JSON Lines, one clip a line, its keys the fields of `Clip` (`end_s` may be null). A row that cannot
be used is rejected with its reason (`Reject`), never silently. The corpus `manifest` reads such a file: the way to
bring in any corpus without an adapter.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sage_scale.config import Corpus
from sage_scale.corpora.folder import CorpusFolder, NameIndex, table_text
from sage_scale.errors import Reject, UsageError
from sage_scale.text.languages import language_tag
from sage_scale.untrusted.files import expanded, lines
from sage_scale.untrusted.json_values import InvalidJSON, parse_json_object

MAX_SECONDS = 1e7
"""Times in a video beyond 116 days are a writer's mistakes."""
MAX_FRAMES = 2**31
FILE = "manifest.jsonl"
EXPECTED = f"{FILE}: one JSON object a line with at least id, video and sentence"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """An interval of a signing video with its spoken-language sentence."""

    id: str
    """Unique in the corpus; its sha256 gives the sample's key."""
    video: str
    """Path or URI of a video file, of a folder of frames, or of a keypoint file (.npz, .pose)."""
    start_s: float = 0.0
    """Start in the video, seconds."""
    end_s: float | None = None
    """End in the video, seconds; None is the video's end."""
    sentence: str = ""
    """The spoken-language sentence; a clip without one can be translated, not trained on."""
    language: str = "de"
    """BCP 47 tag of the sentence's language."""
    signer: str = ""
    """Identity of the signer, empty where unknown."""
    split: str = "train"
    """train, dev, test, or another name."""
    frames: int = 0
    """Expected frames, 0 where unknown; used for planning only."""

    @property
    def key(self) -> str:
        """The sample's key in a shard: 16 hex digits of sha256 of the id."""
        return hashlib.sha256(self.id.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Manifest:
    """The clips of a corpus, in a fixed order, and the rows rejected while reading it."""

    clips: tuple[Clip, ...]
    rejected: tuple[Reject, ...] = ()
    notes: tuple[tuple[str, int], ...] = ()
    """Changes made while reading that lose nothing, with their counts."""
    notice: str = ""
    """A sentence that has to stand beside every figure on the corpus."""

    def digest(self) -> str:
        """Returns 16 hex digits of sha256 over the clips, in order.

        Of the path of a video only the file name counts: the same corpus under another root continues the same output.
        """
        sha = hashlib.sha256()
        encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode
        for clip in self.clips:
            values = dict(vars(clip))  # dataclasses.asdict copies each value: seconds for a million clips
            values["video"] = clip.video.replace("\\", "/").rsplit("/", 1)[-1]
            sha.update(encode(values).encode())
            sha.update(b"\n")
        return sha.hexdigest()[:16]


def read_corpus(corpus: Corpus) -> Manifest:
    """Returns the clips of a manifest file with the paths of their videos.

    `corpus.root` is the file, or a folder with `manifest.jsonl`. A relative `video` starts at the manifest's folder.
    Rows without `language` are in `corpus.language`.
    """
    path = expanded(corpus.root)
    if path.is_dir() or not os.path.lexists(path):
        path = CorpusFolder(corpus, EXPECTED).root / FILE
    if not path.exists():
        raise UsageError(f"corpus manifest: there is no {path}; expected: {EXPECTED}")
    manifest = from_json_lines(table_text(path, "save it as UTF-8"), corpus.language)
    names = NameIndex()
    clips: list[Clip] = []
    for clip in manifest.clips:
        video = clip.video if "://" in clip.video else names.existing(str(path.parent / clip.video))
        sentence = clip.sentence if clip.sentence.strip() else ""
        clips.append(dataclasses.replace(clip, video=video, sentence=sentence))
    return Manifest(tuple(clips), manifest.rejected)


def to_json_lines(clips: Iterable[Clip]) -> str:
    """Returns one clip a line, keys in the order of the fields."""
    return "".join(json.dumps(dataclasses.asdict(clip), ensure_ascii=False) + "\n" for clip in clips)


def from_json_lines(text: str, language: str = "de") -> Manifest:
    """Returns the clips of JSON Lines; invalid rows and repeated ids are rejected, by line number.

    `language` is the BCP 47 tag of rows that name none.
    """
    known = {field.name for field in dataclasses.fields(Clip)}
    clips: dict[str, Clip] = {}
    rejected: list[Reject] = []
    for number, line in enumerate(lines(text), start=1):
        if not line.strip():
            continue
        here = f"line {number}"
        try:
            row = parse_json_object(line)
        except InvalidJSON as error:
            rejected.append(Reject(id=here, reason="bad-row", detail=str(error)))
            continue
        values = {key: row[key] for key in row if key in known}
        reason, detail = _fault(values)
        name = values["id"] if isinstance(values.get("id"), str) and values["id"].strip() else here
        if not reason:
            values["language"] = language_tag(values["language"]) if values.get("language") else language
            if not values["language"]:
                reason, detail = "bad-row", "language is not a tag of BCP 47, such as de, pt-BR or zh-Hans"
            elif name in clips:
                reason, detail = "repeated-id", "an earlier line has the same id"
        if reason:
            rejected.append(Reject(id=name, reason=reason, detail=f"{here}: {detail}"))
        else:
            clips[name] = Clip(**values)
    return Manifest(tuple(clips.values()), tuple(rejected))


def _fault(values: Mapping[str, Any]) -> tuple[str, str]:
    """Returns reason and detail of the first value that is not valid for a clip, ("", "") where all are."""
    for key in ("id", "video"):
        if not values.get(key) or not str(values[key]).strip():
            return "bad-row", f"no {key}"
    for key in ("id", "video", "sentence", "language", "signer", "split"):
        if not isinstance(values.get(key, ""), str):
            return "bad-row", f"{key} is not a string"
    frames, start_s, end_s = values.get("frames", 0), values.get("start_s", 0.0), values.get("end_s")
    if type(frames) is not int or not 0 <= frames < MAX_FRAMES:
        return "bad-row", f"frames is not an integer from 0 to {MAX_FRAMES:,}"
    for key, seconds in (("start_s", start_s), ("end_s", 0.0 if end_s is None else end_s)):
        if type(seconds) not in (int, float) or not 0 <= seconds < MAX_SECONDS:
            return "bad-row", f"{key} is not a number of seconds from 0 to {MAX_SECONDS:,.0f}"
    if end_s is not None and end_s <= start_s:
        return "bad-interval", f"from {start_s:g} s to {end_s:g} s"
    return "", ""
