"""ELAN files: what we write opens in pympi-ling with equal tiers; what ELAN writes is read as ELAN reads it."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlparse

import pympi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_scale.errors import ClipRejected
from sage_scale.segmentation.elan import eaf_bytes, read_eaf
from sage_scale.segmentation.intervals import Interval, SignIntervals

HEADER = '<HEADER MEDIA_FILE="" TIME_UNITS="milliseconds"/>'
words = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12).map(str.strip)
gaps = st.lists(st.tuples(st.integers(0, 900), st.integers(1, 900), words), max_size=12)


def disjoint(rows: list[tuple[int, int, str]]) -> tuple[Interval, ...]:
    """Intervals on whole milliseconds from gaps and lengths."""
    found, at = [], 0
    for gap, length, text in rows:
        found.append(Interval((at + gap) / 1000, (at + gap + length) / 1000, text))
        at += gap + length
    return tuple(found)


def document(tiers: str, slots: str = "", header: str = HEADER) -> str:
    values = [slot.partition("=")[::2] for slot in slots.split()]
    order = "".join(
        f'<TIME_SLOT TIME_SLOT_ID="{name}"' + (f' TIME_VALUE="{value}"/>' if value else "/>")
        for name, value in values
    )
    return f"<ANNOTATION_DOCUMENT>{header}<TIME_ORDER>{order}</TIME_ORDER>{tiers}</ANNOTATION_DOCUMENT>"


def tier(name: str, *annotations: str) -> str:
    """A tier of annotations 'id start end' or 'id > parent' or 'id > parent > previous'."""
    made = []
    for text in annotations:
        parts = text.split()
        attributes = f'ANNOTATION_ID="{parts[0]}" '
        if parts[1] == ">":
            kind = "REF_ANNOTATION"
            attributes += f'ANNOTATION_REF="{parts[2]}"'
            attributes += f' PREVIOUS_ANNOTATION="{parts[4]}"' if len(parts) > 4 else ""
        else:
            kind = "ALIGNABLE_ANNOTATION"
            attributes += f'TIME_SLOT_REF1="{parts[1]}" TIME_SLOT_REF2="{parts[2]}"'
        value = f"<ANNOTATION_VALUE>{parts[0].upper()}</ANNOTATION_VALUE>"
        made.append(f"<ANNOTATION><{kind} {attributes}>{value}</{kind}></ANNOTATION>")
    return f'<TIER TIER_ID="{name}">{"".join(made)}</TIER>'


def read(tmp_path: Path, text: str | bytes, *arguments: str, **options: str) -> SignIntervals:
    path = tmp_path / "a.eaf"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_eaf(path, *arguments, **options)


def refused(tmp_path: Path, text: str | bytes, *arguments: str) -> str:
    with pytest.raises(ClipRejected) as caught:
        read(tmp_path, text, *arguments)
    assert caught.value.reason == "bad-labels" and "\n" not in caught.value.detail
    assert len(caught.value.detail) < 300
    return caught.value.detail


@given(gaps, gaps)
@settings(max_examples=40, deadline=None)
def test_a_written_file_opens_in_pympi_and_here_with_equal_tiers(tmp_path_factory, signs, sentences):
    written = SignIntervals(signs=disjoint(signs), sentences=disjoint(sentences))
    path = tmp_path_factory.mktemp("eaf") / "a.eaf"
    path.write_bytes(eaf_bytes(written, video="/data/my videos/gebärde.mp4", folder="/data/out"))
    assert read_eaf(path) == written
    theirs = pympi.Eaf(path)
    for name, rows in (("SIGN", written.signs), ("SENTENCE", written.sentences)):
        wanted = [(round(a * 1000), round(b * 1000), text) for a, b, text in rows]
        assert sorted(theirs.get_annotation_data_for_tier(name)) == sorted(wanted)
    assert theirs.get_linked_files() == [
        {
            "MEDIA_URL": "file:///data/my videos/gebärde.mp4",
            "RELATIVE_MEDIA_URL": "../my videos/gebärde.mp4",
            "MIME_TYPE": "video/mp4",
        }
    ]
    assert theirs.adocument["FORMAT"] == theirs.adocument["VERSION"] == "3.0"
    assert theirs.adocument["AUTHOR"] == "sage-scale" and theirs.adocument["DATE"].startswith(
        "1970-01-01T00:00"
    )
    assert theirs.header == {"MEDIA_FILE": "", "TIME_UNITS": "milliseconds"}
    assert set(theirs.constraints) == set(pympi.Eaf.CONSTRAINTS)
    kinds = theirs.get_linguistic_type_names()
    assert {tier[2]["LINGUISTIC_TYPE_REF"] for tier in theirs.tiers.values()} <= set(kinds)
    slots = [theirs.timeslots[name] for name in sorted(theirs.timeslots, key=lambda name: int(name[2:]))]
    assert slots == sorted(slots) and len(slots) == 2 * (len(signs) + len(sentences))  # none is shared


def test_what_pympi_writes_is_read(tmp_path):
    theirs = pympi.Eaf(author="a person")
    theirs.add_tier("Sign")
    for start, end, text in ((1200, 1500, "HAUS"), (100, 900, "ä <&> b")):
        theirs.add_annotation("Sign", start, end, text)
    theirs.to_file(str(tmp_path / "b.eaf"))
    found = read_eaf(tmp_path / "b.eaf")
    assert found.signs == (Interval(0.1, 0.9, "ä <&> b"), Interval(1.2, 1.5, "HAUS"))
    assert found.sentences == found.left_out == ()


def test_links_lead_to_the_video(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    video = tmp_path / "a b.mov"
    video.touch()
    monkeypatch.chdir(tmp_path)
    for folder, relative in ((tmp_path / "out", "../a b.mov"), (tmp_path, "./a b.mov")):
        data = eaf_bytes(SignIntervals(), video="a b.mov", folder=folder)
        (folder / "x.eaf").write_bytes(data)
        (media,) = pympi.Eaf(folder / "x.eaf").get_linked_files()
        assert Path(unquote(urlparse(media["MEDIA_URL"]).path)) == video
        assert media["RELATIVE_MEDIA_URL"] == relative and (folder / relative).samefile(video)
        assert media["MIME_TYPE"] == "video/quicktime"
    (tmp_path / "y.eaf").write_bytes(eaf_bytes(SignIntervals(), video="s3://bucket/x.webm", folder=tmp_path))
    (media,) = pympi.Eaf(tmp_path / "y.eaf").get_linked_files()
    assert media == {"MEDIA_URL": "s3://bucket/x.webm", "MIME_TYPE": "video/*"}


def test_overlaps_and_short_intervals_fit_into_elan(tmp_path):
    """ELAN has neither overlaps within a tier nor annotations without length, and XML no control characters."""
    signs = (
        Interval(0.0, 1.0, "a"),
        Interval(0.5, 0.7, "b\x01"),
        Interval(0.6, 0.9, "c"),
        Interval(1.0, 1.0001, "d"),
    )
    (tmp_path / "a.eaf").write_bytes(eaf_bytes(SignIntervals(signs=signs)))
    theirs = pympi.Eaf(tmp_path / "a.eaf")
    names = [name for name in theirs.get_tier_names() if name != "SENTENCE"]
    assert {name: theirs.get_annotation_data_for_tier(name) for name in names} == {
        "SIGN": [(0, 1000, "a"), (1000, 1001, "d")],
        "SIGN-2": [(500, 700, "b\ufffd")],
        "SIGN-3": [(600, 900, "c")],
    }
    found = read_eaf(tmp_path / "a.eaf").signs
    assert found == (signs[0], Interval(0.5, 0.7, "b\ufffd"), signs[2], Interval(1.0, 1.001, "d"))


def test_slots_without_a_value_lie_between_their_neighbours(tmp_path):
    """ELAN's TimeOrderImpl.proposeTimeFor: the k-th of n slots between two values is k/(n + 1) of the way."""
    slots = "t1= t2=300 t3= t4= t5=600 t6=900 t7="
    text = document(tier("SIGN", "a t1 t2", "b t2 t3", "c t3 t4", "d t4 t5", "e t6 t7"), slots)
    found = read(tmp_path, text)
    assert [(round(a, 6), round(b, 6), c) for a, b, c in found.signs] == [
        (0.15, 0.3, "A"), (0.3, 0.4, "B"), (0.4, 0.5, "C"), (0.5, 0.6, "D"),
    ]  # fmt: skip
    assert found.left_out == ("annotation e has no end",)


