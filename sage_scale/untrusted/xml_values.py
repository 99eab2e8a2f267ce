"""Parses XML from outside with limits: no document type, so no entities of its own and nothing fetched."""

from __future__ import annotations

from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

MAX_BYTES = 64 << 20
"""An annotation of a day of signing has some 30 MB."""
MAX_DEPTH = 32
MAX_ELEMENTS = 2_000_000
ENCODINGS = ("utf-8", "utf-16", "us-ascii", "iso-8859-1", "windows-1252")
"""Encodings that a declaration may name: others reach Python's codecs, of which not all are text."""


class InvalidXML(ValueError):
    """The text is not XML, or has a document type, too many or too deeply nested elements, or an unknown encoding."""


def parse_xml(data: bytes) -> Element:
    """Returns the root element of an XML document; names keep their prefix. Raises InvalidXML with a reason of a few
    words, where the fault has a line with that line."""
    if len(data) > MAX_BYTES:
        raise InvalidXML(f"{len(data):,} bytes, more than {MAX_BYTES:,}")
    builder, depth, count = TreeBuilder(), 0, 0
    parser = expat.ParserCreate()

    def declared(version: str, encoding: str | None, standalone: int) -> None:
        if encoding and encoding.lower() not in ENCODINGS:
            raise InvalidXML(f"the encoding is none of {', '.join(ENCODINGS)}")

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth, count
        depth, count = depth + 1, count + 1
        if depth > MAX_DEPTH:
            raise InvalidXML(f"more than {MAX_DEPTH} nested elements in line {parser.CurrentLineNumber}")
        if count > MAX_ELEMENTS:
            raise InvalidXML(f"more than {MAX_ELEMENTS:,} elements")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse_type(*_: object) -> None:
        raise InvalidXML(
            f"a document type (<!DOCTYPE>) in line {parser.CurrentLineNumber}: entities are not read"
        )

    parser.buffer_text = True
    parser.XmlDeclHandler = declared
    parser.StartDoctypeDeclHandler = refuse_type
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
        return builder.close()
    except expat.ExpatError as error:
        raise InvalidXML(f"not XML: {expat.ErrorString(error.code)} in line {error.lineno}") from None
    except (LookupError, UnicodeError, ValueError) as error:
        raise error if isinstance(error, InvalidXML) else InvalidXML("not XML: unknown encoding") from None
