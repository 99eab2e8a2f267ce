"""One campaign on a machine with a GPU: what `docs/results` calls not run there, in pieces that resume, on one page.

    python benchmarks/gpu_campaign.py bring FOLDER                # with a network and Ray: wheels, shards
    python benchmarks/gpu_campaign.py run FOLDER --out RESULTS    # on the machine with the GPU; repeat it to go on
    python benchmarks/gpu_campaign.py run FOLDER --out RESULTS --dry  # every piece at toy size, on a CPU

But for its first, a call of `run` begins no piece that would not end within `--minutes`. RESULTS keeps `pieces.jsonl`,
from which the next call goes on, also on another machine, and `gpu.md`, the page. The machine needs torch,
transformers, Triton and pytest; it needs no network and none of Ray, PyAV, spaCy and boto3; wheels of FOLDER are put
beside its packages. A piece that fails is on the page with the end of its output, and the others go on. The exit code
is then 1, and 4 while pieces are left. `--dry` makes toy datasets where FOLDER is missing. The kernels' tests then run
in Triton's interpreter, the virtual GPU's (tests/training/virtual_gpu.py) in place of those marked gpu, and no process
finds precompute's packages.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import MEANINGLESS, sage

from sage_scale.untrusted.display import printable

ROOT = Path(__file__).resolve().parents[1]
PIECES_LEFT = 4
WHEELS = ("hjson", "pydantic", "pydantic-core", "annotated-types", "typing-inspection")
"""What DeepSpeed needs beside torch."""
PEERS = ("late-interaction-kernels", "flash-maxsim")
CORPUS = ["train_clips=96", "dev_clips=16", "test_clips=24", "heldout_clips=8"]
TOY = ["train_clips=8", "dev_clips=2", "test_clips=2", "heldout_clips=2"]
DATASETS = {
    "frames": ["vision.size=256", "vision.crop=224", "vision.jpeg_quality=75", "vision.background=none"],
    "features": ["vision.kind=features", "vision.backbone=keypoints", "vision.background=none"],
}
SMALL_MODELS = ["denoise.steps=4", "denoise.vocabulary=100", "pretrain.batch_size=4", "finetune.batch_size=4"]
RESNET34 = [
    "model.backbone.depths=[3,4,6,3]",
    "model.backbone.widths=[64,128,256,512]",
    "model.backbone.pool=mean",
]
TAIL = 12_000
"""Characters of a piece's output that are kept."""


@dataclass(frozen=True)
class Piece:
    """One command with its time limit, minutes, on a GPU."""

    name: str
    minutes: float
    command: list[str]
    dry: list[str]


def pieces(bag: Path) -> list[Piece]:
    """Returns the campaign, in its order."""
    python, bench = [sys.executable], ROOT / "benchmarks"
    tests = [*python, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]

    def script(
        name: str, *options: object, minutes: float, title: str = "", dry: Sequence[object] = ()
    ) -> Piece:
        command = [*python, str(bench / name), *map(str, options)]
        return Piece(
            title or name.removesuffix(".py"), minutes, command, [*command, "--small", *map(str, dry)]
        )

    def stages(title: str, data: str, recipe: str, part: str, minutes: float, *changes: str) -> Piece:
        given = ["--data", bag / data, "--recipe", recipe, "--part", part, "--set"]
        return script(
            "gpu_stages.py", *given, *changes, minutes=minutes, title=title, dry=["--set", *SMALL_MODELS]
        )

    bf16 = ("pretrain.precision=bf16", "finetune.precision=bf16", "denoise.steps=200")
    losses = [str(ROOT / "tests" / folder) for folder in ("losses", "models")]
    # Other tests cannot be collected without precompute's packages.
    marked = [
        str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()
    ]
    chosen = "not gpu and not system and not extras"
    return [
        Piece("doctor", 1, sage("doctor"), sage("doctor")),
        Piece(
            "tests marked gpu", 4, [*tests, "-m", "gpu", *marked],
            [*tests, *marked, str(ROOT / "tests/training/test_virtual_gpu.py")],
        ),
        Piece(
            "tests of losses and models", 8, [*tests, "-m", chosen, *losses],
            [*tests, "-m", chosen, "--collect-only", *losses],
        ),
        stages("SAGE from frames of 224 pixels, ResNet-34", "frames", "demo", "stages", 8, *bf16, *RESNET34),
        stages("SAGE from features", "features", "demo", "stages", 5, *bf16),
        stages("Sign2GPT from frames", "frames", "sign2gpt-demo", "stages", 7, *bf16),
        stages("ZeRO 0 to 3, offload, launcher", "features", "demo", "zero", 7, "denoise.steps=200"),
        script("clcl_gpu.py", *(["--peers", bag / "peers"] if (bag / "peers").is_dir() else []), minutes=8),
        script("train_gpu.py", minutes=9),
        script("sign2gpt_gpu.py", minutes=7),
        script("gpu_backbone.py", minutes=3),
        script("local_attention.py", "--device", "cuda", minutes=4, dry=["--device", "cpu"]),
    ]  # fmt: skip


