"""Scores on the report of a run: a table a split, intervals, tests, groups of clips, and files of 0.1.0."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from factories.pages import read
from factories.runs import make_run

from sage_scale.evaluation.stored import read_scores
from sage_scale.reporting.page import write_report


@pytest.fixture
def run(tmp_path) -> Path:
    return make_run(tmp_path / "demo")


def rewrite(run: Path, **entries: object) -> None:
    """scores.json by split: entries by name, of which each changes the scores of the made run."""
    made = read_scores(run)["test"]
    (run / "scores.json").write_text(
        json.dumps({name: made | dict(entry) for name, entry in entries.items()})
    )


def test_every_split_has_its_own_scores_and_controls(run):
    made = json.loads((run / "scores.json").read_text())
    old = read(run)
    rewrite(
        run, dev={"bleu4": 22.22, "controls": {"blank_videos": made["heldout"] | {"bleu4": 3.33}}}, test={}
    )
    page = read(run)
    assert "BLEU-4 on test" in page.text and "36.42" in page.text, "test is shown first, whatever the order"
    assert "22.22" in page.text and "3.33" in page.text and "4.5×" in page.text
    assert "dev, unseen signers" in page.text and "Controls that a translator must beat, dev" in page.text
    rewrite(run, test={})
    assert read(run).text == old.text, "scores.json of 0.1.0 is read"


def test_a_run_scored_on_dev_alone_is_shown_with_dev(run):
    (run / "predictions" / "test.jsonl").rename(run / "predictions" / "dev.jsonl")
    rewrite(run, dev={})
    page = read(run)
    assert "BLEU-4 on dev" in page.text and "clips of dev" in page.text


def test_scores_by_language_stand_beneath_the_whole(run):
    made = json.loads((run / "scores.json").read_text())["heldout"]
    rewrite(run, test={"languages": {"zh-Hans": made | {"bleu4": 12.34}, "<i>": made}})
    path = run / "predictions" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0] |= {"language": "zh", "reference": "今天北京天气很好", "hypothesis": "今天上海天气很好"}
    path.write_text("\n".join(map(json.dumps, rows)))
    page = read(run)
    assert (
        "test, zh-Hans" in page.text
        and "12.34" in page.text
        and "by its own language's tokeniser" in page.text
    )
    assert {a.get("lang") for tag, a in page.tags if tag == "td" and a.get("lang")} == {"de", "zh"}
    assert '今天<mark class="lost">北京</mark>天气很好' in write_report(run).read_text()


def test_intervals_tests_and_groups_of_clips_stand_beside_the_scores(run):
    """As `evaluation.split_scores` writes them."""
    made = read_scores(run)["test"]
    paired = {"bleu4": {"difference": 28.32, "low": 25.5, "high": 31.25, "p": 0.000999}}
    groups = {
        "signer": {"s<1>": made | {"bleu4": 41.23, "clips": 1234}},
        "words": {"1-5": {"bleu4": 33.21, "chrf": 7.77}},
    }
    rewrite(run, test={
        "version": 2, "chrf": 55.55, "chrf_signature": "nc:6", "intervals": {"bleu4": [33.1, 39.9], "chrf": [-1.5, 57]},
        "alignment": {"accuracy": 43.21, "chance": 12.34, "scored": 1234, "clips": 96},
        "groups": groups, "controls": {"blank_videos": made["controls"]["blank_videos"] | {"paired": paired}},
    })  # fmt: skip
    for form in ("txt", "tsv"):
        (run / "predictions" / f"test.{form}").write_text("")
    page = read(run)
    for shown in ("[33.10, 39.90]", "[−1.50, 57.00]", "55.55", "run minus control +28.32 [25.50, 31.25]", "p < 0.001",
                  "nc:6", "by signer, length of the reference (words)", "s<1>", "41.23", "1,234", "33.21", "7.77",
                  "95% [33.10, 39.90], 96 clips", "43.2% of 1,234 tokens; chance 12.3%"):  # fmt: skip
        assert shown in page.text.replace("\N{NO-BREAK SPACE}", " "), shown
    assert "There are no intervals" not in page.text
    links = [href for href in page.attributes("href") if not href.startswith("#")]
    assert links == [f"./predictions/test.{form}" for form in ("txt", "tsv", "jsonl")]


def test_scores_of_0_1_0_have_no_intervals_and_the_page_says_how_to_get_them(run):
    assert (
        "There are no intervals: the scores are of version 0.1.0, sage-scale evaluate writes"
        in read(run).text
    )


@pytest.mark.parametrize(
    ("change", "shown", "not_shown"),
    [
        ({"bleu4": 0.0}, ["best control, BLEU-4", "8.1"], ["0.0×", "against the best control"]),
        ({"bleu4": 30.0, "controls": {"blank_videos": {"bleu4": 0.001}}}, ["best control"], ["×"]),
        ({"clips": 1}, ["1 clip (too few to tell)"], ["1 clips"]),
        ({"bleu4": 4.05}, ["0.5×", "8.1: blank videos"], []),
        ({"clips": 96}, ["96 clips, ROUGE-L"], ["too few"]),
    ],
)
def test_what_means_nothing_is_not_shown_with_pride(run, change, shown, not_shown):
    rewrite(run, test=change)
    text = read(run).text
    tiles = text[: text.index("Scores and controls")]
    assert all(words in tiles for words in shown) and not any(words in tiles for words in not_shown)


def test_retrieval_says_among_how_many_and_nothing_among_one(run):
    assert "dev, 48 clips; chance 2.1%" in read(run).text
    log = run / "pretrain" / "log.jsonl"
    log.write_text(log.read_text().replace('"clips": 48', '"clips": 1'))
    assert "R@1" not in read(run).text
    log.write_text(
        log.read_text().replace('"clips": 1}', '"clips": 5}').replace('"clips": 1,', '"clips": 5,')
    )
    assert "5 clips (too few to tell); chance 20.0%" in read(run).text
