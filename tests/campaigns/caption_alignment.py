"""Claim: `corpus align` puts shifted and stretched captions back on their signing, and training gains by it.

    python tests/campaigns/caption_alignment.py --corpus MADE [--model RUN] [--seeds 1]
    python tests/campaigns/caption_alignment.py --corpus MADE --train --splits dev test --seeds 1 2 3

MADE is a corpus of `sage-scale corpus make --keypoints`. Its clips are joined, signer by signer, to long videos of
`--clips` clips with rests of 0.4 to 1.5 s between them. True times are those from a clip's first sign to its last. Two
kinds of errors:

- offset: each video's captions are shifted by -3 to 3 s and stretched by up to 2% over the video, each by 0.2 s more;
- scatter: each caption is shifted by -3 to 3 s of its own and made 0.8 to 1.25 times as long.

Prints the share of captions whose start and end are within 0.5 s of the truth before and after. `--model` aligns with a
run's stage 1, too, which must not have seen the joined clips. `--train` joins the clips' keypoints, trains both stages
(recipe `ablation`, one language model for all) on true, shifted (scatter) and aligned captions of the split train, and
scores them on true test clips. `--dgs` is a folder with clips.jsonl: sentences of real conversation with signs drawn by
people, joined by recording as they are, without rests.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.extend(map(str, (Path(__file__).parents[1], Path(__file__).parents[2] / "benchmarks")))
import av
import numpy as np
from common import parse, sage, spread

from sage_scale.config import Corpus
from sage_scale.corpora.alignment import Alignment
from sage_scale.corpora.manifest import Clip, from_json_lines, to_json_lines
from sage_scale.corpora.synthetic import load_gold, make_corpus
from sage_scale.corpora.synthetic.render import SIZE, write_h264
from sage_scale.keypoints.arrays import npz_bytes
from sage_scale.keypoints.files import read_track
from sage_scale.keypoints.track import KeypointTrack
from sage_scale.segmentation.elan import eaf_bytes
from sage_scale.segmentation.intervals import Interval, SignIntervals
from sage_scale.translation.caption_alignment import Signing, align_video, joined_pieces

FPS, NEAR_S = 25, 0.5


def joined(
    root: Path, out: Path, splits: Sequence[str], clips: int, seed: int, keypoints: bool = False
) -> list[Clip]:
    """Writes the long videos, or their keypoints alone, and their signs as ELAN files; returns the true captions."""
    by_signer: dict[tuple[str, str], list[Clip]] = {}
    for clip in from_json_lines((root / "manifest.jsonl").read_text(encoding="utf-8")).clips:
        if clip.split in splits:
            by_signer.setdefault((clip.split, clip.signer), []).append(clip)
    (out / "videos").mkdir(parents=True, exist_ok=True)
    (out / "signs").mkdir(exist_ok=True)
    captions = []
    for (split, signer), own in sorted(by_signer.items()):
        for number in range(0, len(own), clips):
            name = f"{split}-{signer}-{number // clips:03d}"
            rng = random.Random(f"{name}/{seed}")
            video, signs, parts, at = out / "videos" / f"{name}{'.npz' if keypoints else '.mp4'}", [], [], 0
            for clip in own[number : number + clips]:
                gold, rest = load_gold(root, clip.id), round(rng.uniform(0.4, 1.5) * FPS)
                times = [(at + sign["start"], at + sign["end"], sign["gloss"]) for sign in gold["signs"]]
                signs += [Interval(a / FPS, b / FPS, gloss) for a, b, gloss in times]
                start, end = times[0][0] / FPS, times[-1][1] / FPS
                captions.append(
                    dataclasses.replace(clip, video=str(video), start_s=start, end_s=end, frames=0)
                )
                source = root / clip.video
                parts.append((root / "keypoints" / f"{source.stem}.npz" if keypoints else source, rest))
                at += gold["frames"] + rest
            if not video.exists():
                partial = video.with_suffix(".part")
                if keypoints:
                    partial.write_bytes(npz_bytes(track(parts)))
                else:
                    write_h264(partial, frames(parts), FPS, SIZE)
                partial.replace(video)
            (out / "signs" / f"{name}.eaf").write_bytes(eaf_bytes(SignIntervals(signs=tuple(signs))))
    return captions


def frames(parts: Iterable[tuple[Path, int]]) -> Iterator[np.ndarray]:
    """The pictures of videos, each followed by its last one, held for a number of frames."""
    for path, rest in parts:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                picture = frame.to_ndarray(format="rgb24")
                yield picture
        for _ in range(rest):
            yield picture


def track(parts: Iterable[tuple[Path, int]]) -> KeypointTrack:
    """The keypoints of clips, each followed by its last frame, held for a number of frames."""
    points: list[np.ndarray] = []
    confidence: list[np.ndarray] = []
    for path, rest in parts:
        own = read_track(path)
        for kept, values in ((points, own.points_TKC), (confidence, own.confidence_TK)):
            kept += [values, np.repeat(values[-1:], rest, axis=0)]
    return own.replace(points_TKC=np.concatenate(points), confidence_TK=np.concatenate(confidence))


def displaced(captions: Sequence[Clip], kind: str, seed: int) -> list[Clip]:
    """The captions with errors of a kind, in the order of their new starts."""
    rng, found = random.Random(f"{kind}/{seed}"), []
    of_video: dict[str, tuple[float, float]] = {}
    for clip in captions:
        assert clip.end_s is not None
        offset, stretch = of_video.setdefault(clip.video, (rng.uniform(-3, 3), rng.uniform(0.98, 1.02)))
        if kind == "offset":
            start = clip.start_s * stretch + offset + rng.gauss(0, 0.2)
            length = (clip.end_s - clip.start_s) * stretch + rng.gauss(0, 0.2)
        else:
            start = clip.start_s + rng.uniform(-3, 3)
            length = (clip.end_s - clip.start_s) * rng.uniform(0.8, 1.25)
        start = max(0.0, start)
        found.append(dataclasses.replace(clip, start_s=start, end_s=start + max(length, 0.4)))
    return sorted(found, key=lambda clip: (clip.video, clip.start_s))


def shares(rows: Iterable[Any], true: Sequence[Clip]) -> tuple[float, float]:
    """Shares of captions with the start, and with start and end, within NEAR_S of the truth."""
    wanted = {clip.id: clip for clip in true}
    off = [
        (abs(row["start_s"] - wanted[row["id"]].start_s), abs(row["end_s"] - wanted[row["id"]].end_s))
        for row in rows
    ]
    return sum(a <= NEAR_S for a, _ in off) / len(off), sum(max(pair) <= NEAR_S for pair in off) / len(off)


def near(rows: Iterable[Any], true: Sequence[Clip]) -> str:
    return " | ".join(f"{share:.2f}" for share in shares(rows, true))


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(*arguments: object) -> None:
    """Run a verb. Raises SystemExit with its last lines where it fails."""
    ended = subprocess.run(sage(*arguments), capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(
            f"sage-scale {' '.join(map(str, arguments))}\n{ended.stdout[-800:]}{ended.stderr[-1500:]}"
        )


def measure(true: Sequence[Clip], folder: Path, model: str, seed: int) -> None:
    """Print the table of shares."""
    ways = {"motion": (), "true segments": ("--segments", folder / "signs")}
    runs = [(f"without a model, {name}", extra) for name, extra in ways.items()]
    if model:
        runs += [(f"stage 1, {name}", ("--model", model, *extra)) for name, extra in ways.items()]
    print(
        "| errors | captions | start within 0.5 s | start and end within 0.5 s |\n|---|---|---|---|",
        flush=True,
    )
    for kind in ("offset", "scatter"):
        old = folder / f"{kind}.jsonl"
        moved = displaced(true, kind, seed)
        old.write_text(to_json_lines(moved), encoding="utf-8")
        print(f"| {kind} | as given | {near(map(vars, moved), true)} |", flush=True)
        for number, (name, extra) in enumerate(runs):
            new = folder / f"{kind}-{number}.jsonl"
            run("corpus", "align", "--corpus", "manifest", "--root", old, "--out", new, *extra)
            print(f"| {kind} | {name} | {near(rows_of(new), true)} |", flush=True)


def measure_conversation(folder: Path, seeds: Sequence[int]) -> None:
    """Print the table of shares of real conversation, means over the seeds; without a model, with people's signs."""
    true: list[Clip] = []
    signs: dict[str, list[tuple[float, float]]] = {}
    ends: dict[str, float] = {}
    for row in rows_of(folder / "clips.jsonl"):
        at = ends.get(row["recording"], 0.0)
        ends[row["recording"]] = at + row["frames"] / row["fps"]
        times = sorted((at + s["start_ms"] / 1000, at + s["end_ms"] / 1000) for s in row["signs"])
        if times:
            signs.setdefault(row["recording"], []).extend(times)
            end_s = max(end for _, end in times)
            true.append(Clip(id=f"{row['recording']}/{row['id']}", video=row["recording"], start_s=times[0][0],
                             end_s=end_s, sentence=row["text"]))  # fmt: skip
    pieces = {video: Signing(pieces_N2=joined_pieces(pairs)) for video, pairs in signs.items()}
    print(f"\n{len(true)} sentences in {len(pieces)} recordings\n")
    print("| errors | captions | start | start and end |\n|---|---|---|---|")
    for kind in ("offset", "scatter"):
        before, after = [], []
        for seed in seeds:
            moved = displaced(true, kind, seed)
            before.append(shares(map(vars, moved), true))
            videos = [[clip for clip in moved if clip.video == video] for video in pieces]
            found = [align_video(clips, pieces[clips[0].video], Alignment())[0] for clips in videos]
            after.append(shares(itertools.chain(*found), true))
        for name, values in (("as given", before), ("without a model, people's signs", after)):
            print(f"| {kind} | {name} | {' | '.join(f'{value:.2f}' for value in np.mean(values, axis=0))} |")


