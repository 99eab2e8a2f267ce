"""What prototype pretraining brings Sign2GPT on the made corpus, over seeds, beside the paper's ablations of stage 1.

    python benchmarks/sign2gpt_demo.py [--seeds 3] [--kinds with without] [--steps STAGE1 STAGE2 CONTROL] [--home runs]

Corpus and shards are made once; every seed trains its own language model and both stages. `without` gives stage 2 the
time of both stages, end to end. `--steps` ends stages by counts instead of the clock, so that it does not matter what
else the machine does. Prints one table: micro and macro F1 of the pseudo-glosses found in test clips, BLEU-4 on test
sentences, on held-out signers, and of the best control.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from demo_seeds import fixed_work

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
"""Changes to the recipe: Table 2 (frozen-signs is Sign(Z)2GPT with Z kept in memory), Table 9, Table 10."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=["with", "without"], choices=list(KINDS))
    parser.add_argument("--home", type=Path, default=Path("runs"))
    parser.add_argument("--steps", type=int, nargs=3, metavar=("STAGE1", "STAGE2", "CONTROL"))
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="further changes of the recipe"
    )
    options = parser.parse_args()
    table: dict[str, list[dict[str, Any]]] = {}
    for seed in range(options.seeds):
        for kind in options.kinds:
            folder = options.home / f"sign2gpt-{kind}-{seed}"
            if not (folder / "report.html").is_file():
                control = kind == "without"
                changes = [f"pretrain.seed={seed}", f"finetune.seed={seed}", *KINDS[kind], *options.set]
                if options.steps:
                    changes += fixed_work(*options.steps, control=control)
                demo.run("sign2gpt-demo", folder, control=control, overrides=changes)
            table.setdefault(kind, []).append(figures(folder))
    print_table(table)


def figures(folder: Path) -> dict[str, Any]:
    """What the table needs of a run; no F1 where stage 1 was left out."""
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
    names = ("F1 (micro)", "F1 (macro)", "by frequency", "BLEU-4 test", "held-out signers", "best control")
    print(f"| kind | seeds | {' | '.join(names)} | each |")
    print("|---|---|" + "---|" * (len(names) + 1))
    for kind, rows in table.items():
        columns = [spread([row[name] for row in rows if name in row])
                   for name in ("f1", "macro", "guess", "test", "heldout", "control")]  # fmt: skip
        each = ", ".join(f"{row['test']:.1f}" for row in rows)
        print(f"| {kind} | {len(rows)} | {' | '.join(columns)} | {each} |")


def spread(values: list[float]) -> str:
    """Mean and standard deviation; the value alone of a single seed."""
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    main()
