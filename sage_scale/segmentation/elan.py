"""ELAN annotation files (`.eaf`, EAF 3.0): tiers of signs and of sentences, read and written.

Read as ELAN reads them: a time slot without a value lies at its share of the way between the next slots with one, in
the order of TIME_ORDER; an annotation that refers to another has its times, and several that refer to one divide them
equally; TIME_ORIGIN of the video is added, so that times are those of the video. The reader is our own: pympi-ling
1.71 opens any kind of file, expands entities, has no limits, and gives slots without a value as None.
"""

from __future__ import annotations

import os
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import Path

from sage_scale.errors import ClipRejected
from sage_scale.segmentation.intervals import (
    SENTENCE_TIER,
    SIGN_TIER,
    Interval,
    SignIntervals,
    sorted_intervals,
)
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import open_regular
from sage_scale.untrusted.xml_values import MAX_BYTES, MAX_DEPTH, InvalidXML, parse_xml

VARIANTS = {
    SIGN_TIER: ("sign", "signs", "gloss", "glosses", "idgloss", "signgloss", "lexeme", "lexemesign"),
    SENTENCE_TIER: ("sentence", "sentences", "translation", "freetranslation", "phrase", "phrases"),
}
"""Other names of the two tiers that are taken if the default name is not there, in this order: letters and digits."""
_UNITS_MS = {"milliseconds": 1.0, "PAL-frames": 40.0, "PAL-50-frames": 20.0, "NTSC-frames": 1001 / 30}
_MIME = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime", ".mpg": "video/mpeg"}
_CONSTRAINTS = {
    "Time_Subdivision": "Divides the time of the parent annotation, without gaps",
    "Symbolic_Subdivision": "Divides the parent annotation into annotations in an order",
    "Symbolic_Association": "1-1 association with a parent annotation",
    "Included_In": "Annotations within the time of the parent annotation, gaps are allowed",
}
"""Stereotypes of tiers, with a description; ELAN expects all four in a file."""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
Times = tuple[float | None, float | None]
"""Start and end of an annotation, in the document's unit; None where it has no value."""


def read_eaf(
    path: str | Path, sign_tier: str = SIGN_TIER, sentence_tier: str = SENTENCE_TIER, *, video: str = ""
) -> SignIntervals:
    """Returns the intervals of two tiers of an ELAN file, times in seconds of the video.

    A tier is found by its name, then by the same letters and digits in any case, then, for the two default names, by
    `VARIANTS`; `NAME@PARTICIPANT` counts as NAME. An empty name reads no tier. Annotations without times, or of no
    length, are left out and named. `video` chooses the media descriptor by its file name, else the first one. Raises
    ClipRejected `bad-labels` for the content (one line), OSError where the file cannot be read.
    """
    with open_regular(path) as file:
        data = file.read(MAX_BYTES + 1)
    try:
        root = parse_xml(data)
    except InvalidXML as error:
        raise _bad(str(error)) from None
    if root.tag != "ANNOTATION_DOCUMENT":
        raise _bad(f"not an ELAN file: its root is {shortened(root.tag)}")
    document = _Document(root, video)
    signs, left_out = document.tier(sign_tier, required=True)
    sentences, more = document.tier(sentence_tier, required=False)
    return SignIntervals(signs=signs, sentences=sentences, left_out=left_out + more)


