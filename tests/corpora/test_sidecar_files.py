"""Which caption, text and table belongs to which video: by name, in NFC, with a language tag after it."""

from __future__ import annotations

import os
import time
import unicodedata
from pathlib import Path

import pytest
from factories.corpora import put, vtt
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_scale.config import Captions, Corpus
from sage_scale.corpora.manifest import Manifest
from sage_scale.corpora.registry import read_corpus
from sage_scale.corpora.youtube_files import automatic_by_name, language_of
from sage_scale.errors import UsageError

NFC, NFD = "Grüße an 인사", unicodedata.normalize("NFD", "Grüße an 인사")


def read(root: Path, name: str = "videos", **values) -> Manifest:
    values.setdefault("captions", Captions(credits=False))  # a file's name looks like an address
    return read_corpus(Corpus(name=name, root=str(root), **values))


def folder(root: Path, *names: str) -> Path:
    """Files of a folder; captions and texts hold their own name."""
    for name in names:
        text = vtt((1, 3, f"Aus {name}.")) if name.lower().endswith((".vtt", ".srt")) else f"Aus {name}."
        put(root / name, "" if name.endswith(("mp4", "mkv")) else text)
    return root


def sentences(manifest: Manifest) -> dict[str, str]:
    return {
        clip.id.partition("@")[0]: clip.sentence.removeprefix("Aus ").rstrip(".") for clip in manifest.clips
    }


def unmatched(manifest: Manifest) -> list[str]:
    assert all(row.expected for row in manifest.rejected if row.reason == "unmatched")
    return [row.id for row in manifest.rejected if row.reason == "unmatched"]


@pytest.mark.parametrize(
    ("names", "found", "named"),
    [
        ("rede.mp4 rede.2.mp4 rede.2.vtt", {"rede.mp4": "", "rede.2.mp4": "rede.2.vtt"}, []),
        ("rede.mp4 rede.2.mp4 rede.2.vtt rede.txt", {"rede.mp4": "rede.txt", "rede.2.mp4": "rede.2.vtt"}, []),
        ("rede.mp4 rede.2.vtt", {"rede.mp4": ""}, ["rede.2.vtt"]),
        ("a.mp4 a.teil.b.mp4 a.teil.b.de.srt a.vtt", {"a.mp4": "a.vtt", "a.teil.b.mp4": "a.teil.b.de.srt"}, []),
        ("a.mp4 a.de.mp4 a.de.vtt", {"a.mp4": "", "a.de.mp4": "a.de.vtt"}, []),
        ("a.mp4 a.b.mp4 a.b.c.mp4 a.b.x9.vtt a.b.c.de_AT.vtt",
         {"a.mp4": "", "a.b.mp4": "", "a.b.c.mp4": "a.b.c.de_AT.vtt"}, ["a.b.x9.vtt"]),
        ("a.mp4 a.mkv a.vtt", {"a.mp4": "a.vtt", "a.mkv": "a.vtt"}, []),
        ("a.mp4 a.mp4.de.vtt", {"a.mp4": "a.mp4.de.vtt"}, []),
        ("x.mp4 X.vtt y.VTT lost.de.srt", {"x.mp4": ""}, ["X.vtt", "lost.de.srt", "y.VTT"]),
        ("x.mp4 x.de.forced.vtt x.vtt", {"x.mp4": "x.vtt"}, ["x.de.forced.vtt"]),
        ("x.mp4 x.DE.VTT readme.txt x.2.txt", {"x.mp4": "x.DE.VTT"}, ["x.2.txt"]),
        ("x.mp4 x.de.txt y.txt", {"x.mp4": ""}, ["x.de.txt"]),
        ("x.mp4 x.mp4.txt x.2.mp4 x.2.txt", {"x.mp4": "x.mp4.txt", "x.2.mp4": "x.2.txt"}, []),
        ("x.mp4 xy.vtt x-de.vtt", {"x.mp4": ""}, ["x-de.vtt", "xy.vtt"]),
    ],
)  # fmt: skip
def test_a_caption_file_belongs_to_the_longest_name_that_it_begins_with(
    tmp_path, names, found, named
) -> None:
    manifest = read(folder(tmp_path, *names.split()))
    assert sentences(manifest) == found and unmatched(manifest) == named


