"""Claim: exit codes and SIGTERM of every launcher, with and without a save that takes seconds.

    python tests/campaigns/launchers.py [--only NAME ...] [--out docs/results/launchers.md]

Stage 1 of a tiny model trains on two gloo ranks (`plain`: one) with its checkpoints in a moto S3 server. Each
launcher starts the same run four times: on a URL without a dataset; then a rank gets SIGKILL; then the launcher is
asked to stop, while each PUT of the save waits 2 s in a proxy; then to the end. A launcher that may be a container's
main process is process 1 of a PID namespace: when it ends, the kernel kills the ranks that it left behind. Process 1
ignores a signal for which it has no handler: a launcher that does not end within GRACE_S of SIGTERM gets SIGKILL, as
a pod does. Counted as saved is a run whose last logged step has a whole checkpoint. Prints a Markdown table; ends
with code 1 where one of ours differs from EXPECTED.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import psutil

sys.path.extend(map(str, (Path(__file__).parents[1], Path(__file__).parents[2] / "benchmarks")))
from common import parse, sage
from factories.processes import wait_until
from factories.ranks import free_port
from factories.training import make_language_folder, make_shards, tiny_recipe
from servers.faults import FaultProxy, fault_proxy
from servers.moto import moto_server
from servers.slurm import slurm, why_no_slurm

from sage_scale.config import LAUNCH_FOLDER, to_yaml
from sage_scale.training.checkpoint.checkpoints import Checkpoints
from sage_scale.training.restarts import last_step

ROOT = Path(__file__).resolve().parents[2]
STEPS = 100_000
"""More than any run makes before it is stopped."""
MOVES_S = 2.0
"""Wait of each PUT of the last save, seconds."""
PATIENCE_S = 240.0
GRACE_S = 45.0
"""From SIGTERM to SIGKILL, seconds; a save takes some 10."""
SCRIPT = LAUNCH_FOLDER / "pretrain.py"
BIN = Path(sys.executable).parent
KILLED = {"plain": "137"}
EXPECTED = ("2", "1", "130", "yes", "0")
"""Wrong dataset, rank killed, asked to stop, saved, done: of every launcher of ours, and of srun."""
OURS = ("plain", "ranks", "nodes", "srun")


@dataclass
class Launcher:
    """A way to start two ranks."""

    name: str
    commands: Callable[[list[object]], Sequence[Sequence[object]]]
    """From the options of the stage to a command for each node."""
    shown: str
    main: bool = True
    """Whether it may be a container's main process."""
    stop: Callable[[Started], object] | None = None
    """Asks to stop; None: SIGTERM to the last command."""
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Started:
    """A running launcher."""

    processes: list[subprocess.Popen[bytes]]
    output: Path
    main: bool

    def first(self) -> psutil.Process:
        """The launcher's own process, on the last node."""
        process = psutil.Process(self.processes[-1].pid)
        return process.children()[0] if self.main else process

    def codes(self, grace_s: float = PATIENCE_S) -> str:
        """Exit codes as a shell has them, after the end.

        The first process gets SIGKILL after `grace_s` seconds: 137, which `unshare` itself would end with 1.
        """
        last = self.processes[-1]
        killed = ""
        try:
            last.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.first().kill()
            killed = "137"
        ended = [process.wait(PATIENCE_S) for process in self.processes]
        codes = [str(code if code >= 0 else 128 - code) for code in ended]
        return ", ".join([*codes[:-1], killed or codes[-1]])


@dataclass
class Row:
    """What a launcher did."""

    name: str
    shown: str
    wrong: str = ""
    killed: str = ""
    stopped: str = ""
    saved: str = ""
    done: str = ""

    def cells(self) -> tuple[str, ...]:
        return (self.wrong, self.killed, self.stopped, self.saved, self.done)


