"""The untrained taggers on pictures beside signlang-segmenter 0.2.1 (optical flow, untrained), in its environment.

    python benchmarks/segmentation_peer.py --peer FOLDER [--synthetic FOLDER] [--videos FOLDER]

`--peer` is made where it is missing (0.5 GB); without it, ours alone are scored. `--synthetic` is a corpus made by
`sage-scale corpus make`, which has true segments; the videos of `--videos` have none.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

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
Found = tuple[np.ndarray, float]
"""Segments in frames at 25 fps, (N, 2), and the seconds of CPU that they took, decoding included."""


Video = tuple[str, int, np.ndarray | None]
"""Path, frames at 25 fps, and true segments where there are some."""


def ours(video: str, segmentation: Segmentation) -> Found:
    began = time.process_time()
    decoded = decode_clip(Clip(id="x", video=video), Vision(size=64, max_frames=10**6))
    return segment_clip(decoded, segmentation, FPS), time.process_time() - began


def theirs(video: str, process: Asked) -> Found:
    process.say(json.dumps(video))
    pairs, seconds = json.loads(process.answer())
    return np.rint(np.array(pairs).reshape(-1, 2) * FPS).astype(int), seconds


def row(name: str, tagger: Callable[[str], Found], videos: list[Video]) -> str:
    """A Markdown row."""
    found = [tagger(video) for video, _, _ in videos]
    total = sum(frames for _, frames, _ in videos)
    inside = sum(int(np.diff(segments).sum()) for segments, _ in found)
    cells = [name, f"{sum(len(segments) for segments, _ in found) / total:.3f}", f"{inside / total:.2f}"]
    if videos[0][2] is not None:
        pairs = [(s, gold, frames) for (s, _), (_, frames, gold) in zip(found, videos) if gold is not None]
        counts = [clip_counts(*pair) for pair in pairs]
        score = scores(np.sum(counts, axis=0), FPS)
        cells += [f"{score[f'onset_f1_{n}']:.3f} ({score[f'even_onset_f1_{n}']:.3f})" for n in (1, 2, 3)]
        cells += [f"{score['segment_f1_50']:.3f}", f"{score['frame_macro_f1']:.3f}"]
    return f"| {' | '.join([*cells, f'{1000 * sum(seconds for _, seconds in found) / total:.1f}'])} |"


def table(videos: list[Video], process: Asked | None) -> None:
    scored = (
        ["onset F1 within 1 (even)", "2", "3 frames", "segment F1", "frame macro F1"]
        if videos[0][2] is not None
        else []
    )
    names = ["tagger", "segments a frame", "share inside", *scored, "CPU ms a frame"]
    print(f"\n| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for name in ("motion", "uniform"):
        settings = Segmentation(tagger=name, rule="plain")  # type: ignore[arg-type]
        print(row(name, lambda video, settings=settings: ours(video, settings), videos))  # type: ignore[misc]
    if process is not None:
        print(row(PEER.replace("==", " "), lambda video: theirs(video, process), videos))


def main() -> None:
    """Print a table of the synthetic corpus, and one of the videos."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--synthetic", type=Path)
    parser.add_argument("--videos", type=Path)
    options = parse(parser)
    process = None
    if options.peer:
        process = Asked([peers_python(options.peer, PEER), "-c", SERVE])
    with tempfile.TemporaryDirectory() as folder:
        if options.small:
            options.synthetic = Path(folder)
            make_corpus(Corpus(train_clips=2, dev_clips=1, test_clips=1, heldout_clips=1), options.synthetic)
        if options.synthetic:
            root: Path = options.synthetic
            videos: list[Video] = []
            for clip in from_json_lines((root / "manifest.jsonl").read_text(encoding="utf-8")).clips:
                signs = [[sign["start"], sign["end"]] for sign in load_gold(root, clip.id)["signs"]]
                videos.append((str(root / clip.video), clip.frames, np.array(signs)))
            table(videos, process)
    if options.videos:
        paths = sorted(map(str, options.videos.glob("*.mp4")))
        lengths = [
            decode_clip(Clip(id="x", video=p), Vision(size=64, max_frames=10**6)).total_frames for p in paths
        ]
        table([(path, length, None) for path, length in zip(paths, lengths)], process)
    if process is not None:
        process.close()


if __name__ == "__main__":
    main()
