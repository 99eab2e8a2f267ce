"""Opens a corpus' folder and its tables, with one clear line where they are not as published."""

from __future__ import annotations

from pathlib import Path

from sage_scale.errors import UsageError
from sage_scale.storage import on_this_machine
from sage_scale.untrusted.files import expanded, read_text


def corpus_folder(root: str, name: str, expected: str) -> Path:
    """Returns the folder `root`. Raises UsageError with the files that the corpus `name` expects there."""
    if not root:
        raise UsageError(
            f"corpus {name}: give its folder (--root PATH or corpus.root=PATH); expected: {expected}"
        )
    folder = expanded(on_this_machine(root, f"the corpus {name}"))
    if not folder.exists():
        raise UsageError(f"corpus {name}: there is no {folder}; expected: {expected}")
    if not folder.is_dir():
        raise UsageError(f"corpus {name}: {folder} is not a folder; expected: {expected}")
    if not any(folder.iterdir()):
        raise UsageError(f"corpus {name}: {folder} is empty; expected: {expected}")
    return folder


def table_text(path: Path, advice: str = "download it again") -> str:
    """Returns the text of a table without which there is no corpus. Raises UsageError where it is not readable."""
    try:
        return read_text(path)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UsageError(f"{path} is not UTF-8 (line {line}); {advice}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None


def unreadable_text(name: str, error: OSError | UnicodeDecodeError) -> tuple[str, str]:
    """Returns reason and detail of the reject for a text file beside a video that cannot be read."""
    if isinstance(error, UnicodeDecodeError):
        return "not-utf8", f"{name} is not UTF-8; save it as UTF-8"
    return "unreadable", f"{name}: {error.strerror or error}"
