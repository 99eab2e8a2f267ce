"""Small corpora in the layouts that their publishers describe, with real videos of ten seconds.

Videos have 5 frames a second; frame t is a picture of one grey level that tells t (factories/videos.py).
"""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from factories.videos import write_video
from PIL import Image

FPS = 5
SECONDS = 10


@functools.cache
def _video(suffix: str) -> Path:
    path = Path(tempfile.mkdtemp(prefix="layouts-")) / f"video{suffix}"
    codec = {"codec": "libvpx-vp9"} if suffix == ".webm" else {}
    return write_video(path, FPS * SECONDS, rate=FPS, **codec)


def put(path: Path, content: str | bytes | None = None) -> Path:
    """Write text as UTF-8, bytes as they are, or, without either, a real video of ten seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        shutil.copyfile(_video(path.suffix.lower()), path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def put_frames(folder: Path, frames: int) -> None:
    """A folder of JPEG frames called 000000.jpg and on."""
    folder.mkdir(parents=True)
    for t in range(frames):
        Image.fromarray(np.full((64, 64, 3), 12 + 4 * t, np.uint8)).save(folder / f"{t:06d}.jpg", quality=95)


CSL_DAILY_ROWS = (
    ("S000007_P0003_T00", "他 谁", "他 是 谁 ？", "train", 20),
    ("S000020_P0004_T00", "今天 天气", "今 天 天 气 不 错 。", "train", 24),
    ("S000100_P0000_T00", "你 手机 5G", "你 的 手 机 是 5G 吗 ？", "dev", 16),
    ("S000200_P0007_T01", "再见", "再 见", "test", 16),
)


def csl_daily(root: Path, frames: str = "sentence/frames_512x512") -> Path:
    """CSL-Daily: frame folders, video_map.txt and split_1.txt."""
    lines = ["index|name|length|gloss|char|word|postag"]
    for number, (name, gloss, chars, _, length) in enumerate(CSL_DAILY_ROWS):
        lines.append(f"{number}|{name}|{length}|{gloss}|{chars}|{chars}|r v w")
        put_frames(root / frames / name, length)
    put(root / "sentence_label" / "video_map.txt", "\n".join(lines) + "\n")
    splits = "".join(f"{row[0]}|{row[3]}\n" for row in CSL_DAILY_ROWS)
    put(root / "sentence_label" / "split_1.txt", f"name|split\n{splits}")
    put(root / "sentence_label" / "csl2020ct_v2.pkl", b"not to be opened")
    return root


HOW2SIGN_HEADER = (
    "VIDEO_ID\tVIDEO_NAME\tSENTENCE_ID\tSENTENCE_NAME\tSTART_REALIGNED\tEND_REALIGNED\tSENTENCE\n"
)
HOW2SIGN_ROWS = {
    "train": [
        ("-d5dN54tH2E", 1, 0, 1.0, 3.0, "We're going to work on a arm drill."),
        ("-d5dN54tH2E", 1, 1, 4.0, 6.4, '"Hold it," he says.'),
        ("_fZbAxSSbX4", 5, 0, 0.0, 2.0, "Hi, I'm here on behalf of Expert Village."),
    ],
    "val": [("0aZbAxSSbX4", 3, 0, 2.0, 5.0, "That is all.")],
    "test": [("g1xxxxxxxx4", 8, 0, 0.4, 9.0, "And I call them decorative elements.")],
}


def how2sign(root: Path, clips: bool = False, view: str = "front") -> Path:
    """How2Sign as its download script leaves it: full videos or clips of one camera, and the re-aligned tables."""
    for split, rows in HOW2SIGN_ROWS.items():
        lines = ""
        for video, signer, number, start, end, sentence in rows:
            name, cut = f"{video}-{signer}", f"{video}_{number}-{signer}"
            lines += (
                f"{video}\t{name}-rgb_front\t{video}_{number}\t{cut}-rgb_front\t{start}\t{end}\t{sentence}\n"
            )
            level, file = ("sentence_level", cut) if clips else ("video_level", name)
            place = root / level / split / f"rgb_{view}" / "raw_videos" / f"{file}-rgb_{view}.mp4"
            if not place.exists():
                put(place)
        table = f"sentence_level/{split}/text/en/raw_text/re_aligned/how2sign_realigned_{split}.csv"
        put(root / table, HOW2SIGN_HEADER + lines)
    return root


OPENASL_HEADER = "vid\tyid\tstart\tend\traw-text\ttokenized-text\tgloss\tsplit\n"


def openasl(root: Path) -> Path:
    """OpenASL: the table, one full video, one clip cut by the release's script, one video that is gone."""
    rows = [
        ("aaaaaaaaaaa", "00:00:01.000", "00:00:03.400", "Hello there.", "train"),
        ("aaaaaaaaaaa", "00:00:04.000", "00:00:06.000", "Again.", "valid"),
        ("bbbbbbbbbbb", "00:01:01.000", "00:01:05.000", "A clip.", "test"),
        ("ccccccccccc", "00:00:01.000", "00:00:03.000", "Gone.", "train"),
        ("ccccccccccc", "00:00:04.000", "00:00:05.000", "Gone too.", "train"),
    ]
    lines = "".join(
        f"{video}-{start}-{end}\t{video}\t{start}\t{end}\t{text}\t{text.lower()}\t\t{split}\n"
        for video, start, end, text, split in rows
    )
    put(root / "data" / "openasl-v1.0.tsv", OPENASL_HEADER + lines)
    put(root / "raw-video" / "aaaaaaaaaaa.mp4")
    put(root / "cropped" / "bbbbbbbbbbb-00%01%01.000-00%01%05.000.mp4")
    return root


