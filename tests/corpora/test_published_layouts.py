"""Each corpus in its published layout, down to the frames that a clip shows, and what is set aside, by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from factories.corpora import (
    CSL_DAILY_ROWS,
    FPS,
    HOW2SIGN_HEADER,
    OPENASL_HEADER,
    csl_daily,
    csl_news,
    how2sign,
    openasl,
    put,
)
from factories.videos import numbers

from sage_scale.config import Corpus, Vision
from sage_scale.corpora.adapters import hash_split
from sage_scale.corpora.manifest import Clip, Manifest
from sage_scale.corpora.registry import ADAPTERS, read_corpus
from sage_scale.errors import UsageError
from sage_scale.vision.decode import decode_clip


def read(name: str, root: Path, **values) -> Manifest:
    return read_corpus(Corpus(name=name, root=str(root), **{"language": "en"} | values))


def shown(clip: Clip) -> list[int]:
    """The source frames that the decoded clip shows, at the source's own rate."""
    return numbers(
        decode_clip(clip, Vision(size=32, crop=32, fps=FPS, frame_stride=1, source_fps=FPS)).frames
    )


def reasons(manifest: Manifest) -> dict[str, str]:
    return {row.id: row.reason for row in manifest.rejected}


def test_csl_daily(tmp_path) -> None:
    manifest = read("csl_daily", csl_daily(tmp_path), language="zh")
    found = [(clip.id, clip.split, clip.signer, clip.frames, clip.language) for clip in manifest.clips]
    assert found == [(row[0], row[3], row[0][8:13], row[4], "zh") for row in CSL_DAILY_ROWS]
    assert [clip.sentence for clip in manifest.clips] == [
        "他是谁？",
        "今天天气不错。",
        "你的手机是5G吗？",
        "再见",
    ]
    assert not manifest.rejected
    for clip in manifest.clips:
        assert shown(clip) == list(range(clip.frames))


def test_csl_daily_in_the_folder_of_the_archive_and_as_videos(tmp_path) -> None:
    one = read("csl_daily", csl_daily(tmp_path / "a", "sentence_frames-512x512/frames_512x512"))
    two = read("csl_daily", csl_daily(tmp_path / "b"))
    assert one.digest() == two.digest() and len(one.clips) == 4
    root = csl_daily(tmp_path / "c")
    (root / "sentence" / "frames_512x512" / CSL_DAILY_ROWS[0][0]).rename(tmp_path / "away")
    put(root / "sentence-crop" / f"{CSL_DAILY_ROWS[0][0]}.mp4")
    assert read("csl_daily", root).clips[0].video.endswith("T00.mp4")


def test_csl_daily_rows_that_cannot_be_used(tmp_path) -> None:
    root = csl_daily(tmp_path)
    labels = root / "sentence_label" / "video_map.txt"
    first = CSL_DAILY_ROWS[0][0]
    rows = labels.read_text()
    rows += (
        f"4|{first}|20|x|重 复|x|x\n5|../etc|3|x|路 径|x|x\n6|S000300_P0001_T00|x|x|没 有 帧|x|x\nshort|row\n"
    )
    rows += "7|S000301_P0001_T00|5|x||x|x\n8|S000302_P0001_T00|5|x|没 有|x|x\n"
    labels.write_text("\ufeff" + rows.replace("\n", "\r\n"))
    splits = root / "sentence_label" / "split_1.txt"
    more = "S000300_P0001_T00|train\nS000301_P0001_T00|train\nS000399_P0001_T00|test\n"
    splits.write_text(splits.read_text() + more)
    manifest = read("csl_daily", root)
    assert len(manifest.clips) == 4
    assert reasons(manifest) == {
        "video_map.txt line 9": "bad-row",
        first: "repeated-id",
        "../etc": "bad-row",
        "S000300_P0001_T00": "missing",
        "S000301_P0001_T00": "no-sentence",
        "S000302_P0001_T00": "no-split",
        "S000399_P0001_T00": "no-label",
    }


@pytest.mark.parametrize("view", ["front", "side"])
def test_how2sign_full_videos(tmp_path, view) -> None:
    manifest = read("how2sign", how2sign(tmp_path, view=view), view=view)
    assert [(clip.id, clip.split, clip.signer) for clip in manifest.clips] == [
        ("-d5dN54tH2E_0-1-rgb_front", "train", "1"),
        ("-d5dN54tH2E_1-1-rgb_front", "train", "1"),
        ("_fZbAxSSbX4_0-5-rgb_front", "train", "5"),
        ("0aZbAxSSbX4_0-3-rgb_front", "dev", "3"),
        ("g1xxxxxxxx4_0-8-rgb_front", "test", "8"),
    ]
    assert manifest.clips[1].sentence == '"Hold it," he says.'
    assert all(Path(clip.video).name.endswith(f"-rgb_{view}.mp4") for clip in manifest.clips)
    assert shown(manifest.clips[1]) == list(range(20, 32))  # 4.0 to 6.4 s at 5 frames a second
    assert not manifest.rejected


