"""The report of a run: sound HTML that loads nothing, all that the run has, no word of a run taken for markup."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
from pathlib import Path

import pytest
from factories.pages import Page, read
from factories.runs import make_run

from sage_scale.errors import StorageError, UsageError
from sage_scale.evaluation.stored import read_scores
from sage_scale.reporting.figures import LINE_COLOURS
from sage_scale.reporting.page import CSS, write_report

PARTS = {
    "pretrain": "stage 1 (pretrain)",
    "finetune": "stage 2 (finetune)",
    "scores.json": "scores",
    "predictions": "examples",
    "alignment.json": "token similarity",
    "timelines": "timelines",
    "timing.json": "time and memory",
    "recipe.yaml": "recipe",
}


def remove(run: Path, *parts: str) -> None:
    for path in map(run.joinpath, parts):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture
def run(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "demo"))


def test_the_page_loads_nothing(whole):
    text = write_report(whole).read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for name in ("src", "href", "srcset", "action", "data", "xlink:href", "poster"):
        linked = "./predictions/" if name == "href" else "#"
        allowed = ("#", "data:image/jpeg;base64,", linked)
        assert all(value.startswith(allowed) for value in page.attributes(name)), name
    assert "url(" not in text and "@import" not in text and "http:" not in text and "https:" not in text
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv"))
    assert "default-src 'none'" in (policy or "")


def test_a_whole_run_has_every_section_and_sound_links(whole):
    page = read(whole)
    sections = [a["id"] for tag, a in page.tags if tag == "section"]
    assert sections == ["scores", "examples", "curves", "alignment", "timelines", "cost", "recipe"]
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    links = page.attributes("href")
    assert {href.removeprefix("#") for href in links if href.startswith("#")} <= set(ids)
    assert [href for href in links if not href.startswith("#")] == ["./predictions/test.jsonl"]
    assert "Not in this report" not in page.text


def test_the_logit_scales_course_is_a_chart(whole):
    """A line for each level, from every step's log, and where it ends."""
    text = write_report(whole).read_text(encoding="utf-8")
    chart = re.split(r'<figure|<div class="chart"', text.split("Logit scales", 1)[1])[0]
    shown = re.sub(r"<[^>]*>", " ", chart)
    assert re.search(r"embeddings\s+23\.3", shown) and re.search(r"hidden states\s+19\.3", shown)
    lines = re.findall(r"<(?:path|polyline)[^>]*>", chart)
    assert len([line for line in lines if "fill" in line or "stroke" in line or "class" in line]) >= 2


def test_the_page_can_be_heard_and_used_by_keyboard(whole):
    page = read(whole)
    assert next(a for tag, a in page.tags if tag == "html")["lang"] == "en"
    assert all(a.get("alt") for tag, a in page.tags if tag == "img")
    assert all(a.get("role") == "img" and a.get("aria-label") for tag, a in page.tags if tag == "svg")
    assert all(a.get("scope") for tag, a in page.tags if tag == "th")
    assert [tag for tag, _ in page.tags].count("table") == [tag for tag, _ in page.tags].count("caption") > 0
    assert all(
        a.get("tabindex") == "0" for tag, a in page.tags if tag == "div" and a.get("class") == "scroll"
    )
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), (
        "a heading level is skipped"
    )
    assert {a.get("lang") for tag, a in page.tags if tag == "span" and a.get("lang")} == {"de"}


def test_figures_are_those_of_the_run(whole):
    text = read(whole).text
    for shown in ("36.42", "29.70", "61.91", "6.90", "8.10", "0.131", "4.5×", "58.30", "9.8 min", "2.5 GB"):
        assert shown in text, shown  # 36.42 / 8.10 = 4.50; 591 s = 9.85 min
    assert "blank videos" in text and "nrefs:1|case:mixed" in text
    assert "420 steps" in text and "600 steps" in text
    assert "batch_size: 16" in text, "the recipe stands in the page"


def test_sentences_are_text_never_markup(whole):
    text = write_report(whole).read_text(encoding="utf-8")
    assert "<script" not in text.lower() and "<b>hagel" not in text
    page = Page(text)
    assert "<script>alert('x')</script>" in page.text and "<b>hagel</b>" in page.text


