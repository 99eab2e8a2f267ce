"""The reader `videos`: sentences from .txt, .tsv, .vtt and .srt beside videos, and everything odd set aside
by name."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from sage_scale.config import Corpus
from sage_scale.corpora.captions import has_words, parse_captions, parse_seconds
from sage_scale.corpora.manifest import Manifest
from sage_scale.corpora.registry import read_corpus
from sage_scale.errors import UsageError

VTT = """WEBVTT
X-TIMESTAMP-MAP=LOCAL:00:00:00.000

NOTE a remark that is no caption

first
00:01.000 --> 00:03.500 align:start position:0%
<v Sprecherin>Guten <i>Abend</i> &amp;
willkommen.

00:00:04.000 --> 00:00:06.250
[Musik]

00:00:07.000 --> 00:00:06.000
Rückwärts

01:00:00.000 --> 01:00:02.000
Nach einer Stunde.
"""
SRT = """\ufeff1
00:00:01,000 --> 00:00:02,500
{\\an8}Erste Zeile
und zweite

2
00:00:03,000 --> 00:00:04,0
<b>Fett</b>
""".replace("\n", "\r\n")


def corpus(root: Path, **values: str) -> Manifest:
    return read_corpus(Corpus(name="videos", root=str(root), **values))


def touch(path: Path, text: str | bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def rows(manifest: Manifest) -> list[tuple[str, float, float | None, str]]:
    return [(clip.id, clip.start_s, clip.end_s, clip.sentence) for clip in manifest.clips]


def reasons(manifest: Manifest) -> dict[str, str]:
    return {row.id: row.reason for row in manifest.rejected}


def test_captions_of_both_kinds(tmp_path) -> None:
    touch(tmp_path / "rede.mp4"), touch(tmp_path / "rede.vtt", VTT)
    touch(tmp_path / "alt.mkv"), touch(tmp_path / "alt.srt", SRT)
    manifest = corpus(tmp_path)
    assert rows(manifest) == [
        ("alt.mkv@1.000-2.500", 1.0, 2.5, "Erste Zeile und zweite"),
        ("alt.mkv@3.000-4.000", 3.0, 4.0, "Fett"),
        ("rede.mp4@1.000-3.500", 1.0, 3.5, "Guten Abend & willkommen."),
        ("rede.mp4@3600.000-3602.000", 3600.0, 3602.0, "Nach einer Stunde."),
    ]
    assert [row.reason for row in manifest.rejected] == ["filter-not-speech", "bad-interval"]
    assert all("rede.vtt at" in row.detail for row in manifest.rejected)


def test_text_tables_and_nothing(tmp_path) -> None:
    for name in ("a b.mp4", "Ü.MP4", "c.webm", "d.mp4", "ohne.mp4", "._a.mp4", "notes.md"):
        touch(tmp_path / name)
    touch(tmp_path / "a b.txt", "Ein Satz\nin zwei Zeilen.\n")
    touch(
        tmp_path / "all.tsv",
        "Ü.MP4\tGroß\nc\t0:01.5\t2,5\tTeil\nc.webm\t3\t\tRest\nfehlt.mp4\tnichts\nd.mp4\t\n",
    )
    manifest = corpus(tmp_path)
    assert rows(manifest) == [
        ("a b.mp4", 0.0, None, "Ein Satz in zwei Zeilen."),
        ("c.webm@1.500-2.500", 1.5, 2.5, "Teil"),
        ("c.webm@3.000-", 3.0, None, "Rest"),
        ("d.mp4", 0.0, None, ""),
        ("ohne.mp4", 0.0, None, ""),
        ("Ü.MP4", 0.0, None, "Groß"),
    ]
    assert {clip.id: clip.split for clip in manifest.clips if not clip.sentence} == {
        "d.mp4": "unlabelled",
        "ohne.mp4": "unlabelled",
    }
    assert reasons(manifest) == {"all.tsv line 4": "missing", "all.tsv line 5": "no-sentence"}
    assert all(Path(clip.video).is_file() for clip in manifest.clips)


def test_a_table_with_column_names(tmp_path) -> None:
    touch(tmp_path / "x.mp4"), touch(tmp_path / "y.mp4")
    header = "signer\tvideo\tsplit\tsentence\tstart\tend\n"
    touch(
        tmp_path / "t.tsv",
        header + "S1\tx.mp4\tdev\tHallo\t1\t2\nS2\ty\t\tWelt\t\t\nS3\tx\t\tkaputt\t2\t1\nS4\tx\n",
    )
    manifest = corpus(tmp_path)
    found = [(clip.id, clip.signer, clip.split) for clip in manifest.clips]
    assert found == [("x.mp4@1.000-2.000", "S1", "dev"), ("y.mp4", "S2", "train")]
    assert [row.reason for row in manifest.rejected] == ["bad-interval", "bad-row"]


def test_splits_from_folders_and_stable_ids_under_another_root(tmp_path) -> None:
    for root in ("one", "two"):
        for place in ("train/a.mp4", "dev/sub/a.mp4", "test/a.mp4", "b.mp4"):
            touch(tmp_path / root / place)
            touch((tmp_path / root / place).with_suffix(".txt"), "Satz")
    one, two = corpus(tmp_path / "one"), corpus(tmp_path / "two")
    assert {clip.id: clip.split for clip in one.clips} == {
        "b.mp4": "train",
        "dev/sub/a.mp4": "dev",
        "test/a.mp4": "test",
        "train/a.mp4": "train",
    }
    assert one.digest() == two.digest() and one.clips != two.clips


def test_languages_of_captions(tmp_path) -> None:
    touch(tmp_path / "v.mp4")
    cue = "WEBVTT\n\n00:01.000 --> 00:02.000\n{}\n"
    for language, text in (("en", "Hello"), ("de-DE", "Hallo"), ("fr", "Salut")):
        touch(tmp_path / f"v.{language}.vtt", cue.format(text))
    clip = corpus(tmp_path).clips[0]
    assert (clip.sentence, clip.language) == ("Hallo", "de-DE")
    clip = corpus(tmp_path, language="nl").clips[0]
    assert (clip.sentence, clip.language) == ("Hallo", "de-DE")  # the first by name, with its own language


def test_encodings(tmp_path) -> None:
    for name in ("latin", "utf16", "bom"):
        touch(tmp_path / f"{name}.mp4")
    touch(tmp_path / "latin.txt", "Grüße".encode("latin-1"))
    touch(tmp_path / "utf16.txt", "Grüße".encode("utf-16"))
    touch(tmp_path / "bom.txt", b"\xef\xbb\xbf" + "Grüße".encode())
    touch(tmp_path / "table.tsv", "latin.mp4\tGrüße\n".encode("latin-1"))
    manifest = corpus(tmp_path)
    assert [(clip.id, clip.sentence) for clip in manifest.clips] == [
        ("bom.mp4", "Grüße"),
        ("utf16.mp4", "Grüße"),
    ]
    assert reasons(manifest) == {"latin.mp4": "not-utf8", "table.tsv": "not-utf8"}


def test_umlauts_as_two_characters(tmp_path) -> None:
    name = unicodedata.normalize("NFD", "Grüße.mp4")
    touch(tmp_path / name)
    touch(tmp_path / "t.tsv", unicodedata.normalize("NFC", "Grüße.mp4") + "\tHallo\n")
    (clip,) = corpus(tmp_path).clips
    assert (clip.id, clip.sentence, Path(clip.video).name) == ("Grüße.mp4", "Hallo", name)


def test_repeats(tmp_path) -> None:
    touch(tmp_path / "v.mp4")
    cues = (
        "".join(f"0:0{t}.000 --> 0:0{t + 1}.000\nGleich\n\n" for t in range(3))
        + "0:09.000 --> 0:10.500\nGleich\n"
    )
    touch(tmp_path / "v.vtt", "WEBVTT\n\n" + cues)
    manifest = corpus(tmp_path)
    # Nothing rolls here: captions with the same text stay apart, and those that come at once are named.
    assert [(clip.start_s, clip.end_s) for clip in manifest.clips] == [(0.0, 1.0), (9.0, 10.5)]
    assert [row.reason for row in manifest.rejected] == ["filter-repeated"] * 2 and not manifest.notes
    touch(tmp_path / "t.tsv", "v.mp4\tA\nv\tB\n")
    assert [row.reason for row in corpus(tmp_path).rejected] == ["repeated-id"]


def test_wrong_roots_are_one_clear_line(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "file.mp4")
    touch(tmp_path / "none" / "readme.txt", "text")
    for root, words in (
        ("", "--root"),
        (str(tmp_path / "absent"), "there is no"),
        (str(tmp_path / "empty"), "is empty"),
        (str(tmp_path / "file.mp4"), "not a folder"),
        (str(tmp_path / "none"), "no clip in"),
        ("s3://bucket/videos", "not a local folder"),
    ):
        for name in ("videos", "phoenix14t") if words != "no clip in" else ("videos",):
            with pytest.raises(UsageError, match=words) as caught:
                read_corpus(Corpus(name=name, root=root))
            assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    with pytest.raises(UsageError, match="did you mean phoenix14t"):
        read_corpus(Corpus(name="phoenix14", root=str(tmp_path)))


def test_times_and_words() -> None:
    assert parse_seconds("1:02:03,5") == 3723.5 and parse_seconds(" 7 ") == 7.0
    for wrong in ("", "a", "1:2:3:4", "-1", "nan", "inf"):
        with pytest.raises(ValueError):
            parse_seconds(wrong)
    assert (
        has_words("[Applaus] Danke")
        and has_words("42")
        and not has_words("♪ la la ♪")
        and not has_words("(lacht)")
    )
    assert parse_captions("") == ([], [])
    assert parse_captions("00:01 --> 00:02\nkein Format") == ([], ["line 1: 00:01 --> 00:02"])
