"""The clip and the manifest: what every corpus reader gives and every later stage starts from.

A manifest is JSON Lines, one clip a line, keys as the fields below (`end_s` may be null). A row that cannot be
used is set aside with its reason (`Rejected`), never silently.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sage_scale.text.languages import language_tag
from sage_scale.untrusted.files import lines
from sage_scale.untrusted.json_values import InvalidJSON, parse_json_object

MAX_SECONDS = 1e7
"""Times in a video beyond 116 days are mistakes of a writer."""
MAX_FRAMES = 2**31


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A stretch of signing video with what is said in it."""

    id: str
    """Unique in the corpus; its sha256 gives the sample's key."""
    video: str
    """Path or URI of a video file, of a folder of frames, or of a keypoint file (.npz, .pose)."""
    start_s: float = 0.0
    """Start in the video, seconds."""
    end_s: float | None = None
    """End in the video, seconds; None is the video's end."""
    sentence: str = ""
    """The spoken-language sentence; empty where unknown (it can be translated, not trained on)."""
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


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A clip or row set aside, with a short stable reason and one line of detail."""

    id: str
    reason: str
    detail: str = ""

    @property
    def expected(self) -> bool:
        """Whether the recipe asked for it (a named filter), or the web no longer has it: nothing went wrong."""
        return is_expected(self.reason)


def is_expected(reason: str) -> bool:
    """Returns whether a reject was asked for by the recipe, is gone from the web, or is a file that is no clip."""
    return reason.startswith("filter-") or reason in ("not-downloaded", "unmatched", "chapter")


@dataclass(frozen=True)
class Manifest:
    """The clips of a corpus, in a fixed order, and the rows set aside while reading it."""

    clips: tuple[Clip, ...]
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[tuple[str, int], ...] = ()
    """What was changed while reading without losing anything, and how often."""

    def digest(self) -> str:
        """16 hex digits of sha256 over the clips, in order; machine paths are left out of it.

        The video's place is not part of the identity of a dataset: the same corpus under another root
        continues the same output.
        """
        sha = hashlib.sha256()
        encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode
        for clip in self.clips:
            values = dict(vars(clip))  # dataclasses.asdict copies each value: seconds for a million clips
            values["video"] = clip.video.replace("\\", "/").rsplit("/", 1)[-1]
            sha.update(encode(values).encode())
            sha.update(b"\n")
        return sha.hexdigest()[:16]

    def split(self, *names: str) -> Manifest:
        """Only the clips of the named splits."""
        return Manifest(tuple(clip for clip in self.clips if clip.split in names), self.rejected, self.notes)


def to_json_lines(clips: Iterable[Clip]) -> str:
    """Returns one clip a line, keys in the order of the fields."""
    return "".join(json.dumps(dataclasses.asdict(clip), ensure_ascii=False) + "\n" for clip in clips)


def from_json_lines(text: str, language: str = "de") -> Manifest:
    """Returns the clips of JSON Lines; rows that are none and repeated ids are rejected, by line number.

    `language` is the BCP 47 tag of rows that name none.
    """
    known = {field.name for field in dataclasses.fields(Clip)}
    clips: list[Clip] = []
    rejected: list[Rejected] = []
    seen: set[str] = set()
    for number, line in enumerate(lines(text), start=1):
        if not line.strip():
            continue
        here = name = f"line {number}"
        try:
            row = parse_json_object(line)
        except InvalidJSON as error:
            rejected.append(Rejected(id=here, reason="bad-row", detail=str(error)))
            continue
        values = {key: row[key] for key in row if key in known}
        reason, detail = _fault(values)
        name = values["id"] if isinstance(values.get("id"), str) and values["id"].strip() else here
        if not reason:
            tag = language_tag(values["language"]) if values.get("language") else language
            values["language"] = tag
            if not tag:
                reason, detail = "bad-row", "language is not a tag of BCP 47, such as de, pt-BR or zh-Hans"
            elif name in seen:
                reason, detail = "repeated-id", "an earlier line has the same id"
        if reason:
            rejected.append(Rejected(id=name, reason=reason, detail=f"{here}: {detail}"))
            continue
        seen.add(name)
        clips.append(Clip(**values))
    return Manifest(tuple(clips), tuple(rejected))


def _fault(values: Mapping[str, Any]) -> tuple[str, str]:
    """Returns reason and detail of the first value that no clip can have, ("", "") where there is none."""
    for key in ("id", "video"):
        if not values.get(key) or not str(values[key]).strip():
            return "bad-row", f"no {key}"
    for key in ("id", "video", "sentence", "language", "signer", "split"):
        if not isinstance(values.get(key, ""), str):
            return "bad-row", f"{key} is not a string"
    frames, start_s, end_s = values.get("frames", 0), values.get("start_s", 0.0), values.get("end_s")
    if isinstance(frames, bool) or not isinstance(frames, int) or not 0 <= frames < MAX_FRAMES:
        return "bad-row", f"frames is not an integer from 0 to {MAX_FRAMES:,}"
    for key, seconds in (("start_s", start_s), ("end_s", 0.0 if end_s is None else end_s)):
        if (
            isinstance(seconds, bool)
            or not isinstance(seconds, int | float)
            or not 0 <= seconds < MAX_SECONDS
        ):
            return "bad-row", f"{key} is not a number of seconds from 0 to {MAX_SECONDS:,.0f}"
    if end_s is not None and end_s <= start_s:
        return "bad-interval", f"from {start_s:g} s to {end_s:g} s"
    return "", ""
