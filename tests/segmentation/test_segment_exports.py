"""Exports of segments: WebVTT that our caption reader reads, JSON and tables that are read back, a figure."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from factories.videos import write_video
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sage_scale.corpora.captions import parse_captions
from sage_scale.errors import ClipRejected, UsageError
from sage_scale.segmentation import exports
from sage_scale.segmentation.exports import SegmentedVideo, check_formats, exported, vtt_text
from sage_scale.segmentation.intervals import (
    Interval,
    SignIntervals,
    interval_json,
    intervals_of_segments,
    read_table,
    read_video_file,
)
from sage_scale.segmentation.rules import segments_to_labels
from sage_scale.segmentation.segment_figure import MARGIN, WIDTH, excerpt, segment_figure, segment_pictures

SIGNS = (Interval(0.2, 0.6, "HAUS"), Interval(0.6, 1.0, ""), Interval(1.4, 2.0, "<b> & -->"))
times = st.lists(
    st.tuples(st.integers(0, 9000), st.integers(1, 900), st.sampled_from(["", "ä", 'a "b"'])), max_size=8
)


def as_intervals(rows) -> tuple[Interval, ...]:
    return tuple(sorted(Interval(a / 1000, (a + b) / 1000, text) for a, b, text in rows))


def test_vtt_is_read_as_the_same_cues():
    cues, broken = parse_captions(vtt_text(SIGNS))
    assert broken == []
    assert [(cue.start_s, cue.end_s) for cue in cues] == [sign[:2] for sign in SIGNS]
    assert [cue.text for cue in cues] == ["HAUS", "2", "<b> & -->"]
    assert "\n100:00:00.000 --> " in vtt_text([Interval(360_000, 360_001)])


@given(times, times)
@settings(max_examples=40, deadline=None)
def test_json_csv_and_jsonl_hold_the_same_intervals(tmp_path_factory, signs, sentences):
    folder = tmp_path_factory.mktemp("tables")
    written = SignIntervals(signs=as_intervals(signs), sentences=as_intervals(sentences))
    (folder / "a.json").write_bytes(interval_json(written, video="a.mp4", fps=25.0))
    assert read_video_file(folder / "a.json") == written
    document = json.loads((folder / "a.json").read_text())
    (folder / "b.jsonl").write_text(json.dumps({"id": "a", **document}) + "\n\n")
    assert read_table(folder / "b.jsonl") == {"a": written}
    rows = io.StringIO()
    table = csv.writer(rows)
    table.writerow(["text", "id", "tier", "start_s", "end_s"])
    for tier, found in (("Signs", written.signs), ("sentence", written.sentences)):
        table.writerows([text, "a", tier, start, end] for start, end, text in found)
    for encoding in ("utf-8", "utf-16"):
        (folder / "c.csv").write_bytes(rows.getvalue().encode(encoding))
        assert read_table(folder / "c.csv") == ({"a": written} if signs or sentences else {})


def test_other_forms_of_a_document(tmp_path):
    """The synthetic corpus's gold (frames), and milliseconds with glosses."""
    for text in (
        '{"fps": 25, "signs": [{"gloss": "HAUS", "start": 5, "end": 15}]}',
        '{"signs": [{"gloss": "HAUS", "start_ms": 200, "end_ms": 600}]}',
        '{"signs": [{"text": "HAUS", "start": 10, "end": 30, "fps": 50}]}',
    ):
        (tmp_path / "a.json").write_text(text)
        assert read_video_file(tmp_path / "a.json").signs == SIGNS[:1]
    (tmp_path / "a.json").write_text('{"signs": [[0.2, 0.6], [0.6, 0.2], [-1, 4]]}')
    found = read_video_file(tmp_path / "a.json")
    assert found.signs == (Interval(0.2, 0.6),)
    assert found.left_out == ("signs[1]: from 0.6 s to 0.2 s", "signs[2]: from -1 s to 4 s")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "not a JSON object"),
        ("{}", "neither signs nor sentences"),
        ('{"signs": {}}', "signs is not a list"),
        ('{"signs": [3]}', "signs[0] is neither"),
        ('{"signs": [{"start": 1, "end": 2}]}', "signs[0]: its times are no numbers at a frame rate (fps)"),
        ('{"signs": [{"start_s": true, "end_s": 2}]}', "signs[0]: its times are no numbers"),
        ('{"signs": [{"end_s": 2}]}', "signs[0] has no start_s and end_s"),
        ('{"signs": [{"start_s": 1, "end_s": 2, "text": []}]}', "the text of signs[0] is no text"),
        ("[" * 999, "more than 64 nested levels"),
    ],
)
def test_documents_that_are_none_give_one_line(tmp_path, text, says):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ClipRejected, match=f"bad-labels: .*{re.escape(says)}"):
        read_video_file(tmp_path / "a.json")
    if "neither signs nor" not in says:
        return
    (tmp_path / "a.jsonl").write_text('{"id": "x", "signs": []}\n{"id": "x", "signs": []}\n')
    with pytest.raises(UsageError, match="line 2: the id is missing, not text, or there twice"):
        read_table(tmp_path / "a.jsonl")
    (tmp_path / "a.csv").write_text("id,start\nx,1\n")
    with pytest.raises(UsageError, match="columns id, start_s and end_s"):
        read_table(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("id,start_s,end_s\nx,1,2\nx,one,2\nx,5,nan\n")
    found = read_table(tmp_path / "b.csv")["x"]
    assert found.signs == (Interval(1.0, 2.0),) and len(found.left_out) == 2


@given(st.lists(st.integers(0, 400), max_size=12, unique=True), st.sampled_from([25.0, 30000 / 1001, 50.0]))
def test_labels_of_intervals_are_those_of_their_segments(edges, fps):
    edges = sorted(edges)[: len(edges) // 2 * 2]
    segments_N2 = np.array(edges, int).reshape(-1, 2)
    signs = tuple(
        Interval(round(a, 3), round(b, 3)) for a, b, _ in intervals_of_segments(segments_N2, fps, 100.0)
    )
    labels_T = SignIntervals(signs=signs).labels(100.0, 380, fps)
    assert labels_T.tolist() == segments_to_labels(segments_N2, 380).tolist()


def test_the_figure_shows_pictures_over_their_segments(tmp_path):
    """The SVG's pictures are centred over the bars of their segments."""
    video = write_video(tmp_path / "a.mp4", 60)
    pictures = segment_pictures(str(video), SIGNS, 0.0, 2.4, size=32)
    assert {n: picture.shape for n, picture in pictures.items()} == {
        0: (32, 32, 3),
        1: (32, 32, 3),
        2: (32, 32, 3),
    }
    levels = [pictures[n].mean() for n in range(3)]
    assert levels == sorted(levels) and levels[0] < levels[2] - 50  # the video grows lighter
    data = segment_figure(SIGNS, 2.4, pictures=pictures, gold=SIGNS[:2], title="a <b>", kind="svg",
                          probabilities_T3=np.full((60, 3), 1 / 3))  # fmt: skip
    tree = ET.fromstring(data)
    images = [i for i in tree.iter("{http://www.w3.org/2000/svg}image")]
    centres = [float(i.get("x", 0)) + float(i.get("width")) / 2 for i in images]
    span = 72 * (WIDTH - 2 * MARGIN) / 2.4
    wanted = [72 * MARGIN + span * (sign.start_s + sign.end_s) / 2 for sign in SIGNS]
    assert len(images) == 3 and np.allclose(centres, wanted, atol=3.0)


def test_exports_by_name(tmp_path):
    video = write_video(tmp_path / "a.mp4", 60)
    segmented = SegmentedVideo(
        intervals=SignIntervals(signs=SIGNS), duration_s=2.4, fps=25.0, video=str(video), about="motion"
    )
    files = dict(exported(check_formats("eaf, vtt,json,figure,eaf"), "a", segmented, tmp_path))
    assert sorted(files) == ["a.eaf", "a.json", "a.png", "a.vtt"]
    assert files == dict(
        exported(check_formats("eaf,vtt,json,figure"), "a", segmented, tmp_path)
    )  # same bytes
    assert Image.open(io.BytesIO(files["a.png"])).size[0] == 1800
    for name in ("a.eaf", "a.json"):
        (tmp_path / name).write_bytes(files[name])
        assert read_video_file(tmp_path / name).signs == SIGNS
    with pytest.raises(UsageError, match="--format doc: the formats are eaf, vtt, json, figure"):
        check_formats("eaf,doc")


def test_a_figure_of_a_part_of_a_video_says_so(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(exports, "segment_figure", lambda *_, title, **__: titles.append(title) or b"")
    for duration_s in (9.0, 900.0):
        signs = (Interval(20.0, 21.0),) if duration_s > 20 else ()
        video = SegmentedVideo(
            intervals=SignIntervals(signs=signs), duration_s=duration_s, fps=25.0, video="", title="talk"
        )
        list(exported(("figure",), "a", video, tmp_path))
    assert titles == ["talk", "talk (19.5 to 29.5 s)"]


def test_one_frame_has_visible_probabilities():
    p_T3 = np.array([[0.2, 0.3, 0.5]])
    empty, shown = (
        np.asarray(Image.open(io.BytesIO(segment_figure((), 0.04, probabilities_T3=p))).convert("RGB"))[
            :, 200:1500
        ]
        for p in (p_T3[:0], p_T3)
    )
    assert (empty != shown).any(axis=-1).sum() > 100


def test_a_figure_without_signs_pictures_or_probabilities():
    assert Image.open(io.BytesIO(segment_figure((), 1.0, gold=()))).size[0] == 1800
    assert excerpt((), 1.0, 3.0) == (1.0, 3.0)
    assert excerpt([Interval(95.0, 99.0)], 0.0, 100.0) == (90.0, 100.0)
    assert excerpt([Interval(20.0, 21.0)], 0.0, 100.0) == (19.5, 29.5)
    assert excerpt([Interval(50.2, 51.0)], 50.0, 100.0) == (50.0, 60.0)
