"""Videos of a drawn signer from keypoint files, for taggers that see pictures, where the real videos are not given.

python tests/campaigns/drawn_signers.py KEYPOINTS OUT [--source-fps 50] [--aspect 1.7778]
sage-scale segment evaluate --gold ANNOTATION --root OUT segmentation.tagger=motion
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from common import parse

from sage_scale.config import Segmentation, Vision
from sage_scale.corpora.synthetic.render import write_h264
from sage_scale.corpora.videos import whole_videos
from sage_scale.segmentation.sources import decode_for_tagger

SIDE, SHOULDERS = 192, 0.36  # of the pictures, pixels, and the shoulders' share of it


def drawn(points_TKC: np.ndarray | None) -> np.ndarray:
    """Returns pictures uint8 (T, SIDE, SIDE, 3) of points (T, 67, 2) in the order of OPENPOSE_67, (0, 0) not seen."""
    assert points_TKC is not None, "the source is a keypoint file"
    points = points_TKC.astype(float)
    for k in range(points.shape[1]):
        seen = np.flatnonzero((points[:, k] != 0).any(-1))
        for axis in (0, 1) if len(seen) else ():
            points[:, k, axis] = np.interp(np.arange(len(points)), seen, points[seen, k, axis])
    width = np.median(np.linalg.norm(points[:, 5] - points[:, 2], axis=1))
    points = (points - np.median(points[:, 1], axis=0)) * SHOULDERS * SIDE / width + (SIDE / 2, 0.38 * SIDE)
    pictures = []
    for body in points:
        draw = ImageDraw.Draw(picture := Image.new("L", (SIDE, SIDE), 150))
        left, right, (x, y) = tuple(body[5]), tuple(body[2]), body[0]
        draw.polygon([right, left, (left[0], SIDE), (right[0], SIDE)], fill=40)
        draw.ellipse([x - 0.07 * SIDE, y - 0.11 * SIDE, x + 0.07 * SIDE, y + 0.09 * SIDE], fill=200)
        for a, b in ((2, 3), (3, 4), (5, 6), (6, 7)):
            draw.line([tuple(body[a]), tuple(body[b])], fill=50, width=SIDE // 20)
        for hand in (25, 46):
            draw.polygon([tuple(body[hand + k]) for k in (0, 5, 9, 13, 17)], fill=205)
            for first in range(1, 21, 4):
                draw.line([tuple(body[hand + k]) for k in (0, *range(first, first + 4))], fill=205, width=2)
        pictures.append(np.asarray(picture.convert("RGB")))
    return np.stack(pictures)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*", metavar="KEYPOINTS OUT")
    for name, usual in (("--source-fps", 25.0), ("--aspect", 1.0)):
        parser.add_argument(name, type=float, default=usual)
    options = parse(parser)
    with tempfile.TemporaryDirectory() as folder:
        if options.small:
            options.folders = [Path(folder), Path(folder) / "out"]
            shares = np.random.default_rng(0).uniform(0.2, 0.8, (12, 134))
            np.savez(Path(folder) / "a.npz", keypoints=shares.astype(np.float16))
        keypoints, out = options.folders
        for clip in (clips := whole_videos(keypoints).clips):
            vision = Vision(source_fps=options.source_fps, source_aspect=options.aspect)
            (path := out / f"{clip.id}.mp4").parent.mkdir(parents=True, exist_ok=True)
            write_h264(
                path, iter(drawn(decode_for_tagger(clip, vision, Segmentation()).keypoints_TKC)), 25, SIDE
            )
        print(f"{len(clips)} videos in {out}")


if __name__ == "__main__":
    main()