class Campaign:
    """Runs launchers in a temporary folder with an S3 server."""

    def __init__(self, scratch: Path, proxy: FaultProxy) -> None:
        self.scratch, self.proxy = scratch, proxy
        language = make_language_folder(scratch / "language")
        recipe = tiny_recipe(
            "features", f"model.language_model={language}", f"pretrain.max_steps={STEPS}", "pretrain.save_every=1000",
            "pretrain.checkpoints=s3://bucket/runs", "watch.contact_timeout_s=20",
        )  # fmt: skip
        (scratch / "tiny.yaml").write_text(to_yaml(recipe), encoding="utf-8")
        make_shards(scratch / "shards", recipe, [("train", 20), ("dev", 6)])

    def row(self, launcher: Launcher) -> Row:
        """Start, break, stop and finish one run."""
        run = self.scratch / launcher.name.strip("-").replace(" ", "-")
        row = Row(launcher.name, launcher.shown)
        row.wrong = self._start(launcher, run, "nothing-here").codes()
        # `unshare` has no exit code for a process 1 that is killed, which `plain` is here.
        started = self._start(launcher, run, main=launcher.main and launcher.name != "plain")
        self._reach(run, 3, started)
        self._a_trainer(run, started).kill()
        row.killed = started.codes()
        self._all_gone(run)
        started = self._start(launcher, run)
        self._reach(run, last_step(run, "pretrain") + 3, started)
        slow = self.proxy.add("latency", method="PUT", path=r"/runs/", times=10**6, seconds=MOVES_S)
        if launcher.stop:
            launcher.stop(started)
        else:
            started.first().terminate()
        row.stopped = started.codes(GRACE_S)
        self._all_gone(run)
        self.proxy.rules.remove(slow)
        steps = Checkpoints(f"s3://bucket/runs/{run.name}/pretrain").steps()
        row.saved = "yes" if steps and steps[-1] == last_step(run, "pretrain") else "no"
        few = f"pretrain.max_steps={max([0, *steps]) + 2}"
        row.done = self._start(launcher, run, changes=(few,)).codes()
        self._all_gone(run)
        return row

    def _start(
        self,
        launcher: Launcher,
        run: Path,
        data: str = "shards",
        changes: tuple[str, ...] = (),
        main: bool | None = None,
    ) -> Started:
        main = launcher.main if main is None else main
        options = [
            "--data",
            self.scratch / data,
            "--recipe",
            self.scratch / "tiny.yaml",
            "--run-dir",
            run,
            *changes,
        ]
        space = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"] if main else []
        output = self.scratch / f"{run.name}.txt"
        environment = {
            **os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT),
            **launcher.environment,
        }  # fmt: skip
        processes = []
        with output.open("ab") as said:
            for command in launcher.commands(options):
                words = [*space, *map(str, command)]
                processes.append(
                    subprocess.Popen(
                        words,
                        env=environment,
                        cwd=self.scratch,
                        stdin=subprocess.DEVNULL,
                        stdout=said,
                        stderr=said,
                    )
                )
        return Started(processes, output, main)

    def _reach(self, run: Path, step: int, started: Started) -> None:
        def there() -> bool:
            return last_step(run, "pretrain") >= step or any(p.poll() is not None for p in started.processes)

        if not wait_until(there, PATIENCE_S) or last_step(run, "pretrain") < step:
            raise SystemExit(f"{run.name} did not reach step {step}:\n{started.output.read_text()[-3000:]}")

    def _a_trainer(self, run: Path, started: Started) -> psutil.Process:
        """The process that trains as the last rank: below its rank monitor, or the launcher itself."""
        ranks = below(run, "launch/pretrain.py")
        pids = {process.pid for process in ranks}
        return (
            next((process for process in reversed(ranks) if process.ppid() in pids), None) or started.first()
        )

    def _all_gone(self, run: Path) -> None:
        if not wait_until(lambda: not below(run), PATIENCE_S):
            raise SystemExit(f"processes of {run.name} were left behind: {below(run)}")


