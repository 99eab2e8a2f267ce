"""Captions of long synthetic videos against the truth: boundaries, BLEU-4, memory, and when the first one comes.

    python benchmarks/captions.py RUN [--data SHARDS] [--sentences 60] [--hours 2] [--out TABLE.md]

RUN is a run on the synthetic corpus (`make demo`), SHARDS its dataset, for the card of an older export. A video is new
sentences of one signer, as they are or changed (VIDEOS): keypoints are a file beside the video, without rests no pause
is left. A caption belongs to the sentence in which its middle lies; a sentence without one counts as empty. The bound
is the same sentences, translated at their true times. A video of --hours repeats the first one: its memory must not
grow, which the script asserts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from random import Random

os.environ.setdefault("OMP_NUM_THREADS", "1")

import itertools

import av
import numpy as np
import torch
from common import parse

from sage_scale import score
from sage_scale.corpora.synthetic.animation import FPS, animate
from sage_scale.corpora.synthetic.grammar import signing
from sage_scale.corpora.synthetic.render import SIZE, render
from sage_scale.corpora.synthetic.sampling import draw_splits
from sage_scale.corpora.synthetic.signers import HELD_OUT_SIGNERS, TRAINING_SIGNERS
from sage_scale.corpora.synthetic.skeleton import skeleton_track
from sage_scale.keypoints.arrays import npz_bytes
from sage_scale.keypoints.track import KeypointTrack
from sage_scale.streaming import open_datasets
from sage_scale.training.export import export_folder, load_translator
from sage_scale.training.model_card import write_card
from sage_scale.translation.captions import Caption
from sage_scale.translation.translate import Translator

ROOT = Path(__file__).resolve().parents[1]
SEED = 91
"""Of sentences; the demo's corpus has seed 0."""
VIDEOS = (
    "a training signer", "a held-out signer", "varying frame rate", "10 frames a second", "noisy camera",
    "shaking camera", "with keypoints", "without rests",
)  # fmt: skip
GROWTH_MB = 48.0
"""Memory that may be added after the first tenth of a long video."""


@dataclass(frozen=True)
class Truth:
    """A sentence of a video, seconds."""

    start_s: float
    end_s: float
    """Its clip, in which the hands rest at both ends."""
    signs_start_s: float
    signs_end_s: float
    """Its signs, without the hands' way to the first and from the last one."""
    sentence: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--data")
    parser.add_argument("--sentences", type=int, default=60)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parse(parser, sentences=3, hours=0.01)
    with tempfile.TemporaryDirectory(prefix="captions-") as folder:
        if options.small:
            sys.path.insert(0, str(ROOT / "tests"))
            from factories.training import make_translator

            options.run = make_translator(Path(folder) / "tiny")
        if options.run is None:
            parser.error("give a run")
        table = measured(options, Path(folder))
    print(table)
    if options.out:
        options.out.write_text(table + "\n", encoding="utf-8")


