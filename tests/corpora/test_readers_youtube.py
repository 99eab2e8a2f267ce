"""YouTube-SL-25 and YouTube-ASL as downloaders leave them: which file is whose, which captions are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from factories.corpora import FPS, ROLLING_VTT, put, vtt, youtube_sl25
from factories.videos import numbers

from sage_scale.config import Captions, Corpus, Vision
from sage_scale.corpora.manifest import Manifest
from sage_scale.corpora.registry import read_corpus
from sage_scale.corpora.youtube import WRITTEN
from sage_scale.corpora.youtube_files import automatic_by_name, language_of, order_tracks, video_id
from sage_scale.vision.decode import decode_clip


def read(root: Path, name: str = "youtube_sl25", captions: Captions | None = None, **values) -> Manifest:
    return read_corpus(Corpus(name=name, root=str(root), captions=captions or Captions(), **values))


def found(manifest: Manifest) -> list[tuple[str, str, str]]:
    return [(clip.id, clip.language, clip.sentence) for clip in manifest.clips]


def test_the_published_list_and_what_was_downloaded_of_it(tmp_path) -> None:
    manifest = read(youtube_sl25(tmp_path))
    assert found(manifest) == [
        ("aaaaaaaaaaa@1.000-3.000", "en", "Hello & welcome."),
        ("aaaaaaaaaaa@7.000-9.000", "en", "Bye."),
        ("bbbbbbbbb_b@0.000-2.400", "de-DE", "Schöne Grüße."),
        ("ddddddddddd@1.500-4.000", "pl", "Dzień dobry."),
    ]
    assert {row.id: row.reason for row in manifest.rejected} == {
        "videos/fffffffffff.f137.mp4": "unfinished-download",
        "aaaaaaaaaaa@4.000-6.400": "filter-not-speech",
        "cccc-cccccc": "filter-automatic",
        "eeeeeeeeeee": "not-downloaded",
        "fffffffffff": "not-downloaded",
    }
    assert [row.id for row in manifest.rejected if not row.expected] == ["videos/fffffffffff.f137.mp4"]
    clip = manifest.clips[2]  # a VP9 file whose name has blanks, umlauts and brackets
    decoded = decode_clip(clip, Vision(size=32, crop=32, fps=FPS, frame_stride=1))
    assert numbers(decoded.frames) == list(range(12))


def test_automatic_captions_where_nobody_wrote_any(tmp_path) -> None:
    manifest = read(youtube_sl25(tmp_path), captions=Captions(automatic="fallback"))
    lines = [(c.start_s, c.end_s, c.sentence) for c in manifest.clips if c.id.startswith("cccc")]
    assert lines == [
        (0.469, 3.179, "welcome to the series"),
        (3.179, 6.31, "my name is Sam"),
        (6.31, 8.5, "goodbye all"),
    ]
    assert manifest.notes == (("cues of rolling captions brought to each line once", 4),)
    human = read(tmp_path).clips
    assert set(human) < set(manifest.clips)  # written captions stay before a recogniser's


def test_languages_and_sign_languages_may_be_chosen(tmp_path) -> None:
    root = youtube_sl25(tmp_path)
    manifest = read(root, languages=("de",))
    assert {clip.language for clip in manifest.clips} == {"de-DE"}
    assert [row.id for row in manifest.rejected if row.reason == "filter-language"] == [
        "aaaaaaaaaaa",
        "ddddddddddd",
    ]
    manifest = read(root, sign_languages=("ase",))
    assert {clip.id[:3] for clip in manifest.clips} == {"aaa"}
    assert sum(row.reason == "filter-sign-language" for row in manifest.rejected) == 4


def test_a_channel_stays_in_one_split(tmp_path) -> None:
    ids = [f"{number:011d}" for number in range(60)]
    put(tmp_path / "youtube-sl-25_youtube-sl-25-metadata.csv", "".join(f"{name},ase\n" for name in ids))
    for number, name in enumerate(ids):
        put(tmp_path / f"{name}.mp4", b"")
        put(tmp_path / f"{name}.en.vtt", vtt((1, 3, f"Sentence {number}.")))
        if number % 3:
            put(tmp_path / f"{name}.info.json", json.dumps({"channel_id": f"UC{number % 5}", "formats": [1]}))
        else:
            put(tmp_path / f"{name}.info.json", "not whole {")
    shares = {"dev_share": 0.3, "test_share": 0.3}
    manifest = read(tmp_path, **shares)
    splits: dict[str, set[str]] = {}
    for number, clip in enumerate(manifest.clips):
        splits.setdefault(f"UC{number % 5}" if number % 3 else clip.id, set()).add(clip.split)
    assert all(len(names) == 1 for names in splits.values())
    by_video = read(tmp_path, split_by="video", **shares)
    assert {clip.split for clip in by_video.clips} == {"train", "dev", "test"}
    assert [clip.split for clip in by_video.clips] != [clip.split for clip in manifest.clips]


def test_captions_after_the_end_that_the_downloader_noted(tmp_path) -> None:
    put(tmp_path / "youtube_asl_video_ids.txt", "aaaaaaaaaaa\n\nbbbbbbbbbbb\n")
    cues = vtt(
        (1, 3, "In time."), (8, 10.5, "A little late."), (9, 14, "Too late."), (70, 72, "Far too late.")
    )
    for name in ("aaaaaaaaaaa", "bbbbbbbbbbb"):
        put(tmp_path / f"{name}.mp4", b"")
        put(tmp_path / f"{name}.en.vtt", cues)
    put(tmp_path / "aaaaaaaaaaa.info.json", json.dumps({"duration": 10, "channel_id": None}))
    options = Captions(overlap_s=0)
    manifest = read(tmp_path, "youtube_asl", options)
    starts = [(clip.id[:1], clip.start_s) for clip in manifest.clips]
    assert starts == [("a", 1), ("a", 8), ("b", 1), ("b", 8), ("b", 9), ("b", 70)]
    assert [row.reason for row in manifest.rejected] == ["filter-beyond-end"] * 2
    assert len(read(tmp_path, "youtube_asl", Captions(overlap_s=0, beyond_end=False)).clips) == 8


def test_youtube_asl_without_its_list_takes_all_videos(tmp_path) -> None:
    for name in ("zzzzzzzzzzz", "My talk-aaaaaaaaaaa", "x [bbbbbbbbbbb]"):
        put(tmp_path / f"{name}.mp4", b"")
        put(tmp_path / "subs" / f"{name}.en-US.vtt", vtt((1, 3, f"From {name}.")))
    put(tmp_path / "a.mp4", b""), put(tmp_path / "x [bbbbbbbbbbb].webm", b"")
    put(tmp_path / "ccccccccccc.mp4.part", b"")
    manifest = read(tmp_path, "youtube_asl")
    assert [clip.id[:11] for clip in manifest.clips] == ["aaaaaaaaaaa", "bbbbbbbbbbb", "zzzzzzzzzzz"]
    assert {clip.language for clip in manifest.clips} == {"en-US"}
    assert {row.id: row.reason for row in manifest.rejected} == {
        "a.mp4": "no-video-id",
        "x [bbbbbbbbbbb].webm": "second-file",
        "ccccccccccc.mp4.part": "unfinished-download",
    }


def test_hostile_captions_and_lists(tmp_path) -> None:
    codes = {
        "aaaaaaaaaaa": "gsg",
        "bbbbbbbbbbb": "gsg",
        "ccccccccccc": "gsg",
        "ddddddddddd": "gsg",
        "fffffffffff": "???",
    }
    rows = "".join(f"{name},{code}\r\n" for name, code in codes.items())
    put(
        tmp_path / "youtube-sl-25-metadata.csv",
        "\ufeff" + rows + "aaaaaaaaaaa,ase\r\nbbbbbbbbbbb,gsg\r\nno comma\r\n",
    )
    for name in (*codes, "ggggggggggg"):
        put(tmp_path / f"{name}.mp4", b"")
    put(tmp_path / "aaaaaaaaaaa.de.vtt", vtt((1, 3, "Grüße.")).encode("latin-1"))
    put(
        tmp_path / "bbbbbbbbbbb.de.srt",
        "\ufeff1\r\n00:00:01,5 --> 00:00:03,500\r\nGrüße\r\n2\r\n00:00:03,500 --> 00:00:05,000\r\nund Küsse",
    )
    put(tmp_path / "ccccccccccc.de.vtt", "no captions at all")
    put(tmp_path / "ddddddddddd.en.vtt", vtt((1, 3, "Only a translation.")))
    (
        put(tmp_path / "fffffffffff.en.vtt", vtt((1, 3, "One."))),
        put(tmp_path / "fffffffffff.fr.vtt", vtt((1, 3, "Une."))),
    )
    manifest = read(tmp_path)
    assert found(manifest) == [
        ("bbbbbbbbbbb@1.500-3.500", "de", "Grüße"),
        ("bbbbbbbbbbb@3.500-5.000", "de", "und Küsse"),
    ]
    assert [(row.id, row.reason) for row in manifest.rejected] == [
        ("aaaaaaaaaaa", "repeated-id"),
        ("youtube-sl-25-metadata.csv line 8", "bad-row"),
        ("aaaaaaaaaaa", "not-utf8"),
        ("ccccccccccc", "no-captions"),
        ("ddddddddddd", "no-captions"),
        ("fffffffffff", "no-captions"),
        ("ggggggggggg", "not-listed"),
    ]


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("dQw4w9WgXcQ", "dQw4w9WgXcQ"),
        ("A title [-_w4w9WgXc-]", "-_w4w9WgXc-"),
        ("Ein Titel-dQw4w9WgXcQ", "dQw4w9WgXcQ"),
        ("holiday", ""),
        ("A title [dQw4w9WgXcQ] copy", ""),
    ],
)
def test_ids_in_names(stem, name) -> None:
    assert video_id(stem) == name


def test_tags_of_caption_files() -> None:
    for tag in ("en-orig", "a.en", "en.auto", "auto.en", "en-de", "zh-Hans-en"):
        assert automatic_by_name(tag), tag
    for tag in ("en", "en-US", "es-419", "zh-Hant", "zh-Hans-CN", "en-eEY6OEpapPo", "ase", ""):
        assert not automatic_by_name(tag), tag
    tags = {
        "en-US": "en-US",
        "en-eEY6OEpapPo": "en",
        "iw": "he",
        "es-419": "es-419",
        "zh-Hans-CN": "zh-Hans-CN",
        "12": "",
    }
    assert {tag: language_of(tag) for tag in tags} == tags
    assert order_tracks(["fr", "en-GB", "hi", "en", "en-eEY6OEpapPo"], ("en", "hi")) == [
        "en",
        "en-GB",
        "en-eEY6OEpapPo",
        "hi",
    ]


def test_every_sign_language_of_the_release_has_a_written_one() -> None:
    path = Path(__file__).resolve().parents[2].parent / "shared/data/corpus_statistics/youtube_sl25.json"
    if not path.is_file():
        pytest.skip("the statistics of the release are not on this machine")
    codes = set(json.loads(path.read_text())["release_videos_per_sign_language"]) - {"???"}
    assert len(codes) == 55 and codes <= set(WRITTEN)


def test_the_content_tells_automatic_captions_whose_name_does_not(tmp_path) -> None:
    put(tmp_path / "aaaaaaaaaaa.mp4", b"")
    put(tmp_path / "aaaaaaaaaaa.en.vtt", ROLLING_VTT)
    put(tmp_path / "aaaaaaaaaaa.en-GB.vtt", vtt((1, 3, "Written by hand.")))
    assert [clip.sentence for clip in read(tmp_path, "youtube_asl").clips] == ["Written by hand."]
