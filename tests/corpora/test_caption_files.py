"""Captions as players read them: SubRip and WebVTT of careless writers, joined streams, automatic captions."""

from __future__ import annotations

import itertools
import re
import time

import pytest
from factories.corpora import ROLLING_VTT
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_scale.config import Captions
from sage_scale.corpora.caption_filters import filter_cues, is_credit
from sage_scale.corpora.captions import Cue, has_words, parse_captions, plain_text
from sage_scale.corpora.roll_up import is_automatic, merge_roll_up

SRT = "1\n00:00:01,000 --> 00:00:03,500\nEins\nzwei.\n\n2\n00:00:04,000 --> 00:00:06,000\nDrei.\n\n3\n" + (
    "00:00:07,000 --> 00:00:09,000\nVier\nfünf.\n"
)
WANTED = [(1.0, 3.5, "Eins zwei."), (4.0, 6.0, "Drei."), (7.0, 9.0, "Vier fünf.")]
MAP = "X-TIMESTAMP-MAP=MPEGTS:{},LOCAL:{}"


def read(text: str) -> list[tuple[float, float, str]]:
    cues, broken = parse_captions(text)
    assert broken == []
    return [(cue.start_s, cue.end_s, cue.text) for cue in cues]


@pytest.mark.parametrize(
    "text",
    [
        SRT,
        SRT.replace("\n", "\r\n"),
        SRT.replace("\n", "\r"),
        SRT.replace("\n", "\r\r\n"),
        SRT.replace("\n", "\n\n"),
        SRT.replace("Eins\n", "Eins\n\n").replace("Vier\n", "Vier\n \n\n"),
        SRT.replace(",000\nDrei", ",000\n\n\nDrei"),
        SRT.replace("\n\n2\n", "\n\n\n\n2\n\n"),
        SRT.replace("\n\n", "\n \t\n"),
        SRT.replace("\n\n", "\n"),
        "\ufeff" + SRT.replace("00:00:0", "0:0:0"),
        SRT.replace(",", " , ").replace(" --> ", "-->"),
        SRT.replace(",", ":"),
        SRT.replace(",", ".").replace("000", "000000"),
        SRT.replace("500\n", "500   X1:40 X2:600 Y1:20 Y2:50\n"),
        SRT.replace("2\n00", "\n00", 1).replace("3\n00", "\n00"),
    ],
)
def test_every_way_of_writing_subrip_gives_the_same_cues(text) -> None:
    assert read(text) == WANTED


def test_times_without_thousandths_and_numbers_in_the_text() -> None:
    whole = SRT.replace(",000", "").replace(",500", "")
    assert read(whole) == [(1.0, 3.0, "Eins zwei."), *WANTED[1:]]
    assert read(SRT.replace("zwei.", "25"))[0] == (1.0, 3.5, "Eins 25")
    assert read(SRT.replace("zwei.", "25\n"))[0] == (1.0, 3.5, "Eins 25")


def test_a_cue_without_length_is_shown_until_the_next() -> None:
    flat = SRT.replace("--> 00:00:03,500", "--> 00:00:01,000").replace("--> 00:00:09,000", "--> 00:00:07,000")
    assert read(flat) == [
        (1.0, 4.0, "Eins zwei."),
        WANTED[1],
        (7.0, 7.0, "Vier fünf."),
    ]  # nothing after the last
    kept, dropped = filter_cues(parse_captions(flat).cues, Captions(), "de")
    assert len(kept) == 2 and [one.reason for one in dropped] == ["bad-interval"]


def test_what_browsers_do_not_show_of_webvtt_is_named() -> None:
    cues, broken = parse_captions(
        "WEBVTT - title\nKind: captions\n\nNOTE\nmore --\n\n00:01.000 --> 00:03.000\n\nLost.\n\nname\n"
        "00:04.000 --> 00:06.000\nEins\n\nzwei\nund drei\n\nSTYLE\n::cue {}\n\n00:07.000 --> 00:09.000\nVier.\n\nEnd."
    )
    assert [cue.text for cue in cues] == ["", "Eins", "Vier."]
    assert broken == [
        "line 9: text outside any caption: Lost.",
        "line 15: text outside any caption: zwei",
        "line 24: text outside any caption: End.",
    ]