def eaf_bytes(
    intervals: SignIntervals,
    *,
    video: str = "",
    folder: str | Path = "",
    sign_tier: str = SIGN_TIER,
    sentence_tier: str = SENTENCE_TIER,
    author: str = "sage-scale",
    date: str = "1970-01-01T00:00:00+00:00",
) -> bytes:
    """Returns an ELAN file with a tier of signs and one of sentences, times rounded to milliseconds.

    `video` is linked by its URL and, if `folder` (in which the file will lie) is given, relative to it. A tier of ELAN
    holds no overlaps: overlapping intervals go to further tiers, SIGN-2 and so on. An interval is at least 1 ms long.
    `date` is fixed, so that the same intervals give the same bytes.
    """
    root = ET.Element("ANNOTATION_DOCUMENT", {
        "AUTHOR": _text(author), "DATE": date, "FORMAT": "3.0", "VERSION": "3.0",
        "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
        "xsi:noNamespaceSchemaLocation": "http://www.mpi.nl/tools/elan/EAFv3.0.xsd",
    })  # fmt: skip
    header = ET.SubElement(root, "HEADER", MEDIA_FILE="", TIME_UNITS="milliseconds")
    if video:
        ET.SubElement(header, "MEDIA_DESCRIPTOR", _media(video, folder))
    tiers = [*_lanes(sign_tier, intervals.signs), *_lanes(sentence_tier, intervals.sentences)]
    count = sum(len(rows) for _, rows in tiers)
    ET.SubElement(header, "PROPERTY", NAME="lastUsedAnnotationId").text = str(count)
    order = ET.SubElement(root, "TIME_ORDER")
    # Each annotation has its own two slots, so that an editor who moves it moves no other.
    values = [value for _, rows in tiers for start, end, _ in rows for value in (start, end)]
    names = [""] * len(values)
    for number, place in enumerate(sorted(range(len(values)), key=values.__getitem__), start=1):
        names[place] = f"ts{number}"
        ET.SubElement(order, "TIME_SLOT", TIME_SLOT_ID=names[place], TIME_VALUE=str(values[place]))
    number = 0
    for name, rows in tiers:
        tier = ET.SubElement(root, "TIER", LINGUISTIC_TYPE_REF="default-lt", TIER_ID=name)
        for _, _, text in rows:
            start, end, number = names[2 * number], names[2 * number + 1], number + 1
            inner = ET.SubElement(
                ET.SubElement(tier, "ANNOTATION"),
                "ALIGNABLE_ANNOTATION",
                {"ANNOTATION_ID": f"a{number}", "TIME_SLOT_REF1": start, "TIME_SLOT_REF2": end},
            )
            ET.SubElement(inner, "ANNOTATION_VALUE").text = _text(text)
    kind = {"GRAPHIC_REFERENCES": "false", "LINGUISTIC_TYPE_ID": "default-lt", "TIME_ALIGNABLE": "true"}
    ET.SubElement(root, "LINGUISTIC_TYPE", kind)
    for name, words in _CONSTRAINTS.items():
        ET.SubElement(root, "CONSTRAINT", STEREOTYPE=name, DESCRIPTION=words)
    ET.indent(root, " ")
    return ET.tostring(root, encoding="UTF-8", xml_declaration=True) + b"\n"


