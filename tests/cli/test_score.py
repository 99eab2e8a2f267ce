"""`sage-scale score` on files: the figures of the functions, a paired test, and one line for bad input."""

from __future__ import annotations

import re

import pytest

from sage_scale.cli import main as command_line
from sage_scale.evaluation import score, score_as
from sage_scale.evaluation.hypotheses import write_predictions
from sage_scale.evaluation.significance import paired_test

REFERENCES = ["am tag regen im norden", "im süden viel sonne", "der wind weht schwach aus nord"] * 3
HYPOTHESES = ["am tag viel regen im norden", "im süden sonne", "der wind weht aus nord"] * 3
WORSE = ["am tag wind", "im norden", "der regen weht aus nord"] * 3


@pytest.fixture
def folder(tmp_path):
    rows = [
        {"key": str(n), "hypothesis": h, "reference": r}
        for n, (h, r) in enumerate(zip(HYPOTHESES, REFERENCES))
    ]
    write_predictions(tmp_path, "test", rows)
    (tmp_path / "worse.txt").write_text("\n".join(WORSE) + "\n", encoding="utf-8")
    (tmp_path / "references.txt").write_text("\n".join(REFERENCES) + "\n", encoding="utf-8")
    return tmp_path


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = command_line.run([str(argument) for argument in ("score", "--language", "de", *arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def printed(out: str, name: str) -> list[float]:
    line = next(line for line in out.splitlines() if line.strip().startswith(name))
    return [float(number) for number in re.findall(r"[-+]?\d+\.\d+", line)]


@pytest.mark.parametrize("ending", ["txt", "tsv", "jsonl"])
def test_figures_of_a_file_are_those_of_its_sentences(folder, capsys, ending):
    more = ("--references", folder / "references.txt") if ending == "txt" else ()
    code, out, _ = run(capsys, "--hypotheses", folder / f"test.{ending}", *more)
    wanted = score(HYPOTHESES, REFERENCES, "de")
    assert code == 0 and "9 sentences" in out and wanted["signature"] in out
    for name, key in (("BLEU-1", "bleu1"), ("BLEU-4", "bleu4"), ("ROUGE-L", "rouge_l"), ("chrF", "chrf")):
        value, low, high = printed(out, name)
        assert value == pytest.approx(wanted[key], abs=0.005) and low <= value <= high


def test_a_preset_and_a_paired_test(folder, capsys):
    arguments = ("--hypotheses", folder / "test.tsv", "--against", folder / "worse.txt", "--preset", "sage")
    code, out, _ = run(capsys, *arguments)
    wanted = score_as("sage", HYPOTHESES, REFERENCES, "de")
    test = paired_test(HYPOTHESES, WORSE, REFERENCES, "de", preset="sage")
    found = printed(out, "BLEU-4")
    assert code == 0 and found[0] == pytest.approx(wanted["bleu4"], abs=0.005)
    assert found[4:] == pytest.approx([test.difference, test.low, test.high, test.p], abs=0.005)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--hypotheses", "test.txt"], "--references FILE is needed"),
        (["--hypotheses", "missing.tsv"], "No such file"),
        (["--hypotheses", "test.tsv", "--preset", "mine"], "no scoring preset 'mine'"),
        (["--hypotheses", "test.tsv", "--against", "short.txt"], "has 1 sentences, the references 9"),
        (
            ["--hypotheses", "references.txt", "--references", "short.txt"],
            "has 9 sentences, the references 1",
        ),
        (["--hypotheses", "test.tsv", "--metric", "meteor"], "known are bleurt, comet"),
        (["--hypotheses", "empty.txt", "--references", "empty.txt"], "empty.txt has no sentence"),
        (["--hypotheses", "."], "--references FILE is needed"),
        (
            ["--hypotheses", "test.tsv", "--against", "other.tsv"],
            "sentence 1 of other.tsv is of clip 'b'.*'0'",
        ),
        (["--hypotheses", "test.tsv", "--language", "not a tag"], "no language tag|not a language tag"),
    ],
)
def test_bad_input_is_one_line_and_code_2(folder, capsys, monkeypatch, arguments, says):
    monkeypatch.chdir(folder)
    (folder / "short.txt").write_text("am tag\n")
    (folder / "empty.txt").write_text("")
    other = ["key\treference\thypothesis", *(f"b\t{text}\tim norden" for text in REFERENCES)]
    (folder / "other.tsv").write_text("\n".join(other) + "\n", encoding="utf-8")
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "" and re.search(says, err) and len(err.strip().splitlines()) == 1