@pytest.mark.parametrize(("video", "beside"), [(NFC, NFD), (NFD, NFC), (NFD, NFD)])
@pytest.mark.parametrize("ending", [".vtt", ".de.srt", ".txt"])
def test_names_are_compared_in_one_form(tmp_path, video, beside, ending) -> None:
    manifest = read(folder(tmp_path / video, f"{video}.mp4", f"{beside}{ending}"))
    assert (
        list(sentences(manifest)) == [f"{NFC}.mp4"] and manifest.clips[0].sentence and not unmatched(manifest)
    )
    assert Path(manifest.clips[0].video).is_file()


def test_keypoints_in_another_form_are_no_clip_of_their_own(tmp_path) -> None:
    put(tmp_path / f"{NFD}.mp4", ""), put(tmp_path / f"{NFC}.pose", "")
    assert [Path(clip.video).suffix for clip in read(tmp_path).clips] == [".mp4"]


@pytest.mark.parametrize(("given_", "stored"), [(NFC, NFD), (NFD, NFC)])
def test_videos_of_manifests_and_tables_are_found_in_either_form(tmp_path, given_, stored) -> None:
    put(tmp_path / stored / f"{stored}.mp4", ""), put(tmp_path / "a.zip", "")
    rows = (
        f"{given_}/{given_}.mp4",
        f"{given_}/fehlt.mp4",
        f"a.zip/{given_}.mp4",
        "ü" * 300 + ".mp4",
        "ü/" * 2500 + "a",
    )
    put(
        tmp_path / "manifest.jsonl",
        "".join(f'{{"id": "{n}", "video": "{row}"}}\n' for n, row in enumerate(rows)),
    )
    clips = read(tmp_path, "manifest").clips
    assert clips[0].video == str(tmp_path / stored / f"{stored}.mp4")
    assert [clip.video for clip in clips[1:]] == [str(tmp_path / row) for row in rows[1:]]
    put(tmp_path / stored / "t.tsv", f"{given_}.mp4\tSatz\n")
    assert [clip.sentence for clip in read(tmp_path).clips] == ["Satz"]


@pytest.mark.parametrize(
    ("language", "names", "taken", "tag"),
    [
        ("zh_CN", "x.en.vtt x.zh-Hans.vtt", "x.zh-Hans.vtt", "zh-Hans"),
        ("pt_BR", "x.en.vtt x.pt-PT.vtt x.pt-BR.vtt", "x.pt-BR.vtt", "pt-BR"),
        ("cmn-Hans", "x.en.vtt x.zh_CN.vtt", "x.zh_CN.vtt", "zh-CN"),
        ("por", "x.en.vtt x.pt_br.vtt", "x.pt_br.vtt", "pt-BR"),
        ("zh-TW", "x.zh-Hans.vtt x.zh-Hant.vtt", "x.zh-Hant.vtt", "zh-Hant"),
        ("deu", "x.en_US.vtt x.ger.vtt", "x.ger.vtt", "de"),
        ("DE_de", "x.en.vtt x.vtt", "x.vtt", "de-DE"),
        ("iw", "x.en.vtt x.he.vtt", "x.he.vtt", "he"),
    ],
)
def test_languages_are_compared_as_tags(tmp_path, language, names, taken, tag) -> None:
    (clip,) = read(
        folder(tmp_path, "x.mp4", *names.split()), language=language, captions=Captions(script=False)
    ).clips
    assert (clip.sentence, clip.language) == (f"Aus {taken}.", tag)


@pytest.mark.parametrize("language", ["zh_CN", "cmn-Hans", "rus", "ell"])
def test_the_script_of_a_language_in_any_form_is_asked_for(tmp_path, language) -> None:
    put(tmp_path / "x.mp4", ""), put(tmp_path / "x.vtt", vtt((1, 3, "Hello everybody")))
    with pytest.raises(UsageError, match="filter-script"):
        read(tmp_path, language=language)
    with pytest.raises(UsageError, match=r"corpus\.language=german is not a language tag"):
        read(tmp_path, language="german")


