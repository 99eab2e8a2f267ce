"""A document beside the tars that is no document any more is named as damage by every verb, never a fault of ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from factories.datasets import make_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sage_scale.cli.main import run
from sage_scale.errors import DatasetError
from sage_scale.shards.addition_plan import _parse as parse_addition
from sage_scale.shards.index import parse_rejects
from sage_scale.shards.layout import parse_info, parse_marker
from sage_scale.storage import open_store


def replaced(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


DAMAGE = {
    "surrogate": lambda path: replaced(path, b'"train"', b'"\\ud800"'),
    "raw surrogate": lambda path: replaced(path, b'"train"', b'"\xed\xa0\x80"'),
    "NUL": lambda path: replaced(path, b'"train"', b'"\\u0000"'),
    "Infinity": lambda path: replaced(path, b"1", b"Infinity"),
    "huge number": lambda path: replaced(path, b'"version":', b'"more": %s, "version":' % (b"9" * 5_000)),
    "deep": lambda path: path.write_bytes(b"[" * 200_000),
    "deep inside": lambda path: replaced(path, b'"version":', b'"x": %s, "version":' % (b"[" * 90 + b"]" * 90)),
    "list": lambda path: path.write_bytes(b"[]"),
    "text where a number belongs": lambda path: replaced(path, b'"train"', b"17"),
    "negative": lambda path: replaced(path, b'"clips": 6' if b'"clips": 6' in path.read_bytes() else b'"samples":6',
                                      b'"clips": -6' if b'"clips": 6' in path.read_bytes() else b'"samples":-6'),
}  # fmt: skip
VERBS = {
    "ls": ["ls", "{url}", "--samples"],
    "stats": ["stats", "{url}", "--json"],
    "cat": ["cat", "{url}", "train-0-1"],
    "verify": ["verify", "{url}"],
    "index": ["index", "{url}"],
    "repair": ["repair", "{url}", "--dry-run"],
    "remove": ["remove", "{url}", "--ids", "train-0-1"],
    "split": ["split", "{url}", "--out", "{out}", "--share", "a=0.5"],
    "merge": ["merge", "{out}", "{url}"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[bool, dict[str, bytes]]:
    found = {}
    for finished in (False, True):
        folder = tmp_path_factory.mktemp("whole")
        store = open_store(folder / "data")
        make_dataset(store, finish=finished)
        found[finished] = {entry.name: store.get(entry.name) for entry in store.list()}
    return found


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["dataset.json", "000000.json", "index.json"])
def test_every_verb_names_a_damaged_document(tmp_path, whole, capsys, name, damage):
    folder = tmp_path / "data"
    all_verbs = damage in ("surrogate", "text where a number belongs")
    for at, (verb, arguments) in enumerate(VERBS.items()):
        if not all_verbs and verb not in ("ls", "repair"):
            continue
        for file, data in whole[name == "index.json"].items():
            open_store(folder).put(file, data)
        try:
            DAMAGE[damage](folder / name)
        except AssertionError:
            pytest.skip("nothing of this kind stands in this file")
        code = run(["shards", *(part.format(url=folder, out=tmp_path / f"out{at}") for part in arguments)])
        said = capsys.readouterr()
        if code not in (0, 4):
            assert name in said.err + said.out, (verb, said)
        else:  # index makes the document anew, and repair and remove what they can from the tar
            assert verb in ("index", "remove", "repair"), (verb, said)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_document_is_read_or_named_as_damage(whole, data):
    name, parse = data.draw(
        st.sampled_from(
            [
                ("dataset.json", parse_info),
                ("000000.json", parse_marker),
                (
                    '{"manifest":"m","first_unit":2,"units":[{"split":"a","clips":["b"],"before":0}]}',
                    parse_addition,
                ),
                ('[{"id":"a","reason":"b","detail":"c"}]', parse_rejects),
            ]
        )
    )
    document = json.loads(whole[False].get(name, name))
    if isinstance(document, dict) and data.draw(st.booleans()):
        document[data.draw(st.sampled_from(sorted(document)))] = data.draw(json_values)
        raw = json.dumps(document).encode()
    else:
        raw = data.draw(st.binary(max_size=200))
    try:
        repr(parse(raw, "the document"))
    except DatasetError as error:
        assert "the document" in str(error)
