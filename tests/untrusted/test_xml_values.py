"""Any bytes given as XML are an element or one reason; nothing in them multiplies, nests without end or is fetched."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_scale.untrusted import xml_values
from sage_scale.untrusted.xml_values import InvalidXML, parse_xml

LAUGHS = (
    '<!DOCTYPE a [<!ENTITY b "ha">'
    + "".join(f'<!ENTITY {name} "{10 * f"&{before};"}">' for before, name in zip("bcdefghi", "cdefghij"))
    + "]><a>&j;</a>"
)
texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20)
elements = st.recursive(
    st.builds(lambda text, value: ("x", {"k": value}, text, []), texts, texts),
    lambda inner: st.builds(lambda below, text: ("y", {}, text, below), st.lists(inner, max_size=3), texts),
    max_leaves=8,
)


def element(tree) -> ET.Element:
    made = ET.Element(tree[0], tree[1])
    made.text = tree[2] or None
    made.extend(map(element, tree[3]))
    return made


@given(elements, st.sampled_from(["utf-8", "utf-16", "us-ascii"]))
@settings(max_examples=60, deadline=None)
def test_what_the_standard_library_writes_is_read_as_it_reads_it(tree, encoding):
    data = ET.tostring(element(tree), encoding=encoding, xml_declaration=True)
    assert ET.tostring(parse_xml(data)) == ET.tostring(ET.fromstring(data))


@given(st.binary(max_size=200) | st.text("<>&;!?/='\"a \n[]-%#x0", max_size=200).map(str.encode))
def test_any_bytes_are_an_element_or_one_reason(data):
    try:
        parse_xml(data)
    except InvalidXML as error:
        assert 0 < len(str(error)) < 200 and "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, "a document type (<!DOCTYPE>) in line 1: entities are not read"),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', "a document type"),
        ('<!DOCTYPE a SYSTEM "http://127.0.0.1:1/a.dtd"><a/>', "a document type"),
        ("<a>&b;</a>", "not XML: undefined entity in line 1"),
        ("<a>" * 5000, "more than 32 nested elements in line 1"),
        ("<a><b></a>", "not XML: mismatched tag in line 1"),
        ("", "not XML: no element found"),
        ('<?xml version="1.0" encoding="rot13"?><a/>', "the encoding is none of utf-8"),
        ('<?xml version="1.0" encoding="utf-16"?><a/>', "not XML: encoding"),
        ("<a>\0</a>", "not XML"),
        ("<a>&#xd800;</a>", "not XML: reference to invalid character number"),
    ],
)
def test_hostile_documents_are_refused_with_the_reason(text, reason):
    with pytest.raises(InvalidXML) as caught:
        parse_xml(text.encode())
    assert str(caught.value).startswith(reason)


def test_documents_are_limited_in_bytes_and_elements(monkeypatch):
    monkeypatch.setattr(xml_values, "MAX_ELEMENTS", 5)
    assert len(parse_xml(b"<a>" + 4 * b"<b/>" + b"</a>")) == 4
    with pytest.raises(InvalidXML, match="more than 5 elements"):
        parse_xml(b"<a>" + 5 * b"<b/>" + b"</a>")
    monkeypatch.setattr(xml_values, "MAX_BYTES", 6)
    with pytest.raises(InvalidXML, match="8 bytes, more than 6"):
        parse_xml(b"<abcde/>")


def test_names_in_the_encoding_of_the_declaration():
    for encoding in ("iso-8859-1", "Windows-1252"):
        data = f'<?xml version="1.0" encoding="{encoding}"?><a>Gebärde</a>'.encode("latin-1")
        assert parse_xml(data).text == "Gebärde"
