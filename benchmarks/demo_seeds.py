"""A demo and its control over several seeds: what stage 1 brings for the same budget, with its deviation.

    python benchmarks/demo_seeds.py [--recipe demo] [--seeds 3] [--kinds with without] [--home runs]

Corpus and shards are made once; every seed trains its own language model and both stages. About nine minutes a run on
two idle cores; stages end by steps, so that other work on the machine changes the time alone (a line says where a limit
in minutes ended one). `without` gives stage 2 the steps that the time of both stages buys, end to end. Further kinds
are Sign2GPT's (--recipe sign2gpt-demo). Prints one table: micro and macro F1 of the pseudo-glosses found in test clips
(Sign2GPT), BLEU-4 on the test sentences, on held-out signers, and of the best control.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

from common import parse, spread

from sage_scale.evaluation.stored import read_scores
from sage_scale.experiments import demo

KINDS: dict[str, list[str]] = {
    "with": [],
    "without": [],
    "all-words": ["text.target=sentence"],
    "no-sign-encoder": ["model.sign2gpt.layers=0", "model.sign2gpt.downsample_after=0"],
    "random-vectors": ["prototypes.vectors=random"],
    "frozen-signs": ["finetune.freeze=visual"],
}
"""Changes to the recipe. Of Sign2GPT's paper: Table 2 (frozen-signs is Sign(Z)2GPT with Z kept in memory), 9, 10."""
SMALL = [
    "corpus.train_clips=8", "corpus.dev_clips=2", "corpus.test_clips=2", "corpus.heldout_clips=2",
    "shards.clips_per_unit=7", "precompute.actors=1", "denoise.steps=4", "denoise.vocabulary=100",
    "pretrain.max_steps=2", "finetune.max_steps=2", "finetune.frozen_views=1", "pretrain.batch_size=4",
    "finetune.batch_size=4", "evaluation.max_tokens=8",
]  # fmt: skip
NAMES = {
    "f1": "F1 (micro)", "macro": "F1 (macro)", "guess": "by frequency", "test": "BLEU-4 test",
    "heldout": "held-out signers", "control": "best control",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="demo", choices=["demo", "sign2gpt-demo"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=["with", "without"], choices=list(KINDS))
    parser.add_argument("--home", type=Path, default=Path("runs"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the recipe")
    options = parse(parser, seeds=1, kinds=["with"], set=SMALL)
    if not options.small:
        print_table(run(options, options.home))
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        print_table(run(options, Path(folder)))


def run(options: argparse.Namespace, home: Path) -> dict[str, list[dict[str, Any]]]:
    """Figures of every seed by kind; runs that are finished are not repeated."""
    table: dict[str, list[dict[str, Any]]] = {}
    for seed in range(options.seeds):
        for kind in options.kinds:
            folder = home / f"{options.recipe}-{kind}-{seed}"
            if not (folder / "report.html").is_file():
                changes = [f"pretrain.seed={seed}", f"finetune.seed={seed}", *KINDS[kind], *options.set]
                demo.run(options.recipe, folder, control=kind == "without", overrides=changes)
            table.setdefault(kind, []).append(figures(folder))
    return table


def figures(folder: Path) -> dict[str, Any]:
    """What the table needs of a run; no F1 where there are no prototypes."""
    scores = read_scores(folder)["test"]
    found: dict[str, Any] = {
        "test": scores["bleu4"],
        "heldout": scores["heldout"]["bleu4"],
        "control": max(values["bleu4"] for values in scores["controls"].values()),
    }
    if (folder / "prototypes.json").is_file():
        split = json.loads((folder / "prototypes.json").read_text())["splits"]["test"]
        found |= {"f1": split["f1"], "macro": split["macro_f1"], "guess": split["control"]["f1"]}
    return found


def print_table(table: dict[str, list[dict[str, Any]]]) -> None:
    """One line a kind: mean and deviation over the seeds."""
    names = [name for name in NAMES if any(name in row for rows in table.values() for row in rows)]
    print(f"| kind | seeds | {' | '.join(NAMES[name] for name in names)} | each |")
    print("|---|---|" + "---|" * (len(names) + 1))
    for kind, rows in table.items():
        columns = [spread([row[name] for row in rows if name in row]) for name in names]
        each = ", ".join(f"{row['test']:.1f}" for row in rows)
        print(f"| {kind} | {len(rows)} | {' | '.join(columns)} | {each} |")


if __name__ == "__main__":
    main()