def test_annotations_that_refer_to_others_have_their_times(tmp_path):
    parents = tier("Utterance", "u t1 t2", "v t2 t3")
    children = tier("SIGN", "x > u", "z > u > y", "y > u > x", "w > v")  # the order is PREVIOUS_ANNOTATION's
    grand = tier("Gloss copy", "g > y", "h > w")
    text = document(parents + children + grand, "t1=0 t2=300 t3=500")
    rows = [(round(a, 6), round(b, 6), c) for a, b, c in read(tmp_path, text).signs]
    assert rows == [(0.0, 0.1, "X"), (0.1, 0.2, "Y"), (0.2, 0.3, "Z"), (0.3, 0.5, "W")]
    rows = [(round(a, 6), round(b, 6), c) for a, b, c in read(tmp_path, text, "gloss COPY").signs]
    assert rows == [(0.1, 0.2, "G"), (0.3, 0.5, "H")]


@pytest.mark.parametrize(
    ("names", "wanted", "found"),
    [
        (("SIGN", "sign"), "SIGN", "SIGN"),
        (("Sign", "Gloss"), "SIGN", "Sign"),
        (("Gloss", "Other"), "SIGN", "Gloss"),
        (("Sign@A", "Text@A"), "SIGN", "Sign@A"),
        (("ID-gloss",), "SIGN", "ID-gloss"),
        (("Lexem_Gebärde_r_A", "x"), "lexem gebärde R a", "Lexem_Gebärde_r_A"),
        (("RH-IDgloss", "LH-IDgloss"), "LH-IDgloss", "LH-IDgloss"),
    ],
)
def test_a_tier_is_found_by_its_name_and_common_variants(tmp_path, names, wanted, found):
    text = document("".join(tier(name, f"n{n} t1 t2") for n, name in enumerate(names)), "t1=0 t2=40")
    assert [sign.text for sign in read(tmp_path, text, wanted).signs] == [f"N{names.index(found)}"]


