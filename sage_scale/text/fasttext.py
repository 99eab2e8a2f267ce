"""Reads fastText vectors (Joulin et al. 2016; Bojanowski et al. 2017): some words of files of any size.

`.bin`, the whole model, as `cc.de.300.bin`, little-endian (fastText's `FastText::saveModel`, version 11 or 12):

    int32 magic, version                           793712314, 12
    int32 dim, ws, epoch, minCount, neg, wordNgrams, loss, model, bucket, minn, maxn, lrUpdateRate; float64 t
    int32 size, nwords, nlabels; int64 ntokens, pruneidx_size
    size times: word, NUL, int64 count, int8 type
    pruneidx_size times (where positive): int32 n-gram, int32 row
    bool quantised; int64 rows, columns; float32 rows x columns: the words, then the buckets of character n-grams

A word's vector is the mean of its own row and its n-grams' rows, or of its n-grams' alone where it is not in the
vocabulary. `.vec` is text: "words dim", then a word and its numbers a line; it has no n-grams.
"""

from __future__ import annotations

import gzip
import mmap
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np

from sage_scale.errors import CheckpointError
from sage_scale.untrusted.files import expanded

MAGIC = 793_712_314
VERSIONS = (11, 12)
END_OF_SENTENCE = b"</s>"
_HEADER = struct.Struct("<14id")
_DICTIONARY = struct.Struct("<3i2q")
_SUPERVISED = 3


@dataclass(frozen=True)
class WordVectors:
    """Vectors of some words."""

    vectors_UD: np.ndarray
    """float32 (words, dim), in the order asked for; zeros where a word is `missing`."""
    spelled: tuple[str, ...]
    """Words outside the vocabulary, whose vectors were made of character n-grams."""
    missing: tuple[str, ...]
    """Words without any vector."""