def vtt(*cues: tuple[float, float, str]) -> str:
    """A WebVTT file."""

    def stamp(t: float) -> str:
        return f"{int(t // 3600):02d}:{int(t % 3600 // 60):02d}:{t % 60:06.3f}"

    return "WEBVTT\nKind: captions\n\n" + "".join(
        f"{stamp(a)} --> {stamp(b)}\n{text}\n\n" for a, b, text in cues
    )


ROLLING_VTT = """WEBVTT
Kind: captions
Language: en

00:00:00.469 --> 00:00:03.169 align:start position:0%
 
welcome<00:00:01.469><c> to</c><00:00:01.620><c> the</c><00:00:01.740><c> series</c>

00:00:03.169 --> 00:00:03.179 align:start position:0%
welcome to the series
 

00:00:03.179 --> 00:00:06.300 align:start position:0%
welcome to the series
my<00:00:03.360><c> name</c><00:00:03.570><c> is</c><00:00:04.020><c> Sam</c>

00:00:06.300 --> 00:00:06.310 align:start position:0%
my name is Sam
 

00:00:06.310 --> 00:00:08.500 align:start position:0%
my name is Sam
goodbye<00:00:07.000><c> all</c>
"""
"""Automatic captions as YouTube serves them: three lines of speech in five cues."""


def youtube_sl25(root: Path) -> Path:
    """YouTube-SL-25: the list without a header line, and what downloaders made of four of its six videos."""
    listed = "aaaaaaaaaaa,ase bbbbbbbbb_b,gsg cccc-cccccc,ase ddddddddddd,??? eeeeeeeeeee,jsl fffffffffff,bfi"
    put(root / "youtube-sl-25-metadata.csv", listed.replace(" ", "\n") + "\n")
    put(root / "videos" / "aaaaaaaaaaa.mp4")
    put(
        root / "videos" / "aaaaaaaaaaa.en.vtt",
        vtt((1, 3, "Hello &amp; welcome."), (4, 6.4, "[Music]"), (7, 9, "Bye.")),
    )
    put(root / "videos" / "aaaaaaaaaaa.de.vtt", vtt((1, 3, "Hallo und willkommen.")))
    put(root / "videos" / "aaaaaaaaaaa.info.json", json.dumps({"channel_id": "UC1", "duration": 10}))
    put(root / "more" / "Schöne Grüße [bbbbbbbbb_b].webm")
    put(root / "more" / "Schöne Grüße [bbbbbbbbb_b].de-DE.vtt", vtt((0, 2.4, "Schöne Grüße.")))
    put(root / "videos" / "cccc-cccccc.mp4")
    put(root / "videos" / "cccc-cccccc.en.vtt", ROLLING_VTT)
    put(root / "videos" / "ddddddddddd.mkv")
    put(root / "videos" / "ddddddddddd.pl.srt", "1\r\n00:00:01,500 --> 00:00:04,000\r\nDzień dobry.\r\n")
    put(root / "videos" / "fffffffffff.f137.mp4", b"half")
    return root


def csl_news(root: Path) -> Path:
    """CSL-News: the label file and two unpacked clips; a third is still in its archive, a fourth nowhere."""
    names = [
        "Common-Concerns_20201113_0-50_14330",
        "Common-Concerns_20201113_50-100_14331",
        "20200102_Dragon-TV__0-50_2",
        "20200102_Dragon-TV__50-100_3",
    ]
    texts = ["共同关注。", "观众朋友，晚上好。", "天气预报。", "再见。"]
    rows = [
        {"video": f"{name}.mp4", "pose": f"{name}.pkl", "text": text}
        for name, text in zip(names, texts, strict=True)
    ]
    put(root / "data" / "train" / "CSL_News_Labels.json", json.dumps(rows, ensure_ascii=False))
    for name in names[:2]:
        put(root / "rgb_format" / f"{name}.mp4")
    with zipfile.ZipFile(root / "archive_002.zip", "w") as archive:
        archive.writestr(f"rgb/{names[2]}.pkl", b"a pose")
        archive.write(_video(".mp4"), f"rgb/{names[2]}.mp4", zipfile.ZIP_DEFLATED)
    return root
