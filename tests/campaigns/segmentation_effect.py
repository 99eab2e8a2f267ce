"""What segments do to translation on the synthetic corpus: BLEU-4 by tagger and by rule, over seeds.

    python tests/campaigns/segmentation_effect.py --home WORK --published FOLDER [--seeds 3] [--set KEY=VALUE ...]

Corpus, keypoints and language model are made once, shards once a setting, and every run inherits them; finished runs
are not repeated, so that the command goes on after a kill. `--set` changes the recipe `demo` of all runs, as for fewer
steps. Settings are named TAGGER/RULE and run in the order in which they are given, seed by seed.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from common import parse, spread
from demo_seeds import SMALL

from sage_scale.cli.main import main as main_of_verbs
from sage_scale.evaluation.stored import read_scores
from sage_scale.shards.dataset import open_dataset

TAGGERS = ("gold", "trained", "published", "motion", "uniform")
SETTINGS = [f"{tagger}/{rule}" for rule in ("sage", "sage-unhalved") for tagger in TAGGERS]

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["sage_scale.training.stage", "sage_scale.training.evaluate_run"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--home", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settings", nargs="+", default=SETTINGS, choices=SETTINGS, metavar="TAGGER/RULE")
    parser.add_argument("--published", type=Path, help="folder of the published segmenter's weights")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the recipe")
    options = parse(parser, seeds=1, settings=["gold/sage"], set=SMALL)
    if not options.home and not options.small:
        parser.error("--home names the folder of corpus, shards and runs")
    with tempfile.TemporaryDirectory() as folder:
        home = options.home or Path(folder)
        for seed in range(options.seeds):
            for setting in options.settings:
                run(home, setting, seed, options)
                print(f"{setting}, seed {seed}: {bleu(home, setting, seed)}", flush=True)
        print(
            "| tagger | rule | token ratio | seeds | BLEU-4 test | held-out signers | each |\n|" + "---|" * 7
        )
        for setting in options.settings:
            print(table_row(home, setting, options.seeds))


def run(home: Path, setting: str, seed: int, options: argparse.Namespace) -> None:
    """Makes what is missing of one run."""
    corpus, shards, folder = home / "corpus", home / "shards" / setting, home / "runs" / setting / str(seed)
    if (folder / "scores.json").is_file():
        return
    call_once("corpus", "make", "--root", corpus, "--keypoints", *options.set)
    changes = [*tagger(setting, corpus, options.published), *options.set]
    call_once("precompute", "--corpus", "synthetic", "--root", corpus, "--out", shards, *changes)
    language = home / "language_model"
    if language.is_dir():  # the same for every run: that of the first one
        changes += [f"model.language_model={language}", "denoise.enabled=false"]
    seeds = [f"pretrain.seed={seed}", f"finetune.seed={seed}"]
    for verb in ("pretrain", "finetune"):
        call(verb, "--run", folder, "--data", shards, "--recipe", "demo", *changes, *seeds)
        if not language.is_dir():
            (folder / "language_model").rename(language)
            (folder / "language_model").symlink_to(language.resolve())
    call("evaluate", "--run", folder, "--data", shards)


def tagger(setting: str, corpus: Path, published: Path | None) -> list[str]:
    """Changes to the recipe."""
    name, rule = setting.split("/")
    if name == "gold":
        labels = ["segmentation.tagger=precomputed", f"segmentation.labels={corpus / 'gold'}"]
    elif name == "published":
        labels = [
            "segmentation.tagger=published",
            f"segmentation.weights={published}",
            "segmentation.decoding=peaks",
        ]
    else:
        labels = [f"segmentation.tagger={name}"]
    return [*labels, f"segmentation.rule={rule}", f"vision.keypoints={corpus / 'keypoints'}"]


def call(*arguments: object) -> None:
    """Run a command in a fork of a process that has loaded torch: its start would take a third of a short run."""
    with tempfile.NamedTemporaryFile("r") as printed:
        process = FORKS.Process(target=verb, args=([*map(str, arguments)], printed.name))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{' '.join(map(str, arguments))}: {printed.read()[-1500:]}")


def verb(arguments: list[str], printed: str) -> None:
    """In the fork: the command itself, with what it prints in a file."""
    with open(printed, "w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    main_of_verbs(arguments)


@functools.cache
def call_once(*arguments: object) -> None:
    """What all seeds share; the verbs themselves skip what an earlier process has made."""
    call(*arguments)


def bleu(home: Path, setting: str, seed: int) -> tuple[float, float] | None:
    """BLEU-4 of the test clips and of held-out signers; None of a run that is not finished."""
    folder = home / "runs" / setting / str(seed)
    if not (folder / "scores.json").is_file():
        return None
    scores = read_scores(folder)["test"]
    return scores["bleu4"], scores["heldout"]["bleu4"]


def table_row(home: Path, setting: str, seeds: int) -> str:
    found = [scores for seed in range(seeds) if (scores := bleu(home, setting, seed))]
    units = open_dataset(str(home / "shards" / setting)).units
    ratio = sum(unit.segments for unit in units) / sum(unit.frames for unit in units)
    test, heldout = ([pair[column] for pair in found] for column in (0, 1))
    cells = [*setting.split("/"), f"{ratio:.3f}", str(len(found)), spread(test), spread(heldout)]
    return f"| {' | '.join([*cells, ', '.join(f'{value:.1f}' for value in test)])} |"


if __name__ == "__main__":
    main()
