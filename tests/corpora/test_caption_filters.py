"""The named filters: each on its own, off by its switch, and nothing lost between kept and set aside."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from factories.corpora import ROLLING_VTT
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_scale.config import Captions, Corpus, load_recipe
from sage_scale.corpora.caption_filters import filter_cues, in_script, is_credit
from sage_scale.corpora.captions import Cue, parse_captions
from sage_scale.corpora.registry import read_corpus
from sage_scale.corpora.roll_up import is_automatic, merge_roll_up
from sage_scale.errors import RecipeError

GOOD = Cue(30, 33, "Das ist ein ganz gewöhnlicher Satz.")
CASES = {
    "filter-short": (Cue(1, 1.9, "Zu kurz."), {"min_seconds": 0}),
    "filter-long": (Cue(1, 21.5, "Bleibt viel zu lange stehen."), {"max_seconds": 0}),
    "filter-text-short": (Cue(1, 3, "A!"), {"min_characters": 0}),
    "filter-text-long": (Cue(1, 9, "viel Text " * 31), {"max_characters": 0}),
    "filter-not-speech": (Cue(1, 3, "[Musik] ♪ (Applaus)"), {"not_speech": False}),
    "filter-credits": (Cue(1, 3, "Untertitel von www.beispiel.de"), {"credits": False}),
    "filter-script": (Cue(1, 3, "Это не по-немецки"), {"script": False}),
    "filter-beyond-end": (Cue(95, 103, "Endet nach dem Video."), {"beyond_end": False}),
}


@pytest.mark.parametrize("name", CASES)
def test_each_filter_and_its_switch(name) -> None:
    cue, off = CASES[name]
    kept, dropped = filter_cues([cue, GOOD], Captions(), "de", duration_s=100)
    assert kept == [GOOD] and [(one.cue, one.reason) for one in dropped] == [(cue, name)]
    kept, dropped = filter_cues([cue, GOOD], Captions(**off), "de", duration_s=100)
    assert {cue, GOOD} == set(kept) and not dropped


def test_overlaps_and_repetitions_need_two() -> None:
    cues = [
        Cue(0, 4, "Eins."),
        Cue(3.6, 6, "Knapp."),
        Cue(5, 8, "Zu früh."),
        Cue(8, 10, "Knapp."),
        Cue(13, 15, "Eins."),
    ]
    kept, dropped = filter_cues(cues, Captions(), "de")
    assert [cue.start_s for cue in kept] == [0, 3.6, 13]
    assert [(one.cue.start_s, one.reason) for one in dropped] == [
        (5, "filter-overlap"),
        (8, "filter-repeated"),
    ]
    assert filter_cues(cues, Captions(overlap_s=0, repeat_s=0), "de") == (cues, [])


def test_a_repetition_of_what_was_set_aside_is_kept() -> None:
    kept, dropped = filter_cues([Cue(0, 0.2, "Hallo."), Cue(0.3, 2, "Hallo.")], Captions(), "de")
    assert [cue.start_s for cue in kept] == [0.3] and [one.reason for one in dropped] == ["filter-short"]


def test_bad_intervals_are_set_aside_whatever_is_off() -> None:
    off = Captions(min_seconds=0, max_seconds=0, min_characters=0, max_characters=0, overlap_s=0, repeat_s=0)
    kept, dropped = filter_cues([Cue(3, 3, "Nichts."), Cue(5, 4, "Rückwärts.")], off, "de")
    assert not kept and [one.reason for one in dropped] == ["bad-interval"] * 2


@pytest.mark.parametrize(
    "text",
    ["Subtitles by the Amara.org community", "Untertitel: ARD Text im Auftrag von Funk", "www.example.com/deaf",
     "Sous-titres par Marie", "Visit https://youtu.be/x", "@DeafChannel", "#DeafAwareness", "字幕：李明",
     "Captions provided by: Sam", "Closed captions by ABC"],
)  # fmt: skip
def test_credits(text) -> None:
    assert is_credit(text)


@pytest.mark.parametrize(
    "text",
    ["The captions are by far the best part.", "We translated the book for you.", "He is #1 in the world.",
     "Look at www.example.com, where you find everything that we have talked about today.", "Translation is hard.",
     "Ich lese Untertitel.", "Meet me at 5 p.m."],
)  # fmt: skip
def test_no_credits(text) -> None:
    assert not is_credit(text)


def test_scripts() -> None:
    right = {"你好，我是Sam。": "zh", "こんにちは": "ja", "Привет": "ru", "Grüße": "de-AT", "42": "ru", "مرحبا": "ar",
             "नमस्ते": "hi", "qualquer": "xx", "안녕하세요": "ko"}  # fmt: skip
    wrong = {"Hello": "ru", "你好": "en", "Приветы": "de", "hello there": "zh-Hans"}
    assert [text for text, language in right.items() if not in_script(text, language)] == []
    assert [text for text, language in wrong.items() if in_script(text, language)] == []


TEXTS = st.sampled_from(["A word.", "Zwei Wörter", "[Music]", "www.x.com", "Привет", "x" * 400, "", "A"])
CUES = st.lists(
    st.builds(Cue, st.integers(0, 60).map(float), st.integers(0, 90).map(float), TEXTS), max_size=12
)


@settings(max_examples=60, deadline=None)
@given(CUES)
def test_every_cue_is_kept_or_set_aside_and_filtering_again_changes_nothing(cues) -> None:
    kept, dropped = filter_cues(cues, Captions(), "de", 60.0)
    everything = sorted([*kept, *(one.cue for one in dropped)], key=repr)
    assert everything == sorted(cues, key=repr)
    assert filter_cues(kept, Captions(), "de", 60.0) == (kept, [])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=10), st.integers(1, 3))
def test_rolled_up_lines_come_back_each_once(lines, rows) -> None:
    """A roll-up writer that shows the last `rows` lines in each cue is undone, whatever the lines are."""
    lines = [line for at, line in enumerate(lines) if at == 0 or line != lines[at - 1]]
    if len(set(lines)) < len(lines):  # where a line comes back while it is still shown, none can tell
        return
    cues = []
    for at in range(len(lines)):
        screen = tuple(lines[max(0, at - rows + 1) : at + 1])
        cues += [
            Cue(2.0 * at, 2.0 * at + 1.9, " ".join(screen), screen),
            Cue(2.0 * at + 1.9, 2.0 * at + 2, " ".join(screen), screen),
        ]
    merged, touched = merge_roll_up(cues)
    assert [cue.text for cue in merged] == lines
    assert [(cue.start_s, cue.end_s) for cue in merged] == [
        (2.0 * at, 2.0 * at + 2) for at in range(len(lines))
    ]
    assert touched == len(lines) + (len(lines) - 1 if rows > 1 else 0)


def test_ordinary_captions_are_left_alone() -> None:
    cues, _ = parse_captions(
        "1\n00:01,000 --> 00:03,000\n- Nein.\n- Doch.\n\n2\n00:03,000 --> 00:05,000\nOh.\n\n"
        "3\n00:09,0 --> 00:11,0\nOh.\n"
    )
    assert merge_roll_up(cues) == (cues, 0)
    assert cues[0].text == "- Nein. - Doch." and not is_automatic("<i>kursiv</i> <c>farbig</c>")
    assert is_automatic(ROLLING_VTT)


def test_captions_of_a_broken_writer() -> None:
    text = (
        "1\n00:00:01,000 --> 00:00:02,000\nEins\n2\n00:00:02,000 --> 00:00:03,000\nZwei\n\n\n"
        "3\n00:03.0 --> 00:04.0\n<i>Drei</i>, <font color=red>vier</font><br>fünf\n"
    )
    for ends in ("\n", "\r\n", "\r"):
        cues, broken = parse_captions(text.replace("\n", ends))
        assert broken == []
        assert [cue.text for cue in cues] == ["Eins", "Zwei", "Drei, vier fünf"]


BAD_TIMES = "00:04.000 -->", "00:04.000 -> 00:06.000", "00:0a.000 --> 00:06.000", "--> 00:06.000", "4 --> 6"


@pytest.mark.parametrize(
    ("times", "gap"),  # without an arrow and an empty line before it, it is text
    [(times, gap) for times in BAD_TIMES for gap in ("\n\n", "\n") if gap == "\n\n" or "-->" in times],
)
def test_a_cue_whose_times_cannot_be_read_is_counted_and_lends_nobody_its_text(tmp_path, times, gap) -> None:
    first, last = "00:01.000 --> 00:03.000\nEins zwei.", "00:07.000 --> 00:09.000\nDrei vier.\n"
    written = f"WEBVTT\n\n{first}{gap}{times}\nVerloren.\n\n{last}"
    cues, broken = parse_captions(written)
    assert [cue.text for cue in cues] == ["Eins zwei.", "Drei vier."]
    assert broken == [f"line {written[: written.index(times)].count(chr(10)) + 1}: {times}"]
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.vtt").write_text(written)
    manifest = read_corpus(Corpus(name="videos", root=str(tmp_path)))
    assert [(row.reason, row.detail, row.expected) for row in manifest.rejected] == [
        ("bad-cue", f"a.vtt {broken[0]}", False)
    ]


def test_videos_beside_their_captions_pass_the_same_filters(tmp_path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.vtt").write_text(
        "WEBVTT\n\n00:01.000 --> 00:01.400\nKurz.\n\n00:02.000 --> 00:04.000\nLang genug.\n"
    )
    corpus = Corpus(name="videos", root=str(tmp_path))
    manifest = read_corpus(corpus)
    assert [clip.sentence for clip in manifest.clips] == ["Lang genug."]
    assert [(row.reason, row.expected) for row in manifest.rejected] == [("filter-short", True)]
    off = dataclasses.replace(corpus, captions=Captions(min_seconds=0))
    assert len(read_corpus(off).clips) == 2


def test_recipes_set_filters_and_refuse_nonsense() -> None:
    recipe = load_recipe("demo", ["corpus.captions.min_seconds=0.2", "corpus.captions.automatic=fallback"])
    assert recipe.corpus.captions == Captions(min_seconds=0.2, automatic="fallback")
    for change in ("corpus.captions.min_seconds=30", "corpus.captions.overlap_s=-1", "corpus.dev_share=1"):
        with pytest.raises(RecipeError):
            load_recipe("demo", [change])


def test_the_documentation_names_every_filter() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "corpora.md").read_text()
    for name in (
        *CASES,
        "filter-overlap",
        "filter-repeated",
        "filter-automatic",
        "filter-language",
        "filter-sign-language",
    ):
        assert f"`{name}`" in page, name