HOSTILE = "\"'><img src=x onerror=alert(1)><svg/onload=alert(2)>&amp;\u0000\u202e</style></pre></details>"


def test_no_string_of_a_run_becomes_markup(run):
    """Every string of every file is replaced by a hostile one."""

    def poison(value):
        if isinstance(value, str) and value not in ("step", "dev"):
            return HOSTILE
        if isinstance(value, list):
            return [poison(item) for item in value]
        return {key: poison(item) for key, item in value.items()} if isinstance(value, dict) else value

    for path in run.rglob("*.json*"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        path.write_text("\n".join(json.dumps(poison(json.loads(line))) for line in lines))
    (run / "recipe.yaml").write_text(
        f"name: {json.dumps(HOSTILE)}\ncorpus: {{language: {json.dumps(HOSTILE)}}}\n"
    )
    scores = json.loads((run / "scores.json").read_text())
    scores["controls"] = {HOSTILE: next(iter(scores["controls"].values()))}
    (run / "scores.json").write_text(json.dumps(scores))
    renamed = run.rename(run.with_name("<i>&'demo"))
    page = read(renamed)
    assert "onerror=alert(1)" in page.text, "the strings were there to be shown"
    assert not [name for _, a in page.tags for name in a if name.startswith("on")]
    assert all(a["src"].startswith("data:image/jpeg") for tag, a in page.tags if tag == "img")
    assert not [tag for tag, _ in page.tags if tag == "i" and tag in page.open]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_not_there_is_named(run, part):
    remove(run, part)
    page = read(run)
    absent = page.text[page.text.rindex("Not in this report") :]
    assert f"{PARTS[part]}:" in absent


def test_any_set_of_parts_makes_a_page(whole, tmp_path):
    random.seed(0)
    for number in range(24):
        kept = [part for part in PARTS if random.random() < 0.4]
        run = tmp_path / str(number)
        run.mkdir()
        for part in kept:
            source = whole / part
            shutil.copytree(source, run / part) if source.is_dir() else shutil.copy(source, run / part)
        if {"pretrain", "finetune", "scores.json", "predictions", "recipe.yaml"} & set(kept):
            page = read(run)
            gaps = page.text[page.text.rindex("Not in this report") :] if len(kept) < len(PARTS) else ""
            for part, words in PARTS.items():
                assert (f"{words}:" in gaps) == (part not in kept), (part, kept)
        else:
            with pytest.raises(UsageError, match="no run folder"):
                write_report(run)


def test_stage_1_alone(run):
    remove(run, "finetune", "scores.json", "predictions", "timelines")
    page = read(run)
    sections = [a["id"] for tag, a in page.tags if tag == "section"]
    assert sections == ["curves", "alignment", "cost", "recipe", "absent"]
    assert "Stage 1" in page.text and "Stage 2" not in page.text
    assert "R@1, video to text, dev" in page.text


@pytest.mark.parametrize("cut", [0.3, 0.7])
def test_damaged_files_are_named_and_the_rest_is_shown(run, cut):
    for path in [*run.rglob("*.json"), *run.rglob("*.jsonl")]:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * cut)])
    page = read(run)
    assert page.text.count("is damaged") == 4
    assert "Stage 1" in page.text and "1 unreadable log lines left out" in page.text


@pytest.mark.parametrize(
    "entry", [None, [], 7, {}, {"bleu4": "x"}, {"bleu4": {}}, {"clips": 3}, {"bleu4": True}]
)
def test_a_split_without_figures_is_named_and_the_others_are_shown(run, entry):
    path = run / "scores.json"
    known = read_scores(run)
    path.write_text(json.dumps({**known, "other": entry}))
    page = read(run)
    assert "scores of other: scores.json has no figures of it" in page.text
    path.write_text(json.dumps(known))
    assert "scores of" not in read(run).text


@pytest.mark.parametrize("name", ["scores.json", "timing.json", "alignment.json"])
def test_an_empty_file_is_damaged(run, name):
    (run / name).write_bytes(b"")
    assert f"{name} is damaged" in read(run).text


