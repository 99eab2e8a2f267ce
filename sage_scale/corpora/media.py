"""Which media files a corpus folder holds, found in one walk: tables name videos, wherever they were put."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from sage_scale.corpora.clip import Rejected

VIDEO_SUFFIXES = frozenset((
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".flv", ".wmv", ".npz", ".pose",
))  # fmt: skip
"""Endings, in lower case, of the files that are taken for videos (or their keypoints)."""
KEYPOINT_SUFFIXES = frozenset((".npz", ".pose"))
"""Endings of keypoint files; one beside a video of the same name belongs to it and is no clip of its own."""
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar")


def walk(root: Path, skip: Collection[str] = ()) -> Iterator[tuple[Path, list[str]]]:
    """(folder, its file names by name) below `root`, by name; hidden ones are left out, links to folders followed.

    Folders called as one of `skip` are not entered, nor is a link back to a folder already seen.
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
    """Returns a file name as names are compared: in NFC. macOS stores letters and their marks apart (NFD)."""
    return unicodedata.normalize("NFC", name)


def is_text(name: str) -> bool:
    """Whether a name that the file system gave is valid UTF-8; only such names can stand in a manifest."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def nameless(root: Path, path: Path) -> Rejected:
    """Returns the reject for a file whose name is not UTF-8."""
    name = str(path.relative_to(root)).encode(errors="replace").decode()
    return Rejected(id=name, reason="bad-name", detail="its name is no UTF-8; rename it")


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
            found = (
                here
                if os.path.exists(here)
                else os.path.join(found, self._names(found).get(file_key(part), part))
            )
        return found if os.path.exists(found) else path

    def _names(self, folder: str) -> dict[str, str]:
        if folder not in self._listed:
            try:
                self._listed[folder] = {file_key(name): name for name in os.listdir(folder)}
            except OSError:
                self._listed[folder] = {}
        return self._listed[folder]


class MediaIndex:
    """The videos and archives below a folder."""

    def __init__(self, root: Path, prefer: Iterable[str] = (), skip: Collection[str] = ()) -> None:
        """`prefer` names folders whose files win where two files have one name, `skip` those not to look into."""
        self.root = root
        self.videos: dict[str, str] = {}
        """`file_key` of the name without ending -> path."""
        self.archives: list[Path] = []
        wanted = tuple(prefer)
        ranks: dict[str, int] = {}
        for folder, names in walk(root, skip):
            place = f"/{folder.relative_to(root).as_posix()}/"
            rank = next((k for k, name in enumerate(wanted) if f"/{name}/" in place), len(wanted))
            base = str(folder)
            for name in names:
                if not is_text(name):
                    continue
                stem, suffix = os.path.splitext(file_key(name))
                if suffix.lower() in VIDEO_SUFFIXES:
                    if rank < ranks.get(stem, len(wanted) + 1):
                        self.videos[stem], ranks[stem] = f"{base}/{name}", rank
                elif name.lower().endswith(ARCHIVE_SUFFIXES):
                    self.archives.append(folder / name)

    def find(self, stem: str) -> str | None:
        """Returns the path of the video of that name, without its ending, in any form of Unicode."""
        return self.videos.get(file_key(stem))

    def unpack_advice(self) -> str:
        """A half-sentence on archives that were not unpacked, empty where there are none."""
        if not self.archives:
            return ""
        first = self.archives[0].relative_to(self.root).as_posix()
        more = f" and {len(self.archives) - 1} more" if len(self.archives) > 1 else ""
        return f"; archives are not read: unpack {first}{more} into the folder"


def find_files(root: Path, names: Iterable[str], skip: Collection[str] = ()) -> dict[str, Path]:
    """The first file of each name below `root`, in the order of the walk, for the names that are there."""
    wanted = set(names)
    found: dict[str, Path] = {}
    for folder, here in walk(root, skip):
        for name in here:
            if name in wanted and name not in found:
                found[name] = folder / name
    return found