TOY_PIXELS = {"frames": ["vision.size=64", "vision.crop=56"], "features": list[str]()}
"""Of --dry: later changes win."""


def bring(bag: Path, toy: bool) -> None:
    """Make what the machine with the GPU needs and cannot fetch: datasets, wheels."""
    bag.mkdir(parents=True, exist_ok=True)
    sizes = [f"corpus.{size}" for size in (TOY if toy else CORPUS)]
    units = ["shards.clips_per_unit=8", "precompute.actors=1"]
    for name, changes in DATASETS.items():
        corpus = ["--root", str(bag / "corpus"), "--recipe", "demo", *sizes]
        settings = [*units, *changes, *(TOY_PIXELS[name] if toy else [])]
        checked(sage("corpus", "make", *corpus, "--keypoints"))
        place = ["--corpus", "synthetic", "--out", str(bag / name)]
        points = [f"vision.keypoints={bag / 'corpus' / 'keypoints'}"] if name == "features" else []
        checked(sage("precompute", *place, *corpus, *settings, *points))
    if toy:
        return
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    own = dict(os.environ) | {"DS_BUILD_OPS": "0"}
    deepspeed = f"deepspeed=={version('deepspeed')}"
    checked([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(bag / "wheels"), deepspeed], own)
    platforms = [f"--platform=manylinux_2_{n}_x86_64" for n in (17, 28)] + ["--platform=manylinux2014_x86_64"]
    fetch = [*pip, "download", "--no-deps", "--only-binary=:all:", "--python-version=3.12", *platforms]
    pinned = [f"{name}=={version(name)}" for name in WHEELS]
    checked([*fetch, "-d", str(bag / "wheels"), *pinned])
    checked([*pip, "install", "--no-deps", "--target", str(bag / "peers"), *PEERS])
    bytes_there = sum(
        path.stat().st_size for path in bag.rglob("*") if path.is_file() and "corpus" not in path.parts
    )
    print(f"{bag}: {bytes_there / 1e6:.0f} MB without {bag / 'corpus'}, which need not travel")


def checked(command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a command. Raises SystemExit with the end of its output where it fails."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {(done.stdout + done.stderr)[-2000:]}")


def run(options: argparse.Namespace) -> int:
    """Run what is left within the minutes; returns the exit code."""
    begun = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    record = options.out / "pieces.jsonl"
    done = (
        {row["name"]: row for line in record.read_text().splitlines() if (row := json.loads(line))}
        if record.is_file()
        else {}
    )
    campaign = pieces(options.bag.resolve())
    environment, ran = machine(options), False
    for piece in campaign:
        if piece.name in done or (options.only and piece.name not in options.only):
            continue
        left = options.minutes - (time.monotonic() - begun) / 60
        limit = piece.minutes * (4 if options.dry else 1)  # a CPU may be slow and shared
        if limit > left and ran:
            print(
                f"{piece.name}: needs {limit:g} of the {left:.1f} minutes left; repeat the command to go on",
                flush=True,
            )
            break
        limit, ran = (
            min(limit, left),
            True,
        )  # the first piece of a call always begins: it may need all of the minutes
        row = done[piece.name] = run_piece(piece, limit, environment, options.dry)
        with record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        (options.out / "gpu.md").write_text(page(campaign, done), encoding="utf-8")
    failed = [row["name"] for row in done.values() if row["state"] != "passed"]
    left_over = [piece.name for piece in campaign if piece.name not in done]
    counts = (
        f"{len(done) - len(failed)} of {len(campaign)} passed, {len(failed)} failed, {len(left_over)} left"
    )
    print(f"{counts}: {options.out / 'gpu.md'}")
    return 1 if failed else PIECES_LEFT if left_over and not options.only else 0


