"""The untrained taggers on pictures beside signlang-segmenter 0.2.1 (optical flow, untrained), in its environment.

    python benchmarks/segmentation_peer.py --peer FOLDER [--synthetic FOLDER] [--videos FOLDER]

`--peer` is made where it is missing (0.5 GB); without it, ours alone are scored. `--synthetic` is a corpus made by
`sage-scale corpus make`, which has true segments; the videos of `--videos` have none.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import Asked, parse, peers_python

from sage_scale.config import Corpus, Segmentation, Vision
from sage_scale.corpora.manifest import Clip, from_json_lines
from sage_scale.corpora.synthetic import load_gold, make_corpus
from sage_scale.segmentation.scores import clip_counts, scores
from sage_scale.segmentation.segmenter import segment_clip
from sage_scale.vision.decode import decode_clip

PEER, FPS = "signlang-segmenter==0.2.1", 25.0
SERVE = """import json, sys, time
from signlang_segmenter.video import VideoSegmenter
for line in sys.stdin:
    began = time.process_time()
    found, about = VideoSegmenter().segment(json.loads(line))
    pairs = [[s.start_frame / about["fps"], (s.end_frame + 1) / about["fps"]] for s in found]
    print(json.dumps([pairs, time.process_time() - began]), flush=True)
"""
Tagger = Callable[[str], tuple[np.ndarray, float]]
"""Video -> segments in frames at 25 fps (N, 2), and seconds of CPU, decoding included."""


def ours(name: Any, video: str) -> tuple[np.ndarray, float]:
    began = time.process_time()
    decoded = decode_clip(Clip(id="x", video=video), Vision(size=64, max_frames=10**6))
    segments_N2 = segment_clip(decoded, Segmentation(tagger=name, rule="plain"), FPS)
    return segments_N2, time.process_time() - began


def theirs(process: Asked, video: str) -> tuple[np.ndarray, float]:
    process.say(json.dumps(video))
    pairs, seconds = json.loads(process.answer())
    return np.rint(np.array(pairs).reshape(-1, 2) * FPS).astype(int), seconds


def table(videos: list[str], gold: list[np.ndarray], taggers: dict[str, Tagger]) -> None:
    """Print a Markdown table; `gold` are true segments, or there are none."""
    scored = ["onset F1 within 1 (even)", "2", "3 frames", "segment F1", "frame macro F1"] if gold else []
    names = ["tagger", "segments a frame", "share inside", *scored, "CPU ms a frame"]
    print(f"\n| {' | '.join(names)} |\n|{'---|' * len(names)}")
    lengths = [
        decode_clip(Clip(id="x", video=v), Vision(size=64, max_frames=10**6)).total_frames for v in videos
    ]
    for name, tagger in taggers.items():
        found, seconds = zip(*map(tagger, videos), strict=True)
        total, inside = sum(lengths), sum(int(np.diff(segments).sum()) for segments in found)
        cells = [name, f"{sum(map(len, found)) / total:.3f}", f"{inside / total:.2f}"]
        if gold:
            score = scores(sum(clip_counts(*row) for row in zip(found, gold, lengths)), FPS)  # type: ignore[arg-type]
            cells += [f"{score[f'onset_f1_{n}']:.3f} ({score[f'even_onset_f1_{n}']:.3f})" for n in (1, 2, 3)]
            cells += [f"{score['segment_f1_50']:.3f}", f"{score['frame_macro_f1']:.3f}"]
        print(f"| {' | '.join([*cells, f'{1000 * sum(seconds) / total:.1f}'])} |")


def main() -> None:
    """Print a table of the synthetic corpus, and one of the videos."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--peer", "--synthetic", "--videos"):
        parser.add_argument(name, type=Path)
    options = parse(parser)
    taggers: dict[str, Tagger] = {name: functools.partial(ours, name) for name in ("motion", "uniform")}
    if options.peer:
        process = Asked([peers_python(options.peer, PEER), "-c", SERVE])
        taggers[PEER.replace("==", " ")] = functools.partial(theirs, process)
    with tempfile.TemporaryDirectory() as folder:
        root = options.synthetic or (Path(folder) if options.small else None)
        if options.small:
            make_corpus(Corpus(train_clips=2, dev_clips=1, test_clips=1, heldout_clips=1), Path(folder))
        if root:
            clips = from_json_lines((root / "manifest.jsonl").read_text(encoding="utf-8")).clips
            signs = [[(s["start"], s["end"]) for s in load_gold(root, clip.id)["signs"]] for clip in clips]
            table([str(root / clip.video) for clip in clips], list(map(np.array, signs)), taggers)
    if options.videos:
        table(sorted(map(str, options.videos.glob("*.mp4"))), [], taggers)


if __name__ == "__main__":
    main()