class _Document:
    """Slots, tiers and annotations of a parsed ELAN file."""

    def __init__(self, root: ET.Element, video: str) -> None:
        header = root.find("HEADER")
        unit = "milliseconds" if header is None else header.get("TIME_UNITS", "milliseconds")
        if unit not in _UNITS_MS:
            raise _bad(f"its time unit is {shortened(unit)}")
        self.unit_ms = _UNITS_MS[unit]
        self.origin_ms = _origin_ms([] if header is None else header.findall("MEDIA_DESCRIPTOR"), video)
        order = root.find("TIME_ORDER")
        self.slots = _slot_times([] if order is None else order.findall("TIME_SLOT"))
        self.tiers: dict[str, ET.Element] = {}
        self.place: dict[str, tuple[str, ET.Element]] = {}
        for tier in root.findall("TIER"):
            name = tier.get("TIER_ID", "")
            if name in self.tiers:
                raise _bad(f"two tiers are named '{shortened(name)}'")
            self.tiers[name] = tier
            for annotation in tier.iterfind("ANNOTATION/*"):
                self.place[annotation.get("ANNOTATION_ID", "")] = (name, annotation)
        self._shares: dict[str, dict[str, tuple[int, int]]] = {}

    def tier(self, wanted: str, required: bool) -> tuple[tuple[Interval, ...], tuple[str, ...]]:
        """Returns the intervals of a tier and of its tiers for overlaps (`eaf_bytes`), and one line on each annotation
        that was left out."""
        name = _tier_name(list(self.tiers), wanted, required) if wanted else None
        if name is None:
            return (), ()
        rows, untimed = [], []
        overlaps = (f"{name}-{n}" for n in range(2, len(self.tiers) + 1))
        lanes = [name, *(lane for lane in overlaps if lane in self.tiers)]
        for lane, annotation in (
            (tier, item) for tier in lanes for item in self.tiers[tier].iterfind("ANNOTATION/*")
        ):
            label = shortened(annotation.get("ANNOTATION_ID", "?"), 40)
            start, end = self._times(annotation, lane)
            if start is None or end is None:
                untimed.append(f"annotation {label} has no {'start' if start is None else 'end'}")
                continue
            text = (annotation.findtext("ANNOTATION_VALUE") or "").strip()
            # What was cut off at the video's start begins with it.
            start_s, end_s = (
                max(0.0, (value * self.unit_ms + self.origin_ms) / 1000) for value in (start, end)
            )
            rows.append((f"annotation {label}", start_s, end_s, text))
        kept, odd = sorted_intervals(rows)
        return kept, (*untimed, *odd)

    def _times(self, annotation: ET.Element, tier: str, depth: int = 0) -> Times:
        if annotation.tag == "ALIGNABLE_ANNOTATION":
            names = (annotation.get("TIME_SLOT_REF1", ""), annotation.get("TIME_SLOT_REF2", ""))
            if lost := [name for name in names if name not in self.slots]:
                raise _bad(f"there is no time slot '{shortened(lost[0], 40)}'")
            return self.slots[names[0]], self.slots[names[1]]
        parent = annotation.get("ANNOTATION_REF", "")
        if parent not in self.place:
            raise _bad(f"there is no annotation '{shortened(parent, 40)}'")
        if depth > MAX_DEPTH:
            raise _bad(
                f"annotation '{shortened(parent, 40)}' refers to itself, or through more than {MAX_DEPTH} others"
            )
        above, element = self.place[parent]
        start, end = self._times(element, above, depth + 1)
        if start is None or end is None:
            return start, end
        if tier not in self._shares:
            self._shares[tier] = _shares(self.tiers[tier].iterfind("ANNOTATION/REF_ANNOTATION"))
        number, count = self._shares[tier].get(annotation.get("ANNOTATION_ID", ""), (0, 1))
        return start + (end - start) * number / count, start + (end - start) * (number + 1) / count


def _slot_times(slots: Sequence[ET.Element]) -> dict[str, float | None]:
    """Returns the time of each slot; of one without a value by its place between its neighbours, None at the end."""
    names, values = [], []
    for slot in slots:
        names.append(slot.get("TIME_SLOT_ID", ""))
        written = slot.get("TIME_VALUE")
        if written is not None and not re.fullmatch(r"\s*[0-9]{1,15}\s*", written, re.ASCII):
            raise _bad(f"time slot '{shortened(names[-1], 40)}' has the value '{shortened(written, 40)}'")
        values.append(None if written is None else float(written))
    times, before, first = list(values), 0.0, 0
    for number, value in enumerate(values):
        if value is None:
            continue
        gap = number - first
        for k in range(gap if value >= before else 0):
            times[first + k] = before + (k + 1) * (value - before) / (gap + 1)
        before, first = value, number + 1
    return dict(zip(names, times))


