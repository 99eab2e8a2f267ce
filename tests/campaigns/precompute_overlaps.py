"""Claim: two attempts of one job that overlap leave one dataset, byte for byte, and both end well.

    python tests/campaigns/precompute_overlaps.py --rounds 20 --server ceph

A job that is retried (a RayJob's second attempt, a requeued Slurm job) may meet its older attempt: a node that was
cut off or suspended comes back. In each round the older attempt is paused (SIGSTOP) once a random number of shards is
stored: all its processes with its own Ray, or its driver alone, or its actors. A newer attempt of the same command
with another Ray begins; the older one is woken in the middle of it, or after its end. Each must end with code 0, if
need be by the same command again (4: Ray's processes have timed each other out), and every object must equal that of
an undisturbed run, when the newer one has ended and again when the older one has. With `--server` the output is a
bucket behind a proxy that breaks requests, as in precompute_kills.py.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.extend(map(str, (Path(__file__).parents[1], Path(__file__).parents[2] / "benchmarks")))
from common import parse
from factories.precompute import run_here
from factories.processes import marked, wait_until
from precompute_kills import VERBS, find, hashes, run, sweep, write_corpus
from servers.trouble import Trouble, troubled_server

from sage_scale.config import load_recipe, override
from sage_scale.errors import StorageError
from sage_scale.storage import open_store

PAUSED = ("all", "driver", "actors")
LONGEST_S = 240.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--clips", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--server", choices=("ceph", "moto"), help="S3 server, with faults; else a folder")
    settings = parse(parser, rounds=1, clips=12, seed=3)
    chance = random.Random(settings.seed)
    wrong = 0
    with (
        tempfile.TemporaryDirectory(prefix="sage-scale-overlaps-") as scratch,
        contextlib.ExitStack() as stack,
    ):
        corpus = Path(scratch) / "corpus"
        write_corpus(corpus, settings.clips)
        expected = undisturbed(corpus, Path(scratch) / "undisturbed")
        trouble: Trouble | None = None
        base = str(Path(scratch) / "outputs")
        if settings.server:
            trouble = stack.enter_context(troubled_server(settings.server, settings.seed))
            base = trouble.url
        print(f"{'round':>5}  paused  shards  woken    newer    older  faults  seconds  objects", flush=True)
        for number in range(settings.rounds):
            begun = time.monotonic()
            with trouble.some() if trouble else contextlib.nullcontext(Counter()) as faults:
                log = stack.enter_context(tempfile.TemporaryFile())
                told, equal = overlap(corpus, f"{base}/round-{number:03d}", expected, chance, log.fileno())
            log.seek(0)
            errors = [
                line.decode(errors="replace").strip() for line in log if line.startswith(b"sage-scale:")
            ]
            wrong += not equal
            verdict = "equal" if equal else "WRONG"
            print(
                f"{number:>5}  {told}  {faults.total():>6}  {time.monotonic() - begun:>7.1f}  {verdict}",
                flush=True,
            )
            for line in errors:
                print(line, file=sys.stderr)
    if not wrong:
        print(f"{settings.rounds} overlapping attempts: every object equal")
    return 1 if wrong else 0


def undisturbed(corpus: Path, out: Path) -> dict[str, str]:
    """sha256 of every object of a run without Ray."""
    given = VERBS["precompute"]
    recipe = load_recipe("demo", [word for word in given if "=" in word])
    run_here(override(recipe, ["corpus.name=videos", f"corpus.root={corpus}"]), out).execute()
    return hashes(str(out))


def overlap(
    corpus: Path, out: str, expected: dict[str, str], chance: random.Random, log: int
) -> tuple[str, bool]:
    """One round: its line of the table, and whether all went well. `log` is a descriptor for what attempts print."""
    shards = sum(name.endswith(".tar") for name in expected)
    kind, at = chance.choice(PAUSED), chance.randrange(shards)
    late = chance.random() < 0.6
    middle = chance.randrange(at, shards)
    older = run("precompute", corpus, out, log)
    wait_until(lambda: stored(out) >= at or older.poll() is not None, LONGEST_S)
    time.sleep(chance.uniform(0, 0.4 if at else 8))  # at 0 anywhere in the start
    paused = pause(kind, older)
    found = stored(out)
    newer = run("precompute", corpus, out, log)
    try:
        if not late:
            wait_until(lambda: stored(out) > middle or newer.poll() is not None, LONGEST_S)
            wake(paused)
        codes = repeated(newer, corpus, out, log)
        right = codes[-1] == 0 and looked(out) == expected
        wake(paused)
        older_codes = repeated(older, corpus, out, log)
        right = right and older_codes[-1] == 0 and looked(out) == expected
    except subprocess.TimeoutExpired:
        codes, older_codes, right = [newer.poll()], [older.poll()], False
    finally:
        wake(paused)
        for process in (newer, older):
            sweep(process)
    ended = "  ".join(f"{'+'.join(map(str, c)):>7}" for c in (codes, older_codes))
    return f"{kind:>6}  {found:>6}  {'after' if late else 'amid':>5}  {ended}", right


def repeated(process: subprocess.Popen, corpus: Path, out: str, log: int) -> list[int | None]:
    """Exit codes of an attempt and of the same command again, until one is 0; at most five."""
    codes: list[int | None] = [process.wait(LONGEST_S)]
    while codes[-1] != 0 and len(codes) < 5:
        codes.append(run("precompute", corpus, out, log).wait(LONGEST_S))
    return codes


def looked(out: str) -> dict[str, str]:
    """sha256 of every object, as soon as the server lets them be read."""
    found: dict[str, str] = {}

    def read() -> bool:
        with contextlib.suppress(StorageError):
            found.update(hashes(out))
        return bool(found)

    wait_until(read, LONGEST_S, pause=0.5)
    return found


def pause(kind: str, process: subprocess.Popen) -> list[int]:
    """Stop processes of a run: their ids, the driver's first."""
    chosen = {
        "all": [process.pid, *marked(process.mark)],  # type: ignore[attr-defined]
        "driver": [process.pid],
        "actors": find("actor", process),
    }[kind]
    return [pid for pid in chosen if tell(pid, signal.SIGSTOP)]


def wake(pids: list[int]) -> None:
    """Let stopped processes go on."""
    for pid in pids:
        tell(pid, signal.SIGCONT)


def tell(pid: int, number: int) -> bool:
    """Send a signal; False where the process is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def stored(out: str) -> int:
    """Shards whose tar is stored; 0 while the server is away."""
    with contextlib.suppress(StorageError):
        return sum(entry.name.endswith(".tar") for entry in open_store(out).list())
    return 0


if __name__ == "__main__":
    sys.exit(main())
