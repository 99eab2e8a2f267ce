"""`sage-scale segment train`: a segmentation model of one's own, from annotation or from random synthetic signing."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sage_scale.errors import UsageError
from sage_scale.storage import on_this_machine
from sage_scale.untrusted.display import printable, shortened
from sage_scale.untrusted.files import expanded
from sage_scale.untrusted.printer import echo, tell
from sage_scale.untrusted.progress import Progress

if TYPE_CHECKING:
    from sage_scale.segmentation.training import Settings
    from sage_scale.segmentation.training_data import Example


def train(
    out: Annotated[str, typer.Option(help="Folder for model.safetensors and config.json.")],
    annotation: Annotated[
        str,
        typer.Option(help="Sign intervals: a table (.csv, .jsonl), an .eaf or .json file, a folder of these, or a "
                          "synthetic corpus."),
    ] = "",
    keypoints: Annotated[
        str, typer.Option(help="Folder of the keypoint files, named by the ids of the annotation.")
    ] = "",
    synthetic: Annotated[
        int, typer.Option(min=0, help="Instead of annotation: number of clips of random synthetic signing.")
    ] = 0,
    folds: Annotated[
        str, typer.Option(help="Column of the table (recording, signer): also score a model without each value.")
    ] = "",
    start: Annotated[
        str, typer.Option(help="Tagger to start from: a folder, or none. Default: the one of sage-scale.")
    ] = "trained",
    fps: Annotated[float, typer.Option(min=1, max=1000, help="Frame rate of keypoints that state none.")] = 25.0,
    picture: Annotated[
        str, typer.Option(metavar="WIDTHxHEIGHT", help="Picture of keypoints that state none, such as 1280x720.")
    ] = "",
    passes: Annotated[int, typer.Option(min=1, help="Most passes over the data.")] = 40,
    networks: Annotated[int, typer.Option(min=1, max=64, help="Networks that are averaged.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of order, augmentation and parts.")] = 0,
) -> None:  # fmt: skip
    """Train a segmenter on keypoints; `segmentation.tagger=trained segmentation.weights=OUT` uses it.

    Each network is stopped early on another part of the clips; config.json has the scores on these parts.
    """
    from sage_scale.segmentation.training import Settings, write_tagger
    from sage_scale.segmentation.training_data import description, random_examples, read_examples

    if bool(synthetic) == bool(annotation or keypoints) or (not synthetic and not (annotation and keypoints)):
        raise UsageError("give --annotation and --keypoints, or --synthetic N")
    if synthetic and folds:
        raise UsageError("--folds needs --annotation: random signing has no recordings")
    folder = _local(out, "a segmentation model")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {shortened(out)} is a file: name a folder")
    settings = Settings(networks=networks, passes=passes, seed=seed)
    start = "none" if synthetic and start == "trained" else start
    left_out: list[str] = []
    if synthetic:
        examples = random_examples(synthetic, seed)
        about: dict[str, Any] = {"data": {"source": "random synthetic signing", **description(examples, 0)}}
    else:
        table = _local(annotation, "the annotation", there=True)
        places = _local(keypoints, "the folder of keypoints", there=True)
        examples, left_out = read_examples(
            table, places, default_fps=fps, picture=_sides(picture), group=folds
        )
        about = {"data": {"source": table.name, **description(examples, len(left_out))}}
    for line in left_out[:20]:
        tell(f"left out: {line}")
    if len(left_out) > 20:
        tell(f"left out: {len(left_out) - 20:,} more")
    about["started_from"] = start
    weights = _start(start, settings)
    if folds:
        about["folds"] = _folds(examples, settings, weights)
    # The pace of random signing says nothing of a signer's.
    trained = _trained("final model", examples, settings, weights, choose=not synthetic)
    echo(f"held-out parts: {_line(trained.counts_CK)}")
    if trained.limits:
        echo(
            "chosen on them: segmentation.decoding_threshold={:g}, decoding_gap_s={:g}".format(
                *trained.limits
            )
        )
    write_tagger(trained, folder, about)
    echo(f"{printable(folder)}: {len(trained.networks)} networks from {len(examples):,} clips. Use them with")
    echo(f"segmentation.tagger=trained segmentation.weights={shlex.quote(printable(folder))}")


def _local(path: str, what: str, there: bool = False) -> Path:
    place = expanded(on_this_machine(path, what))
    if there and not place.exists():
        raise UsageError(f"{what}: there is no {shortened(path, 300)}")
    return place


def _start(start: str, settings: Settings) -> list[Any]:
    """Returns the weights of the tagger to start from, none for `none`."""
    from sage_scale.segmentation.models.trained import TrainedTagger
    from sage_scale.segmentation.tagger import open_tagger

    if start == "none":
        return []
    tagger = open_tagger(start)
    if not isinstance(tagger, TrainedTagger):
        raise UsageError(f"--start {shortened(start)} is a model of another kind: {tagger.name}")
    wanted = settings.width, settings.dilations
    if any((network.width, network.dilations) != wanted for network in tagger.networks):
        raise UsageError(f"--start {shortened(start)} has networks of another size")
    return [network.state_dict() for network in tagger.networks]


def _folds(examples: list[Example], settings: Settings, weights: list[Any]) -> dict[str, Any]:
    """Returns the scores of each group by a model of the other groups, and their mean; prints them."""
    import numpy as np

    from sage_scale.segmentation.training import REPORTED, described_scores, score_examples

    groups = sorted({example.group for example in examples})
    if len(groups) < 2:
        raise UsageError(f"--folds: all clips have the same value, {shortened(groups[0])}")
    found: dict[str, Any] = {}
    for group in groups:
        inside = [example for example in examples if example.group == group]
        rest = [example for example in examples if example.group != group]
        trained = _trained(f"without {group}", rest, settings, weights)
        counts_CK = score_examples(trained.networks, inside, trained.limits)
        echo(f"{shortened(group)}: {_line(counts_CK)} ({len(inside):,} clips, trained on {len(rest):,})")
        found[group] = {"clips": len(inside), **described_scores(counts_CK)}
    means = {
        name: round(float(np.mean([scores[name]["value"] for scores in found.values()])), 4)
        for name in REPORTED
    }
    echo("mean of the folds: " + ", ".join(f"{name} {value:.3f}" for name, value in means.items()))
    return {"mean": means, **found}


def _trained(
    name: str, examples: list[Example], settings: Settings, weights: list[Any], choose: bool = True
) -> Any:
    from sage_scale.segmentation.training import train

    with Progress(f"segmenter, {shortened(name)}", "passes") as progress:
        return train(examples, settings, weights, progress, choose)


def _line(counts_CK: Any) -> str:
    from sage_scale.segmentation.training import described_scores

    return ", ".join(
        f"{name} {score['value']:.3f} [{score['interval'][0]:.3f}, {score['interval'][1]:.3f}]"
        for name, score in described_scores(counts_CK).items()
    )


def _sides(picture: str) -> tuple[float, float] | None:
    if not picture:
        return None
    width, _, height = picture.partition("x")
    if not (width.isdecimal() and height.isdecimal() and 0 < len(width) < 6 and 0 < len(height) < 6):
        raise UsageError(f"--picture {shortened(picture)}: give WIDTHxHEIGHT in pixels, such as 1280x720")
    return float(width), float(height)