def _shares(annotations: Iterable[ET.Element]) -> dict[str, tuple[int, int]]:
    """Returns by annotation its number among those that refer to the same one, in the order of
    PREVIOUS_ANNOTATION, and their count."""
    groups: dict[str, dict[str, str]] = {}
    for annotation in annotations:
        group = groups.setdefault(annotation.get("ANNOTATION_REF", ""), {})
        group[annotation.get("ANNOTATION_ID", "")] = annotation.get("PREVIOUS_ANNOTATION", "")
    shares: dict[str, tuple[int, int]] = {}
    for group in groups.values():
        following = {previous: name for name, previous in group.items() if previous in group}
        ordered: list[str] = []
        for name in (name for name, previous in group.items() if previous not in group):
            while name and len(ordered) < len(group):
                ordered.append(name)
                name = following.get(name, "")
        if sorted(ordered) != sorted(group):
            ordered = list(group)
        shares |= {name: (number, len(ordered)) for number, name in enumerate(ordered)}
    return shares


def _tier_name(names: Sequence[str], wanted: str, required: bool) -> str | None:
    """Returns the tier that `wanted` names, None where there is none and none is required."""
    if wanted in names:
        return wanted
    for folded in (_folded(wanted), *VARIANTS.get(wanted, ())):
        whole = [name for name in names if _folded(name) == folded]
        found = whole or [name for name in names if _folded(name.partition("@")[0]) == folded]
        if len(found) == 1:
            return found[0]
        if found:
            raise _bad(f"several tiers may be {shortened(wanted)}: {_listed(found)}; name one of them")
    if required:
        raise _bad(
            f"there is no tier {shortened(wanted)}; its tiers are {_listed(names) or 'none'}; name one of them"
        )
    return None


def _folded(name: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", name).casefold()))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(shortened(name, 30) for name in names[:6])
    return shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _origin_ms(media: Sequence[ET.Element], video: str) -> float:
    """Returns the time of the video at which the annotation's time 0 lies, milliseconds."""

    def file_name(url: str) -> str:
        return url.replace("\\", "/").rsplit("/", 1)[-1]

    same = [item for item in media if video and file_name(item.get("MEDIA_URL", "")) == file_name(video)]
    origin = next((item.get("TIME_ORIGIN") or "0" for item in [*same, *media]), "0")
    if not re.fullmatch(r"-?[0-9]{1,12}", origin, re.ASCII):
        raise _bad(f"TIME_ORIGIN is '{shortened(origin, 40)}'")
    return float(origin)


def _media(video: str, folder: str | Path) -> dict[str, str]:
    """Returns the attributes of a link to the video, in the form that ELAN itself writes: spaces are not escaped."""
    mime = _MIME.get(os.path.splitext(video)[1].lower(), "video/*")
    if "://" in video:
        return {"MEDIA_URL": _text(video), "MIME_TYPE": mime}
    path = os.path.abspath(video).replace("\\", "/")
    media = {"MEDIA_URL": _text(f"file:///{path.lstrip('/')}"), "MIME_TYPE": mime}
    if folder and "://" not in str(folder):
        relative = os.path.relpath(path, os.path.abspath(folder)).replace("\\", "/")
        media["RELATIVE_MEDIA_URL"] = _text(relative if relative.startswith("../") else f"./{relative}")
    return media


def _lanes(name: str, intervals: Iterable[Interval]) -> list[tuple[str, list[tuple[int, int, str]]]]:
    """Returns tiers without overlaps: name, and (start, end, text) in milliseconds."""
    lanes: list[list[tuple[int, int, str]]] = [[]]
    for start_s, end_s, text in sorted(intervals):
        start = max(0, round(start_s * 1000))
        row = (start, max(start + 1, round(end_s * 1000)), text)
        free = next((lane for lane in lanes if not lane or lane[-1][1] <= start), None)
        if free is None:
            lanes.append(free := [])
        free.append(row)
    return [(name if number == 1 else f"{name}-{number}", lane) for number, lane in enumerate(lanes, start=1)]


def _text(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


def _bad(detail: str) -> ClipRejected:
    return ClipRejected("bad-labels", detail)
