"""fastText files: read as fastText itself reads them (files of its own making), and damaged ones named in one line."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from sage_scale.errors import CheckpointError
from sage_scale.text.fasttext import character_ngrams, ngram_hash, read_word_vectors

HERE = Path(__file__).parent / "fasttext"
VECTORS = json.loads((HERE / "small_vectors.json").read_text(encoding="utf-8"))


def test_bin_gives_what_fasttext_gives_inside_and_outside_of_the_vocabulary():
    words = list(VECTORS)
    read = read_word_vectors(HERE / "small.bin", words)
    np.testing.assert_allclose(read.vectors_UD, [VECTORS[word] for word in words], atol=2e-7)
    assert {"regen", "Norden", "schneeweiß", "打车来"} <= set(read.spelled)
    assert {"morgen", "übermorgen", "喜欢", "</s>"} <= set(words) - set(read.spelled)
    assert all(np.any(row) for row in read.vectors_UD[[words.index(word) for word in read.spelled]])


def test_vec_gives_the_words_of_its_lines_and_names_the_others(tmp_path):
    words = ["übermorgen", "schneeweiß", "喜欢", "übermorgen"]
    packed = tmp_path / "small.vec.gz"
    packed.write_bytes(gzip.compress((HERE / "small.vec").read_bytes()))
    for path in (HERE / "small.vec", packed):
        read = read_word_vectors(path, words)
        np.testing.assert_allclose(read.vectors_UD[[0, 2]], [VECTORS[words[0]], VECTORS[words[2]]], rtol=1e-4)
        assert read.missing == ("schneeweiß",) and not read.vectors_UD[1].any()
        np.testing.assert_array_equal(read.vectors_UD[3], read.vectors_UD[0])


def test_hash_is_published_fnv_for_ascii_and_takes_other_bytes_as_signed():
    assert ngram_hash(b"a") == 0xE40C292C and ngram_hash(b"foobar") == 0xBF9CF968  # FNV-1a's published values
    signed = np.frombuffer("ä".encode(), np.int8).astype(np.int32).astype(np.uint32)
    value = np.uint64(2166136261)
    for byte in signed:
        value = (value ^ np.uint64(byte)) * np.uint64(16777619) % np.uint64(2**32)
    assert ngram_hash("ä".encode()) == int(value)


def test_ngrams_are_of_characters():
    grams = [gram.decode() for gram in character_ngrams("weiß".encode(), 5, 5)]
    assert grams == ["<weiß", "weiß>"]
    assert [gram.decode() for gram in character_ngrams("我".encode(), 1, 2)] == ["<我", "我", "我>"]
    assert list(character_ngrams(b"", 1, 3)) == [b"<>"]


def made_bin(
    path: Path,
    pruned: dict[int, int] | None = None,
    quantised: bool = False,
    version: int = 12,
    model: int = 2,
) -> np.ndarray:
    """A model of two words, width 3, four buckets, n-grams of 3, by the published format; gives its matrix."""
    kept = 4 if pruned is None else len(pruned)
    matrix = np.arange(3 * (2 + kept), dtype="<f4").reshape(-1, 3)
    data = struct.pack("<14id", 793712314, version, 3, 5, 5, 1, 5, 1, 2, model, 4, 3, 3, 100, 1e-4)
    data += struct.pack("<3i2q", 2, 2, 0, 10, -1 if pruned is None else len(pruned))
    for word in ("ja", "nein"):
        data += word.encode() + b"\0" + struct.pack("<qb", 5, 0)
    for ngram, row in (pruned or {}).items():
        data += struct.pack("<2i", ngram, row)
    data += bytes([quantised]) + struct.pack("<2q", *matrix.shape) + matrix.tobytes()
    path.write_bytes(data)
    return matrix


def test_ngrams_of_a_pruned_model_are_looked_up_and_a_word_without_any_is_missing(tmp_path):
    path = tmp_path / "made.bin"
    matrix = made_bin(path)
    buckets = [ngram_hash(gram) % 4 for gram in (b"<ja", b"ja>")]
    wanted = matrix[[0, 2 + buckets[0], 2 + buckets[1]]].mean(0)
    np.testing.assert_allclose(read_word_vectors(path, ["ja"]).vectors_UD[0], wanted)
    matrix = made_bin(path, pruned={buckets[1]: 0})
    rows = [0, *([2] if buckets[0] == buckets[1] else []), 2]
    np.testing.assert_allclose(read_word_vectors(path, ["ja"]).vectors_UD[0], matrix[rows].mean(0))
    assert read_word_vectors(path, [""]).missing == ("",)
    matrix = made_bin(path, version=11, model=3)  # a classifier of old, whose n-grams are none
    np.testing.assert_allclose(read_word_vectors(path, ["nein"]).vectors_UD[0], matrix[1])
    assert read_word_vectors(path, ["doch"]).missing == ("doch",)


def test_only_the_rows_needed_are_read(tmp_path):
    """A matrix of 4 TB that is a hole in the file: what is not asked for is never looked at."""
    path = tmp_path / "large.bin"
    made_bin(path)
    data = bytearray(path.read_bytes())
    header = len(data) - 3 * 6 * 4
    columns, rows = 3, 2 + 4
    assert struct.unpack_from("<2q", data, header - 16) == (rows, columns)
    path.write_bytes(data)
    with path.open("r+b") as file:
        file.truncate(header + 12 * 100_000_000)
        file.seek(header - 16)
        file.write(struct.pack("<q", 100_000_000))
    assert path.stat().st_size > 10**9
    np.testing.assert_allclose(read_word_vectors(path, ["ja"]).vectors_UD.shape, (1, 3))


def test_damaged_files_are_named_in_one_line(tmp_path):
    whole = (HERE / "small.bin").read_bytes()
    path = tmp_path / "cut.bin"
    for size in (1, 40, 70, 200, 900, len(whole) // 2, 1500):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"cut\.bin") as caught:
            read_word_vectors(path, ["morgen"])
        assert "\n" not in str(caught.value)
    for data, reason in ((b"", "empty"), (b"\0" * 200, "no fastText model")):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=reason):
            read_word_vectors(path, ["morgen"])
    made_bin(path, quantised=True)
    with pytest.raises(CheckpointError, match="quantised"):
        read_word_vectors(path, ["ja"])
    vec = tmp_path / "some.vec"
    for text, reason in (
        ("morgen 1 2\n", "words dim"),
        ("2 2\nmorgen 1 2\n", "1 of 2 words"),
        ("1 3\nmorgen 1 2\n", "line 2: 2 numbers instead of 3"),
        ("1 2\nmorgen 1 zwei\n", "line 2: not all"),
    ):
        vec.write_text(text, encoding="utf-8")
        with pytest.raises(CheckpointError, match=reason):
            read_word_vectors(vec, ["morgen", "abend"])
    packed = tmp_path / "cut.vec.gz"
    packed.write_bytes(gzip.compress(b"2 2\n" + bytes(2000))[:20])
    with pytest.raises(CheckpointError, match=r"cut\.vec\.gz"):
        read_word_vectors(packed, ["morgen"])
    with pytest.raises(CheckpointError, match="no file"):
        read_word_vectors(tmp_path / "none.bin", ["morgen"])
    (tmp_path / "cc.de.300.bin.gz").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="unpack"):
        read_word_vectors(tmp_path / "cc.de.300.bin.gz", ["morgen"])
