"""Two hosts without a shared disk, Ceph's S3 server on a third: from videos to a trained stage, with a host lost.

Each host can write to a disk of its own alone (the root file system is read-only), where it has the corpus, the recipe
and its run folder. The measure is what one host makes of the same corpus and recipe: bytes of the dataset, losses.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from factories.precompute import hashes, recipe_for, run_here, write_corpus
from factories.training import log_rows, make_language_folder, tiny_recipe
from servers.ceph import missing_programs
from two_hosts import hosts, start_s3, start_sshd, why_no_ssh, why_not

from sage_scale.config import override, to_yaml
from sage_scale.training.restarts import last_step

REASON = why_not() or why_no_ssh() or ", ".join(missing_programs())
pytestmark = [
    pytest.mark.extras,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(REASON), reason=f"not here: {REASON} (Debian: radosgw ceph-mon ceph-osd pdsh)"),
]
REPOSITORY = Path(__file__).resolve().parents[2]
RAY = "ray start --num-cpus=1 --object-store-memory=80000000 --disable-usage-stats"
WAIT = """
import logging, ray, time
ray.init(address="auto", logging_level=logging.ERROR)
while sum(node["Alive"] for node in ray.nodes()) < 2:
    time.sleep(0.2)
"""
FETCH = """
import boto3, pathlib
s3, out = boto3.client("s3"), pathlib.Path("/mnt/fetched")
out.mkdir()
for entry in s3.list_objects_v2(Bucket="bucket", Prefix="set/")["Contents"]:
    s3.download_file("bucket", entry["Key"], str(out / entry["Key"].removeprefix("set/")))
"""
STEPS = 24
CONTACT_S = 8
PATIENCE_S = 420.0


class Cluster:
    """host-a and host-b, each with its disk, on a switch with the S3 server."""

    def __init__(self, switch, folder: Path, s3: dict[str, str]) -> None:
        self.switch, self.folder = switch, folder
        self.addresses = switch.addresses
        self.environment = s3 | {
            "PYTHONPATH": str(REPOSITORY), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": "/mnt", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0",
            "DS_ACCELERATOR": "cpu", "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip

    def disk(self, host: str) -> Path:
        """The disk of a host, which is its /mnt."""
        return self.folder / host

    def start(self, host: str, *command: object, **more: str) -> subprocess.Popen:
        """Run a command on a host; what it says is appended to the host's `said`."""
        return self.switch.start(
            host, command, self.environment | more, self.folder / f"{host}.txt", disk=self.disk(host)
        )

    def sage(self, host: str, *words: object) -> subprocess.Popen:
        """Run a verb on a host."""
        return self.start(host, sys.executable, "-m", "sage_scale.cli.main", *words)

    def said(self) -> str:
        """What all hosts have said."""
        return "\n".join(
            f"[{path.stem}]\n{path.read_text()[-6000:]}" for path in sorted(self.folder.glob("*.txt"))
        )

    def ends(self, process: subprocess.Popen, code: int) -> None:
        """Wait for the end of a process, and compare its exit code."""
        try:
            found = process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            found = None
        assert found == code, f"ended with {found}, not {code}\n{self.said()}"

    def reaches(self, run: str, step: int, *processes: subprocess.Popen) -> None:
        """Wait until rank 0 has logged a step."""
        end = time.monotonic() + PATIENCE_S
        while last_step(self.disk("host-a") / run, "pretrain") < step:
            assert time.monotonic() < end and all(p.poll() is None for p in processes), self.said()
            time.sleep(0.03)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The corpus, and the dataset that one process makes of it."""
    root = tmp_path_factory.mktemp("alone")
    corpus = write_corpus(root / "corpus", clips=20)
    run_here(recipe_for(corpus), root / "set").execute()
    return root


@pytest.fixture
def cluster(undisturbed, tmp_path):
    """Hosts with what each has on its own disk."""
    corpus = undisturbed / "corpus"
    texts = [path.read_text().strip() for path in sorted(corpus.rglob("*.txt"))]
    language = make_language_folder(tmp_path / "language", texts=texts)
    recipe = tiny_recipe(
        "frames", "model.language_model=/mnt/language", "model.batchnorm=sync", f"pretrain.max_steps={STEPS}",
        "pretrain.save_every=5", f"watch.contact_timeout_s={CONTACT_S}", "vision.size=32", "vision.crop=32",
        "vision.frame_stride=2", "text.target=sentence", "text.tagger=none", "stream.cache_gb=0", "pretrain.lr=0.0003",
    )  # fmt: skip
    for host in ("host-a", "host-b"):
        disk = tmp_path / "hosts" / host
        shutil.copytree(corpus, disk / "corpus")
        shutil.copytree(language, disk / "language")
        (disk / "precompute.yaml").write_text(to_yaml(recipe_for(Path("/mnt/corpus"))))
        (disk / "train.yaml").write_text(to_yaml(override(recipe, ())))
    with hosts("host-a", "host-b", "host-s3") as switch:
        s3, keys = start_s3(switch, tmp_path, ceph=True)
        try:
            yield Cluster(switch, tmp_path / "hosts", keys)
        finally:
            s3.kill()
            s3.wait()


def precompute(cluster: Cluster) -> None:
    """Both hosts write s3://bucket/set on one Ray cluster."""
    a, b = (cluster.addresses[host] for host in ("host-a", "host-b"))
    bare = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "")
    join = f"until {RAY} --address={a}:6379 --node-ip-address={b}; do sleep 0.5; done; sleep 600"
    worker = cluster.start("host-b", "sh", "-c", f"unset {' '.join(bare)}; {join}")
    driver = (
        f"{RAY} --head --port=6379 --node-ip-address={a} --include-dashboard=false && python -c '{WAIT}' && "
        f"python {REPOSITORY}/launch/preprocess.py --corpus videos --root /mnt/corpus --out s3://bucket/set "
        "--recipe /mnt/precompute.yaml"
    )
    run = cluster.start("host-a", "sh", "-c", driver)
    try:
        cluster.ends(run, 0)
    finally:
        for process in (run, worker):
            process.kill()
            process.wait()
    cluster.ends(cluster.start("host-a", sys.executable, "-c", FETCH), 0)


