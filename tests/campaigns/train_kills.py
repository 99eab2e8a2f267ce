"""Claim: SIGKILL of ranks, of ranks that save and of launchers, at random moments, changes no weight, loses no clip.

    python tests/campaigns/train_kills.py [--kills 50] [--seed 0] [--zero 2]

Stage 1 of a tiny model trains on two gloo ranks of `sage-scale pretrain`, in float32 with AdamW, and saves every
second step in the background. Every so often one process gets SIGKILL: a rank, the process that watches a rank, or the
launcher; while they start and resume, some steps later, or at the moment
when a checkpoint is half written. All others must then end by themselves, and the same command is started again, until
the stage is over. The run that nobody disturbed is made first. Checked are

- weights and optimizer tensors of the last checkpoint, and the exported weights: equal to 1e-5;
- the loss of every step, those done again after a kill included: equal to 1e-5 of itself;
- clips of all steps together: exactly those of the epochs;
- that no process survives a kill for long, and that no file of a killed save is left in the end.

Prints what was done and ends with code 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

sys.path.extend(map(str, (Path(__file__).parents[1], Path(__file__).parents[2] / "benchmarks")))
from common import parse
from factories.processes import kill_marked, kill_one, marked
from factories.training import make_language_folder, make_shards, tiny_recipe
from safetensors.torch import load_file

from sage_scale.config import to_yaml
from sage_scale.training import launcher
from sage_scale.training.checkpoint.checkpoints import Checkpoints

TRAIN, BATCH, RANKS = 48, 6, 2
STEPS_A_KILL = 8
"""The stage is so long that kills fall over all of it."""
SAVE_EVERY = 2
START_S = 240.0
"""Longest wait for a first step."""
END_S = 120.0
"""Nothing may outlive a killed process by more; ranks whose launcher died save first."""
TOLERANCE = 1e-5
MARK = "SAGE_SCALE_KILLS"
WHO = ("rank", "rank", "watcher", "launcher")
WHEN = ("starting", "steps", "steps", "saving", "saving")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--zero", type=int, default=2, choices=(0, 1, 2, 3))
    settings = parse(parser, kills=1)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        campaign = Campaign(Path(scratch), settings.kills, settings.zero, random.Random(settings.seed))
        try:
            return campaign.run()
        finally:
            campaign.end_all()


@dataclass
class Campaign:
    """One undisturbed run, and others that are killed again and again until they are over."""

    scratch: Path
    wanted: int
    zero: int
    chance: random.Random
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    kills: int = 0
    who: Counter[str] = field(default_factory=Counter)
    when: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    half_written: int = 0
    slowest_end: float = 0.0

    def run(self) -> int:
        started = time.monotonic()
        self._prepare()
        calm = self.scratch / "calm"
        if self._start(calm).wait(timeout=900) != 0:
            raise SystemExit(f"the undisturbed run failed:\n{self._said(calm)}")
        runs = 0
        while self.kills < self.wanted and not self.wrong:
            runs += 1
            killed = self.scratch / f"killed-{runs}"
            while (
                self.kills < self.wanted and not self.wrong and self._kill_once(self._start(killed), killed)
            ):
                pass
            code = self._start(killed).wait(timeout=900)
            if code != 0:
                self.wrong.append(f"the last start ended with code {code}: {self._said(killed)[-300:]}")
            else:
                self._compare(calm, killed)
            shutil.rmtree(killed)
        minutes = (time.monotonic() - started) / 60
        result = (
            "; ".join(self.wrong[:5])
            if self.wrong
            else "weights, losses and clips equal, nothing left behind"
        )
        row = {
            "kills": self.kills,
            "of": ", ".join(f"{count} {name}" for name, count in self.who.most_common()),
            "while": ", ".join(f"{count} {name}" for name, count in self.when.most_common()),
            "half-written": self.half_written,
            "runs": runs,
            "slowest end": f"{self.slowest_end:.1f} s",
            "minutes": f"{minutes:.1f}",
            "result": result,
        }
        for name, value in row.items():
            print(f"{name:<14}{value}")
        return 1 if self.wrong else 0

    def _prepare(self) -> None:
        language = make_language_folder(self.scratch / "language")
        steps_an_epoch = TRAIN // BATCH
        self.epochs = max(3, -(-self.wanted * STEPS_A_KILL // steps_an_epoch))
        recipe = tiny_recipe(
            "features", f"model.language_model={language}", f"pretrain.epochs={self.epochs}",
            f"pretrain.batch_size={BATCH}", f"pretrain.save_every={SAVE_EVERY}", "pretrain.optimizer=adamw",
            "pretrain.lr=0.001", f"pretrain.zero_stage={self.zero}",
        )  # fmt: skip
        (self.scratch / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
        plan = [("train", TRAIN // 2), ("train", TRAIN - TRAIN // 2), ("dev", 6)]
        make_shards(self.scratch / "shards", recipe, plan)

    def _start(self, run: Path) -> subprocess.Popen[bytes]:
        data, recipe = self.scratch / "shards", self.scratch / "recipe.yaml"
        arguments = ["--run", run, "--data", data, "--recipe", recipe]
        output = (self.scratch / f"{run.name}.out").open("ab")
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "sage_scale.cli.main",
                "pretrain",
                *map(str, arguments),
                "--ranks",
                str(RANKS),
            ],
            env={**launcher.environment(), MARK: self.token, "DS_ACCELERATOR": "cpu"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )

    def _said(self, run: Path) -> str:
        return (self.scratch / f"{run.name}.out").read_text(errors="replace")[-3000:]

    def _kill_once(self, process: subprocess.Popen[bytes], run: Path) -> bool:
        """Kill something of this start at some moment; False where the stage ended before."""
        who, when = self.chance.choice(WHO), self.chance.choice(WHEN)
        log = run / "pretrain" / "log.jsonl"
        before = steps_logged(log)
        if when == "starting":
            # From the launcher's first import to the first step: ranks that start, join, load a checkpoint.
            self._until(process, lambda: False, time.monotonic() + self.chance.uniform(2, 14))
        elif not self._until(process, lambda: steps_logged(log) > before, time.monotonic() + START_S):
            return self._over(process, "no step was made")
        if when == "steps":
            more = self.chance.randint(1, 5)
            self._until(process, lambda: steps_logged(log) >= before + more, time.monotonic() + 20)
        if when == "saving":
            self._until(process, lambda: half_written(run), time.monotonic() + 20, pause=0.0005)
        if process.poll() is not None:
            return self._over(process, "it ended before it was killed")
        victims = self._processes(process.pid)
        pids = victims.get(who) or victims.get("rank") or victims["launcher"]
        who = who if victims.get(who) else "rank" if victims.get("rank") else "launcher"
        kill_one(pids, self.chance)
        self.half_written += when == "saving" and bool(half_written(run))
        self.kills += 1
        self.who[who] += 1
        self.when[when] += 1
        print(
            f"kill {self.kills} of {self.wanted}: {who} while {when}, step {before}",
            file=sys.stderr,
            flush=True,
        )
        self._must_end(process, who)
        return True

    def _over(self, process: subprocess.Popen[bytes], why: str) -> bool:
        if process.poll() != 0:
            self.wrong.append(why)
        return False

    def _until(self, process: subprocess.Popen[bytes], true, end: float, pause: float = 0.01) -> bool:
        """Wait until something is true; False at the end of the time, or where the process is over."""
        while not true():
            if time.monotonic() > end or process.poll() is not None:
                return False
            time.sleep(pause)
        return True

    def _must_end(self, process: subprocess.Popen[bytes], who: str) -> None:
        started = time.monotonic()
        while (left := marked(f"{MARK}={self.token}")) and time.monotonic() < started + END_S:
            process.poll()
            time.sleep(0.05)
        process.poll()
        self.slowest_end = max(self.slowest_end, time.monotonic() - started)
        if left:
            self.wrong.append(f"{len(left)} processes were alive {END_S:.0f} s after a {who} was killed")
            self.end_all()

    def end_all(self) -> None:
        """Kill what is left of this campaign's own processes."""
        kill_marked(f"{MARK}={self.token}")

    def _processes(self, outer: int) -> dict[str, list[int]]:
        """Who is who below a launcher: watchers of ranks, and the ranks themselves."""
        found: dict[str, list[int]] = {"launcher": [outer]}
        scripts = {}
        for pid in marked(f"{MARK}={self.token}"):
            with contextlib.suppress(OSError, IndexError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if any(word.endswith(b"launch/pretrain.py") for word in line[:4]) and pid != outer:
                    scripts[pid] = parent(pid)
        for pid, above in scripts.items():
            watches = pid in scripts.values() and above not in scripts
            found.setdefault("watcher" if watches else "rank", []).append(pid)
        return found

    def _compare(self, calm: Path, killed: Path) -> None:
        expected, got = (Checkpoints(run / "pretrain" / "checkpoints") for run in (calm, killed))
        step = expected.steps()[-1]
        if got.steps()[-1] != step:
            self.wrong.append(f"the last checkpoint is of step {got.steps()[-1]}, not {step}")
            return
        pairs = [(expected.tensors(step), got.tensors(step))]
        one, other = (load_file(run / "pretrain" / "visual.safetensors") for run in (calm, killed))
        pairs.append((one, other))
        for one, other in pairs:
            if one.keys() != other.keys():
                self.wrong.append("other tensors were saved")
                continue
            far = max(float((one[name].double() - other[name].double()).abs().max()) for name in one)
            if not far <= TOLERANCE:
                self.wrong.append(f"weights differ by {far:.2g}")
        rows = {run: step_rows(run / "pretrain" / "log.jsonl") for run in (calm, killed)}
        losses = {row["step"]: row["loss"] for row in rows[calm]}
        differing = [
            row["step"]
            for row in rows[killed]
            if abs(row["loss"] - losses[row["step"]]) > TOLERANCE * losses[row["step"]]
        ]
        if differing:
            self.wrong.append(f"losses differ at steps {differing[:5]}")
        clips = {row["step"]: row["clips"] for row in rows[killed]}
        if sum(clips.values()) != self.epochs * TRAIN:
            self.wrong.append(f"{sum(clips.values())} clips were seen, not {self.epochs * TRAIN}")
        stream = got.state(step)["progress"]["stream"]
        if (stream["epoch"], stream["position"]) != (self.epochs, 0):
            self.wrong.append(f"the stream stands at {stream}")
        self._check_files(killed, got)

    def _check_files(self, run: Path, checkpoints: Checkpoints) -> None:
        folder = run / "pretrain" / "checkpoints"
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        named = set()
        for step in checkpoints.steps():
            named |= {f"step-{step:08d}/{name}" for name in ("state.json", *checkpoints.state(step)["files"])}
        if files != named:
            self.wrong.append(f"left behind: {sorted(files ^ named)[:3]}")


def steps_logged(log: Path) -> int:
    """Lines of steps so far."""
    try:
        return log.read_bytes().count(b'"event": "step"')
    except FileNotFoundError:
        return 0


def step_rows(log: Path) -> list[dict]:
    """The log's rows of steps."""
    rows = []
    for line in log.read_text().splitlines():
        with contextlib.suppress(ValueError):  # a line whose writer was killed in the middle of it
            rows.append(json.loads(line))
    return [row for row in rows if row.get("event") == "step"]


def half_written(run: Path) -> list[str]:
    """Checkpoints that have files but no state.json."""
    folder = run / "pretrain" / "checkpoints"
    with contextlib.suppress(OSError):
        names = os.listdir(folder)
        return [name for name in names if "state.json" not in os.listdir(folder / name)]
    return []


def parent(pid: int) -> int:
    """Process that has started this one."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