def train(true: Sequence[Clip], folder: Path, options: argparse.Namespace) -> None:
    """Print BLEU-4 on true test clips after a short run on each kind of captions of train."""
    taught = [clip for clip in true if clip.split == "train"]
    rest = [clip for clip in true if clip.split != "train"]
    recipe, language = ["--recipe", "ablation"], folder / "language_model"
    changes = ["segmentation.tagger=motion", *options.overrides]
    scores: dict[str, list[float]] = {}
    for seed in options.seeds:
        place = folder / f"train-{seed}"
        place.mkdir(exist_ok=True)
        bent, old, new = displaced(taught, "scatter", seed), place / "bent.jsonl", place / "new.jsonl"
        old.write_text(to_json_lines(bent), encoding="utf-8")
        run("corpus", "align", "--corpus", "manifest", "--root", old, "--out", new)
        moved = from_json_lines(new.read_text(encoding="utf-8")).clips
        print(f"seed {seed}, start | start and end within {NEAR_S} s: shifted {near(rows_of(old), taught)}, "
              f"aligned {near(rows_of(new), taught)}", flush=True)  # fmt: skip
        for name, clips in (("true", taught), ("shifted", bent), ("aligned", moved)):
            manifest, shards, out = (place / f"{name}{end}" for end in (".jsonl", "-shards", "-run"))
            manifest.write_text(to_json_lines([*clips, *rest]), encoding="utf-8")
            few = "shards.max_reject_rate=0.1"  # a shifted clip may lie beyond the end of its video
            given = ["--corpus", "manifest", "--root", manifest, "--out", shards, *recipe]
            run("precompute", *given, few, *changes)
            seeds = [f"pretrain.seed={seed}", f"finetune.seed={seed}"]
            if language.is_dir():
                seeds += [f"model.language_model={language}", "denoise.enabled=false"]
            run("pretrain", "--run", out, "--data", shards, *recipe, *options.overrides, *seeds)
            if not language.is_dir():
                shutil.copytree(out / "language_model", language)
            run("finetune", "--run", out, "--data", shards)
            run("evaluate", "--run", out, "--data", shards, "--split", "test")
            bleu = json.loads((out / "scores.json").read_text())["test"]["bleu4"]
            scores.setdefault(name, []).append(bleu)
            print(f"seed {seed}, {name}: BLEU-4 {bleu:.2f}", flush=True)
    print("\n| captions of train | BLEU-4 on test |\n|---|---|")
    for name, values in scores.items():
        print(f"| {name} | {spread(values, 2)} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--model", default="", help="run with a stage 1")
    parser.add_argument("--dgs", type=Path, metavar="FOLDER")
    parser.add_argument("--splits", nargs="+", default=["dev", "test", "test_heldout"])
    parser.add_argument("--clips", type=int, default=12, help="clips of a long video")
    parser.add_argument("--train", action="store_true", help="train on true, shifted and aligned captions")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="for --train: changes to the recipe ablation"
    )
    parser.add_argument("--keep", type=Path, help="folder that is kept")
    options = parse(parser, clips=3)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        if options.small:
            options.corpus = folder / "made"
            make_corpus(Corpus(train_clips=1, dev_clips=1, test_clips=4, heldout_clips=1), options.corpus)
        if options.dgs:
            return measure_conversation(options.dgs, options.seeds)
        if options.corpus is None:
            raise SystemExit("say which corpus: --corpus MADE")
        if options.train:
            splits = ["train", *options.splits]
            train(joined(options.corpus, folder, splits, options.clips, 0, keypoints=True), folder, options)
            return
        true = joined(options.corpus, folder, options.splits, options.clips, 0)
        print(f"{len(true)} captions in {len({clip.video for clip in true})} videos\n")
        measure(true, folder, options.model, options.seeds[0])


if __name__ == "__main__":
    main()