def measured(options: argparse.Namespace, folder: Path) -> str:
    """The tables."""
    translator = opened(options.run, options.data, folder)
    rows = [
        "| video | sentences | captions | cuts found | start, s | end, s | BLEU-4 | at true times |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for number, name in enumerate(VIDEOS):
        path = folder / f"{number}.mp4"
        truth = write(path, options.sentences, name)
        rows.append(row(translator, name, path, truth))
        print(rows[-1], flush=True)
    return "\n".join([*rows, "", *long_video(translator, folder, options.hours)])


def opened(run: Path, data: str | None, folder: Path) -> Translator:
    """The run's translator; of a copy with a card where its export has none and `data` is given."""
    if data and not (export_folder(run) / "card.json").exists():
        copy = folder / "model"
        shutil.copytree(export_folder(run), copy)
        write_card(copy, load_translator(copy, torch.device("cpu"))[2], open_datasets(data))
        run = copy
    return Translator(run, device="cpu")


def write(path: Path, sentences: int, kind: str) -> list[Truth]:
    """A video of `sentences` sentences, and their truth."""
    signer = HELD_OUT_SIGNERS[0] if "held-out" in kind else TRAINING_SIGNERS[0]
    varying, bare, slow = "varying" in kind, "without" in kind, "10 frames" in kind
    truth: list[Truth] = []
    tracks: list[KeypointTrack] = []
    times = Random(5)
    at_s = 0.0

    def frames() -> Iterator[tuple[float, np.ndarray]]:
        nonlocal at_s
        for number, item in enumerate(draw_splits(SEED, {"train": sentences})):
            motion = animate(signing(item.meaning), signer, Random(number))
            first, last = motion.spans[0].start, motion.spans[-1].end
            kept = (first, last) if bare else (0, motion.frames)
            zero_s = at_s - kept[0] / FPS
            tracks.append(skeleton_track(motion, signer))
            for frame, picture in enumerate(render(motion, signer)):
                if kept[0] <= frame < kept[1] and (not slow or frame * 10 // FPS != (frame - 1) * 10 // FPS):
                    yield (
                        max(0.0, zero_s + (frame + (times.uniform(-0.4, 0.4) if varying else 0)) / FPS),
                        picture,
                    )
            at_s = zero_s + kept[1] / FPS
            truth.append(
                Truth(zero_s + kept[0] / FPS, at_s, zero_s + first / FPS, zero_s + last / FPS, item.sentence)
            )

    shades = np.random.default_rng(6).normal(0, 8, (16, SIZE, SIZE, 1))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=FPS, options={"preset": "ultrafast", "crf": "21", "g": "50"}
        )
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        for shown, (time_s, picture) in enumerate(frames()):
            if "shaking" in kind:  # by a pixel to each side
                picture = np.roll(picture, (times.randint(-1, 1), times.randint(-1, 1)), (0, 1))
            if "noisy" in kind:
                noise = shades[shown % len(shades)]
                picture = np.clip(picture + noise, 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = round(1000 * time_s), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if "keypoints" in kind:
        points = np.concatenate([track.points_TKC for track in tracks])
        confidence = np.concatenate([track.confidence_TK for track in tracks])
        whole = tracks[0].replace(points_TKC=points, confidence_TK=confidence)
        path.with_suffix(".npz").write_bytes(npz_bytes(whole))
    return truth


def row(translator: Translator, name: str, path: Path, truth: list[Truth]) -> str:
    """One line of the table."""
    found = list(translator.captions(path))
    texts = ["" for _ in truth]
    firsts: dict[int, Caption] = {}
    lasts: dict[int, Caption] = {}
    for caption in found:
        middle_s = (caption.start_s + caption.end_s) / 2
        number = next((n for n, each in enumerate(truth) if middle_s < each.end_s), len(truth) - 1)
        texts[number] = f"{texts[number]} {caption.translation.sentence}".strip()
        firsts.setdefault(number, caption)
        lasts[number] = caption
    starts = [firsts[n].start_s - truth[n].signs_start_s for n in firsts]
    ends = [lasts[n].end_s - truth[n].signs_end_s for n in lasts]
    cuts = [(one.end_s, other.start_s) for one, other in itertools.pairwise(found)]
    borders = [each.end_s for each in truth[:-1]]
    hit = sum(any(a - 0.3 <= border <= b + 0.3 for a, b in cuts) for border in borders)
    alone = [translator.translate(path, "", each.start_s, each.end_s).sentence for each in truth]
    sentences = [each.sentence for each in truth]
    bleu = [score(given, sentences, "de")["bleu4"] for given in (texts, alone)]
    middle = [f"{np.median(errors):+.2f} ± {np.std(errors):.2f}" for errors in (starts, ends)]
    return (
        f"| {name} | {len(truth)} | {len(found)} | {hit} of {len(borders)} | {middle[0]} | {middle[1]} | "
        f"{bleu[0]:.1f} | {bleu[1]:.1f} |"
    )


def long_video(translator: Translator, folder: Path, hours: float) -> list[str]:
    """Lines on a video of `hours`: memory at tenths of it, speed, and the first caption. Raises where memory grows."""
    path = repeated(folder / "0.mp4", folder / "long.mp4", hours * 3600)
    peaks = [0.0] * 10
    begun, reading_s, first = time.monotonic(), [0.0], ""
    count = 0

    def read(time_s: float, end_s: float | None) -> None:
        reading_s[0] = time_s
        tenth = min(9, int(10 * time_s / (hours * 3600)))
        if int(time_s * 25) % 25 == 0:
            peaks[tenth] = max(peaks[tenth], resident_mb())

    for caption in translator.captions(path, on_read=read):
        count += 1
        if not first:
            first = f"{time.monotonic() - begun:.1f} s after the start, at {reading_s[0]:.1f} s of the video"
        assert caption.end_s > caption.start_s
    seconds = time.monotonic() - begun
    grown = max(peaks[1:]) - peaks[0]
    assert grown < GROWTH_MB, f"memory has grown by {grown:.0f} MB: {peaks}"
    speed, memory = hours * 3600 / seconds, ", ".join(f"{peak:.0f}" for peak in peaks)
    return [
        f"A video of {hours:g} hours: {count} captions in {seconds:.0f} s ({speed:.0f} times as fast as it is shown);",
        f"the first one {first}. Resident memory in its tenths, MB: {memory}.",
    ]


def repeated(source: Path, target: Path, seconds: float) -> Path:
    """The packets of a video again and again, up to a length."""
    with av.open(str(target), "w") as out:
        shift, stream = 0, None
        while True:
            with av.open(str(source)) as container:
                given = container.streams.video[0]
                stream = stream or out.add_stream_from_template(given)
                for packet in container.demux(given):
                    if packet.pts is None or packet.dts is None:
                        continue
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = stream
                    out.mux(packet)
                assert given.duration and given.time_base
                shift += given.duration
                if shift * given.time_base >= seconds:
                    return target


def resident_mb() -> float:
    """Resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