def segment(
    at: str, text: str, header: str = "WEBVTT", local: str = "00:00:00.000", ticks: int = 900_000
) -> str:
    return f"{header}\n{MAP.format(ticks, local)}\n\n{at}\n{text}"


@pytest.mark.parametrize("glue", ["\n\n", "\n", "", "\n\n\ufeff", "\ufeff", "\r\n\r\n"])
def test_headers_between_joined_segments_are_left_out(glue) -> None:
    joined = glue.join(
        [
            segment("00:01.000 --> 00:03.000", "One here"),
            segment("00:04.000 --> 00:06.000 line:90%", "Two here"),
            segment("00:00:06.000 --> 00:00:08.500", "Two here"),
            segment("00:09.000 --> 00:11.000", "Three here\n"),
        ]
    )
    assert read(joined) == [(1.0, 3.0, "One here"), (4.0, 8.5, "Two here"), (9.0, 11.0, "Three here")]


def test_time_maps_move_later_segments() -> None:
    starts = [0, 2**33 - 90_000 * 2, 90_000 * 4]  # the third after the clock of MPEG began again
    parts = [
        segment("00:00.500 --> 00:02.000", f"Part {k}.", ticks=ticks) for k, ticks in enumerate(starts[1:])
    ]
    assert read("\n\n".join(parts)) == [(0.5, 2.0, "Part 0."), (6.5, 8.0, "Part 1.")]
    local = segment("00:10.500 --> 00:12.000", "Late.", local="00:00:10.000", ticks=900_000 + 360_000)
    assert read(segment("00:01.000 --> 00:03.000", "First.") + "\n\n" + local)[1] == (4.5, 6.0, "Late.")
    cues, broken = parse_captions(
        segment("00:01.000 --> 00:02.000", "A.") + "\n\nWEBVTT\n" + MAP.format("x", "y")
    )
    assert len(cues) == 1 and broken == ["line 8: X-TIMESTAMP-MAP=MPEGTS:x,LOCAL:y"]


def test_a_time_map_below_an_empty_line_counts() -> None:
    parts = [
        segment("00:01.000 --> 00:02.000", text, header="WEBVTT\n", ticks=ticks)
        for text, ticks in (("A", 900_000), ("B", 1_800_000))
    ]
    assert read("\n\n".join(parts)) == [(1.0, 2.0, "A"), (11.0, 12.0, "B")]


@pytest.mark.parametrize(
    "header",
    [
        "WEBVTT - Part 2",
        "WEBVTT Kind: captions; Language: de",
        "WEBVTT\nKind: captions",
        "WEBVTT Part 2\nKind: x",
    ],
)
def test_headers_with_a_title_end_a_cue(header) -> None:
    joined = f"WEBVTT\n\n00:01.000 --> 00:02.000\nA\n{header}\n\n00:02.000 --> 00:03.000\nB\n"
    assert read(joined) == [(1.0, 2.0, "A"), (2.0, 3.0, "B")]


@pytest.mark.parametrize("mark", ["\ufeff", "\ufeff\ufeff"])
def test_joined_subrip_files_leave_no_mark_in_a_sentence(mark) -> None:
    assert read(mark + SRT + "\n" + mark + "1\n" + mark + "00:00:11,000 --> 00:00:12,000\nEnde." + mark) == [
        *WANTED,
        (11.0, 12.0, "Ende."),
    ]


@pytest.mark.parametrize("line", ["A --> B", "von A --> B", "--> weiter", "5 --> 6"])
@pytest.mark.parametrize("text", ["{}\nund weiter", "Zuerst\n{}"])
def test_an_arrow_in_the_text_of_subrip_is_text(text, line) -> None:
    shown = text.format(line)
    both = f"1\n00:00:01,000 --> 00:00:02,000\n{shown}\n\n2\n00:00:03,000 --> 00:00:04,000\nDrei\n"
    assert read(both) == [(1.0, 2.0, " ".join(shown.split())), (3.0, 4.0, "Drei")]


