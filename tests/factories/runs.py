"""A run folder such as training leaves it, with plausible figures, for the tests of the report."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sage_scale.config import from_mapping, to_yaml

SENTENCES = [
    ("am donnerstag regnet es im norden", "am donnerstag regnet es im norden", ["donnerstag", "regnen", "norden"]),
    ("in der nacht weht ein starker wind an der küste", "in der nacht weht ein mäßiger wind an der see",
     ["nacht", "wehen", "stark", "wind", "küste"]),
    ("morgen scheint im süden oft die sonne bei fünfzehn grad", "morgen scheint im süden die sonne bei elf grad",
     ["morgen", "scheinen", "süden", "oft", "sonne", "fünfzehn", "grad"]),
    ("heute bleibt es trocken", "am montag schneit es in den alpen", ["heute", "bleiben", "trocken"]),
    ("gewitter <script>alert('x')</script> & hagel", "gewitter und \"hagel\"", ["gewitter", "<b>hagel</b>"]),
    ("und nun die wettervorhersage für morgen", "", ["wettervorhersage", "morgen"]),
]  # fmt: skip


def make_run(folder: Path) -> Path:
    """Fill `folder` as both stages and the evaluation would, and return it."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = from_mapping({"name": "demo", "vision": {"size": 64, "crop": 64}, "pretrain": {"lr": 0.001}})
    (folder / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    _log(folder / "pretrain", 420, 3.4, 0.4, rng, first=True)
    _log(folder / "finetune", 600, 6.1, 1.6, rng, first=False)
    _scores(folder)
    _predictions(folder, rng)
    _alignment(folder, rng)
    _timelines(folder, rng)
    timing = [("corpus", 48, 420), ("precompute", 71, 910), ("denoise", 88, 1250), ("pretrain", 205, 2480),
              ("finetune", 148, 2210), ("evaluate", 31, 1800)]  # fmt: skip
    rows = [{"stage": stage, "seconds": seconds, "memory_mb": memory} for stage, seconds, memory in timing]
    (folder / "timing.json").write_text(json.dumps(rows))
    return folder


def _log(folder: Path, steps: int, start: float, end: float, rng: np.random.Generator, first: bool) -> None:
    folder.mkdir()
    began = {"event": "start", "step": 0, "ranks": 2, "hosts": 1, "device": "CPU (x86_64)", "zero_stage": 2,
             "offload": "none", "precision": "bfloat16", "batch_size": 32, "micro_batch": 0, "recompute": False,
             "peak_tflops": 0.141, "peak_source": "a matrix product timed at the start"}  # fmt: skip
    lines = [json.dumps(began), json.dumps(began | {"step": 90, "ranks": 1})]
    lines += [json.dumps({"event": "save", "step": step, "blocked_s": 0.05, "background_s": 1.5, "bytes": 4_200_000})
              for step in (90, 180, 270)]  # fmt: skip
    lines.append(
        json.dumps({"event": "bad_step", "step": 133, "reason": "the loss is inf", "action": "skip"})
    )
    for step in range(1, steps + 1):
        done = step / steps
        loss = end + (start - end) * math.exp(-4 * done) + float(rng.normal(0, 0.12))
        row = {"event": "step", "step": step, "epoch": step / 15, "loss": loss,
               "lr": 1e-3 * (1 + math.cos(math.pi * done)) / 2,
               "grad_norm": float(rng.lognormal(0.3 - done, 0.4)), "samples_per_s": float(rng.normal(84, 6)),
               "wait_s": 0.004, "clips": 32, "tokens_per_s": float(rng.normal(900, 40)), "mfu": 0.31,
               "memory_now_mb": 1900 + step, "memory_mb": 2400, "time_s": step * 0.42}  # fmt: skip
        if first:
            row |= {
                "loss_embedding": loss * 0.9,
                "loss_hidden": loss * 1.15,
                "scale_embedding": 14.3 + 9 * done,
                "scale_hidden": 14.3 + 5 * done,
            }
        lines.append(json.dumps(row))
        if step % 100 == 0 or step == steps:
            dev = {"event": "dev", "step": step, "loss": loss * 1.2, "seconds": 2.0, "clips": 48}
            dev |= (
                {"r1_v2t": 100 * done**0.5, "r1_t2v": 95 * done**0.6} if first else {"bleu4": 34 * done**0.7}
            )
            lines.append(json.dumps(dev))
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")


def _scores(folder: Path) -> None:
    def score(bleu4: float, clips: int = 96) -> dict[str, object]:
        return {"bleu1": bleu4 * 1.8, "bleu2": bleu4 * 1.4, "bleu3": bleu4 * 1.15, "bleu4": bleu4,
                "rouge_l": bleu4 * 1.7,
                "bleu4_none": bleu4, "rouge_l_beta12": bleu4 * 1.68, "clips": clips,
                "signature": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"}  # fmt: skip

    scores = score(36.42) | {
        "split": "test",
        "content_f1": 58.3,
        "token_ratio": 0.1312,
        "heldout": score(29.7, 48),
    }
    scores["controls"] = {
        "exchanged_videos": score(6.9),
        "blank_videos": score(8.1),
        "nearest_in_length": score(5.2),
        "prior_sentence": score(4.4),
    }
    (folder / "scores.json").write_text(json.dumps(scores))


def _predictions(folder: Path, rng: np.random.Generator) -> None:
    (folder / "predictions").mkdir()
    rows = []
    for n in range(24):
        reference, hypothesis, glosses = SENTENCES[n % len(SENTENCES)]
        rows.append({"key": f"{n:016x}", "id": f"test/{n}", "hypothesis": hypothesis, "reference": reference,
                     "pseudo_glosses": glosses, "segments": [[0, 8], [8, 15]], "frames": 110,
                     "signer": f"s{n % 8}"})  # fmt: skip
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "predictions" / "test.jsonl").write_text(text, encoding="utf-8")


def _segments(total: int, rng: np.random.Generator) -> list[list[int]]:
    edges = [int(edge) for edge in np.cumsum(rng.integers(4, 11, size=60)) if edge < total]
    return [[a, b] for a, b in itertools.pairwise(edges)]


def _alignment(folder: Path, rng: np.random.Generator) -> None:
    rows = []
    for reference, _, glosses in SENTENCES[:3]:
        tokens = [
            piece for gloss in glosses for piece in ([gloss] if len(gloss) < 7 else [gloss[:6], gloss[6:]])
        ]
        segments = _segments(112, rng)
        similarity = rng.normal(0.05, 0.08, size=(len(segments), len(tokens)))
        for m in range(len(tokens)):
            similarity[min(int((m + 0.5) * len(segments) / len(tokens)), len(segments) - 1), m] += 0.6
        rows.append(
            {
                "key": "0" * 16,
                "sentence": reference,
                "tokens": tokens,
                "similarity": similarity.round(3).tolist(),
                "segments": segments,
            }
        )
    (folder / "alignment.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def _timelines(folder: Path, rng: np.random.Generator) -> None:
    (folder / "timelines").mkdir()
    rows = []
    for n, (reference, hypothesis, glosses) in enumerate(SENTENCES[:3] + SENTENCES[4:5]):
        total = 100 + 12 * n
        segments = _segments(total, rng)
        row = {"key": "0" * 16, "id": "x", "sentence": reference, "hypothesis": hypothesis, "fps": 25.0,
               "frames": total,
               "segments": segments,
               "thumbnails": [{"frame": (a + b) // 2, "jpeg": _jpeg(a + b)} for a, b in segments]}  # fmt: skip
        if n < 2:
            width = total // (len(glosses) + 1)
            row["gold"] = [
                [8 + i * width, 4 + (i + 1) * width, gloss.upper()] for i, gloss in enumerate(glosses)
            ]
        rows.append(row)
    (folder / "timelines" / "timelines.json").write_text(
        json.dumps(rows, ensure_ascii=False), encoding="utf-8"
    )


def _jpeg(phase: int) -> str:
    image = Image.new("RGB", (64, 64), (206, 212, 220))
    draw = ImageDraw.Draw(image)
    draw.rectangle((20, 27, 44, 64), fill=(58, 68, 98))
    draw.ellipse((25, 8, 39, 26), fill=(222, 176, 148))
    x, y = 32 + 18 * math.sin(phase / 9), 40 + 12 * math.cos(phase / 7)
    draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=(226, 180, 152))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return base64.b64encode(out.getvalue()).decode()
