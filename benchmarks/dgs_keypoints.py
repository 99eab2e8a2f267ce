"""Real German Sign Language, as keypoints, through precompute and pretraining; retrieval on a held-out recording.

    python benchmarks/dgs_keypoints.py FOLDER_OF_CLIPS [--out WORK] [--steps 300]

FOLDER_OF_CLIPS holds `clips.jsonl` (id, recording, text, fps) and `keypoints/<id>.npz`, each (T, 134) float16. The
recordings with the most clips train, the smallest is held out. Prints a table and a permutation test: with 30 clips of
spontaneous conversation little can be learnt, and the figure is shown whatever it says.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import parse

from sage_scale.config import load_recipe
from sage_scale.corpora.manifest import Clip, to_json_lines
from sage_scale.evaluation.stage1_scores import retrieval
from sage_scale.losses import objective_of
from sage_scale.models.sage import pretraining as alignment
from sage_scale.precompute import precompute_corpus
from sage_scale.training import distributed
from sage_scale.training.engine import Engine
from sage_scale.training.stage import STAGE1, run_stage

OVERRIDES = [
    "name=dgs-keypoints", "corpus.name=manifest", "vision.kind=features", "vision.backbone=keypoints",
    "vision.source_fps=50", "vision.background=none", "vision.min_frames=4", "denoise.max_minutes=1.0",
    "pretrain.batch_size=32", "pretrain.max_minutes=0", "pretrain.evaluate_every=-1", "stream.workers=0",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path, nargs="?", default=Path())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    options = parse(parser, steps=2)
    with tempfile.TemporaryDirectory(prefix="dgs-") as folder:
        if options.small:
            options.clips = made_clips(Path(folder) / "clips")
        if not (options.clips / "clips.jsonl").is_file():
            parser.error(f"{options.clips} holds no clips.jsonl: give the folder of the clips")
        work = options.out or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        changes = ["denoise.steps=5", "denoise.vocabulary=60"] if options.small else []
        print(json.dumps(run(options.clips, work, options.steps, changes), indent=1))


def made_clips(folder: Path) -> Path:
    """A folder of random walks in the form of the real clips, for --small."""
    (folder / "keypoints").mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for number in range(12):
        walk = 0.5 + rng.normal(0, 0.01, (120, 134)).cumsum(0)
        np.savez(folder / "keypoints" / f"{number}.npz", keypoints=walk.astype(np.float16))
        row = {"id": str(number), "recording": str(number // 9), "text": f"satz nummer {number}"}
        rows.append({**row, "fps": 50, "frames": 120})
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(clips: Path, work: Path, steps: int, changes: Sequence[str] = ()) -> dict:
    """Precompute, pretrain `steps` steps and score; gives first and last loss, retrieval and p-value."""
    manifest = write_manifest(clips, work / "clips.jsonl")
    overrides = [*OVERRIDES, f"pretrain.max_steps={steps}", *changes]
    recipe = load_recipe("demo", overrides)
    data = str(work / "shards")
    summary = precompute_corpus(
        corpus="manifest", root=str(manifest), out=data, recipe="demo", overrides=overrides, quiet=True
    )
    run_stage("pretrain", recipe, work / "run", data)
    rows = [json.loads(line) for line in (work / "run" / "pretrain" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["event"] == "step"]
    recipe = load_recipe(work / "run" / "recipe.yaml")  # with the width of the dataset's features
    similarity = held_out_similarity(recipe, work / "run", data)
    return {
        "dataset": summary.line(),
        "first_losses": sum(losses[:10]) / 10,
        "last_losses": sum(losses[-10:]) / 10,
        **retrieval(similarity),
        "held_out_clips": len(similarity),
        "permutation_p_value": permutation_p_value(similarity),
    }


def write_manifest(clips: Path, path: Path) -> Path:
    """Manifest of the clips: the smallest recording is the split `dev`."""
    rows = [json.loads(line) for line in (clips / "clips.jsonl").read_text(encoding="utf-8").splitlines()]
    counts = Counter(row["recording"] for row in rows)
    held_out = min(counts, key=counts.__getitem__)
    made = (
        Clip(
            id=row["id"],
            video=str((clips / "keypoints" / f"{row['id']}.npz").resolve()),
            sentence=row["text"],
            signer=row["recording"],
            split="dev" if row["recording"] == held_out else "train",
            frames=row["frames"] // 2,
        )
        for row in rows
    )
    path.write_text(to_json_lines(made), encoding="utf-8")
    return path


def permutation_p_value(similarity_VT: np.ndarray, draws: int = 2000, seed: int = 0) -> float:
    """Chance of a mean diagonal at least as high when texts are assigned to videos at random."""
    generator = np.random.default_rng(seed)
    own = similarity_VT.trace()
    rows = np.arange(len(similarity_VT))
    hits = sum(similarity_VT[rows, generator.permutation(len(rows))].sum() >= own for _ in range(draws))
    return (hits + 1) / (draws + 1)


def held_out_similarity(recipe, run_folder: Path, data: str):
    """(Zv + Zt) / 2 of the held-out recording's clips against their sentences, from the weights of the run."""
    import torch

    from sage_scale.models.sage.mbart import TextEncoder, load_language_model
    from sage_scale.models.sage.model import SageAligner
    from sage_scale.streaming import open_datasets
    from sage_scale.training.export import load_tensors

    model, tokenizer = load_language_model(run_folder / "language_model")
    aligner = SageAligner(recipe, model)
    aligner.load_state_dict(load_tensors(run_folder / STAGE1), strict=False)
    ranks = distributed.initialise()
    engine = Engine(aligner.eval(), recipe.pretrain, ranks)
    aligner.eval()
    with engine.evaluating():
        rows = alignment.embed_split(
            recipe, engine, TextEncoder(model, tokenizer), open_datasets(data), "dev"
        )
    sides = [[row[name] for row in rows] for name in ("visual", "embeddings")]
    lengths = (torch.tensor([len(tokens) for tokens in side]) for side in sides)
    video_to_text, text_to_video = objective_of(recipe.clcl).similarity(*map(torch.cat, sides), *lengths)
    return ((video_to_text + text_to_video) / 2).numpy()


if __name__ == "__main__":
    main()