def test_the_time_of_the_video(tmp_path):
    """TIME_ORIGIN is the time of the video at the annotation's 0; several videos may have several."""
    header = (
        '<HEADER MEDIA_FILE="" TIME_UNITS="milliseconds"><MEDIA_DESCRIPTOR MEDIA_URL="file:///a/front.mp4" '
        'TIME_ORIGIN="1500"/><MEDIA_DESCRIPTOR MEDIA_URL="file:///a/side.mp4" TIME_ORIGIN="-60"/></HEADER>'
    )
    text = document(tier("SIGN", "a t1 t2"), "t1=40 t2=100", header)
    assert read(tmp_path, text).signs == (Interval(1.54, 1.6, "A"),)
    assert read(tmp_path, text, video="/else/side.mp4").signs == (Interval(0.0, 0.04, "A"),)
    frames = document(tier("SIGN", "a t1 t2"), "t1=5 t2=10", '<HEADER TIME_UNITS="PAL-frames"/>')
    assert read(tmp_path, frames).signs == (Interval(0.2, 0.4, "A"),)


def test_one_bad_annotation_is_left_out_and_named(tmp_path):
    text = document(
        tier("SIGN", "a t2 t1", "b t1 t1", "c t1 t2") + tier("Translation", "s t1 t2"), "t1=0 t2=40"
    )
    found = read(tmp_path, text)
    assert found.signs == (Interval(0.0, 0.04, "C"),) and found.sentences == (Interval(0.0, 0.04, "S"),)
    assert found.left_out == ("annotation a: from 0.04 s to 0 s", "annotation b: from 0 s to 0 s")


def test_encodings(tmp_path):
    text = document(tier("Gebärde", "a t1 t2"), "t1=0 t2=40")
    for encoding in ("utf-8", "utf-16", "iso-8859-1"):
        data = f'<?xml version="1.0" encoding="{encoding}"?>{text}'.encode(encoding)
        assert len(read(tmp_path, data, "GEBÄRDE").signs) == 1
    assert len(read(tmp_path, text.encode("utf-8-sig"), "gebärde").signs) == 1


def test_hostile_and_broken_files_give_one_line(tmp_path):
    laughs = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]>'
    good = document(tier("SIGN", "a t1 t2"), "t1=0 t2=40")
    assert "document type" in refused(tmp_path, laughs + good)
    assert "nested" in refused(tmp_path, "<a>" * 100_000)
    assert "not XML" in refused(tmp_path, good[:-20])
    assert "root is x" in refused(tmp_path, "<x/>")
    for wanted, tiers, slots, says in (
        (
            "SIGN",
            tier("Other", "a t1 t2") + tier("evil\u202e"),
            "t1=0 t2=4",
            "no tier SIGN; its tiers are Other, evil\\u202e",
        ),
        ("SIGN", "", "", "its tiers are none"),
        ("SIGN", tier("Sign@A") + tier("Sign@B"), "", "several tiers may be SIGN: Sign@A, Sign@B"),
        ("SIGN", tier("SIGN") + tier("SIGN"), "", "two tiers are named 'SIGN'"),
        ("SIGN", tier("SIGN", "a t1 t9"), "t1=0", "no time slot 't9'"),
        ("SIGN", tier("SIGN", "a > zz"), "", "no annotation 'zz'"),
        ("SIGN", tier("SIGN", "a > b", "b > a"), "", "refers to itself"),
        ("SIGN", tier("SIGN", "a t1 t2"), "t1=-5 t2=9", "time slot 't1' has the value '-5'"),
        ("SIGN", tier("SIGN", "a t1 t2"), "t1=٣ t2=9", "time slot 't1' has the value"),
        ("SIGN", tier("SIGN", "a t1 t2"), "t1=1e3 t2=9", "time slot 't1' has the value '1e3'"),
    ):
        assert says in refused(tmp_path, document(tiers, slots), wanted)
    assert "time unit is days" in refused(tmp_path, document("", "", '<HEADER TIME_UNITS="days"/>'))
    os.mkfifo(tmp_path / "fifo.eaf")
    with pytest.raises(OSError, match="not a regular file"):
        read_eaf(tmp_path / "fifo.eaf")


@given(st.text("<>/ANOTIER_ID=\"x'1t &;", max_size=80), st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_no_edit_of_a_file_crashes_the_reader(tmp_path_factory, noise, place):
    """A file with something inserted is read, or refused in one line."""
    tiers = tier("SIGN", "a t1 t2", "b > a") + tier("SENTENCE", "c t1 t3")
    text = document(tiers, "t1=0 t2= t3=90")
    text = text[: min(place, len(text))] + noise + text[place:]
    path = tmp_path_factory.mktemp("noise") / "a.eaf"
    path.write_text(text)
    try:
        read_eaf(path)
    except ClipRejected as error:
        assert error.reason == "bad-labels" and "\n" not in str(error)
