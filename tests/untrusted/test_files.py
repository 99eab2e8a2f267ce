"""Only regular files are opened, at once; lines end where tables and JSON Lines end them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_scale.untrusted.files import NotRegularFile, lines, open_regular, read_text, text_fault


@pytest.mark.timeout(10)
def test_a_fifo_a_device_and_a_socket_are_refused_at_once(tmp_path: Path):
    fifo, link, address = tmp_path / "fifo", tmp_path / "zero.vtt", tmp_path / "socket"
    os.mkfifo(fifo)
    link.symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(address))
        for path, kind in ((fifo, "FIFO"), (link, "character device"), (address, "socket")):
            with pytest.raises(NotRegularFile, match=kind):
                open_regular(path)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "absent")


def test_a_link_to_a_file_is_read(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfein\r\nzwei")
    (tmp_path / "b").symlink_to("a")
    assert read_text(tmp_path / "b") == "ein\r\nzwei"
    (tmp_path / "c").write_bytes("ä".encode("utf-16"))
    assert read_text(tmp_path / "c") == "ä"


@given(
    st.lists(st.text(st.characters(exclude_characters="\n\r", codec="utf-8")), min_size=2),
    st.sampled_from(["\n", "\r\n"]),
)
def test_lines_are_those_that_were_joined(rows: list[str], end: str):
    assert lines("".join(row + end for row in rows)) == rows


def test_separators_of_unicode_stay_within_a_line_and_carriage_returns_go():
    assert lines("a\u2028b\x85c\x0cd\r\r\ne\rf\n") == ["a\u2028b\x85c\x0cd", "e\rf"]
    assert lines("a\rb\r") == ["a", "b"]
    assert lines("") == []


def test_faults_of_text_are_named():
    assert text_fault("😀 \u2028") == ""
    assert "NUL" in text_fault("a\0")
    assert "surrogate" in text_fault("\ud800")
