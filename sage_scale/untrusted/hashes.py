"""Hashes of the files of a model folder, written at export and checked before the weights are used.

`hashes.json` holds size and xxh3-128 of every file but `recipe.yaml` and `README.md`, which users edit. It detects
damage and mixed-up files, not an attacker, who could rewrite it. Folders without it (those of 0.1.0) are not checked.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import xxhash

from sage_scale.errors import CheckpointError
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import open_regular, read_bytes
from sage_scale.untrusted.json_values import InvalidJSON, build, parse_json_object

HASHES = "hashes.json"
_EDITED = ("recipe.yaml", "README.md")
_CHUNK = 1 << 22


@dataclass(frozen=True)
class _File:
    bytes: int
    xxh3_128: str


@dataclass(frozen=True)
class _Table:
    format: int
    files: dict[str, _File]


def write_hashes(folder: Path) -> None:
    """Writes `hashes.json` of a finished folder and applies the umask to its files."""
    (folder / HASHES).unlink(missing_ok=True)
    _write(folder, {name: _described(folder / name) for name in _names(folder)})


def add_hash(folder: Path, name: str) -> None:
    """Puts one new or rewritten file into `hashes.json`; the rows of the other files stay as they were."""
    _write(folder, dict(sorted({**read_hashes(folder), name: _described(folder / name)}.items())))


def read_hashes(folder: Path) -> dict[str, dict[str, object]]:
    """Returns `bytes` and `xxh3_128` of each file by name, as written at export; empty for a folder of 0.1.0.

    Raises CheckpointError for a damaged `hashes.json`.
    """
    table = folder / HASHES
    if not table.exists():
        return {}
    try:
        document = build(_Table, parse_json_object(read_bytes(table)))
        if document.format != 1 or not document.files:
            raise InvalidJSON("not of format 1")
    except (OSError, InvalidJSON) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{table} is damaged ({reason}): export the model again") from None
    return {name: asdict(row) for name, row in document.files.items()}


def _write(folder: Path, files: dict[str, dict[str, object]]) -> None:
    partial = folder / f"{HASHES}.partial"
    partial.write_text(json.dumps({"format": 1, "files": files}, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / HASHES)
    apply_umask(folder)


def apply_umask(folder: Path) -> None:
    """Gives `folder` and all below it the mode of the umask; safetensors writes files for their owner alone
    (0600), and a copied folder has the mode of the first one."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o666
    probe.unlink()
    for path in (folder, *folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)
        elif path.is_dir() and not path.is_symlink():
            path.chmod(mode | (mode & 0o444) >> 2)


def check_hashes(folder: Path) -> None:
    """Raises CheckpointError naming the file that is missing or differs from its hash in `hashes.json`.

    Reads every byte once: 0.9 s a GB from memory on a busy core, else the disk's time, which loading then saves.
    """
    files = read_hashes(folder)
    if not files:
        return
    present = set(_names(folder))
    for name, row in files.items():
        if name not in present:
            raise CheckpointError(
                f"{shortened(folder / name, 300)} is missing: copy the whole folder, or export the model again"
            )
        if _described(folder / name) != row:
            raise CheckpointError(
                f"{folder / name} is not the file that was exported (its hash differs): copy or export it again; after "
                f"a change of your own delete {HASHES}"
            )


def _names(folder: Path) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    return [name for name in names if name not in (*_EDITED, HASHES)]


def _described(path: Path) -> dict[str, object]:
    digest = xxhash.xxh3_128()
    try:
        with open_regular(path) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
            return {"bytes": os.fstat(file.fileno()).st_size, "xxh3_128": digest.hexdigest()}
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
