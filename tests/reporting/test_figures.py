"""Figures say what the data says: read back from the drawing by its own axes."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_scale.models.sign2gpt.report import localisation_map
from sage_scale.reporting import clip_figures, figures
from sage_scale.reporting.examples import differences, similarity
from sage_scale.reporting.figures import Line, brief
from sage_scale.untrusted.display import duration

finite = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 6))


def number(text: str) -> float:
    text = text.replace(",", "").removesuffix(" s")
    factor = {"k": 1e3, "M": 1e6}.get(text[-1], 1.0)
    return float(text.rstrip("kM")) * factor


def axes(drawing: str) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """(place, value) of the labels along the values' axis and along the steps' axis."""
    labels = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(end|middle)">([^<]+)</text>', drawing)
    rows = [(float(y) - 3.5, number(text)) for x, y, _, text in labels if float(x) == 40.0]
    columns = [(float(x), number(text)) for x, y, _, text in labels if float(x) != 40.0]
    return rows, columns


def read_off(labels: list[tuple[float, float]], place: float, log: bool = False) -> float:
    (p0, v0), (p1, v1) = labels[0], labels[-1]
    share = (place - p0) / (p1 - p0)
    return v0 * (v1 / v0) ** share if log else v0 + share * (v1 - v0)


@pytest.mark.parametrize("log", [False, True])
def test_points_can_be_read_off_the_axes(log):
    points = [(100.0, 0.5), (200.0, 3.25), (300.0, 1.0), (400.0, 7.0), (500.0, 2.0)]
    drawing = figures.line_chart("Loss", [Line("dev", points, marks=True)], log=log)
    rows, columns = axes(drawing)
    drawn = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawing)
    assert len(drawn) == len(points)
    for (cx, cy), (step, value) in zip(drawn, points, strict=True):
        assert read_off(columns, float(cx)) == pytest.approx(step, abs=2)
        assert read_off(rows, float(cy), log) == pytest.approx(value, rel=0.02, abs=0.02)


def test_a_long_curve_keeps_its_spike_and_its_trend():
    points = [(float(step), 10.0 - step / 500) for step in range(5000)]
    points[2500] = (2500.0, 60.0)
    drawing = figures.line_chart("Loss", [Line("training", points)])
    rows, _ = axes(drawing)
    raw, trend = (
        [tuple(map(float, place.split())) for place in path.removeprefix("M").split("L")]
        for path in re.findall(r'<path d="([^"]+)"', drawing)
    )
    assert max(read_off(rows, y) for _, y in raw) == pytest.approx(60, rel=0.02)
    assert max(read_off(rows, y) for _, y in trend) < 12
    assert len(raw) <= 410


@given(st.lists(st.tuples(st.integers(0, 10**7), finite), max_size=60), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_curve_stays_inside_its_picture(points, log):
    points = sorted({float(x): y for x, y in points}.items())
    drawing = figures.line_chart("any", [Line("a", points)], log=log)
    if not points or (log and all(y <= 0 for _, y in points)):
        assert drawing == ""
        return
    for x, y in re.findall(r"[ML]([\d.e+-]+) ([\d.e+-]+)", drawing):
        assert 45 <= float(x) <= 351 and 9 <= float(y) <= 191


@given(finite, finite)
@settings(max_examples=300, deadline=None)
def test_ticks_are_round_and_span_the_data(a, b):
    low, high = min(a, b), max(a, b)
    ticks = figures.ticks(low, high)
    assert 2 <= len(ticks) <= 8
    tolerance = 1e-6 * max(abs(low), abs(high), 1e-6)
    assert ticks[0] <= low + tolerance and ticks[-1] >= high - tolerance
    step = ticks[1] - ticks[0]
    assert step / 10 ** math.floor(math.log10(step) + 1e-9) == pytest.approx(1, rel=1e-3) or any(
        step / 10 ** math.floor(math.log10(step) + 1e-9) == pytest.approx(factor, rel=1e-3)
        for factor in (2, 5, 10)
    )


@given(st.floats(1e-8, 1e8), st.floats(1e-8, 1e8))
@settings(max_examples=300, deadline=None)
def test_logarithmic_ticks_span_the_data(a, b):
    low, high = min(a, b), max(a, b)
    ticks = figures.log_ticks(low, high)
    assert len(ticks) >= 2 and all(x < y for x, y in itertools.pairwise(ticks))
    assert ticks[0] <= low * (1 + 1e-6) and ticks[-1] >= high * (1 - 1e-6)


@given(st.lists(finite, min_size=1, max_size=400))
@settings(max_examples=100, deadline=None)
def test_smoothing_and_thinning_keep_what_they_must(values):
    points = [(float(step), value) for step, value in enumerate(values)]
    smoothed = figures.smooth(points)
    assert [x for x, _ in smoothed] == [x for x, _ in points]
    slack = 1e-6 * max(1.0, max(map(abs, values)))
    assert (
        min(values) - slack <= min(y for _, y in smoothed)
        and max(y for _, y in smoothed) <= max(values) + slack
    )
    thinned = figures.thin(points, 50)
    assert len(thinned) <= 52 and set(thinned) <= set(points)
    assert {min(values), max(values)} <= {y for _, y in thinned}
    assert [x for x, _ in thinned] == sorted(x for x, _ in thinned)


def test_the_matrix_shades_by_similarity_and_frames_the_best_segment():
    similarity_NM = [[0.1, 0.9], [0.8, -0.2], [0.3, 0.4]]
    drawing = clip_figures.matrix(similarity_NM, ["regen", "<wind>"], [[0, 5], [5, 15], [15, 25]], fps=25)
    cells = re.findall(
        r'class="cell" x="([\d.]+)" y="([\d.]+)".*?fill-opacity="([\d.]+)"><title>(.*?) and segment (\d)[^:]*: (.*?)<',
        drawing,
    )
    assert len(cells) == 6
    shades = {}
    for x, y, shade, token, segment, value in cells:
        m = ["regen", "&lt;wind&gt;"].index(token)
        assert float(value) == similarity_NM[int(segment) - 1][m]
        shades[(int(segment) - 1, m)] = (float(shade), float(x), float(y))
    flat = sorted(shades, key=lambda nm: similarity_NM[nm[0]][nm[1]])
    assert sorted(shades, key=lambda nm: shades[nm][0]) == flat
    assert shades[flat[0]][0] == 0 and shades[flat[-1]][0] == 1
    best = [
        (float(x) - 1, float(y) - 1)
        for x, y in re.findall(r'class="best" x="([\d.]+)" y="([\d.]+)"', drawing)
    ]
    assert best == [pytest.approx(shades[(1, 0)][1:]), pytest.approx(shades[(0, 1)][1:])]
    assert "(0.20 to 0.60 s)" in drawing


def test_a_matrix_of_the_wrong_shape_is_not_drawn():
    assert clip_figures.matrix([[0.1, 0.2]], ["one"], [], 25) == ""
    assert clip_figures.matrix([], [], [], 25) == ""


def test_bars_of_the_timeline_lie_at_their_times():
    segments = [[5, 12], [12, 20], [30, 50]]
    drawing = clip_figures.timeline(100, 25.0, segments, [(10.0, 25.0, "REGEN"), (60.0, 61.0, "ICH")])
    bars = re.findall(
        r'<rect x="([\d.]+)" y="4" width="([\d.]+)".*?segment (\d): ([\d.]+) to ([\d.]+) s', drawing
    )
    ticks = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="middle">([\d.]+) s</text>', drawing)
    (x0, t0), (x1, t1) = [(float(x), float(t)) for x, t in (ticks[0], ticks[-1])]
    for (x, width, n, start, end), (first, last) in zip(bars, segments, strict=True):
        assert (float(start), float(end)) == (first / 25, last / 25)
        seconds = t0 + (float(x) - x0) / (x1 - x0) * (t1 - t0)
        assert seconds == pytest.approx(first / 25, abs=0.01), n
        assert float(width) / (x1 - x0) * (t1 - t0) == pytest.approx((last - first) / 25, abs=0.02)
    assert ">REGEN</text>" in drawing
    assert "ICH: 2.40 to 2.44 s" in drawing and ">ICH</text>" not in drawing, "too narrow for its gloss"


@given(
    st.integers(20, 3000),
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), max_size=150),
)
@settings(max_examples=60, deadline=None)
def test_pictures_stand_over_their_segments_and_not_on_each_other(frames, steps):
    segments, at = [], 0
    for gap, length in steps:
        if at + gap + length <= frames:
            segments.append([at + gap, at + gap + length])
            at += gap + length
    strip = clip_figures.film_strip(frames, segments, {n: f"jpeg{n}" for n in range(len(segments))})
    bars = re.findall(
        r'<rect x="([\d.]+)" y="4" width="([\d.]+)"', clip_figures.timeline(frames, 25.0, segments)
    )
    found = re.findall(
        r'alt="segment (\d+)" src="[^"]*base64,jpeg(\d+)" style="left:(-?[\d.]+)%;width:([\d.]+)%', strip
    )
    assert bool(found) == bool(segments)
    right = 0.0
    for number_, jpeg, left, width in found:
        assert int(number_) == int(jpeg) + 1
        x, w = (float(value) for value in bars[int(jpeg)])
        start, wide = 9.6 * float(left), 9.6 * float(width)
        assert start + wide / 2 == pytest.approx(x + w / 2, abs=1.1), "centred over its bar"
        assert wide <= max(w, clip_figures.PICTURE_MIN) + 0.1 and start >= right - 0.1
        right = start + wide


def test_a_long_name_leaves_room_for_the_figure():
    name = "donaudampfschifffahrtsgesellschaft" * 9
    for token in (name, "字" * 200):
        drawing = clip_figures.matrix([[0.1, 0.2]], [token, "regen"], [[0, 5]], 25)
        assert float(re.findall(r'viewBox="0 0 (\d+)', drawing)[0]) < 300
        assert f"<title>{token}</title>" in drawing and f"{token[:9]}" in drawing and "…" in drawing
        clip = {"rows": [{"gloss": token, "presence": 0.9, "there": True, "values": [0.5, 0.5]}],
                "times": [0, 10], "frames": 20, "fps": 25, "threshold": 0.5}  # fmt: skip
        cell = re.findall(
            r'class="cell token" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', localisation_map(clip)
        )
        assert len(cell) == 2 and all(float(x) < 600 and float(w) > 10 for x, w in cell)


def test_texts_that_differ_in_their_normal_form_alone_are_equal():
    assert differences("你好，再见！", "你好,再见!", spaced=False) == ("你好，再见！", "你好,再见!")
    assert similarity("u\u0308ber １２", "über 12") == 1
    assert differences("今天。", "明天。", spaced=False)[0] == '<mark class="lost">今</mark>天。'


words = st.lists(st.sampled_from(["am", "tag", "regen", "<b>", "&", "wind"]), max_size=8)


@given(words, words)
@settings(max_examples=200, deadline=None)
def test_differences_keep_every_word_and_mark_the_same_rest(a, b):
    left, right = differences(" ".join(a), " ".join(b))
    plain = [re.sub(r"</?mark[^>]*>", "", side) for side in (left, right)]
    unescape = [
        side.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&").split() for side in plain
    ]
    assert unescape == [a, b]
    rest = [re.sub(r"<mark[^>]*>.*?</mark>", "", side).split() for side in (left, right)]
    assert rest[0] == rest[1], "what is not marked is the same on both sides"
    assert ("<mark" not in left + right) == (a == b)


def test_languages_without_spaces_differ_by_character():
    left, right = differences("今天下雨", "今天下雪", spaced=False)
    assert left == '今天下<mark class="lost">雨</mark>' and right == '今天下<mark class="added">雪</mark>'
    assert similarity("今天下雪", "今天下雨", spaced=False) == 0.75


@pytest.mark.parametrize(
    ("seconds", "long", "short"),
    [
        (4.6, "5 s", "5 s"),
        (65, "1 min 05 s", "1.1 min"),
        (591, "9 min 51 s", "9.8 min"),
        (7620, "2 h 07 min", "2.1 h"),
    ],
)
def test_durations(seconds, long, short):
    assert (duration(seconds), brief(seconds)) == (long, short)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.03, "0.03"),
        (12.5, "12.5"),
        (3400, "3,400"),
        (16384, "16.38k"),
        (2.5e6, "2.5M"),
        (1e-5, "1e-5"),
    ],
)
def test_short_numbers(value, text):
    assert figures.short(value) == text


@pytest.mark.parametrize("low", [14.2857, 1e5, -3.0, 1e-4])
@pytest.mark.parametrize("width", [1e-5, 1e-3, 1.0])
def test_no_two_ticks_of_an_axis_read_alike(low, width):
    values = figures.ticks(low, low + abs(low) * width)
    labels = figures.tick_labels(values)
    assert len(set(labels)) == len(values)
    for value, label in zip(values, labels, strict=True):
        read = float(label.replace(",", "").replace("k", "e3").replace("M", "e6"))
        assert abs(read - value) <= (values[1] - values[0]) / 2


def test_a_single_point_has_its_place_between_the_first_step_and_the_last():
    chart = figures.line_chart("R@1", [figures.Line("video to text", [(92, 31.2)], marks=True)])
    (x,) = (float(x) for x in re.findall(r'<circle cx="([\d.]+)"', chart))
    assert x > 300  # of 360: at the end of an axis that begins at zero
