"""Claim: whatever is killed, whenever, running the same command again gives byte-identical files.

    python tests/campaigns/precompute_kills.py --kills 200 --server ceph [--verb segment|keypoints]

An undisturbed run is made first. Then rounds: each begins an empty output and lets `sage-scale precompute` (or
`segment predict`, or `keypoints` with a stand-in for MediaPipe) run while SIGKILL hits the driver, an actor, an
actor's extractor or the raylet at random moments; what dies as a whole is started again with the same command until
it ends with code 0. With `--server` the output is a bucket of a server that is started here, behind a proxy that at
random moments answers 503, refuses, resets or cuts off what passes, swallows the answer of a PUT that was carried
out, or holds it up; Ceph's gateway is also killed and started again (moto, which keeps all in memory, only goes away
for a while). After each round every file's sha256 must equal the undisturbed run's. Prints one table and ends with
code 1 where a byte differs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.extend(map(str, (Path(__file__).parents[1], Path(__file__).parents[2] / "benchmarks")))
from common import parse, sage
from factories.processes import kill_marked, kill_one, marked, wait_until
from factories.videos import write_video
from servers.trouble import Trouble, troubled_server

from sage_scale.storage import open_store

MARK = "SAGE_SCALE_KILLS"
"""Environment variable that all processes of a run inherit: only such processes are killed."""
COLUMNS = ("driver", "actor", "child", "raylet", "faults", "restarts", "starts")
KINDS = ("driver", "actor", "actor", "actor", "raylet")
"""What is killed; of `keypoints` also the extractor of an actor, `child`, three times as often as the driver."""
SHARED = (
    "shards.max_reject_rate=0.2",
    "precompute.actors=2",
    "precompute.object_store_mb=80",
    "precompute.max_restarts=50",
)
VERBS = {
    "precompute": (
        "precompute", "--corpus", "videos", "--recipe", "demo", "vision.size=96", "vision.crop=96",
        "text.tagger=none", "text.target=sentence", "shards.clips_per_unit=3", *SHARED,
    ),
    "keypoints": ("keypoints", "vision.extractor=toy", *SHARED),
    "segment": ("segment", "predict", "--format", "eaf,vtt,figure", *SHARED),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--kills-per-round", type=int, default=8)
    parser.add_argument("--clips", type=int, default=45)
    parser.add_argument("--verb", choices=list(VERBS), default="precompute")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--server", choices=("ceph", "moto"), help="write to such an S3 server, with faults; else to a folder"
    )
    settings = parse(parser, kills=1, clips=6)
    chance = random.Random(settings.seed)
    with tempfile.TemporaryDirectory(prefix="sage-scale-kills-") as scratch, contextlib.ExitStack() as stack:
        corpus = Path(scratch) / "corpus"
        write_corpus(corpus, settings.clips)
        trouble: Trouble | None = None
        base = str(Path(scratch) / "outputs")
        if settings.server:
            trouble = stack.enter_context(troubled_server(settings.server, settings.seed))
            base = trouble.url
        begun = time.monotonic()
        if run(settings.verb, corpus, f"{base}/undisturbed").wait() != 0:
            print("the undisturbed run failed", file=sys.stderr)
            return 1
        length_s = time.monotonic() - begun
        expected = hashes(f"{base}/undisturbed")
        print(f"undisturbed: {len(expected)} files in {length_s:.1f} s")
        print(f"{'round':>5}" + "".join(f"{name:>9}" for name in COLUMNS) + "  seconds  bytes", flush=True)
        total: Counter[str] = Counter()
        rounds = differing = 0
        while sum(total[kind] for kind in {*KINDS, "child"}) < settings.kills:
            begun = time.monotonic()
            left = settings.kills - sum(total[kind] for kind in {*KINDS, "child"})
            out = f"{base}/round-{rounds:03d}"
            with trouble.some() if trouble else contextlib.nullcontext(Counter()) as faults:
                most = min(settings.kills_per_round, left)
                counts = disturbed(settings.verb, corpus, out, most, length_s, chance)
            counts["restarts"] = faults.pop("restart", 0)
            counts["faults"] = faults.total()
            total += counts
            found = hashes(out)
            names = expected.keys() | found.keys()
            wrong = sorted(name for name in names if expected.get(name) != found.get(name))
            differing += bool(wrong)
            print(
                row(str(rounds), counts, time.monotonic() - begun)
                + (f"differ: {' '.join(wrong)}" if wrong else "equal"),
                flush=True,
            )
            rounds += 1
        print(row("all", total, 0).rstrip(" .0"))
        killed = sum(total[kind] for kind in {*KINDS, "child"})
        beside = f" beside {total['faults']} faults and {total['restarts']} restarts of S3" if trouble else ""
        verdict = "every file equal" if not differing else f"{differing} differ"
        print(f"{killed} kills{beside} in {rounds} rounds: {verdict}")
    return 1 if differing else 0


def row(name: str, counts: Counter[str], seconds: float) -> str:
    """A line of the table, less its verdict."""
    return f"{name:>5}" + "".join(f"{counts[column]:>9}" for column in COLUMNS) + f"{seconds:>9.1f}  "


def disturbed(
    verb: str, corpus: Path, out: str, wanted: int, length_s: float, chance: random.Random
) -> Counter[str]:
    """One round: what was killed how often, and how often the command was started and ended by itself with an error."""
    counts: Counter[str] = Counter()
    killed = 0
    while True:
        process = run(verb, corpus, out)
        counts["starts"] += 1
        # One start in four is hit before any actor works; later kills follow each other within a second.
        early_s = chance.uniform(0, length_s / 2) if chance.random() < 0.25 else 1e9
        begun = time.monotonic()
        next_kill: float | None = None
        while process.poll() is None and killed < wanted:
            time.sleep(0.05)
            now = time.monotonic()
            if next_kill is None and find("actor", process):
                next_kill = now + chance.uniform(0, 2)
            if now - begun > early_s or (next_kill is not None and now > next_kill):
                kind = chance.choice((*KINDS, *["child"] * 3) if verb == "keypoints" else KINDS)
                if kill(kind, process, chance):
                    counts[kind] += 1
                    killed += 1
                    next_kill = now + chance.uniform(0, 2)
        code = process.wait()
        sweep(process)
        if code == 0:
            return counts


def run(verb: str, corpus: Path, out: str, log: int = subprocess.DEVNULL) -> subprocess.Popen:
    """Start the command, its processes marked, its output kept out of the table; `log` is a descriptor for errors."""
    token = secrets.token_hex(8)
    command = sage(*VERBS[verb], "--root", corpus, "--out", out)
    variables = {**os.environ, MARK: token}
    if verb == "keypoints":
        path = f"{Path(__file__).parents[1] / 'plugins'}:{os.environ.get('PYTHONPATH', '')}"
        variables |= {"PYTHONPATH": path, "SAGE_SCALE_PLUGINS": "toy_extractor", "TOY_SLEEP": "0.01"}
    process = subprocess.Popen(
        command,
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=log,
        start_new_session=True,
    )
    process.mark = f"{MARK}={token}"  # type: ignore[attr-defined]
    return process


def kill(kind: str, process: subprocess.Popen, chance: random.Random) -> bool:
    """SIGKILL one process of the kind; False where there is none at the moment."""
    return kill_one([process.pid] if kind == "driver" else find(kind, process), chance)


def find(kind: str, process: subprocess.Popen) -> list[int]:
    """Processes of the run that are actors, extractors of actors, or the raylet."""
    titles = {
        "actor": ("ray::UnitWorker", "ray::FileWorker"),
        "child": ("toy_extractor.py",),
        "raylet": ("raylet/raylet",),
    }[kind]
    found = marked(process.mark)  # type: ignore[attr-defined]
    return [pid for pid, command in found.items() if any(title in command for title in titles)]


def sweep(process: subprocess.Popen) -> None:
    """Wait for what a killed driver left behind to end by itself, then end what did not."""
    wait_until(lambda: not marked(process.mark), 10, pause=0.2)  # type: ignore[attr-defined]
    kill_marked(process.mark)  # type: ignore[attr-defined]


def hashes(url: str) -> dict[str, str]:
    """sha256 of every object of an output."""
    store = open_store(url)
    return {entry.name: hashlib.sha256(store.get(entry.name)).hexdigest() for entry in store.list()}


def write_corpus(root: Path, clips: int) -> None:
    """Videos of two to four seconds with sentences, and one that is none."""
    folder = root / "train"
    folder.mkdir(parents=True)
    rows = []
    for number in range(clips):
        name = f"clip{number:03d}.mp4"
        rows.append(f"{name}\tSatz Nummer {number}\n")
        if number == clips // 2:
            (folder / name).write_text("not a video")
            continue
        noise = np.random.default_rng(number).integers(0, 60, (128, 128, 3), np.uint8)
        pictures = [np.roll(noise, 3 * k, axis=1) for k in range(50 + number)]
        write_video(folder / name, pictures, options={"threads": "1", "preset": "ultrafast"})
    (folder / "sentences.tsv").write_text("".join(rows), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