def below(run: Path, name: str = "") -> list[psutil.Process]:
    """Living processes of a run, by process id, whose command line has a word that ends with `name`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if str(run) in words and any(word.endswith(name) for word in words):
                found.append(process)
    return sorted(found, key=lambda process: process.pid)


def launchers() -> Iterator[Launcher]:
    """Every launcher that this machine has, with what it needs, which ends with it."""
    yield Launcher("plain", lambda options: [sage("pretrain", *options)], "sage-scale pretrain")
    yield Launcher(
        "ranks", lambda options: [sage("pretrain", *options, "--ranks", 2)], "sage-scale pretrain --ranks 2"
    )

    def nodes(options: list[object]) -> Sequence[Sequence[object]]:
        port = free_port()
        shared = ["--nodes", 2, "--master-addr", "127.0.0.1", "--master-port", port]
        return [sage("pretrain", *options, *shared, "--node-rank", node) for node in range(2)]

    yield Launcher("nodes", nodes, "sage-scale pretrain --nodes 2 --node-rank 0, 1; stopped is node 1")
    yield Launcher(
        "deepspeed",
        lambda options: [
            [BIN / "deepspeed", "--num_gpus", 2, "--master_port", free_port(), SCRIPT, *options]
        ],
        "deepspeed --num_gpus 2 launch/pretrain.py",
    )
    yield Launcher(
        "torchrun",
        lambda options: [
            [BIN / "torchrun", "--nproc_per_node", 2, "--master_port", free_port(), SCRIPT, *options]
        ],
        "torchrun --nproc_per_node 2 launch/pretrain.py",
    )
    if reason := why_no_slurm():
        print(f"srun: not run: {reason}", file=sys.stderr)
    else:
        with slurm() as environment:
            known = {**os.environ, **environment}
            yield Launcher(
                "srun",
                lambda options: [["srun", "--ntasks", 2, "--quiet", sys.executable, SCRIPT, *options]],
                "srun --ntasks 2 python launch/pretrain.py; stopped by scancel --signal=TERM",
                main=False,
                stop=lambda _: subprocess.run(
                    ["scancel", "--signal=TERM", "--name", "python"], env=known, check=True
                ),
                environment=environment,
            )  # fmt: skip
    yield from ray_jobs()


def ray_jobs() -> Iterator[Launcher]:
    """`ray job submit` on a head of its own, with Ray's own patience and with a long one."""
    from ray.cluster_utils import Cluster

    names = ("dashboard_port", "metrics_export_port", "dashboard_agent_listen_port")
    ports = {name: free_port() for name in names}
    settings = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": True, **ports}
    cluster = Cluster(initialize_head=True, head_node_args={**settings, "dashboard_host": "127.0.0.1"})
    address = ["--address", f"http://127.0.0.1:{ports['dashboard_port']}"]
    try:
        for name, more in (("ray job", {}), ("ray job, patient", {"RAY_JOB_STOP_WAIT_TIME_S": "300"})):
            jobs: list[str] = []

            def submit(
                options: list[object], more: dict[str, str] = more, jobs: list[str] = jobs
            ) -> Sequence[Sequence[object]]:
                jobs.append(f"job-{free_port()}")
                seen = {"PYTHONPATH": str(ROOT), **aws(), **more}
                given = ["--submission-id", jobs[-1], "--runtime-env-json", json.dumps({"env_vars": seen})]
                ranks = [*sage("pretrain", *options), "--ranks", "2"]
                return [[BIN / "ray", "job", "submit", *address, *given, "--", *ranks]]

            def stop(_: Started, jobs: list[str] = jobs) -> None:
                subprocess.run(
                    [BIN / "ray", "job", "stop", "--no-wait", *address, jobs[-1]],
                    check=True,
                    capture_output=True,
                )

            wait = f" with RAY_JOB_STOP_WAIT_TIME_S={more['RAY_JOB_STOP_WAIT_TIME_S']}" if more else ""
            shown = f"ray job submit -- sage-scale pretrain --ranks 2{wait}; stopped by ray job stop"
            yield Launcher(name, submit, shown, main=False, stop=stop)
    finally:
        cluster.shutdown()


def aws() -> dict[str, str]:
    """The AWS_* variables of this process."""
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| launcher | wrong dataset | a rank is killed | asked to stop | saved | done |",
        "|---|---|---|---|---|---|",
        *(
            f"| `{row.shown.replace('; ', '`; ')}{'' if '; ' in row.shown else '`'} | {' | '.join(row.cells())} |"
            for row in rows
        ),
    ]
    return "\n".join(lines)


def wrong(rows: list[Row]) -> list[str]:
    """What differs from EXPECTED in the rows of ours."""
    found = []
    for row in rows:
        expected = (EXPECTED[0], KILLED.get(row.name, EXPECTED[1]), *EXPECTED[2:])
        once = tuple(cell.split(", ")[0] if len(set(cell.split(", "))) == 1 else cell for cell in row.cells())
        if row.name in OURS and once != expected:
            found.append(f"{row.name}: {row.cells()}, expected {expected}")
    return found


def measure(only: list[str] | None) -> list[Row]:
    """The rows of the launchers `only` (None: all)."""
    import boto3

    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="launchers-") as folder,
        moto_server() as server,
        fault_proxy(server.host, server.port) as proxy,
    ):
        os.environ.update(server.environment(proxy.endpoint), AWS_DEFAULT_REGION="us-east-1")
        boto3.client("s3").create_bucket(Bucket="bucket")
        campaign = Campaign(Path(folder), proxy)
        for launcher in launchers():
            if only is None or launcher.name in only:
                rows.append(campaign.row(launcher))
                print(f"{launcher.name}: {rows[-1].cells()}", file=sys.stderr, flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", help="names of launchers")
    parser.add_argument("--out", type=Path, help="where the table goes, too")
    options = parse(parser, only=["plain"])
    rows = measure(options.only)
    print(table(rows))
    if options.out:
        options.out.write_text(table(rows) + "\n", encoding="utf-8")
    for line in (differing := wrong(rows)):
        print(line, file=sys.stderr)
    print(f"{len(rows)} launchers, {'some of ours differ' if differing else 'ours as stated'}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
