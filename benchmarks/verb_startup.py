"""Start-up of the verbs: seconds of the clock and of the processor, the least of several rounds.

    python benchmarks/verb_startup.py [--rounds 5] [--against CHECKOUT]

Each verb prints its help, and some do a small piece of work: on shards/sample, on a model that has learnt nothing and a
video of one second. With --against the same commands run from another checkout too, in turns with this one. Other work
on the machine adds to the clock; the least of many rounds, and the processor's seconds, suffer little from it. Heavy
packages that a command has loaded at its end are named.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from common import parse

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

HEAVY = ("torch", "transformers", "deepspeed", "ray", "spacy", "boto3", "av", "matplotlib", "numpy")
PROGRAM = f"""
import atexit, sys
from sage_scale.cli import main
note, *words = sys.argv[1:]
def write():
    with open(note, "w") as file:
        print(*(name for name in {HEAVY} if name in sys.modules), file=file)
atexit.register(write)
sys.argv = ["sage-scale", *words]
main.main()
"""
WORK = (
    "recipe show sage-phoenix14t",
    "shards ls SAMPLE",
    "shards verify SAMPLE",
    "score --hypotheses sentences.txt --references sentences.txt --language de",
    "plan sage-phoenix14t --gpu h100",
    "models describe sage-phoenix14t",
    "doctor",
    "translate video.mp4 --model run",
)


def verbs() -> list[str]:
    """Every verb, and the verbs of its group."""
    import typer

    from sage_scale.cli.main import app

    found = []
    group = typer.main.get_command(app)
    for name in group.list_commands(None):  # type: ignore[attr-defined]
        command = group.get_command(None, name)  # type: ignore[attr-defined]
        found += [f"{name} {inner}" for inner in getattr(command, "commands", {})] or [name]
    return found


def timed(command: str, checkout: Path, folder: Path) -> tuple[float, float, str]:
    """Seconds of the clock and of the processor, and the heavy packages it loaded. SystemExit where it fails."""
    words = [str(ROOT / "shards" / "sample") if word == "SAMPLE" else word for word in command.split()]
    note = folder / "note.txt"
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, note, *words],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(checkout)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    heavy = note.read_text().split()
    if os.waitstatus_to_exitcode(status) and command != "doctor":  # which tells what is missing by its code
        raise SystemExit(f"{command}: {said.decode(errors='replace')[-500:]}")
    return seconds, usage.ru_utime + usage.ru_stime, ", ".join(heavy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", type=Path, help="another checkout, such as of the version before")
    options = parse(parser, rounds=1)
    from factories.training import make_translator
    from factories.videos import write_square

    folder = Path(tempfile.mkdtemp())
    try:
        make_translator(folder / "run")
        write_square(folder / "video.mp4", frames=25, seed=0)
        (folder / "sentences.txt").write_text("rot blau\nblau\n")
        known = verbs()
        helps = [f"{verb} --help" for verb in (known[:2] if options.small else known)]
        others = [options.against.resolve()] if options.against else []
        print("| command | " + "before: s | CPU s | loaded | " * len(others) + "s | CPU s | loaded |")
        print("|---" * (1 + 3 * (1 + len(others))) + "|")
        for command in ["--help", *helps, *(WORK[:2] if options.small else WORK)]:
            found: dict[Path, list[tuple[float, float, str]]] = {checkout: [] for checkout in (*others, ROOT)}
            for _ in range(options.rounds):
                for checkout, rows in found.items():
                    rows.append(timed(command, checkout, folder))
            cells = [
                f"{min(row[0] for row in rows):.2f} | {min(row[1] for row in rows):.2f} | {rows[0][2]}"
                for rows in found.values()
            ]
            print(
                f"| `{command.replace('SAMPLE', 'shards/sample')}` | " + " | ".join(cells) + " |", flush=True
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
