"""Hypotheses as text read back equal, whatever is in them; bad files are one line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_scale.errors import UsageError
from sage_scale.evaluation.hypotheses import read_sentences, write_predictions
from sage_scale.text.languages import normal_form

texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12
) | st.sampled_from(["am\ttag", "im\nnorden\r\n", "\u2028x\x85y", '"quoted"', "", "\ufeffmark", "天气，好"])


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_texts_read_back_equal_in_their_order(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("run")
    rows = [{"key": f"k{n}", "hypothesis": h, "reference": r} for n, (h, r) in enumerate(pairs)]
    write_predictions(folder, "test", rows)
    assert sorted(path.name for path in folder.iterdir()) == ["test.jsonl", "test.tsv", "test.txt"]
    for column, wanted in (("hypothesis", [h for h, _ in pairs]), ("reference", [r for _, r in pairs])):
        assert read_sentences(folder / "test.jsonl", column) == wanted
        found = read_sentences(folder / "test.tsv", column)
        assert [normal_form(text) for text in found] == [normal_form(text) for text in wanted]
    lines = read_sentences(folder / "test.txt")
    assert [normal_form(text) for text in lines] == [normal_form(h) for h, _ in pairs]
    assert read_sentences(folder / "test.tsv", "key") == [row["key"] for row in rows]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.tsv", b"key\ttext\n1\t2\n", "no column 'hypothesis'"),
        ("a.tsv", b"key\thypothesis\n1\n", "line 2 has 1 columns, the header 2"),
        ("a.tsv", b"", "no column 'hypothesis'"),
        ("a.jsonl", b'{"hypothesis": "x"}\n\n{"hypothesis": 3}\n', "line 3 has no text 'hypothesis'"),
        ("a.jsonl", b'{"hypothesis": "x"}\n{', "a.jsonl: line 2: not JSON"),
        ("a.txt", b"am tag\nim s\xfcden\n", "a.txt is not UTF-8 .line 2."),
        ("a.txt", b"am tag\n" + b"x" * 30_000, "line 2 has a sentence of 30,000 characters"),
        ("a.txt", b"\xff\xfe\x00", "a.txt"),
        ("missing.txt", None, "No such file"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=says) as raised:
        read_sentences(tmp_path / name)
    assert "\n" not in str(raised.value) and name in str(raised.value)


def test_a_file_beyond_the_limit_is_not_read(tmp_path):
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(1 << 40)  # sparse: no disk, but more than any memory
    with pytest.raises(UsageError, match="1,099,511,627,776 bytes, more than"):
        read_sentences(tmp_path / "a.txt")