def read_word_vectors(path: str | Path, words: Sequence[str]) -> WordVectors:
    """Returns the vectors of `words` from a `.bin` (memory-mapped), `.vec` or `.vec.gz` file.

    Raises CheckpointError where it is missing, cut short, quantised or another kind of file.
    """
    path = expanded(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file of fastText vectors '{path}'")
    try:
        if path.suffix == ".bin":
            return _read_bin(path, words)
        if path.suffix == ".vec" or path.name.endswith(".vec.gz"):
            return _read_vec(path, words)
    except (EOFError, zlib.error):
        raise CheckpointError(f"{path} is cut short: fetch it again") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    raise CheckpointError(
        f"{path}: fastText vectors are a .bin, .vec or .vec.gz file (unpack a .bin.gz first)"
    )


def character_ngrams(word: bytes, shortest: int, longest: int) -> Iterator[bytes]:
    """Yields the n-grams of characters (not bytes) of a UTF-8 word between "<" and ">", without these two alone."""
    marked = b"<" + word + b">"
    starts = [at for at, byte in enumerate(marked) if byte & 0xC0 != 0x80]
    ends = [*starts[1:], len(marked)]
    for first in range(len(starts)):
        for size in range(shortest, min(longest, len(starts) - first) + 1):
            if size == 1 and (first == 0 or first + 1 == len(starts)):
                continue
            yield marked[starts[first] : ends[first + size - 1]]


def ngram_hash(ngram: bytes) -> int:
    """Returns fastText's 32-bit FNV-1a hash, which reads each byte as a signed one."""
    value = 2_166_136_261
    for byte in ngram:
        value ^= byte if byte < 128 else byte | 0xFFFFFF00
        value = value * 16_777_619 & 0xFFFFFFFF
    return value


def _read_bin(path: Path, words: Sequence[str]) -> WordVectors:
    if not path.stat().st_size:
        raise CheckpointError(f"{path} is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Model(data, path, words).vectors(words)
        except (struct.error, IndexError, ValueError):
            raise CheckpointError(f"{path} is cut short: fetch it again") from None


class _Model:
    """A `.bin` file, read as far as some words need it."""

    def __init__(self, data: mmap.mmap, path: Path, words: Iterable[str]) -> None:
        header = _HEADER.unpack_from(data)
        if header[0] != MAGIC or header[1] not in VERSIONS:
            raise CheckpointError(f"{path} is no fastText model of version 11 or 12")
        model, self.bucket, self.shortest, self.longest = header[9], header[10], header[11], header[12]
        if header[1] == 11 and model == _SUPERVISED:
            self.longest = 0  # such models were written with n-grams that they do not have
        at = _HEADER.size
        size, self.words, _, _, pruned = _DICTIONARY.unpack_from(data, at)
        at += _DICTIONARY.size
        wanted = {word.encode() for word in words}
        self.row: dict[bytes, int] = {}
        for number in range(size):
            end = data.find(b"\0", at)
            if end < 0:
                raise ValueError("cut short")
            word = data[at:end]
            at = end + 1 + 9
            if word in wanted and number < self.words:
                self.row[word] = number
        self.kept: dict[int, int] | None = None
        if pruned >= 0:
            pairs = np.frombuffer(data, np.dtype("<i4"), 2 * pruned, at).reshape(pruned, 2)
            self.kept = {int(ngram): int(row) for ngram, row in pairs}
            at += pairs.nbytes
        if data[at]:
            raise CheckpointError(f"{path} is quantised (.ftz): take the full .bin")
        rows, columns = struct.unpack_from("<2q", data, at + 1)
        if columns != header[2] or rows < self.words:
            raise CheckpointError(f"{path} is damaged: a matrix of {rows} x {columns} for width {header[2]}")
        start = at + 17
        if len(data) < start + 4 * rows * columns:
            raise ValueError("cut short")
        self._data, self._start, self.rows, self.columns = data, start, rows, columns

    def vectors(self, words: Sequence[str]) -> WordVectors:
        found = np.zeros((len(words), self.columns), np.float32)
        spelled: list[str] = []
        missing: list[str] = []
        for row, word in enumerate(words):
            rows = self._rows_of(word.encode())
            if word.encode() not in self.row:
                (spelled if rows else missing).append(word)
            if rows:
                found[row] = np.mean([self._vector(own) for own in rows], axis=0)
        return WordVectors(found, tuple(spelled), tuple(missing))

    def _rows_of(self, word: bytes) -> list[int]:
        rows = [self.row[word]] if word in self.row else []
        if word != END_OF_SENTENCE and self.longest and self.bucket:
            for ngram in character_ngrams(word, self.shortest, self.longest):
                number = ngram_hash(ngram) % self.bucket
                if self.kept is None:
                    rows.append(self.words + number)
                elif number in self.kept:
                    rows.append(self.words + self.kept[number])
        return rows

    def _vector(self, row: int) -> np.ndarray:
        # A copy: a view would keep the file mapped.
        at = self._start + 4 * self.columns * row
        return np.frombuffer(self._data[at : at + 4 * self.columns], np.dtype("<f4"))


def _read_vec(path: Path, words: Sequence[str]) -> WordVectors:
    rows_of: dict[bytes, list[int]] = {}
    for row, word in enumerate(words):
        rows_of.setdefault(word.encode(), []).append(row)
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as opened:
        lines = cast(IO[bytes], opened)
        try:
            count, columns = (int(number) for number in lines.readline().split())
        except ValueError:
            raise CheckpointError(f'{path} does not begin with "words dim", as a .vec file does') from None
        found = np.zeros((len(words), columns), np.float32)
        met: set[bytes] = set()
        for number in range(count):
            line = lines.readline()
            if not line:
                raise CheckpointError(f"{path} is cut short: {number:,} of {count:,} words; fetch it again")
            known, _, numbers = line.partition(b" ")
            if known not in rows_of or known in met:
                continue
            here, values = f"{path}, line {number + 2}", numbers.split()
            if len(values) != columns:
                raise CheckpointError(f"{here}: {len(values)} numbers instead of {columns}")
            try:
                found[rows_of[known]] = [float(value) for value in values]
            except ValueError:
                raise CheckpointError(f"{here}: not all of it are numbers") from None
            met.add(known)
            if len(met) == len(rows_of):
                break
    return WordVectors(found, (), tuple(word for word in words if word.encode() not in met))


def write_vec(path: Path, words: Sequence[str], vectors_UD: np.ndarray) -> None:
    """Writes a fastText `.vec` file, which `read_word_vectors` reads. Words hold no space."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{len(words)} {vectors_UD.shape[1]}"]
    for word, row in zip(words, vectors_UD.tolist()):
        lines.append(word + " " + " ".join(f"{value:.6g}" for value in row))
    partial = path.with_name(path.name + ".partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(path)
