"""Rows of manifests, tables and label files that are no clips: each is named by its line, and the others are read."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from factories.corpora import put
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_scale.config import Corpus
from sage_scale.corpora.adapters import Table
from sage_scale.corpora.manifest import Clip, Manifest, from_json_lines, to_json_lines
from sage_scale.corpora.registry import read_corpus
from sage_scale.errors import UsageError
from sage_scale.shards.remove import read_ids

GOOD = '{"id": "good", "video": "x.mp4", "sentence": "Guten Abend"}'


def read(root: Path, name: str = "manifest", **values) -> Manifest:
    return read_corpus(Corpus(name=name, root=str(root), **values))


def row(**values: object) -> str:
    return json.dumps({"id": "odd", "video": "x.mp4"} | values)


@pytest.mark.parametrize(
    "line",
    [
        '{"id": ["a"], "video": "x.mp4"}',
        '{"id": {"a": 1}, "video": "x.mp4"}',
        '{"id": null, "video": "x.mp4"}',
        '{"id": "", "video": "x.mp4"}',
        '{"id": true, "video": "x.mp4"}',
        '{"id": "a"}',
        row(video=""),
        row(video=" "),
        '{"id": "", "video": "x.mp4"}',
        '{"id": " \\t", "video": "x.mp4"}',
        '{"id": "\\u3000", "video": "x.mp4"}',
        row(video=["x.mp4"]),
        row(sentence=None),
        row(sentence=3.5),
        row(split=["dev"]),
        row(language="german"),
        row(language=5),
        '{"id": "odd", "video": "x.mp4", "frames": ' + "9" * 401 + "}",
        '{"id": "odd", "video": "x.mp4", "frames": ' + "9" * 5001 + "}",
        '{"id": ' + "-" + "9" * 5001 + ', "video": "x.mp4"}',
        '{"id": "odd", "video": "x.mp4", "end_s": ' + "9" * 5001 + "}",
        '{"id": "odd", "video": "x.mp4", "more": ' + "[" * 200_000,
        '{"id": "odd", "video": "x.mp4", "more": ' + "[" * 200_000 + "]" * 200_000 + "}",
        '{"more": ' * 50_000,
        '{"id": "\\ud83d", "video": "x.mp4"}',
        '{"id": "odd", "video": "x.mp4", "sentence": "Am \\uDE00 Montag"}',
        '{"id": "odd", "video": "x.mp4", "split": "\\ud800"}',
        '{"id": "odd", "video": "x\\u0000.mp4"}',
        row(end_s=float("nan")),
        row(end_s=float("inf")),
        '{"id": "odd", "video": "x.mp4", "start_s": 1e400}',
        row(end_s=1.7976931348623157e308),
        row(start_s=-1.797e308, end_s=1),
        row(start_s=1e300),
        row(start_s=1e7),
        row(start_s="1"),
        row(start_s=False),
        row(start_s=-0.001),
        row(frames=-1),
        row(frames=True),
        row(frames=10**12),
        row(frames=2.0),
        "[1]",
        '"text"',
        "{",
        "\x00",
    ],
    ids=lambda line: line[:60].encode("unicode_escape").decode(),
)
def test_a_row_that_is_no_clip_is_named_by_its_line(tmp_path, line) -> None:
    put(tmp_path / "manifest.jsonl", f"{GOOD}\n\n{line}\n" + GOOD.replace("good", "last"))
    begun = time.process_time()
    manifest = read(tmp_path)
    assert [clip.id for clip in manifest.clips] == ["good", "last"] and manifest.digest()
    ((name, reason, detail),) = [(one.id, one.reason, one.detail) for one in manifest.rejected]
    assert reason == "bad-row" and "line 3" in (name, detail.partition(":")[0]) and len(detail) < 150
    assert time.process_time() - begun < 2


@pytest.mark.parametrize("times", [(2, 1), (1, 1), (0, 0), (9e6, 8e6)])
def test_intervals_without_length(tmp_path, times) -> None:
    put(tmp_path / "manifest.jsonl", f"{GOOD}\n{row(start_s=times[0], end_s=times[1])}\n")
    assert [(one.id, one.reason) for one in read(tmp_path).rejected] == [("odd", "bad-interval")]


def test_lines_end_at_a_line_feed_alone(tmp_path) -> None:
    odd = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
    clips = [
        Clip(id=f"a{mark}b", video="x.mp4", sentence=f"Am{mark}Montag", split=f"s{mark}") for mark in odd
    ]
    assert from_json_lines(to_json_lines(clips)) == Manifest(tuple(clips))
    raw = "\r\n".join(json.dumps({"id": f"i{mark}", "video": "x.mp4"}, ensure_ascii=False) for mark in odd)
    assert [clip.id for clip in from_json_lines(raw).clips] == [f"i{mark}" for mark in odd]
    for number in range(len(odd)):
        put(tmp_path / f"v{number}.mp4", "")
    table = "".join(f"v{number}.mp4\tAm{mark}Montag\r\n" for number, mark in enumerate(odd))
    put(tmp_path / "t.tsv", table)
    assert [clip.sentence for clip in read(tmp_path, "videos").clips] == [f"Am{mark}Montag" for mark in odd]
    assert read_ids(f"a{odd}b\r\nc\n\n", "ids.txt") == [f"a{odd}b", "c"]


def test_languages_of_rows_are_tags(tmp_path) -> None:
    written = {
        "zh_CN": "zh-CN",
        "pt-br": "pt-BR",
        "por": "pt",
        "cmn-Hans": "zh-Hans",
        "": "de-AT",
        "xx": "xx",
    }
    lines = [row(id=str(n), language=tag) for n, tag in enumerate(written)]
    put(tmp_path / "manifest.jsonl", "\n".join(lines))
    assert [clip.language for clip in read(tmp_path, language="de_at").clips] == list(written.values())
    put(tmp_path / "x.mp4", ""), put(tmp_path / "y.mp4", "")
    put(
        tmp_path / "t.tsv",
        "video\tsentence\tlanguage\nx.mp4\tOi\tpt_BR\ny.mp4\tHi\tenglish\nx.mp4\tO\0i\tpt\n",
    )
    manifest = read(tmp_path, "videos")
    assert [clip.language for clip in manifest.clips] == ["pt-BR", "de"]
    assert [(one.id, one.reason) for one in manifest.rejected] == [
        ("t.tsv line 3", "bad-row"),
        ("t.tsv line 4", "bad-row"),
    ]


def test_label_files_with_odd_entries(tmp_path) -> None:
    name = "News_20200101_0-250_1"
    for video in (f"{name}.mp4", "b" + "_" * 200 + ".mp4", "N_1-2_3.mp4", f"c_{'9' * 30}-{'9' * 40}_1.mp4"):
        put(tmp_path / "rgb" / video, "")
    entries = [
        f'{{"video": "{name}.mp4", "text": "今天", "n": NaN, "m": {"9" * 5001}, "k": 1e999}}',
        '{"video": "b' + "_" * 200 + '.mp4", "text": "好"}',
        '{"video": "N_1-2_3.mp4", "text": "好\\ud83d"}',
        '{"video": ["a"], "text": "好"}', '{"video": 5, "text": "好"}',
        f'{{"video": {"9" * 5001}, "text": "好"}}', "[[]]",
        f'{{"video": "c_{"9" * 30}-{"9" * 40}_1.mp4", "text": "好"}}',
    ]  # fmt: skip
    put(tmp_path / "CSL_News_Labels.json", f"[{','.join(entries)}]")
    manifest = read(tmp_path, "csl_news", language="zh")
    assert [(clip.id[:1], clip.frames) for clip in manifest.clips] == [("N", 250), ("b", 0), ("c", 0)]
    assert [one.reason for one in manifest.rejected] == ["bad-row"] * 5
    for text in ("[" * 200_000, "[1", '{"a": 1}'):
        put(tmp_path / "CSL_News_Labels.json", text)
        with pytest.raises(UsageError, match=r"download it again|expected a list"):
            read(tmp_path, "csl_news")


def test_published_tables_with_odd_rows(tmp_path) -> None:
    daily = tmp_path / "daily"
    for name in ("S000001_P0001_T00", "S000002_P0001_T00"):
        (daily / "sentence" / "frames_512x512" / name).mkdir(parents=True)
    lengths = ["²", "9" * 5001, "30", "30"]
    names = ["S000001_P0001_T00", "S000002_P0001_T00", f"S{'1' * 300}_P0001_T00", "S000003_P0001_T\0"]
    rows = [
        f"{n}|{name}|{length}|x|你 好|x|x"
        for n, (name, length) in enumerate(zip(names, lengths, strict=True))
    ]
    put(
        daily / "sentence_label" / "video_map.txt",
        "\n".join(["index|name|length|gloss|char|word|postag", *rows]),
    )
    put(
        daily / "sentence_label" / "split_1.txt",
        "\n".join(["name|split", *(f"{name}|train" for name in names[:3])]),
    )
    manifest = read(daily, "csl_daily", language="zh")
    assert [clip.frames for clip in manifest.clips] == [0, 0]
    assert [one.reason for one in manifest.rejected] == ["bad-row", "missing"]
    weather = tmp_path / "weather"
    (weather / "features" / "fullFrame-210x260px" / "train" / "a").mkdir(parents=True)
    head = "name|video|start|end|speaker|orth|translation\n"
    tail = "|v|-1|-1|S|G|satz\n"
    long = f"a|v|-1|-1|S|G|{'wort ' * 40_000}\n"  # beyond the csv module's limit of a field
    table = weather / "annotations" / "manual" / "PHOENIX-2014-T.train.corpus.csv"
    put(table, f"{head}{long}{'n' * 300}{tail}b\0{tail}a\u2028{tail}")
    manifest = read(weather, "phoenix14t")
    assert [clip.id for clip in manifest.clips] == ["train/a"]
    assert [one.reason for one in manifest.rejected] == [
        "missing",
        "repeated-id",
        "bad-row",
    ]
    assert [number for _, number in manifest.notes] == [1, 1]  # two splits without a table


@pytest.mark.parametrize("present", ["train", "val", "test"])
def test_how2sign_with_one_split_alone_has_nothing_set_aside(tmp_path, present) -> None:
    put(tmp_path / "v-1-rgb_front.mp4", "")
    head = "VIDEO_ID\tVIDEO_NAME\tSENTENCE_ID\tSENTENCE_NAME\tSTART_REALIGNED\tEND_REALIGNED\tSENTENCE\n"
    put(tmp_path / f"how2sign_realigned_{present}.csv", f"{head}v\tv-1-rgb_front\tx\tv_0\t1\t2\tHello.\n")
    manifest = read(tmp_path, "how2sign", language="en")
    assert len(manifest.clips) == 1 and not manifest.rejected and len(manifest.notes) == 2


def test_a_table_whose_column_names_lack_the_video(tmp_path) -> None:
    put(tmp_path / "x.mp4", ""), put(tmp_path / "t.tsv", "start\tend\tsentence\n1\t2\tSatz\n")
    manifest = read(tmp_path, "videos")
    assert [(one.id, one.reason) for one in manifest.rejected] == [("t.tsv line 1", "bad-row")]
    assert [clip.split for clip in manifest.clips] == ["unlabelled"]


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
)
KEYS = st.sampled_from(
    ["id", "video", "start_s", "end_s", "sentence", "language", "signer", "split", "frames", "x"]
)
ROWS = st.dictionaries(KEYS, VALUES, max_size=10).map(json.dumps)
LINES = st.lists(ROWS | st.just(GOOD) | st.text(max_size=20), max_size=6).map("\n".join)


@settings(max_examples=100, deadline=None)
@given(LINES.map(lambda text: text.encode(errors="surrogatepass")) | st.binary(max_size=60))
def test_any_bytes_of_a_manifest_give_clips_or_named_rows(tmp_path_factory, data) -> None:
    path = tmp_path_factory.mktemp("any") / "manifest.jsonl"
    path.write_bytes(data)
    try:
        manifest = read(path)
    except UsageError as error:
        assert "\n" not in str(error)
        return
    assert manifest.digest() and len({clip.id for clip in manifest.clips}) == len(manifest.clips)
    for clip in manifest.clips:
        assert 0 <= clip.start_s < 1e7 and (clip.end_s is None or clip.start_s < clip.end_s < 1e7)
        assert json.loads(json.dumps(vars(clip)).encode()) and len(clip.key) == 16
    given_ = [
        line for line in data.decode("utf-8-sig", "replace").replace("\r", "\n").split("\n") if line.strip()
    ]
    assert len(manifest.clips) + len(manifest.rejected) <= max(1, len(given_))


TABLE = st.lists(
    st.lists(
        st.sampled_from(["v", "1", "2.5", "\0", '"', "x.mp4", "\u2028", "sentence", "nan"]), max_size=5
    ).map("\t".join)
)


@settings(max_examples=60, deadline=None)
@given(TABLE.map(lambda rows: "\n".join(rows).encode()) | st.binary(max_size=60))
def test_any_bytes_of_a_table_give_rows_or_one_line(tmp_path_factory, data) -> None:
    root = tmp_path_factory.mktemp("any")
    for name in ("t.tsv", "openasl-v1.0.tsv", "how2sign_realigned_train.csv", "youtube-sl-25-metadata.csv"):
        (root / name).write_bytes(data)
    put(root / "x.mp4", "")
    head = b"vid\tyid\tstart\tend\traw-text\tsplit\n"
    (
        (root / "head").mkdir(),
        (root / "head" / "openasl-v1.0.tsv").write_bytes(head + data),
        put(root / "head" / "v.mp4", ""),
    )
    for corpus, place in (
        ("videos", root),
        ("openasl", root),
        ("openasl", root / "head"),
        ("how2sign", root),
        ("youtube_sl25", root),
    ):
        try:
            assert read(place, corpus).digest()
        except UsageError as error:
            assert "\n" not in str(error)
    table = Table(root / "head" / "openasl-v1.0.tsv", "\t", ("vid",))
    try:
        for number, fields in table.rows():
            assert number > 1 and len(fields) == 6 and not any("\0" in field for field in fields.values())
    except UsageError as error:
        assert "not UTF-8" in str(error)