def test_tags_of_crawled_captions(tmp_path) -> None:
    put(tmp_path / "youtube-sl-25-metadata.csv", "aaaaaaaaaaa,bzs\nbbbbbbbbbbb,bzs\nccccccccccc,csc\n")
    for name in (
        "aaaaaaaaaaa.pt-br.vtt",
        "bbbbbbbbbbb.por.vtt",
        "ccccccccccc.ca-es.vtt",
        "ccccccccccc.es.vtt",
    ):
        (
            put(tmp_path / f"{name[:11]}.mp4", ""),
            put(tmp_path / name, vtt((1, 3, f"{name}.".replace(".", " ")))),
        )
    found = {clip.id[:1]: clip.language for clip in read(tmp_path, "youtube_sl25").clips}
    assert found == {"a": "pt-BR", "b": "pt", "c": "es"}  # ca-es beside es is its translation
    kept = {
        wanted: read(tmp_path, "youtube_sl25", languages=(wanted,)).clips
        for wanted in ("pt-BR", "pt_br", "por")
    }
    assert [len(clips) for clips in kept.values()] == [1, 1, 2]
    assert (
        automatic_by_name("en-de")
        and automatic_by_name("ca-es", ["es"])
        and not automatic_by_name("zh-cn", ["zh-cn"])
    )
    assert [language_of(tag) for tag in ("zh_CN", "en-de", "pt_br", "deu", "a.en", "x9")] == [
        "zh-CN",
        "en",
        "pt-BR",
        "de",
        "en",
        "",
    ]


def test_chapters_are_told_from_the_whole_video(tmp_path) -> None:
    folder(
        tmp_path,
        "Heute - 001 Norden [aaaaaaaaaaa].mp4", "Heute - 002 Süden [aaaaaaaaaaa].mp4", "Heute [aaaaaaaaaaa].webm",
        "Heute [aaaaaaaaaaa].en.vtt",
        "Solo - 001 Hello [bbbbbbbbbbb].mp4", "Solo - 001 Hello [bbbbbbbbbbb].en.vtt",  # a title of its own
        "Teile - 001 A-ccccccccccc.mp4", "Teile - 002 B-ccccccccccc.mp4", "Teile-ccccccccccc.en.vtt",
        "Ein - 001 Teil [eeeeeeeeeee].mp4", "eeeeeeeeeee.webm", "eeeeeeeeeee.en.vtt", "talk.en.vtt",
        "ddddddddddd.mp4", "ddddddddddd.webm", "ddddddddddd.fdash-audio_1.mp4", "ddddddddddd.en.vtt",
    )  # fmt: skip
    manifest = read(tmp_path, "youtube_asl")
    assert {clip.id[:1]: Path(clip.video).name for clip in manifest.clips} == {
        "a": "Heute [aaaaaaaaaaa].webm",
        "b": "Solo - 001 Hello [bbbbbbbbbbb].mp4",
        "d": "ddddddddddd.mp4",
        "e": "eeeeeeeeeee.webm",
    }
    reasons = {row.id: row.reason for row in manifest.rejected}
    assert [name for name, reason in sorted(reasons.items()) if reason == "chapter"] == [
        "Ein - 001 Teil [eeeeeeeeeee].mp4", "Heute - 001 Norden [aaaaaaaaaaa].mp4",
        "Heute - 002 Süden [aaaaaaaaaaa].mp4", "Teile - 001 A-ccccccccccc.mp4", "Teile - 002 B-ccccccccccc.mp4",
    ]  # fmt: skip
    assert reasons["ccccccccccc"] == "not-downloaded" and reasons["ddddddddddd.webm"] == "second-file"
    assert reasons["talk.en.vtt"] == "unmatched"
    assert reasons["ddddddddddd.fdash-audio_1.mp4"] == "unfinished-download"


def special(path: Path, kind: str) -> None:
    """Makes a FIFO, a link to a device, a dangling link, a link to a folder, or a link in a circle."""
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(
            {"zero": "/dev/zero", "dangling": "/nowhere", "loop": path.name, "null": "/dev/null"}[kind]
        )