def machine(options: argparse.Namespace) -> dict[str, str]:
    """Returns the environment of all pieces, with the wheels beside the machine's packages."""
    if options.dry:
        sys.path.append(str(ROOT / "tests"))
        from factories import gpu_machine

        return gpu_machine.environment(options.out / "site")
    site = options.out / "site"
    wheels = sorted((options.bag / "wheels").glob("*.whl"))
    if wheels:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--upgrade",
            "--target",
            str(site),
        ]
        checked([*pip, *map(str, wheels)])
    return dict(os.environ) | {"PYTHONPATH": f"{site}:{ROOT}", "PYTHONUNBUFFERED": "1"}


def run_piece(piece: Piece, minutes: float, environment: dict[str, str], dry: bool) -> dict[str, Any]:
    """Run one piece and return its row."""
    command = piece.dry if dry else piece.command
    print(f"{piece.name} (at most {minutes:g} minutes)", flush=True)
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(60 * minutes)
            state = "passed" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            state = f"out of time after {minutes:g} minutes"
        finally:
            end_group(process)
        output.seek(0)
        text = output.read()
    seconds = time.monotonic() - begun
    print(f"  {state}, {seconds:.0f} s", flush=True)
    shown = [part.replace(str(ROOT), ".").replace(sys.executable, "python") for part in command]
    row = {
        "name": piece.name,
        "state": state,
        "seconds": round(seconds, 1),
        "command": " ".join(shown),
        "output": text[-TAIL:],
    }
    return row | {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": described(dry)}


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what a piece has left running, its children included."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        time.sleep(0.5)
    process.wait()


def described(dry: bool) -> str:
    """Returns device, Python and the versions that decide figures."""
    import torch

    gpu = not dry and torch.cuda.is_available()
    device = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if gpu else "CPU"
    versions = [f"{name} {version(name)}" for name in ("torch", "transformers")]
    return ", ".join([f"{device}; Python {platform.python_version()}", *versions])


def page(campaign: Sequence[Piece], done: dict[str, dict[str, Any]]) -> str:
    """Returns the Markdown page: one table of all pieces, then the output of each."""
    dry = any(row["machine"].startswith("CPU") for row in done.values())
    lines = ["# On a GPU", ""]
    if dry:
        lines += [f"**{MEANINGLESS.partition(': ')[2].capitalize()}.**", ""]
    lines += ["    make bench-gpu", "", "| piece | state | s | date | machine |", "|---|---|---|---|---|"]
    for piece in campaign:
        row = done.get(piece.name)
        cells = (
            [row["state"], f"{row['seconds']:.0f}", row["date"], row["machine"]]
            if row
            else ["not run", "", "", ""]
        )
        lines.append(f"| {piece.name} | {' | '.join(cells)} |")
    for row in done.values():
        text = "\n".join(f"    {printable(line)}".rstrip() for line in row["output"].splitlines())
        lines += ["", f"## {row['name']}", "", f"    {printable(row['command'])}", "", text]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    bringing = verbs.add_parser("bring", help="make datasets and wheels for a machine without a network")
    running = verbs.add_parser("run", help="run what is left of the campaign")
    for verb in (bringing, running):
        verb.add_argument("bag", type=Path, metavar="FOLDER")
    bringing.add_argument("--toy", action="store_true", help="for run --dry: a dozen clips, no wheels")
    running.add_argument("--out", type=Path, required=True, metavar="RESULTS")
    running.add_argument("--minutes", type=float, help="of this call: 9, with --dry no limit")
    running.add_argument("--only", nargs="*", default=[], metavar="PIECE")
    running.add_argument(
        "--dry", action="store_true", help="every piece at toy size, on a CPU; its figures mean nothing"
    )
    options = parser.parse_args()
    if options.verb == "bring":
        bring(options.bag, options.toy)
        return 0
    if options.minutes is None:
        options.minutes = math.inf if options.dry else 9.0
    if options.dry and not (options.bag / "features").is_dir():
        bring(options.bag, toy=True)
    if not (options.bag / "features").is_dir():
        parser.error(
            f"{options.bag} has no datasets: make them by `bring {options.bag}` where Ray is installed"
        )
    return run(options)


if __name__ == "__main__":
    raise SystemExit(main())
