"""Precompute on a Ray cluster of several nodes: one is lost in the middle, jobs are submitted, two drivers meet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from factories.precompute import hashes, manifest_of, recipe_for, run_here, write_corpus
from servers.moto import free_port

from sage_scale.config import to_yaml
from sage_scale.precompute.actor import UnitWorker
from sage_scale.precompute.job import PrecomputeJob
from sage_scale.shards import open_dataset, verify_dataset
from sage_scale.storage import open_store

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
REPOSITORY = Path(__file__).resolve().parents[2]
CLIPS = 20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("cluster") / "videos", clips=CLIPS)


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run_here(recipe_for(corpus), out).execute()
    return hashes(out)


@pytest.fixture(scope="module")
def cluster() -> Iterator:
    """A head without CPUs and two nodes of one CPU each, every node a raylet of its own."""
    import ray
    from ray.cluster_utils import Cluster

    ports = {
        name: free_port() for name in ("dashboard_port", "metrics_export_port", "dashboard_agent_listen_port")
    }
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": True,
                        "dashboard_host": "127.0.0.1", **ports},
    )  # fmt: skip
    made.ports = ports
    for _ in range(2):
        made.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    ray.init(address=made.address, log_to_driver=False, logging_level="error")
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_submitted_job_ends_with_the_same_bytes(cluster, corpus, undisturbed, tmp_path) -> None:
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe_for(corpus)))
    command = [
        Path(sys.executable).with_name("ray"), "job", "submit", "--address",
        f"http://127.0.0.1:{cluster.ports['dashboard_port']}", "--working-dir", REPOSITORY / "launch", "--",
        sys.executable, "preprocess.py", "--corpus", "videos", "--root", corpus, "--out", tmp_path / "out",
        "--recipe", tmp_path / "recipe.yaml",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"{CLIPS + 2} clips, 0 rejects" in done.stdout
    assert hashes(tmp_path / "out") == undisturbed


def test_a_run_shows_its_figures_and_outlives_the_loss_of_a_node(
    cluster, corpus, undisturbed, tmp_path
) -> None:
    class Unhurried(UnitWorker):  # in here, so that Ray sends its code and not its name
        def work(self, *arguments, **settings):
            for event in super().work(*arguments, **settings):
                time.sleep(0.15)  # so that there is a middle of the run
                yield event

    recipe = recipe_for(corpus, precompute={"price_per_cpu_hour": 36.0})
    out, events = tmp_path / "out", tmp_path / "events.jsonl"
    run = PrecomputeJob(
        recipe=recipe, manifest=manifest_of(recipe), url=str(out), quiet=True, worker=Unhurried, events=events
    )

    def lose_a_node() -> None:
        until = time.monotonic() + 120
        while len(list(out.glob("*.tar"))) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        lost.append(len(list(out.glob("*.tar"))))
        cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)

    lost: list[int] = []
    thread = threading.Thread(target=lose_a_node, daemon=True)
    thread.start()
    summary = run.execute()
    thread.join()
    assert summary.clips == CLIPS + 2 and 3 <= lost[0] < len(run.units)
    assert hashes(out) == undisturbed
    rows = [json.loads(line) for line in events.read_text().splitlines()]
    kinds = {row["kind"] for row in rows if row["event"] == "failure"}
    assert kinds == {"killed"}, rows
    shards, figures = "ray_sage_scale_precompute_shards_total", {}
    until = time.monotonic() + 60
    while (
        figures.get(shards, 0) < len(run.units) and time.monotonic() < until
    ):  # Ray reports every few seconds
        time.sleep(0.5)
        port = cluster.ports["metrics_export_port"]
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        ours = [line for line in text.splitlines() if f'output="{out}"' in line]
        figures = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in ours}
    # Units that were lost are counted again: they were worked on again.
    assert figures["ray_sage_scale_precompute_clips_total"] >= CLIPS + 2
    assert figures[shards] == len(run.units)
    assert any('stage="decode"' in line for line in ours)


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_two_drivers_at_once_leave_one_whole_dataset(where, corpus, request, tmp_path) -> None:
    """Two commands in two processes, each with a Ray of its own, whose bytes differ: one rejects a clip by hand."""
    out = str(tmp_path / "out") if where == "folder" else request.getfixturevalue("s3").url
    command = [
        sys.executable, "-m", "sage_scale.cli.main", "precompute", "--corpus", "videos", "--root", corpus, "--out", out,
        "vision.size=32", "vision.crop=32", "text.tagger=none", "text.target=sentence", "shards.clips_per_unit=2",
        "shards.max_reject_rate=0.1", "precompute.actors=1", "precompute.object_store_mb=80",
    ]  # fmt: skip
    given_up = manifest_of(recipe_for(corpus)).clips[7].id
    drivers = []
    for number in range(2):
        more = ["--give-up", given_up] if number else []
        drivers.append(
            subprocess.Popen(
                list(map(str, [*command, *more])),
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [driver.communicate(timeout=200)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    store = open_store(out)
    assert verify_dataset(store).problems == ()
    dataset = open_dataset(store)
    table = dataset.samples()
    ids = sorted(dataset.read(table, row).meta["id"] for row in range(len(table)))
    every = sorted(clip.id for clip in manifest_of(recipe_for(corpus)).clips)
    # Whoever was first with that shard has said what is in it, and everybody sees the same.
    assert ids in (every, sorted(set(every) - {given_up}))
    told = [line.split("MB")[0] for text in said for line in text.splitlines() if line.startswith(f"{out}: ")]
    assert len(told) == 2 and len(set(told)) == 1, said
