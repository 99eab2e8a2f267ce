"""What the readers share: the corpus folder and text files, with one clear line when they are not what is
expected."""

from __future__ import annotations

from pathlib import Path

from sage_scale.errors import UsageError


def corpus_folder(root: str, name: str, expected: str) -> Path:
    """The existing folder `root`, or UsageError saying what the corpus `name` expects there."""
    if not root:
        raise UsageError(
            f"corpus {name}: give its folder (--root PATH or corpus.root=PATH); expected: {expected}"
        )
    if "://" in root:
        raise UsageError(f"corpus {name}: {root} is not a local folder; copy or mount the corpus first")
    folder = Path(root).expanduser()
    if not folder.exists():
        raise UsageError(f"corpus {name}: there is no {folder}; expected: {expected}")
    if not folder.is_dir():
        raise UsageError(f"corpus {name}: {folder} is not a folder; expected: {expected}")
    if not any(folder.iterdir()):
        raise UsageError(f"corpus {name}: {folder} is empty; expected: {expected}")
    return folder


def read_text(path: Path) -> str:
    """A UTF-8 text file (UTF-16 where it begins with its mark); UnicodeDecodeError names nothing but the
    byte."""
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    return data.decode("utf-8-sig")
