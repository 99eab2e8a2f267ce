"""Where pseudo-glosses are in a few clips, for the report (Sign2GPT, Figures 4 to 6)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sage_scale.models.sign2gpt.run_prototypes import target_glosses
from sage_scale.streaming.packing import grid_rows, run_indices
from sage_scale.training.decode import first_batch
from sage_scale.training.engine import Engine
from sage_scale.training.evaluate_run import thumbnail
from sage_scale.training.stage import TaskContext

CLIPS = 6
PICTURES = 12
"""Frames shown under a map."""


@torch.no_grad()
def write_localisation(
    context: TaskContext, engine: Engine, vocabulary: Sequence[str], model: Any, path: Path, width: int = 72
) -> None:
    """A JSON list of dev clips (rank 0 only): for each of the vocabulary's pseudo-glosses that was found or is
    there, E over the tokens.

    Each clip has `sentence`, `fps`, `frames`, `threshold`, `times` (S, the frame of each token), `rows` (`gloss`,
    `there`, `presence`, `values` (S)) in the order of their strongest token, and `pictures` (`frame`, `jpeg`).
    """
    recipe, datasets = context.recipe, context.datasets
    batch = first_batch(recipe, datasets, "dev", CLIPS)
    clip_rows: list[dict[str, Any]] = []
    with engine.precision():
        scores = model.scores(batch.video.to(engine.ranks.device))
        lengths_B = model.sign_encoder.token_lengths(batch.video.clip_frames_B())
    presence_BU = scores.presence_BU.float().cpu()
    packed = 0
    maps = scores.localisation_NU.float().cpu().split(lengths_B.tolist())
    for row, (meta, localised_SU) in enumerate(zip(batch.metas, maps, strict=True)):
        grid = _stored_frames(batch.segments[row], meta)
        there = set(target_glosses(recipe, meta))
        shown = [
            number
            for number, gloss in enumerate(vocabulary)
            if gloss in there or presence_BU[row, number] > recipe.prototypes.threshold
        ]
        shown.sort(key=lambda number: int(localised_SU[:, number].argmax()))
        step = max(1, len(grid) // PICTURES)
        frames = batch.video.frames_FCHW
        clip_rows.append(
            {
                "key": batch.keys[row],
                "sentence": meta["sentence"],
                "fps": meta["fps"],
                "frames": meta["frames"],
                "threshold": recipe.prototypes.threshold,
                "times": grid[:: 2 if len(localised_SU) < len(grid) else 1],
                "rows": [
                    {
                        "gloss": vocabulary[number],
                        "there": vocabulary[number] in there,
                        "presence": round(float(presence_BU[row, number]), 3),
                        "values": np.round(localised_SU[:, number].numpy(), 4).tolist(),
                    }
                    for number in shown
                ],
                "pictures": []
                if frames is None
                else [
                    {"frame": grid[index], "jpeg": thumbnail(frames[packed + index], width)}
                    for index in range(step // 2, len(grid), step)
                ],
            }
        )
        packed += len(grid)
    path.write_text(json.dumps(clip_rows, ensure_ascii=False) + "\n", encoding="utf-8")


def _stored_frames(segments_N2: np.ndarray, meta: dict[str, Any]) -> list[int]:
    """Returns the frame numbers of the packed frames of a clip."""
    stride = int(meta["frame_stride"])
    rows = np.array([-(-int(meta["frames"]) // stride)])
    runs = grid_rows(segments_N2, np.array([len(segments_N2)]), stride, rows)
    return (run_indices(*runs) * stride).tolist()