def test_a_picture_that_is_no_jpeg_is_left_out(run):
    path = run / "timelines" / "timelines.json"
    rows = json.loads(path.read_text())
    rows[0]["thumbnails"] = [
        {"frame": 3, "jpeg": "PHN2Zz48L3N2Zz4="},
        {"frame": 9, "jpeg": 'x" onload="y'},
        7,
    ]
    path.write_text(json.dumps(rows[:1]))
    assert not [tag for tag, _ in read(run).tags if tag == "img"]


def test_a_resumed_run_counts_each_step_once(run):
    log = run / "pretrain" / "log.jsonl"
    lines = log.read_text().splitlines()
    again = [line.replace('"loss": ', '"loss": 1000') for line in lines[150:160]]
    log.write_text("\n".join([*lines, *again, *lines[150:]]) + "\n" + '{"event": "step", "st')
    page = read(run)
    assert "420 steps" in page.text and "1 unreadable log lines" in page.text
    assert not re.search(r"loss.*from 1000", " ".join(page.attributes("aria-label")).lower())


def test_folders_that_are_no_run(tmp_path):
    with pytest.raises(UsageError, match="there is no run folder"):
        write_report(tmp_path / "nothing")
    with pytest.raises(UsageError, match="no run folder"):
        write_report(tmp_path)


def test_a_page_that_cannot_be_written_leaves_nothing(whole, tmp_path):
    with pytest.raises(StorageError, match="cannot be written"):
        write_report(whole, tmp_path / "no-folder" / "page.html")
    (tmp_path / "page.html").mkdir()
    (tmp_path / "page.html" / "x").write_text("")
    with pytest.raises(UsageError, match="is a folder: name the file"):
        write_report(whole, tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_the_same_run_gives_the_same_page(whole, tmp_path):
    first, second = (write_report(whole, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast_is_that_of_wcag_aa(theme):
    """4.5 for text, 3 for lines and frames (WCAG 2.2, 1.4.3 and 1.4.11)."""
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", CSS.split(":root {")[theme + 1]))
    pairs = [(ink, ground, 4.5) for ink in ("ink", "muted", "accent") for ground in ("bg", "card")]
    pairs += [
        ("ink", "faint", 4.5),
        ("muted", "faint", 4.5),
        ("lost", "lost-bg", 4.5),
        ("added", "added-bg", 4.5),
    ]
    pairs += [("accent-ink", "accent", 4.5)]
    pairs += [(f"line{n}", "card", 3.0) for n in range(LINE_COLOURS)]
    for first, second, least in pairs:
        light, dark = sorted((_luminance(colours[first]), _luminance(colours[second])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= least, f"{first} on {second}"
    for n in range(6):  # white numbers on the bars of segments, bold
        assert 1.05 / (_luminance(colours[f"seg{n}"]) + 0.05) >= 3.0, n


def test_the_page_tells_of_the_job_and_what_befell_it(whole):
    text = read(whole).text
    for shown in (
        "2 ranks, device CPU (x86_64), ZeRO stage 2, precision bfloat16, global batch 32; then 1 rank,",
        "after step 90",
        "3 written, 4.2 MB of rank 0 each; training was blocked for 0.15 s in all",
        "1: 133 (skip)",
        "0.141 TFLOP/s a rank (a matrix product timed at the start)",
        "MFU, %",
        "Time waiting for data, % of a step",
        "Tokens a second",
    ):
        assert shown in text, shown


def test_datasets_that_differ_are_all_named(tmp_path):
    run = make_run(tmp_path / "run")
    log = run / "pretrain" / "log.jsonl"
    start, _, rest = log.read_text().partition("\n")
    differing = {"segmentation.tagger": ["motion", "uniform"], "corpus.name": ["a", "<b>"]}
    log.write_text(json.dumps(json.loads(start) | {"differing": differing}) + "\n" + rest)
    page = write_report(run).read_text()
    assert "segments by motion and uniform" in page and "corpus a and &lt;b&gt;" in page
