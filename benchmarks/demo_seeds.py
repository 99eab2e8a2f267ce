"""The demo and its control over several seeds: what stage 1 brings for the same budget, with its deviation.

    python benchmarks/demo_seeds.py [--seeds 3] [--kinds demo control] [--steps STAGE1 STAGE2 CONTROL] [--home runs]

Corpus and shards are made once; every seed trains its own language model and both stages. About nine minutes a run on
two cores. Prints one table of BLEU-4 on the test sentences, on held-out signers, and of the best control.

The demo's stages end by the clock. `--steps` ends them by counts instead: those that one run of each kind reached in
its minutes on an idle machine. Then it does not matter what else the machine does meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from sage_scale.evaluation.stored import read_scores
from sage_scale.experiments import demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=["demo", "control"], choices=["demo", "control"])
    parser.add_argument("--home", type=Path, default=Path("runs"))
    parser.add_argument("--steps", type=int, nargs=3, metavar=("STAGE1", "STAGE2", "CONTROL"))
    options = parser.parse_args()
    table = {}
    for kind in options.kinds:
        for seed in range(options.seeds):
            folder = options.home / f"seeds-{kind}-{seed}"
            if not (folder / "report.html").is_file():
                changes = [f"pretrain.seed={seed}", f"finetune.seed={seed}"]
                if options.steps:
                    changes += fixed_work(*options.steps, control=kind == "control")
                demo.run("demo", folder, control=kind == "control", overrides=changes)
            table.setdefault(kind, []).append(read_scores(folder)["test"])
    print_table(table)


def fixed_work(stage1: int, stage2: int, control_steps: int, *, control: bool) -> list[str]:
    """Overrides that give every stage its steps instead of its minutes, those of the control included."""
    return [
        "denoise.max_minutes=0",
        "pretrain.max_minutes=0",
        f"pretrain.max_steps={stage1}",
        "finetune.max_minutes=0",
        f"finetune.max_steps={control_steps if control else stage2}",
    ]


def print_table(table: dict[str, list[dict]]) -> None:
    """One line a kind: mean and deviation over the seeds."""
    print("| kind | seeds | BLEU-4 test | BLEU-4 held-out signers | best control | each |")
    print("|---|---|---|---|---|---|")
    for kind, rows in table.items():
        test = [row["bleu4"] for row in rows]
        heldout = [row["heldout"]["bleu4"] for row in rows]
        controls = [max(values["bleu4"] for values in row["controls"].values()) for row in rows]
        each = ", ".join(f"{value:.1f}" for value in test)
        print(f"| {kind} | {len(rows)} | {spread(test)} | {spread(heldout)} | {spread(controls)} | {each} |")


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.1f} ± {deviation:.1f}"


if __name__ == "__main__":
    main()
