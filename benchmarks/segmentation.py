"""The motion tagger against human sign boundaries, beside as many equally spaced boundaries.

    python benchmarks/segmentation.py [--dgs FOLDER] [--synthetic FOLDER]

`--dgs`: clips.jsonl and keypoints/ (../shared/data/dgs_motion beside a checkout of this project's workshop),
50 fps, taken at 25. `--synthetic`: a corpus made by `sage-scale corpus make`. The boundary at frame 0 counts
on no side.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import parse
from PIL import Image, ImageDraw

from sage_scale.config import Corpus, Segmentation, Vision
from sage_scale.corpora.manifest import Clip, from_json_lines
from sage_scale.segmentation.rules import B, apply_rule, segments_to_labels
from sage_scale.segmentation.scores import clip_counts, scores
from sage_scale.segmentation.tagger import tag_clip
from sage_scale.vision.decode import GREY_SIZE, DecodedClip, decode_clip

FPS = 25.0
Example = tuple[DecodedClip, np.ndarray]
"""A decoded clip and its signs' [start, end) frames at 25 fps, (N, 2)."""


def dgs_examples(folder: Path) -> Iterator[Example]:
    """Real German Sign Language: keypoints with human boundaries."""
    vision = Vision(kind="features", backbone="keypoints", source_fps=50.0, min_frames=1)
    for line in (folder / "clips.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        clip = Clip(id=row["id"], video=str(folder / "keypoints" / f"{row['id']}.npz"), sentence=row["text"])
        signs = [[sign["start_ms"] * FPS / 1000, sign["end_ms"] * FPS / 1000] for sign in row["signs"]]
        yield decode_clip(clip, vision), np.rint(np.array(signs).reshape(-1, 2)).astype(int)


def drawn(example: Example, size: int = GREY_SIZE, shoulders: float = 0.36) -> Example:
    """The same clip as small grey pictures of a drawn signer, for what the tagger sees of a video of real signing."""
    decoded, signs = example
    assert decoded.keypoints_TKC is not None
    points = decoded.keypoints_TKC.astype(float)
    for k in range(points.shape[1]):
        seen = np.flatnonzero((points[:, k] != 0).any(-1))
        for axis in (0, 1) if len(seen) else ():
            points[:, k, axis] = np.interp(np.arange(len(points)), seen, points[seen, k, axis])
    side = 4 * size
    width = np.median(np.linalg.norm(points[:, 5] - points[:, 2], axis=1))
    points = (points - np.median(points[:, 1], axis=0)) * shoulders * side / width + (side / 2, 0.38 * side)
    pictures = []
    for body in points:
        picture = Image.new("L", (side, side), 150)
        draw = ImageDraw.Draw(picture)
        left, right, (x, y) = tuple(body[5]), tuple(body[2]), body[0]
        draw.polygon([right, left, (left[0], side), (right[0], side)], fill=40)
        draw.ellipse([x - 0.07 * side, y - 0.11 * side, x + 0.07 * side, y + 0.09 * side], fill=200)
        for a, b in ((2, 3), (3, 4), (5, 6), (6, 7)):
            draw.line([tuple(body[a]), tuple(body[b])], fill=50, width=side // 20)
        for hand in (25, 46):
            draw.polygon([tuple(body[hand + k]) for k in (0, 5, 9, 13, 17)], fill=205)
            for finger in range(5):
                joints = [0, *range(4 * finger + 1, 4 * finger + 5)]
                draw.line([tuple(body[hand + k]) for k in joints], fill=205, width=max(2, side // 80))
        pictures.append(np.asarray(picture.resize((size, size), Image.Resampling.BOX)))
    return dataclasses.replace(decoded, keypoints=None, grey_THW=np.stack(pictures)), signs


def synthetic_examples(root: Path) -> Iterator[Example]:
    """The synthetic corpus: videos with gold boundaries."""
    for clip in from_json_lines((root / "manifest.jsonl").read_text(encoding="utf-8")).clips:
        gold = json.loads((root / "gold" / f"{clip.id}.json").read_text(encoding="utf-8"))
        signs = np.array([[sign["start"], sign["end"]] for sign in gold["signs"]])
        video = Clip(id=clip.id, video=str(root / clip.video))
        yield decode_clip(video, Vision(size=64)), signs


def table(name: str, examples: list[Example]) -> list[str]:
    """Markdown rows: the tagger's onsets and the segments of the rule `sage`, each beside equal spacing."""
    totals = [decoded.total_frames for decoded, _ in examples]
    gold = [signs for _, signs in examples]
    segmentation = Segmentation()
    labels = [tag_clip(decoded, segmentation, FPS).labels_T for decoded, _ in examples]
    human = [segments_to_labels(signs, decoded.total_frames) for decoded, signs in examples]
    rows = []
    for what, starts in (
        ("onsets of `motion`", [np.flatnonzero(label == B) for label in labels]),
        ("segments, rule `sage`", [apply_rule(label, segmentation, FPS)[:, 0] for label in labels]),
        (
            "segments of gold signs, rule `sage`",
            [apply_rule(label, segmentation, FPS)[:, 0] for label in human],
        ),
    ):
        ratio = sum(map(len, starts)) / sum(totals)
        found = onset_scores(starts, gold, totals)
        each = [
            f"{found[f'onset_f1_{near}']:.3f} ({found[f'even_onset_f1_{near}']:.3f})" for near in (1, 2, 3)
        ]
        rows.append(f"| {name} | {what} | {ratio:.3f} | {' | '.join(each)} |")
    return rows


def onset_scores(
    starts: list[np.ndarray], gold: list[np.ndarray], totals: list[int]
) -> dict[str, np.ndarray]:
    """Scores of the onsets `starts` (the others need whole segments and mean nothing here)."""
    segments = [np.stack([frames, frames + 1], axis=1) for frames in starts]
    return scores(np.sum([*map(clip_counts, segments, gold, totals)], axis=0), FPS)


def main() -> None:
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "dgs_motion"
    parser.add_argument("--dgs", type=Path, default=beside)
    parser.add_argument("--synthetic", type=Path)
    arguments = parse(parser, dgs=Path("-"))
    print("| data | boundaries | a frame | F1 within 1 (even spacing) | within 2 | within 3 frames |")
    print("|---|---|---|---|---|---|")
    if (arguments.dgs / "clips.jsonl").is_file():
        examples = list(dgs_examples(arguments.dgs))
        print("\n".join(table("real DGS, keypoints", examples)))
        print("\n".join(table("real DGS, drawn pictures", [drawn(example) for example in examples])))
    else:
        print(f"(skipped: there is no {arguments.dgs})")
    if arguments.synthetic:
        print("\n".join(table("synthetic, pictures", list(synthetic_examples(arguments.synthetic)))))
    if arguments.small:
        from sage_scale.corpora.synthetic import make_corpus

        with tempfile.TemporaryDirectory() as folder:
            few = Corpus(name="synthetic", train_clips=3, dev_clips=1, test_clips=1, heldout_clips=1)
            make_corpus(few, Path(folder))
            print("\n".join(table("synthetic, pictures", list(synthetic_examples(Path(folder))))))


if __name__ == "__main__":
    main()