def test_a_segment_before_the_first_one_is_named() -> None:
    early = segment("00:03.000 --> 00:05.000", "Before the first.", ticks=0)
    cues, broken = parse_captions(segment("00:01.000 --> 00:02.000", "A.") + "\n\n" + early)
    assert len(cues) == 1 and broken == ["line 10: at -7.000 s by its segment's X-TIMESTAMP-MAP"]


def test_a_sentence_about_webvtt_stays() -> None:
    text = "WEBVTT\n\n00:01.000 --> 00:03.000\nWEBVTT is a format.\nThis is WEBVTT\n"
    assert read(text) == [(1.0, 3.0, "WEBVTT is a format. This is WEBVTT")]


@pytest.mark.parametrize("hours", ["9" * 5000, "9" * 6, "99999"])
@pytest.mark.parametrize("head", ["", "WEBVTT\n\n"])
def test_hours_of_many_digits_are_one_bad_cue(head, hours) -> None:
    text = f"{head}{hours}:00:00.000 --> {hours}:00:01.000\nNever.\n\n00:00:01.000 --> 00:00:02.000\nNow.\n"
    cues, broken = parse_captions(text)
    assert [cue.text for cue in cues] == ["Now."] and len(broken) == 1 and len(broken[0]) < 120


@pytest.mark.parametrize(
    "times",
    [
        "00:00:04,000 -> 00:00:06,000",
        "00:00:04,000 -->",
        "--> 00:00:06,000",
        "a --> b",
        "00:00:04,000 -- > 00:00:06,000",
        "00:00:04,000 - -> 00:00:06,000",
        "00:00:04,000 \u2192 00:00:06,000",
        "00:00:04 - 00:00:06",
    ],
)
def test_a_subrip_cue_whose_times_cannot_be_read_lends_nobody_its_text(times) -> None:
    cues, broken = parse_captions(SRT.replace("00:00:04,000 --> 00:00:06,000", times))
    assert [cue.text for cue in cues] == ["Eins zwei.", "Vier fünf."] and broken == [f"line 7: {times}"]


def test_a_nul_in_a_caption_and_a_number_no_entity_has() -> None:
    cues, broken = parse_captions(SRT.replace("Drei", "Dr\0ei"))
    assert [cue.text for cue in cues] == ["Eins zwei.", "Vier fünf."] and broken == [
        "line 7: a NUL character in its text"
    ]
    assert plain_text("&#" + "9" * 5000 + ";a") and plain_text("&lt;b&gt; &amp; &#228;") == "<b> & ä"