def test_how2sign_clips_are_taken_whole_and_before_full_videos(tmp_path) -> None:
    both = how2sign(how2sign(tmp_path), clips=True)
    # Keypoints of a clip carry its name too.
    put(
        tmp_path
        / "sentence_level/train/rgb_front/features/openpose_output/video/-d5dN54tH2E_0-1-rgb_front.mp4",
        b"",
    )
    manifest = read("how2sign", both)
    assert not any("features" in clip.video for clip in manifest.clips)
    assert all("/sentence_level/" in clip.video and clip.end_s is None for clip in manifest.clips)
    assert shown(manifest.clips[0]) == list(range(50))
    assert len({clip.video for clip in manifest.clips}) == 5


def test_how2sign_rows_that_cannot_be_used(tmp_path) -> None:
    root = how2sign(tmp_path)
    table = next(root.rglob("how2sign_realigned_val.csv"))
    name = "0aZbAxSSbX4-3-rgb_front"
    rows = [
        f"v\t{name}\tx\tsame\t1\t2\tOnce.",
        f"v\t{name}\tx\tsame\t3\t4\tTwice.",
        f"v\t{name}\tx\tback\t5\t4\tBackwards.",
        f"v\t{name}\tx\tnan\tnan\t4\tNo number.",
        f"v\t{name}\tx\tless\t-1.5\t4\tBefore the start.",
        f"v\t{name}\tx\tempty\t1\t2\t ",
        "v\tgone-3-rgb_front\tx\tgone\t1\t2\tNo video.",
        f'v\t{name}\tx\tquote\t1\t2\t"An open quote',
        f'v\t{name}\tx\tquoted\t1\t2\t"He said ""hi""."',
        "too\tshort",
    ]
    table.write_bytes(("\ufeff" + HOW2SIGN_HEADER + "\n".join(rows)).replace("\n", "\r\n").encode())
    next(root.rglob("how2sign_realigned_test.csv")).unlink()
    manifest = read("how2sign", root)
    assert {clip.id: clip.sentence for clip in manifest.clips if clip.split == "dev"} == {
        "same": "Once.",
        "quote": '"An open quote',
        "quoted": 'He said "hi".',
    }
    assert reasons(manifest) == {
        "same": "repeated-id",
        "back": "bad-interval",
        "nan": "bad-row",
        "less": "bad-row",
        "empty": "no-sentence",
        "gone": "missing",
        "how2sign_realigned_val.csv line 11": "bad-row",
    }
    assert manifest.notes == (("split without its table how2sign_realigned_test.csv", 1),)


def test_how2sign_without_realigned_tables(tmp_path) -> None:
    root = how2sign(tmp_path)
    for table in list(root.rglob("how2sign_realigned_*.csv")):
        text = table.read_text().replace("_REALIGNED", "")
        put(table.parent.parent / table.name.replace("_realigned", ""), text)
        table.unlink()
    assert len(read("how2sign", root).clips) == 5


def test_openasl(tmp_path) -> None:
    manifest = read("openasl", openasl(tmp_path))
    assert [(clip.split, clip.sentence, clip.end_s) for clip in manifest.clips] == [
        ("train", "Hello there.", 3.4),
        ("dev", "Again.", 6.0),
        ("test", "A clip.", None),
    ]
    assert shown(manifest.clips[0]) == list(range(5, 17))  # 1.0 to 3.4 s
    assert [(row.id, row.reason, row.detail, row.expected) for row in manifest.rejected] == [
        ("ccccccccccc", "not-downloaded", "2 sentences", True)
    ]


def test_openasl_rows_that_cannot_be_used(tmp_path) -> None:
    root = openasl(tmp_path)
    rows = [
        ("one", "aaaaaaaaaaa", "00:00:01,500", "62.5", "Decimal comma and seconds.", "train"),
        ("one", "aaaaaaaaaaa", "1", "2", "Again.", "train"),
        ("two", "aaaaaaaaaaa", "-1", "2", "Negative.", "train"),
        ("three", "aaaaaaaaaaa", "2", "2", "Nothing.", "train"),
        ("four", "aaaaaaaaaaa", "1", "2", "", "train"),
        ("five", "aaaaaaaaaaa", "1", "2", "No split.", "nan"),
    ]
    lines = "".join("\t".join((*row[:5], "", "", row[5])) + "\n" for row in rows)
    put(root / "data" / "openasl-v1.0.tsv", OPENASL_HEADER + lines)
    manifest = read("openasl", root)
    assert [(clip.start_s, clip.end_s) for clip in manifest.clips] == [(1.5, 62.5)]
    assert [row.reason for row in manifest.rejected] == [
        "repeated-id", "bad-row", "bad-interval", "no-sentence", "no-split",
    ]  # fmt: skip