@pytest.mark.parametrize("kind", ["fifo", "zero", "null", "dangling", "loop"])
def test_only_regular_files_are_opened_and_the_corpus_goes_on(tmp_path, kind) -> None:
    folder(tmp_path, "a.mp4", "b.mp4", "c.mp4", "c.vtt")
    for name in ("a.vtt", "b.txt", "t.tsv"):
        special(tmp_path / name, kind)
    begun = time.monotonic()
    manifest = read(tmp_path)
    assert sentences(manifest) == {"c.mp4": "c.vtt"} and time.monotonic() - begun < 5
    assert [(row.id, row.reason) for row in manifest.rejected] == [
        ("t.tsv", "unreadable"),
        ("a.mp4", "unreadable"),
        ("b.mp4", "unreadable"),
    ]
    crawled = folder(tmp_path / "crawl", "aaaaaaaaaaa.mp4", "bbbbbbbbbbb.mp4", "bbbbbbbbbbb.en.vtt")
    special(crawled / "aaaaaaaaaaa.en.vtt", kind), special(crawled / "bbbbbbbbbbb.info.json", kind)
    manifest = read(crawled, "youtube_asl")
    assert len(manifest.clips) == 1 and [row.reason for row in manifest.rejected] == ["unreadable"]


@pytest.mark.parametrize("kind", ["fifo", "zero", "loop"])
@pytest.mark.parametrize(
    ("corpus", "table"),
    [("manifest", "manifest.jsonl"), ("openasl", "openasl-v1.0.tsv"), ("csl_news", "CSL_News_Labels.json"),
     ("how2sign", "how2sign_realigned_train.csv"), ("youtube_sl25", "youtube-sl-25-metadata.csv"),
     ("youtube_asl", "youtube_asl_video_ids.txt")],
)  # fmt: skip
def test_a_table_that_is_no_file_is_one_clear_line(tmp_path, corpus, table, kind) -> None:
    folder(tmp_path, "aaaaaaaaaaa.mp4", "aaaaaaaaaaa.en.vtt")
    special(tmp_path / table, kind)
    with pytest.raises(UsageError, match=r"not a regular file|there is no|cannot be read") as caught:
        read(tmp_path, corpus)
    assert "\n" not in str(caught.value)


def test_the_time_of_a_folder_grows_with_its_files_alone(tmp_path) -> None:
    for number in range(4000):
        (tmp_path / f"v{number:05d}.mp4").touch()
        (tmp_path / f"v{number:05d}.de.vtt").write_text("WEBVTT\n\n00:01.000 --> 00:03.000\nEin Satz.\n")
    put(tmp_path / "t.tsv", "".join(f"v{number:05d}.mp4\tSatz\n" for number in range(100)))
    begun = time.process_time()
    assert len(read(tmp_path).clips) == 4000
    assert time.process_time() - begun < 4  # several times that where each video looks at each name


PARTS = ["a", "ä", "a\u0308", ".", "de", "zh_CN", "2", " ", "-", "\u2028", "[aaaaaaaaaaa]"]
NAMES = st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map("".join)
ENDINGS = st.sampled_from([".mp4", ".MKV", ".vtt", ".srt", ".txt", ".tsv", ".npz", ".info.json", ""])


@settings(max_examples=60, deadline=None)
@given(
    files=st.dictionaries(
        st.builds(str.__add__, NAMES, ENDINGS), st.binary(max_size=30), min_size=1, max_size=8
    )
)
def test_any_folder_gives_clips_or_named_rows(tmp_path_factory, files) -> None:
    root = tmp_path_factory.mktemp("any")
    for name, data in files.items():
        if name.strip("."):
            (root / name).write_bytes(data)
    for corpus in ("videos", "youtube_asl"):
        try:
            manifest = read(root, corpus)
        except UsageError as error:
            assert "\n" not in str(error)
            continue
        assert manifest.digest() and all(row.id and row.reason for row in manifest.rejected)
        taken = {Path(clip.video).name for clip in manifest.clips}
        assert taken <= set(files)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("ending", [".srt", ".vtt"])
def test_captions_in_utf_16_without_a_mark_are_named_as_such(tmp_path, encoding, ending) -> None:
    for name in ("x.mp4", "y.mp4"):
        (tmp_path / name).touch()
    text = "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\nMorgen\n"
    (tmp_path / f"x{ending}").write_bytes(text.encode(encoding))
    (row,) = read(tmp_path).rejected
    assert (row.id, row.reason) == ("x.mp4", "not-utf8") and f"x{ending}" in row.detail
