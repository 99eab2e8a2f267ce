"""All that is printed goes through one module, which escapes it; no other file writes to the terminal."""

from __future__ import annotations

import ast
import io
import json
import logging
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sage_scale
from sage_scale.config import LAUNCH_FOLDER
from sage_scale.untrusted import printer
from sage_scale.untrusted.display import json_text

PACKAGE = Path(sage_scale.__file__).resolve().parent
FORGED = "a\x1b[2J\x9b31m\r\nsage-scale: all 99 clips done\u2028[bold]x[/bold] :boom: \u202eend"
DIRECT = {
    "print",
    "typer.echo",
    "typer.secho",
    "click.echo",
    "rich.print",
    "sys.stdout.write",
    "sys.stderr.write",
    "sys.__stderr__.write",
    "traceback.print_exc",
    "traceback.print_exception",
    "warnings.warn",
    "logging.getLogger",
}
LIBRARIES = {"training/distributed.py", "deprecated.py"}
"""Files that silence the loggers of libraries, or warn of an old import name of our own."""


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_no_other_module_prints():
    found = []
    for path in [*PACKAGE.rglob("*.py"), *LAUNCH_FOLDER.rglob("*.py")]:
        name = path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else path.name
        if name == "untrusted/printer.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            direct = isinstance(node, ast.Call) and dotted(node.func) in DIRECT
            own_console = isinstance(node, ast.ImportFrom) and node.module in ("rich", "rich.console")
            if (direct and name not in LIBRARIES) or own_console:
                found.append(f"{name}:{node.lineno}")
    assert found == []


@pytest.mark.parametrize(
    "say", [printer.echo, printer.tell, lambda text: printer.echo_coloured((text, "bold"))]
)
def test_a_forged_line_stays_within_its_line(capsys, say):
    say(FORGED)
    taken = capsys.readouterr()
    printed = taken.out + taken.err
    assert printed.count("\n") == 1 and printed.startswith("a\\x1b[2J\\x9b31m\\r\\nsage-scale")
    assert "[bold]x[/bold] :boom: \\u202eend" in printed
    assert not set(printed) & set("\x1b\x9b\r\u2028\u202e")


def test_a_table_shows_markup_as_text():
    from rich.table import Table

    stream = io.StringIO()
    table = Table(title=f"recipe {FORGED}")
    table.add_column("[red]part")
    table.add_row("[link=file:///etc]x[/link] :boom:\x1b[2J")
    printer.console(stream, width=200).print(table, f"clip {FORGED}")
    printed = stream.getvalue()
    for part in ("[bold]x[/bold] :boom:", "[red]part", "[link=file:///etc]x[/link] :boom:\\x1b[2J"):
        assert part in printed
    assert not set(printed) & set("\x1b\x9b\r\u2028\u202e")


@given(st.text(st.characters()))
def test_json_is_one_line_of_plain_characters_and_reads_back(text: str):
    line = json_text({text: [text, {"x": text}]})
    line.encode()
    assert "\n" not in line
    assert not {unicodedata.category(c) for c in line} & {"Cc", "Cs", "Zl", "Zp"}
    if "://" not in text:
        assert json.loads(line) == {text: [text, {"x": text}]}


@pytest.mark.parametrize(
    "text", ["grüßt 日本 \ud800", "https://u:SECRET@h/x?y", "\x7f\x9b\u2028", "👩\u200d🔬"]
)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_stream_of_any_encoding_takes_every_character(monkeypatch, encoding, text):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    printer.echo(text)
    printer.echo_json({"x": text}, indent=1)
    printer.tell(text)
    sys.stdout.flush()
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in (sys.stdout, sys.stderr))  # type: ignore[attr-defined]
    first, _, document = out.partition("\n")
    assert err.startswith(first + "\n")
    assert "SECRET" not in out + err
    if "://" not in text:
        assert json.loads(document) == {"x": text}


def test_log_messages_are_scrubbed_lines(caplog):
    log = printer.logger("sage_scale.trial")
    with caplog.at_level(logging.WARNING):
        log.warning("%s of %s", FORGED, "s3://u:SECRET@b/p?X-Amz-Signature=SECRET")
    assert "SECRET" not in caplog.text and "\x1b" not in caplog.text
    assert caplog.messages == [caplog.messages[0]] and "\n" not in caplog.messages[0]
