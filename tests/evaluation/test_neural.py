"""BLEURT and COMET through packages of the same interface, and what is said without them."""

from __future__ import annotations

import sys
import types

import pytest

from sage_scale.errors import UsageError
from sage_scale.evaluation.neural import neural_counts, open_scorer
from sage_scale.evaluation.split_scores import split_scores


def module(name: str, **members) -> types.ModuleType:
    found = types.ModuleType(name)
    vars(found).update(members)
    return found


@pytest.fixture
def packages(monkeypatch):
    """Packages with the interfaces of bleurt 0.0.2 and unbabel-comet 2.2; a value is the share of equal words."""
    opened: list[str] = []

    def share(hypothesis: str, reference: str) -> float:
        ours, theirs = hypothesis.split(), reference.split()
        return sum(a == b for a, b in zip(ours, theirs)) / max(len(theirs), 1)

    class BleurtScorer:
        def __init__(self, checkpoint):
            opened.append(checkpoint)

        def score(self, *args, references=(), candidates=(), batch_size=None):
            assert not args, "bleurt takes keywords only"
            return [share(c, r) for c, r in zip(candidates, references)]

    class Comet:
        def predict(self, samples, batch_size=16, gpus=1, progress_bar=True):
            assert all(set(row) == {"src", "mt", "ref"} and row["src"] == "" for row in samples)
            scores = [share(row["mt"], row["ref"]) for row in samples]
            return types.SimpleNamespace(scores=scores, system_score=sum(scores) / len(scores))

    def load_from_checkpoint(path):
        opened.append(path)
        return Comet()

    score = module("bleurt.score", BleurtScorer=BleurtScorer)
    monkeypatch.setitem(sys.modules, "bleurt", module("bleurt", score=score))
    monkeypatch.setitem(sys.modules, "bleurt.score", score)
    comet = module(
        "comet", download_model=lambda name: f"cache/{name}", load_from_checkpoint=load_from_checkpoint
    )
    monkeypatch.setitem(sys.modules, "comet", comet)
    return opened


def test_values_become_a_score_with_an_interval(packages, tmp_path):
    (tmp_path / "BLEURT-20").mkdir()
    rows = [
        {"hypothesis": h, "reference": r, "language": "de"}
        for h, r in [("am tag regen", "am tag regen"), ("im süden", "im norden"), ("a", "b")]
    ]
    for written, name in ((f"bleurt={tmp_path / 'BLEURT-20'}", "bleurt"), ("comet", "comet")):
        found, scorer = open_scorer(written)
        counts = neural_counts(
            scorer, [row["hypothesis"] for row in rows], [row["reference"] for row in rows]
        )
        entry = split_scores(rows, further={found: counts})
        assert found == name and entry[name] == pytest.approx(50)
        assert entry["intervals"][name][0] <= 50 <= entry["intervals"][name][1]
    assert packages == [str(tmp_path / "BLEURT-20"), "cache/Unbabel/wmt22-comet-da"]


def test_a_file_is_opened_as_it_is(packages, tmp_path):
    (tmp_path / "own.ckpt").write_bytes(b"x")
    open_scorer(f"comet={tmp_path / 'own.ckpt'}")
    assert packages == [str(tmp_path / "own.ckpt")]


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("bleurt", "its checkpoint is missing"),
        ("bleurt=/nowhere/x", "is no folder"),
        ("meteor", "known are bleurt, comet"),
    ],
)
def test_a_wrong_choice_is_one_line(packages, written, says):
    with pytest.raises(UsageError, match=says):
        open_scorer(written)


def test_a_package_that_fails_is_one_line(packages, monkeypatch):
    def fail(path):
        raise RuntimeError("bad\nweights")

    monkeypatch.setattr(sys.modules["comet"], "load_from_checkpoint", fail)
    with pytest.raises(UsageError, match="cannot be opened") as raised:
        open_scorer("comet")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "get"), [("bleurt", "google-research/bleurt"), ("comet", "pip install unbabel-comet")]
)
def test_without_the_package_it_is_said_where_to_get_it(monkeypatch, name, get):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=get):
        open_scorer(name)