def test_csl_news(tmp_path) -> None:
    manifest = read("csl_news", csl_news(tmp_path), language="zh")
    assert [(clip.sentence, clip.frames) for clip in manifest.clips] == [
        ("共同关注。", 50),
        ("观众朋友，晚上好。", 50),
        ("天气预报。", 50),
    ]
    assert len({clip.split for clip in manifest.clips[:2]}) == 1  # one broadcast, one split
    assert all(shown(clip) == list(range(50)) for clip in manifest.clips[1:])  # the last one in its archive
    assert [(row.id, row.reason, row.detail) for row in manifest.rejected] == [
        ("20200102_Dragon-TV__50-100_3", "missing", "no 20200102_Dragon-TV__50-100_3.mp4")
    ]


def test_an_archive_of_csl_news_that_was_cut_off_is_named(tmp_path) -> None:
    root = csl_news(tmp_path)
    whole = (root / "archive_002.zip").read_bytes()
    (root / "archive_003.zip").write_bytes(whole[: len(whole) // 2])
    manifest = read("csl_news", root)
    assert len(manifest.clips) == 3
    assert [(row.id, row.reason) for row in manifest.rejected] == [
        ("20200102_Dragon-TV__50-100_3", "missing"),
        ("archive_003.zip", "unfinished-download"),
    ]


def test_csl_news_labels_that_cannot_be_used(tmp_path) -> None:
    root = csl_news(tmp_path)
    labels = root / "data" / "train" / "CSL_News_Labels.json"
    name = "Common-Concerns_20201113_0-50_14330.mp4"
    entries = (
        f'[{{"video": "{name}", "text": "好"}}, {{"video": "{name}", "text": "好"}}, {{"text": "x"}}, 3, '
    )
    entries += '{"video": "Common-Concerns_20201113_50-100_14331.mp4", "text": " "}]'
    labels.write_text(entries)
    assert [row.reason for row in read("csl_news", root).rejected] == [
        "repeated-id", "bad-row", "bad-row", "no-sentence",
    ]  # fmt: skip
    for content, words in ((b"[{", "whole JSON"), (b"\xff\xfa", "not UTF-8"), (b"{}", "expected a list")):
        labels.write_bytes(content)
        with pytest.raises(UsageError, match=words):
            read("csl_news", root)


def test_splits_follow_the_shares_and_never_move() -> None:
    names = [f"video {number}" for number in range(20_000)]
    splits = [hash_split(name, 0.05, 0.1) for name in names]
    assert splits.count("dev") / 20_000 == pytest.approx(0.05, abs=0.006)
    assert splits.count("test") / 20_000 == pytest.approx(0.1, abs=0.008)
    # A larger share takes from train alone, and none at all leaves everything there.
    more = [hash_split(name, 0.2, 0.1) for name in names]
    assert all(after == before for before, after in zip(splits, more, strict=True) if before != "train")
    assert {hash_split(name, 0, 0) for name in names} == {"train"}


LAYOUTS = {name for name in ADAPTERS if name not in ("synthetic", "acted", "manifest", "videos")}


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_wrong_root_is_one_line_that_says_what_was_looked_for(tmp_path, name) -> None:
    (tmp_path / "empty").mkdir()
    put(tmp_path / "other" / "notes.md", "text")
    for root, words in (
        ("", "--root"),
        (str(tmp_path / "absent"), "there is no"),
        (str(tmp_path / "empty"), "is empty"),
        (str(tmp_path / "other"), str(tmp_path / "other")),
    ):
        with pytest.raises(UsageError) as caught:
            read_corpus(Corpus(name=name, root=root))
        message = str(caught.value)
        assert words in message and "expected: " in message and "\n" not in message
        assert message.startswith(f"corpus {name}: ")


def test_tables_of_another_kind_and_videos_still_packed(tmp_path) -> None:
    root = how2sign(tmp_path / "how2sign")
    put(next(root.rglob("how2sign_realigned_train.csv")), "VIDEO_NAME,SENTENCE\nx,y\n")
    with pytest.raises(UsageError, match=r"no column VIDEO_NAME.*separated by tabs"):
        read("how2sign", root)
    put(tmp_path / "packed" / "openasl-v1.0.tsv", OPENASL_HEADER)
    put(tmp_path / "packed" / "videos.tar", b"")
    with pytest.raises(UsageError, match=r"no video below.*unpack videos\.tar"):
        read("openasl", tmp_path / "packed")


def test_links_to_folders_are_followed_and_loops_end(tmp_path) -> None:
    root = openasl(tmp_path / "real")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "table").symlink_to(root / "data")
    (linked / "videos").symlink_to(root / "raw-video")
    (root / "raw-video" / "loop").symlink_to(linked)
    assert len(read("openasl", linked).clips) == 2
    assert np.unique([clip.video for clip in read("openasl", linked).clips]).size == 1
