"""The folder of a downloaded corpus: its tables, and the videos that they name, wherever below it they were put."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from sage_scale.config import Corpus
from sage_scale.errors import UsageError
from sage_scale.storage import on_this_machine
from sage_scale.untrusted.files import expanded, read_text

VIDEO_SUFFIXES = frozenset((
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".flv", ".wmv", ".npz", ".pose",
))  # fmt: skip
"""Endings, in lower case, of videos and of their keypoint files."""
KEYPOINT_SUFFIXES = frozenset((".npz", ".pose"))
"""Endings of keypoint files; one beside a video of the same name belongs to that video and is no clip of its own."""
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar")


class CorpusFolder:
    """A corpus' folder on this machine. Every error names the corpus and the files that are expected there."""

    def __init__(self, corpus: Corpus, expected: str) -> None:
        """Raises UsageError where `corpus.root` is empty, or names no folder with files."""
        self.name, self.expected = corpus.name, expected
        if not corpus.root:
            raise self.fault("give its folder (--root PATH or corpus.root=PATH)")
        self.root = expanded(on_this_machine(corpus.root, f"the corpus {corpus.name}"))
        if not self.root.exists():
            raise self.fault(f"there is no {self.root}")
        if not self.root.is_dir():
            raise self.fault(f"{self.root} is not a folder")
        if not any(self.root.iterdir()):
            raise self.fault(f"{self.root} is empty")

    def fault(self, text: str) -> UsageError:
        """Returns the error to raise where the corpus is not as expected."""
        return UsageError(f"corpus {self.name}: {text}; expected: {self.expected}")

    def find(self, names: Iterable[str], skip: Collection[str] = ()) -> dict[str, Path]:
        """Returns the first file of each name, in the order of the walk, for the names that exist."""
        wanted = set(names)
        found: dict[str, Path] = {}
        for folder, here in walk(self.root, skip):
            for name in filter(wanted.__contains__, here):
                found.setdefault(name, folder / name)
        return found

    def table(self, name: str) -> Path:
        """Returns the path of the file of that name. Raises UsageError where there is none."""
        path = self.find((name,)).get(name)
        if path is None:
            raise self.fault(f"no {name} below {self.root}")
        return path

    def media(self, prefer: Iterable[str] = (), skip: Collection[str] = ()) -> MediaIndex:
        """Returns the videos below the folder. Raises UsageError where there is none."""
        media = MediaIndex(self.root, prefer, skip)
        if not media.videos:
            raise self.fault(f"no video below {self.root}{media.unpack_advice()}")
        return media


def walk(root: Path, skip: Collection[str] = ()) -> Iterator[tuple[Path, list[str]]]:
    """Yields (folder, its file names), both by name. Hidden names are left out, links to folders followed once.

    Folders whose name is in `skip` are not entered.
    """
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if name[0] != "." and name not in skip)
        yield Path(folder), sorted(name for name in names if not name.startswith("."))


def file_key(name: str) -> str:
    """Returns a file name in NFC, the form in which names are compared; macOS stores letters and marks apart (NFD)."""
    return unicodedata.normalize("NFC", name)


def is_text(name: str) -> bool:
    """Returns whether a name that the file system gave is valid UTF-8; a manifest can hold no other."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def table_text(path: Path, advice: str = "download it again") -> str:
    """Returns the text of a table that a corpus needs. Raises UsageError where it cannot be read."""
    try:
        return read_text(path)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UsageError(f"{path} is not UTF-8 (line {line}); {advice}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None


def unreadable_text(name: str, error: OSError | UnicodeDecodeError) -> tuple[str, str]:
    """Returns reject reason and detail of a text file beside a video that cannot be read."""
    if isinstance(error, UnicodeDecodeError):
        return "not-utf8", f"{name} is not UTF-8; save it as UTF-8"
    return "unreadable", f"{name}: {error.strerror or error}"


class NameIndex:
    """Finds files by names that are equal in NFC; each folder is listed once."""

    def __init__(self) -> None:
        self._listed: dict[str, dict[str, str]] = {}

    def existing(self, path: str) -> str:
        """Returns the path as the file system has it; `path` itself where it exists so, or in no form."""
        if path.isascii() or os.path.exists(path):
            return path
        found, *parts = Path(path).parts
        for part in parts:
            here = os.path.join(found, part)
            if not os.path.exists(here):
                here = os.path.join(found, self._names(found).get(file_key(part), part))
            found = here
        return found if os.path.exists(found) else path

    def _names(self, folder: str) -> dict[str, str]:
        if folder not in self._listed:
            try:
                self._listed[folder] = {file_key(name): name for name in os.listdir(folder)}
            except OSError:
                self._listed[folder] = {}
        return self._listed[folder]


class MediaIndex:
    """The videos and archives below a folder, of one walk."""

    def __init__(self, root: Path, prefer: Iterable[str] = (), skip: Collection[str] = ()) -> None:
        """`prefer` names folders whose files win where two files have one name, `skip` folders not to enter."""
        self.root = root
        self.videos: dict[str, str] = {}
        """`file_key` of the name without ending -> path."""
        self.archives: list[Path] = []
        wanted = tuple(prefer)
        ranks: dict[str, int] = {}
        for folder, names in walk(root, skip):
            inside = f"/{folder.relative_to(root).as_posix()}/"
            rank = next((k for k, name in enumerate(wanted) if f"/{name}/" in inside), len(wanted))
            base = str(folder)
            for name in filter(is_text, names):
                stem, suffix = os.path.splitext(file_key(name))
                if suffix.lower() in VIDEO_SUFFIXES:
                    if rank < ranks.get(stem, len(wanted) + 1):
                        self.videos[stem], ranks[stem] = f"{base}/{name}", rank
                elif name.lower().endswith(ARCHIVE_SUFFIXES):
                    self.archives.append(folder / name)

    def find(self, stem: str) -> str | None:
        """Returns the path of the video with that name, without its ending, in any form of Unicode."""
        return self.videos.get(file_key(stem))

    def unpack_advice(self) -> str:
        """Returns a half-sentence on archives that were not unpacked, empty where there are none."""
        if not self.archives:
            return ""
        first = self.archives[0].relative_to(self.root).as_posix()
        more = f" and {len(self.archives) - 1} more" if len(self.archives) > 1 else ""
        return f"; archives are not read: unpack {first}{more} into the folder"
