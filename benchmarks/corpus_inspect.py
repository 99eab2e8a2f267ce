"""How long it takes to look at a corpus before anything is computed: `sage-scale corpus inspect` without --probe.

    python benchmarks/corpus_inspect.py [--clips 100000] [--home FOLDER]

Writes five corpora of about so many clips in their published layouts (empty videos, captions like those of a crawl of
YouTube-SL-25: 50 a video, 4 s, 8 words, its shares of defects) and runs the command on each as a process of its own,
three times. Shown is the best time of the clock, the least processor time (what an idle machine would take), and the
peak of its memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import tempfile
import time
from pathlib import Path

from common import parse, sage

STORY = "we sign today about the weather a long story of two friends who met"
WORDS = STORY.split()


def main() -> None:
    """Write the corpora, run the command, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parse(parser, clips=60, rounds=1)
    with tempfile.TemporaryDirectory(prefix="corpus-inspect-") as folder:
        table(options.home or Path(folder), options.clips, options.rounds)


def table(home: Path, wanted: int, rounds: int) -> None:
    """Print a row for each corpus of `wanted` clips, written into `home` where it is not there."""
    print("| corpus | clips | set aside | seconds | processor seconds | peak MB |\n|---|---|---|---|---|---|")
    for name, write in (
        ("youtube_sl25", write_youtube),
        ("openasl", write_openasl),
        ("csl_news", write_news),
        ("csl_daily", write_daily),
        ("videos", write_folder),
    ):
        root = home / name
        if not root.exists():
            write(root, wanted, random.Random(0))
        rejects = home / f"{name}.rejects.jsonl"
        command = sage("corpus", "inspect", "--corpus", name, "--root", root, "--rejects", rejects)
        best = cpu = float("inf")
        peak = 0.0
        for _ in range(rounds):
            shown = home / f"{name}.txt"
            begun = time.perf_counter()
            with shown.open("w") as out, subprocess.Popen(command, stdout=out) as child:
                _, status, used = os.wait4(child.pid, 0)
                child.returncode = os.waitstatus_to_exitcode(status)
            if child.returncode:
                raise SystemExit(f"{name}: the command ended with {child.returncode}")
            best = min(best, time.perf_counter() - begun)
            cpu = min(cpu, used.ru_utime + used.ru_stime)
            peak = max(peak, used.ru_maxrss / 1024)
        clips = int(shown.read_text().splitlines()[0].split()[-2])
        aside = len(rejects.read_text().splitlines())
        print(
            f"| {name} | {clips:,} | {aside:,} | {best:.1f} | {cpu:.1f} | {peak:.0f} |",
            flush=True,
        )


def sentence(draw: random.Random) -> str:
    """A caption of about eight words."""
    return " ".join(draw.choices(WORDS, k=draw.randint(2, 14))).capitalize() + "."


def write_youtube(root: Path, clips: int, draw: random.Random) -> None:
    """Videos with 50 captions and an .info.json of 100 KB each, in three languages; two of three videos are gone."""
    (root / "videos").mkdir(parents=True)
    listed = []
    info = json.dumps({"formats": ["x" * 100_000], "channel_id": "UC", "duration": 400})
    for video in range(max(1, clips // 50)):
        name = f"{video:011d}"
        code, tag = draw.choice((("ase", "en"), ("gsg", "de"), ("ise", "it")))
        listed += [f"{name},{code}", f"x{video:010d},{code}", f"y{video:010d},{code}"]
        cues, now = ["WEBVTT", ""], 1.0
        for _ in range(50):
            length = draw.choices((0.5, draw.uniform(1.2, 8), 30.0), (3, 96.5, 0.5))[0]
            text = "[Music]" if draw.random() < 0.005 else sentence(draw)
            cues += [f"{stamp(now)} --> {stamp(now + length)}", text, ""]
            now += length + draw.choice((0.0, 0.3))
        (root / "videos" / f"{name}.mp4").touch()
        (root / "videos" / f"{name}.{tag}.vtt").write_text("\n".join(cues))
        (root / "videos" / f"{name}.info.json").write_text(info)
    (root / "youtube-sl-25-metadata.csv").write_text("\n".join(listed) + "\n")


def write_folder(root: Path, clips: int, draw: random.Random) -> None:
    """One folder with a fifth as many videos as clips; each has a file of five captions, some a longer name."""
    root.mkdir(parents=True)
    for video in range(max(1, clips // 5)):
        name = f"talk {video // 4}" + ("" if video % 4 == 0 else f".part {video % 4}")
        cues = [f"{stamp(6.0 * cue)} --> {stamp(6.0 * cue + 5)}\n{sentence(draw)}\n" for cue in range(5)]
        (root / f"{name}.mp4").touch()
        (root / f"{name}{draw.choice(('', '.de', '.de-DE'))}.vtt").write_text("WEBVTT\n\n" + "\n".join(cues))


def write_openasl(root: Path, clips: int, draw: random.Random) -> None:
    """The table with 50 sentences a video, and all videos."""
    root.mkdir(parents=True)
    lines = ["vid\tyid\tstart\tend\traw-text\ttokenized-text\tgloss\tsplit"]
    for number in range(clips):
        video = f"{number // 50:011d}"
        start, end = stamp(8.0 * (number % 50)), stamp(8.0 * (number % 50) + 5)
        text = sentence(draw)
        lines.append(f"{video}-{start}-{end}\t{video}\t{start}\t{end}\t{text}\t{text.lower()}\t\ttrain")
        if number % 50 == 0:
            (root / f"{video}.mp4").touch()
    (root / "openasl-v1.0.tsv").write_text("\n".join(lines) + "\n")


def write_news(root: Path, clips: int, draw: random.Random) -> None:
    """The label file and one file a clip."""
    (root / "rgb_format").mkdir(parents=True)
    rows = []
    for number in range(clips):
        name = f"Common-Concerns_{20200101 + number // 100}_{number}-{number + 250}_{number}"
        rows.append(
            {"video": f"{name}.mp4", "pose": f"{name}.pkl", "text": "今天" * draw.randint(2, 20) + "。"}
        )
        (root / "rgb_format" / f"{name}.mp4").touch()
    (root / "CSL_News_Labels.json").write_text(json.dumps(rows, ensure_ascii=False))


def write_daily(root: Path, clips: int, draw: random.Random) -> None:
    """A folder a clip, and the two tables."""
    labels, splits = ["index|name|length|gloss|char|word|postag"], ["name|split"]
    for number in range(clips):
        name = f"S{number:06d}_P{number % 10:04d}_T00"
        (root / "sentence" / "frames_512x512" / name).mkdir(parents=True)
        chars = " ".join("今天天气很好"[: draw.randint(2, 6)])
        labels.append(f"{number}|{name}|{draw.randint(30, 200)}|x|{chars}|{chars}|x")
        splits.append(f"{name}|{draw.choice(('train', 'dev', 'test'))}")
    (root / "sentence_label").mkdir()
    (root / "sentence_label" / "video_map.txt").write_text("\n".join(labels) + "\n")
    (root / "sentence_label" / "split_1.txt").write_text("\n".join(splits) + "\n")


def stamp(seconds: float) -> str:
    """A time as captions and tables write it."""
    return f"{int(seconds // 3600):02d}:{int(seconds % 3600 // 60):02d}:{seconds % 60:06.3f}"


if __name__ == "__main__":
    main()