def test_a_dataset_and_a_stage_of_two_hosts_are_those_of_one(cluster, undisturbed) -> None:
    precompute(cluster)
    assert hashes(cluster.disk("host-a") / "fetched") == hashes(undisturbed / "set")

    given = ["--data", "s3://bucket/set", "--recipe", "/mnt/train.yaml"]
    place = "pretrain.checkpoints=s3://bucket/runs"
    cluster.ends(cluster.sage("host-a", "pretrain", "--run", "/mnt/one", *given, place), 0)

    # The same command on each host, as pods run it. Without a place that both see it ends before the first step.
    def pods(run: str, *changes: str) -> list[subprocess.Popen]:
        nodes = ["--nodes", 2, "--master-addr", cluster.addresses["host-a"], "--ranks", 1]
        words = ["pretrain", "--run", f"/mnt/{run}", *given, *nodes, *changes]
        return [
            cluster.sage(host, *words, "--node-rank", rank) for rank, host in enumerate(("host-a", "host-b"))
        ]

    for pod in pods("apart"):
        cluster.ends(pod, 2)
    seen = (cluster.folder / "host-a.txt").read_text()
    assert "rank 1 on host-b does not see what rank 0 writes to /mnt/apart/pretrain/checkpoints" in seen
    assert "set pretrain.checkpoints=s3://" in seen
    assert not (cluster.disk("host-a") / "apart").exists() and not (cluster.disk("host-b") / "apart").exists()

    first, second = pods("two", place)
    cluster.reaches("two", 7, first, second)
    cluster.switch.pull("host-b")
    second.kill()
    cluster.ends(first, 1)
    assert "rank 1 on host-b has been silent" in (cluster.folder / "host-a.txt").read_text()
    lost_at = last_step(cluster.disk("host-a") / "two", "pretrain")

    # On one host, until it is asked to stop.
    alone = cluster.sage("host-a", "pretrain", "--run", "/mnt/two", *given, place)
    cluster.reaches("two", lost_at + 3, alone)
    psutil.Process(alone.pid).children()[0].terminate()  # below `unshare`
    cluster.ends(alone, 130)
    stopped_at = last_step(cluster.disk("host-a") / "two", "pretrain")
    assert lost_at < stopped_at < STEPS

    # On two again, by pdsh and ssh. Credentials for the other host stand in DeepSpeed's file of variables.
    cluster.switch.plug("host-b")
    secrets = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    (cluster.disk("host-a") / ".deepspeed_env").write_text(
        "".join(f"{name}={cluster.environment[name]}\n" for name in secrets)
    )
    (cluster.disk("host-a") / "hosts").write_text(
        "".join(f"{cluster.addresses[host]} slots=1\n" for host in ("host-a", "host-b"))
    )
    with start_sshd(cluster.switch, cluster.folder, cluster.disk) as ssh:
        cluster.environment |= ssh
        again = ["--hostfile", "/mnt/hosts", "--master-addr", cluster.addresses["host-a"]]
        cluster.ends(cluster.sage("host-a", "pretrain", "--run", "/mnt/two", *given, place, *again), 0)

    assert cluster.environment["AWS_SECRET_ACCESS_KEY"] not in cluster.said(), "no secret is printed"

    one, two = (log_rows(cluster.disk("host-a") / run) for run in ("one", "two"))
    expected = {row["step"]: row["loss"] for row in one if row["event"] == "step"}
    steps = [row for row in two if row["event"] == "step"]
    assert sorted({row["step"] for row in steps}) == sorted(expected) == list(range(1, STEPS + 1))
    # Sums in float32 have another order on two ranks, and each step carries their differences on.
    for row in steps:
        assert row["loss"] == pytest.approx(expected[row["step"]], rel=1e-3), row["step"]
    print(max(abs(row["loss"] / expected[row["step"]] - 1) for row in steps))
    starts = [row for row in two if row["event"] == "start"]
    assert [row["ranks"] for row in starts] == [2, 1, 2]
    assert [row["step"] for row in starts][2] == stopped_at
    assert {row["dataset"] for row in starts} == {
        next(row["dataset"] for row in one if row["event"] == "start")
    }
    assert not (cluster.disk("host-b") / "two" / "pretrain" / "log.jsonl").exists(), (
        "rank 0 alone writes the log"
    )
