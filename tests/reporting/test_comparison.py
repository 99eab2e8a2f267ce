"""The page of several runs: scores of groups with tests, a table a split, curves with bands, sound and safe HTML."""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from factories.pages import Page
from factories.runs import make_run
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_scale.cli.main import run as command_line
from sage_scale.config import from_mapping, to_yaml
from sage_scale.errors import UsageError
from sage_scale.evaluation import score
from sage_scale.evaluation.significance import over_seeds, paired_over_seeds, paired_test
from sage_scale.reporting import figures
from sage_scale.reporting.comparison import write_comparison
from sage_scale.reporting.comparison_json import compared
from sage_scale.reporting.group_curves import mean_and_band
from sage_scale.reporting.group_scores import MOST_GROUPS
from sage_scale.reporting.runlog import read_run
from sage_scale.reporting.scales import courses

WORDS = ["am", "montag", "regnet", "es", "im", "norden", "und", "süden", "bei", "zehn", "grad", "mit", "wind"]
REFERENCES = [" ".join(random.Random(n).choices(WORDS, k=9)) for n in range(40)]


def make(folder: Path, seed: int, kept: float, splits: tuple[str, ...] = ("test",), **recipe) -> Path:
    """A run of a recipe and a seed whose hypotheses keep a share of the references' words."""
    run = make_run(folder)
    seeds = {stage: {"seed": seed} for stage in ("pretrain", "finetune", "stream")}
    (run / "recipe.yaml").write_text(to_yaml(from_mapping({"name": "tiny", **seeds, **recipe})))
    choose = random.Random(f"{folder} {seed}")
    scores = {}
    for split in splits:
        texts = [" ".join(w if choose.random() < kept else "sonne" for w in r.split()) for r in REFERENCES]
        scores[split] = score(texts, REFERENCES, "de")
        rows = [{"key": f"{n}", "hypothesis": text, "reference": reference, "language": "de"}
                for n, (text, reference) in enumerate(zip(texts, REFERENCES, strict=True))]  # fmt: skip
        (run / "predictions" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (run / "scores.json").write_text(json.dumps(scores))
    return run


def hypotheses(run: Path, split: str = "test") -> list[str]:
    return [row["hypothesis"] for row in read_run(run).predictions[split]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Two recipes with three seeds each."""
    home = tmp_path_factory.mktemp("runs")
    return [
        *(make(home / f"good-{seed}", seed, 0.9) for seed in range(3)),
        *(make(home / f"bad-{seed}", seed, 0.5, clcl={"loss": "clip"}) for seed in range(3)),
    ]


def test_scores_of_groups_are_means_over_seeds_and_differences_are_tested(runs):
    found = compared(runs)
    good, bad = found["scores"]["test"]["groups"]
    of = [json.loads((run / "scores.json").read_text())["test"]["bleu4"] for run in runs]
    spread = over_seeds(of[:3])
    assert good["scores"]["bleu4"]["values"] == of[:3] and good["scores"]["bleu4"]["mean"] == pytest.approx(
        np.mean(of[:3])
    )
    assert good["scores"]["bleu4"]["deviation"] == pytest.approx(np.std(of[:3], ddof=1))
    assert (good["scores"]["bleu4"]["low"], good["scores"]["bleu4"]["high"]) == (spread.low, spread.high)
    assert bad["group"] == "B" and bad["runs"] == 3
    [test] = found["scores"]["test"]["tests"]
    texts = [hypotheses(run) for run in runs]
    expected = paired_over_seeds(texts[:3], texts[3:], REFERENCES, "de")
    # The clips are resampled in the order of their keys, here "0", "1", "10", ...
    assert test["difference"] == pytest.approx(expected.difference) and test["pairs"] == 3
    assert test["p"] == pytest.approx(expected.p, abs=0.01) and test["significant"]
    assert found["groups"][0]["recipe"] == {"clcl.loss": "clcl"} and found["groups"][0]["name"] == "good"


def test_the_page_has_what_the_json_has(runs, tmp_path):
    path = write_comparison(runs, tmp_path / "page.html")
    page = Page(path.read_text())
    good = compared(runs)["scores"]["test"]["groups"][0]["scores"]["bleu4"]
    assert f"{good['mean']:.2f} ± {good['deviation']:.2f}" in page.text
    assert f"[{good['low']:.2f}, {good['high']:.2f}]" in page.text
    assert "good and bad" in page.text and "clcl.loss" in page.text and "significant" in page.text
    assert "3 pairs of runs" in page.text and "Scores on test, 40 clips" in page.text


def test_one_run_against_one_is_sacrebleus_paired_test(runs):
    [test] = compared([runs[0], runs[3]])["scores"]["test"]["tests"]
    a, b = hypotheses(runs[0]), hypotheses(runs[3])
    order = sorted(range(40), key=str)
    expected = paired_test(
        *([texts[n] for n in order] for texts in (a, b)), [REFERENCES[n] for n in order], "de"
    )
    assert (test["difference"], test["p"]) == (expected.difference, expected.p)


def test_clips_that_differ_are_not_tested(runs, tmp_path):
    other = make(tmp_path / "other", 0, 0.9, clcl={"beta": 0.1})
    path = other / "predictions" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3]["reference"] = "another sentence"
    path.write_text("\n".join(map(json.dumps, rows)))
    [test] = compared([runs[0], other])["scores"]["test"]["tests"]
    assert test["not_tested"] == "their clips differ" and "p" not in test
    assert (
        "not tested: their clips differ"
        in Page(write_comparison([runs[0], other], tmp_path / "p.html").read_text()).text
    )
    path.unlink()
    [test] = compared([runs[0], other])["scores"]["test"]["tests"]
    assert test["not_tested"] == "no hypotheses of both"


def test_a_dev_score_never_stands_in_the_row_of_a_test_score(tmp_path):
    one = make(tmp_path / "one", 0, 0.9, ("test", "dev"))
    other = make(tmp_path / "other", 0, 0.4, ("dev",), clcl={"beta": 0.1})
    found = compared([one, other])["scores"]
    assert list(found) == ["test", "dev"]
    assert [group["runs"] for group in found["test"]["groups"]] == [1, 0] and not found["test"]["tests"]
    assert [group["runs"] for group in found["dev"]["groups"]] == [1, 1] and len(found["dev"]["tests"]) == 1
    text = Page(write_comparison([one, other]).read_text()).text
    table = text[text.index("Scores on test") : text.index("Scores on dev")]
    assert "0 of 1" in table
    assert f"{json.loads((other / 'scores.json').read_text())['dev']['bleu4']:.2f}" not in table


def test_controls_and_groups_of_clips_are_means_over_runs(tmp_path):
    runs = [make(tmp_path / f"r-{seed}", seed, 0.9) for seed in range(2)] + [
        make(tmp_path / "s", 0, 0.5, clcl={"beta": 0})
    ]
    paired = [{"bleu4": {"difference": 9.0, "low": 5.0, "high": 12.0, "p": p}} for p in (0.001, 0.2, 0.001)]
    for number, run in enumerate(runs):
        entry = json.loads((run / "scores.json").read_text())["test"]
        entry["intervals"] = {"bleu4": [1.11, 99.9]}
        entry["controls"] = {"blank_videos": {"bleu4": 2.0 + number, "paired": paired[number]}}
        entry["groups"] = {"signer": {"s1": {"bleu4": 10.0 + number, "clips": 7}}}
        entry["languages"] = {"de": {"bleu4": 30.0, "clips": 30}, "zh": {"bleu4": 20.0 + number, "clips": 10}}
        entry["macro"] = {"bleu4": 25.5, "languages": 2}
        entry["alignment"] = {"accuracy": 40.0 + number, "chance": 12.0, "scored": 10}
        (run / "scores.json").write_text(json.dumps({"test": entry}))
    text = Page(write_comparison(runs).read_text()).text
    assert "BLEU-4 on test, by language, signer" in text and "mean over languages" in text and "25.50" in text
    assert "10.50" in text and "20.50" in text and "12.00" in text
    assert "tokens with their sign's pseudo-gloss, test, %" in text and "40.5" in text
    controls = text[text.index("A translator must beat") :]
    assert "2.50" in controls and "beaten by 1 of 2" in controls and "beaten by 1 of 1" in controls
    assert "[1.11, 99.90]" in text, "a run alone has its interval over clips"
    group = compared(runs)["scores"]["test"]["groups"][1]["scores"]["bleu4"]
    assert (group["low"], group["high"], group["interval_over"]) == (1.11, 99.9, "clips")


def test_many_recipes_are_a_matrix_with_holms_correction(tmp_path):
    kept = (0.95, 0.9, 0.6, 0.6, 0.3)
    runs = [make(tmp_path / f"r{at}", 0, share, clcl={"beta": at / 10}) for at, share in enumerate(kept)]
    tests = compared(runs)["scores"]["test"]["tests"]
    assert len(tests) == 10
    ordered = sorted(tests, key=lambda test: test["p"])
    stepped = [min(1.0, test["p"] * (10 - rank)) for rank, test in enumerate(ordered)]  # Holm 1979
    assert [test["p_holm"] for test in ordered] == pytest.approx(list(itertools.accumulate(stepped, max)))
    page = Page(write_comparison(runs).read_text())
    matrix = page.text[page.text.index("Differences in BLEU-4") :]
    assert "Row minus column" in matrix and "10 tests" in matrix


def test_more_groups_than_letters_are_not_tested(runs, tmp_path):
    """Folders of one run, each with a recipe of its own."""
    folders = []
    for number in range(MOST_GROUPS + 1):
        folder = tmp_path / f"r{number}"
        (folder / "predictions").mkdir(parents=True)
        (folder / "recipe.yaml").write_text(f"clcl: {{beta: {number / 100}}}\n")
        for name in ("scores.json", "predictions/test.jsonl"):
            (folder / name).write_bytes((runs[0] / name).read_bytes())
        folders.append(folder)
    text = Page(write_comparison(folders).read_text()).text
    assert f"at most {MOST_GROUPS} groups" in text and "Differences in BLEU-4" not in text and "AA" in text


def test_a_band_spans_the_runs_and_its_line_is_their_mean():
    curves = [[(1, 1.0), (2, 4.0), (3, 9.0)], [(1, 3.0), (2, 2.0)], [(1, 2.0)]]
    assert mean_and_band(curves) == [(1, 2.0, 1.0, 3.0), (2, 3.0, 2.0, 4.0)]  # one of three is less than half


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=6), min_size=1, max_size=12))
def test_bands_and_letters_stay_inside_the_picture(values):
    lines = []
    for at, row in enumerate(values):
        band = [(step, value - 1, value + 1) for step, value in enumerate(row)]
        lines.append(figures.Line(f"r{at}", list(enumerate(row)), at, band=band, letter=chr(65 + at)))
    drawing = figures.line_chart("t", lines)
    width, height = figures.CHART
    for path in re.findall(r' d="M([^"Z]*)', drawing):
        for point in path.split("L"):
            x, y = map(float, point.split())
            assert 0 <= x <= width and 0 <= y <= height
    places = [(float(x), float(y)) for x, y in re.findall(r'class="letter" x="([^"]*)" y="([^"]*)"', drawing)]
    assert len(places) == len(values) and all(0 < x < width and 0 < y < height for x, y in places)
    for (x, y), (other_x, other_y) in itertools.combinations(places, 2):
        assert abs(x - other_x) >= figures.LETTER or abs(y - other_y) >= figures.LETTER - 0.11


def test_the_temperatures_course_is_told(tmp_path, runs):
    """From 14.3 on, by 9 over the steps, clamped at 20: (20 - 14.3) / 9 of the way there."""
    clamped = make(tmp_path / "clamped", 0, 0.9, clcl={"scale_max": 20.0})
    log = clamped / "pretrain" / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in rows:
        if row["event"] == "step":
            row["scale_embedding"] = min(row["scale_embedding"], 20.0)
            row["bias_embedding"] = -10 + row["step"] / 100
    log.write_text("\n".join(map(json.dumps, rows)))
    record = read_run(clamped)
    first, hidden, bias = courses(record, record.logs["pretrain"])
    held = sum(14.3 + 9 * step / 420 >= 20 for step in range(1, 421))
    assert (first.clamped, first.steps, first.bounds) == (held, 420, ("clcl.scale_max=20",))
    assert hidden.clamped == 0 and "never clamped" in hidden.words and bias.end == pytest.approx(-5.8)
    assert (
        f"clamped to clcl.scale_max=20 in {first.clamped} of 420 steps" in first.words
        and "20 at the end (temperature 0.05)" in first.words
    )
    text = Page(write_comparison([clamped, *runs]).read_text()).text
    assert "Logit scales, embeddings" in text and "Biases, embeddings" in text
    assert f"clamped to clcl.scale_max=20 in {first.clamped / 420:.0%} of the steps" in text


def test_the_page_is_read_by_keyboard_and_screen_reader_and_loads_nothing(runs, tmp_path):
    page = Page(write_comparison(runs, tmp_path / "sub page.html").read_text())
    assert all(a.get("scope") for tag, a in page.tags if tag == "th")
    tables = [tag for tag, _ in page.tags if tag in ("table", "caption")]
    assert tables.count("table") == tables.count("caption") > 4
    assert all(a.get("role") == "img" and a.get("aria-label") for tag, a in page.tags if tag == "svg")
    assert all(
        a.get("tabindex") == "0" for tag, a in page.tags if tag == "div" and a.get("class") == "scroll"
    )
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert not {"script", "link", "iframe", "img"} & {tag for tag, _ in page.tags} and not page.attributes(
        "src"
    )
    links = [address for address in page.attributes("href") if not address.startswith("#")]
    assert links and all(address.startswith("./") for address in links)
    assert all((tmp_path / address).is_file() for address in links)


HOSTILE = "\"'><img src=x onerror=alert(1)>‮</style>"


def test_hostile_names_values_and_hypotheses_stay_text(tmp_path):
    one = make(tmp_path / "<i>'\"&javascript:#?%", 0, 0.9)
    other = make(tmp_path / "b", 0, 0.9)
    recipe = {"name": HOSTILE, "corpus": {"root": HOSTILE}, "model": {HOSTILE: HOSTILE * 40, "kind": HOSTILE}}
    (other / "recipe.yaml").write_text(json.dumps(recipe))
    path = other / "predictions" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "\n".join(json.dumps(row | {"hypothesis": HOSTILE * (n + 1)}) for n, row in enumerate(rows))
    )
    log = other / "finetune" / "log.jsonl"
    log.write_text(log.read_text().replace('"loss": ', '"loss": NaN, "l": ', 50)[:-40])
    html = write_comparison([one, other], tmp_path / "page.html").read_text()
    page = Page(html)
    assert "onerror=alert(1)" in page.text and "‮" not in html
    assert not [name for _, a in page.tags for name in a if name.startswith("on")]
    assert not {"img", "script"} & {tag for tag, _ in page.tags}
    assert "javascript:" not in "".join(page.attributes("href")).replace("%3A", "")
    longest = max(len(text) for text in re.findall(r"<td[^>]*>([^<]*)<", html))
    assert longest < 400


def test_the_command_prints_json_or_writes_a_page(runs, tmp_path, capsys):
    names = [str(run) for run in runs]
    assert command_line(["report", *names, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [group["name"] for group in printed["groups"]] == ["good", "bad"]
    assert printed["scores"]["test"]["tests"][0]["pairs"] == 3
    (runs[1] / "scores.json").write_text("{")
    assert command_line(["report", names[1], "--json"]) == 0
    [record] = json.loads(capsys.readouterr().out)["groups"][0]["runs"]
    [damaged] = [one["why"] for one in record["missing"] if one["part"] == "scores"]
    assert damaged.startswith("scores.json is damaged")
    assert command_line(["report", names[0], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["test"]["groups"][0]["runs"] == 1
    assert not (runs[0] / "comparison.html").exists() and not (runs[0] / "report.html").exists()
    assert command_line(["report", *names, "--json", "--out", str(tmp_path / "x.html")]) == 2
    assert command_line(["report", *names, "--out", str(tmp_path / "x.html")]) == 0
    assert (tmp_path / "x.html").is_file()


def test_the_same_run_twice_is_one_run(runs):
    with pytest.raises(UsageError, match="two runs"):
        write_comparison([runs[0], runs[0]])