@pytest.mark.parametrize(
    "unit",
    ["<", "(", "[", "{\\", "♪", "（", "a-", "<a", "<br ", "(a)[", "@", "#a", "&", "&#1", "www.", "subtitles ", "\r",
     "-->", "é", "字幕", "00:", "WEBVTT"],
)  # fmt: skip
def test_no_caption_takes_more_than_linear_time(unit) -> None:
    text = unit * (80_000 // len(unit))
    begun = time.process_time()
    for cue in parse_captions(f"WEBVTT\n\n00:01.000 --> 00:03.000\n{text}\n\n{text}").cues:
        filter_cues([cue], Captions(max_characters=0), "de")
    has_words(text), is_credit(text), is_automatic(text), parse_captions(text)
    assert time.process_time() - begun < 2


def test_marks_that_close_are_taken_out_and_others_stay() -> None:
    assert plain_text("a <i>b</i> < c {\\an8}d {e}") == "a b < c d {e}"
    assert plain_text("1 < 2 <b> 3") == "1 < 2 3"
    assert plain_text("3 < 5 und 7 > 6, ich <3 dich") == "3 < 5 und 7 > 6, ich <3 dich"
    assert plain_text("<00:01.000><c>Hal</c><1:00:01.500>lo") == "Hallo"
    assert plain_text(r"{\an8}{\i1}Hallo{\i0}\NWelt\hdort") == "Hallo Welt dort"
    assert plain_text("<ruby>漢<rt>kan</rt>字<rt>ji</ruby>") == "漢字"
    for sound in ("[a] (b) ♪ c", "♪ la ♪", "(a [b)", "♪ la (x"):
        assert not has_words(sound), sound
    for said in ("[a] b", "(a", "a ♪ b", "♪ a ♪ b"):
        assert has_words(said), said


def srt(*cues: tuple[float, float, str]) -> str:
    def stamp(seconds: float) -> str:
        return f"00:00:{seconds:06.3f}".replace(".", ",")

    return "\n\n".join(f"{n}\n{stamp(a)} --> {stamp(b)}\n{text}" for n, (a, b, text) in enumerate(cues, 1))


def test_automatic_captions_are_told_in_srt_too() -> None:
    lines = ["hello everybody", "and welcome", "to the weather", "of today"]
    cues, now, before = [], 1.0, ""
    for line in lines:
        cues += [(now, now + 2, f"{before}{line}"), (now + 2, now + 2.01, f"{line}\n ")]
        now, before = now + 2.01, f"{line}\n"
    for text in (srt(*cues), srt(*cues).replace("\n \n", "\n"), ROLLING_VTT):
        assert is_automatic(text, parse_captions(text).cues)
    written = [(2.0 * k, 2.0 * k + 1.9, line) for k, line in enumerate(lines)]
    for rows in (
        written,
        [(0, 2, "No."), (2, 4, "No."), (4, 6, "Yes.")],
        [(0, 2, "Ha."), (2, 2.01, "Oh.")],
        [],
    ):
        text = srt(*rows)
        assert not is_automatic(text, parse_captions(text).cues)


@pytest.mark.parametrize(
    "rows",
    [
        [(0, 2, "No."), (2, 4, "No.")],
        [(0, 2, "No.\nNo."), (2, 4, "No.\nNo."), (4, 6, "Yes.")],
        [(0, 2, "Ready?"), (2, 4, "Ready?\nGo."), (4, 6, "One."), (6, 8, "Two."), (8, 9, "Three.")],
        [(2.0 * k, 2.0 * k + 2, "Again and again.") for k in range(8)],
    ],
)
def test_plain_captions_that_repeat_a_text_stay_as_they_are(rows) -> None:
    cues = parse_captions(srt(*rows)).cues
    assert merge_roll_up(cues) == (cues, 0)


@pytest.mark.parametrize("blink", [0.01, 0.02, 0.04])
def test_automatic_captions_whose_two_lines_were_made_one_are_told(blink) -> None:
    said = ["hello everybody and", "welcome to a new video", "today the weather"]
    rows = []
    for k, line in enumerate(said):
        shown = f"{said[k - 1]} {line}" if k else line
        rows += [(3.0 * k, 3.0 * k + 2.9, shown), (3.0 * k + 2.9, 3.0 * k + 2.9 + blink, line)]
    text = srt(*rows)
    assert is_automatic(text, parse_captions(text).cues)


def test_captions_that_roll_without_pauses_or_blinks() -> None:
    lines = ["one", "two", "three", "four"]
    cues = [
        Cue(2.0 * k, 2.0 * k + 2, " ".join(pair), pair) for k, pair in enumerate(itertools.pairwise(lines))
    ]
    assert [cue.text for cue in merge_roll_up(cues)[0]] == ["one two", "three", "four"]


PIECES = st.sampled_from(
    ["WEBVTT", "\n", "\n\n", "\r", "\r\n", "\ufeff", "00:01.000 --> 00:02.000", "00:00:03,5 --> 00:00:04", "-->", "1",
     "Text", " ", "NOTE x", "X-TIMESTAMP-MAP=MPEGTS:9,LOCAL:00:00:01.000", "X-TIMESTAMP-MAP=", "<c>", "&#x0;", "\0",
     "\u2028", "9" * 30]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES | st.text(max_size=6), max_size=30).map("".join))
def test_any_text_gives_cues_or_named_lines(text) -> None:
    cues, broken = parse_captions(text)
    for cue in cues:
        assert (
            0 <= cue.start_s < 1e7 and 0 <= cue.end_s < 2e7 and "\0" not in cue.text and "\n" not in cue.text
        )
    assert all(
        not re.search(r"[\x00-\x1f\x7f-\x9f]", line) and len(line) < 700 for line in broken
    )  # 60, escaped
    is_automatic(text, cues)
    kept, dropped = filter_cues(merge_roll_up(sorted(cues, key=lambda cue: cue.start_s))[0], Captions(), "de")
    assert len(kept) + len(dropped) <= len(cues)
