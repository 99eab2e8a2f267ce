"""A cluster grows by a job's requests and shrinks as units are done: a made-up one, and Ray's own autoscalers."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from factories.precompute import hashes, recipe_for, run_here, write_corpus
from hypothesis import given
from hypothesis import strategies as st
from test_schedule import marker, units

from sage_scale.config import Recipe, from_mapping, to_yaml
from sage_scale.precompute import autoscaling, pool
from sage_scale.precompute.autoscaling import MOST_REQUESTED, ResourceRequests
from sage_scale.precompute.environment import Environment
from sage_scale.precompute.plan import Unit
from sage_scale.precompute.progress import ClipDone, JobProgress, UnitDone
from sage_scale.precompute.schedule import RejectLimit, Schedule

MB = 2**20
CPUS, NODES, IDLE_TICKS = 4, 3, 5
REPOSITORY = Path(__file__).resolve().parents[2]


class MadeUpCluster:
    """A head without CPUs and an autoscaler: a tick is a `ray.wait` for what is yet to come. Stands in for Ray."""

    def __init__(self, ticks: dict[int, int], whole: bool = False) -> None:
        """`ticks` is how long each unit takes; `whole` refuses requests beyond the cluster's maximum, as Ray's second
        autoscaler does."""
        self.whole = whole
        self.ticks, self.bundles, self.now = ticks, [], 0
        self.requests: list[list[dict]] = []
        self.nodes_alive: dict[str, int] = {}
        """Node -> the tick at which it was last used."""
        self.actors: list[MadeUpActor] = []
        self.most_working = self.most_nodes = 0
        self.nodes_at: list[int] = []
        self.joined = 0

    def request(self, bundles: list[dict]) -> None:
        self.bundles = bundles
        self.requests.append(bundles)

    def refused(self) -> int:
        return len(self.bundles) if self.whole and len(self.bundles) > NODES * CPUS else 0

    def nodes(self) -> list[dict]:
        worker = {"CPU": float(CPUS), "memory": CPUS * 4096.0 * MB}
        return [
            {"Alive": True, "Resources": {"memory": 8e9}},
            *({"Alive": True, "Resources": dict(worker)} for _ in self.nodes_alive),
        ]

    def wait(self, sources: list, **_: Any) -> tuple[list, list]:
        if ready := [source for source in sources if source.ready()][:1]:
            return ready, []
        self.now += 1
        wanted = 0 if self.refused() else min(NODES, math.ceil(len(self.bundles) / CPUS))
        wanted = max(wanted, bool(self.actors))  # the demand of the first actor, which waits
        if len(self.nodes_alive) < wanted:
            self.joined += 1
            self.nodes_alive[f"node {self.joined}"] = self.now
        for actor in self.actors:
            if not actor.node:
                room = (n for n in self.nodes_alive if sum(a.node == n for a in self.actors) < CPUS)
                actor.node = next(room, "")
        for node, used in list(self.nodes_alive.items()):
            if any(actor.node == node for actor in self.actors):
                self.nodes_alive[node] = self.now
            elif self.now - used > IDLE_TICKS and len(self.nodes_alive) > wanted:
                del self.nodes_alive[node]
        self.most_working = max(self.most_working, sum(bool(actor.working) for actor in self.actors))
        self.most_nodes = max(self.most_nodes, len(self.nodes_alive))
        self.nodes_at.append(len(self.nodes_alive))
        for actor in self.actors:
            actor.tick()
        return [source for source in sources if source.ready()][:1], []

    def kill(self, actor: MadeUpActor, no_restart: bool) -> None:
        assert no_restart and not actor.working
        self.actors.remove(actor)


class MadeUpActor:
    """An actor's handle, its methods, and the pending answers of both."""

    def __init__(self, cluster: MadeUpCluster, memory_mb: int) -> None:
        self.cluster, self.memory_mb, self.node, self.working = cluster, memory_mb, "", None
        self.left = 0
        self.environment = self.work = self
        cluster.actors.append(self)

    def options(self, **_: Any) -> MadeUpActor:
        return self

    def remote(self, unit: Unit | None = None, *_: Any) -> Answer:
        if unit is not None:
            self.working, self.left = unit, self.cluster.ticks[unit.number]
        return Answer(self, unit)

    def tick(self) -> None:
        if self.working:
            self.left -= 1


class Answer:
    """A pending answer, and the generator of a unit's events."""

    def __init__(self, actor: MadeUpActor, unit: Unit | None) -> None:
        self.actor, self.unit = actor, unit
        self.events: Iterator | None = None

    def ready(self) -> bool:
        return bool(self.actor.node) and (self.unit is None or self.actor.left <= 0)

    def __next__(self) -> Any:
        assert self.unit is not None
        if self.events is None:
            clips = [ClipDone(clip=clip.id) for clip in self.unit.clips]
            self.events = iter([*clips, UnitDone(marker=marker(self.unit))])
        event = next(self.events)
        if isinstance(event, UnitDone):
            self.actor.working = None
        return event


def made_up_run(monkeypatch, recipe: Recipe, ticks: dict[int, int], whole: bool = False) -> MadeUpCluster:
    """A schedule's run over one unit for each entry of `ticks`."""
    cluster, work = MadeUpCluster(ticks, whole), units(len(ticks))
    here = Environment(versions={}, device="", tagger="")
    monkeypatch.setattr(pool, "LOOK_EVERY_S", 0.0)
    for name, stand_in in (
        ("nodes", cluster.nodes),
        ("wait", cluster.wait),
        ("kill", cluster.kill),
        ("get", lambda answer: here if isinstance(answer, Answer) else answer),
    ):
        monkeypatch.setattr(ray, name, stand_in)
    progress = JobProgress(clips=3 * len(work), units=len(work), quiet=True)
    requests = ResourceRequests(recipe, cluster.request, cluster.refused)
    with pool.ActorPool(
        recipe, lambda mb: MadeUpActor(cluster, mb), len(work), lambda here: "", requests
    ) as actors:
        Schedule(work, tries=0, progress=progress, limit=RejectLimit(0.0, 3 * len(work))).run(actors)
    assert progress.units_left == 0
    return cluster


def test_requests_rise_and_fall_and_nodes_with_them(monkeypatch, capsys) -> None:
    """Sixty units, one of them long: no node at first, all that may be, one for the last unit, none."""
    cluster = made_up_run(monkeypatch, Recipe(), {number: 150 if number == 3 else 4 for number in range(60)})
    asked = [len(bundles) for bundles in cluster.requests]
    assert asked[0] == 60 and asked[-2:] == [NODES * CPUS + 1, 0], "until each unit left has an actor"
    assert asked == sorted(asked, reverse=True), "units are done, none comes back"
    assert all(
        bundle == {"CPU": 1, "memory": 1024 * MB} for bundles in cluster.requests for bundle in bundles
    )
    assert cluster.most_nodes == NODES and cluster.most_working == NODES * CPUS
    assert cluster.nodes_at[-1] == 1, "nodes without a unit are gone before the last unit is done"
    assert cluster.actors == []
    assert cluster.nodes_at[0] == 1, "the first request came before the first look"
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "the cluster has no node for actors yet: its autoscaler is asked for 60"


def test_an_autoscaler_that_refuses_what_it_cannot_have_is_asked_for_all_that_it_can(monkeypatch) -> None:
    cluster = made_up_run(monkeypatch, Recipe(), dict.fromkeys(range(300), 9), whole=True)
    asked = [len(bundles) for bundles in cluster.requests]
    assert asked[0] == 300 and NODES * CPUS in asked[:12]
    assert cluster.most_nodes == NODES and cluster.most_working == NODES * CPUS


@given(st.integers(0, 40), st.integers(1, 2000), st.integers(1, 2000), st.lists(st.booleans(), max_size=40))
def test_the_largest_request_that_fits_is_found_however_late_refusals_are_seen(
    most, actors, limit, seen
) -> None:
    """A refusal may be seen at a later look, and then still be that of an older request."""
    state = {"sent": 0, "refused": 0}
    recipe = from_mapping({"precompute": {"actors": limit}})
    requests = ResourceRequests(
        recipe, lambda bundles: state.update(sent=len(bundles)), lambda: state["refused"]
    )
    for look in [*seen, *[True] * 60]:
        requests.ask(actors)
        if look:
            state["refused"] = state["sent"] if state["sent"] > most else 0
    assert state["sent"] == min(most, actors, limit)


def test_the_recipe_bounds_the_requests(monkeypatch) -> None:
    recipe = from_mapping({"precompute": {"actors": 5, "actor_memory_mb": 3000}})
    cluster = made_up_run(monkeypatch, recipe, dict.fromkeys(range(30), 3))
    assert max(len(bundles) for bundles in cluster.requests) == 5
    assert cluster.most_working == 5 and cluster.most_nodes == 2
    assert cluster.requests[0][0] == {"CPU": 1, "memory": 3000 * MB}


def test_actors_of_later_nodes_have_their_share_of_memory(monkeypatch) -> None:
    """The first actor waits for a node with the least budget; the others get an equal share of the node."""
    budgets = []
    made = MadeUpActor.__init__
    monkeypatch.setattr(
        MadeUpActor, "__init__", lambda self, cluster, mb: (budgets.append(mb), made(self, cluster, mb))[1]
    )
    made_up_run(monkeypatch, Recipe(), dict.fromkeys(range(12), 6))
    assert budgets[0] == 1024 and set(budgets[1:]) == {4096}


def test_a_million_units_ask_for_a_thousand_actors_and_gpus_are_asked_for_by_share() -> None:
    sent: list[list[dict]] = []
    requests = ResourceRequests(
        from_mapping({"precompute": {"gpus_per_actor": 0.25}}), sent.append, lambda: 0
    )
    requests.ask(10**6)
    assert len(sent[0]) == MOST_REQUESTED and sent[0][0] == {"CPU": 1, "memory": 1024 * MB, "GPU": 0.25}
    requests.withdraw()
    requests.withdraw()
    assert sent[1:] == [[]]


def test_an_autoscaler_that_cannot_be_asked_is_told_once(capsys) -> None:
    def refuse(bundles: list[dict]) -> None:
        raise RuntimeError("no GCS")

    requests = ResourceRequests(Recipe(), refuse, lambda: 0)
    for _ in range(3):
        requests.ask(4)
    requests.withdraw()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "autoscaler" in said[0] and "no GCS" in said[0]


def test_the_request_is_one_that_ray_accepts(monkeypatch) -> None:
    """Ray checks the bundles' types, then finds no cluster."""
    for gpus in (0.0, 0.25):
        requests = ResourceRequests(from_mapping({"precompute": {"gpus_per_actor": gpus}}))
        with pytest.raises(RuntimeError, match="not initialized"):
            autoscaling.request([requests.bundle])


AUTOSCALED = """
import json, os, subprocess, sys, threading, time
from pathlib import Path
version, recipe_file, out, temporary = sys.argv[1:]
os.environ.update({"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_AUTH_MODE": "token",
                   "RAY_AUTH_TOKEN": 8 * "00c0ffee"})
if version == "v2":
    head = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
    os.environ.update({"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": head,
                       "RAY_OVERRIDE_NODE_ID_FOR_TESTING": head})
else:
    os.environ["RAY_enable_autoscaler_v2"] = "0"
import ray
# An object store of 80 MB a node; all nodes have this machine's address.
worker = {"resources": {"CPU": 2, "memory": 3 * 2**30, "object_store_memory": 80 * 2**20}, "node_config": {},
          "min_workers": 0, "max_workers": 2}
cluster = {
    "cluster_name": "made", "max_workers": 2, "upscaling_speed": 1.0, "idle_timeout_minutes": 0.05,
    "provider": {"type": "external", "module": "provider.Provider", "use_node_id_as_ip": True,
                 "disable_node_updaters": True, "disable_launch_config_check": True, "launch_multiple": version == "v2",
                 **({"head_node_id": head} if version == "v2" else {})},
    "available_node_types": {"worker": worker,
                             "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}},
    "head_node_type": "ray.head.default", "auth": {}, "file_mounts": {},
    **{name: [] for name in (
        "cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands",
        "head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")},
}
Path("cluster.json").write_text(json.dumps(cluster))
# Ray's own provider of this kind cannot start a node whose memory is stated.
Path("provider.py").write_text('''
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

class Provider(FakeMultiNodeProvider):
    def _create_node_with_resources_and_labels(self, config, tags, count, resources, labels):
        less = {name: amount for name, amount in resources.items() if name != "memory"}
        super()._create_node_with_resources_and_labels(config, tags, count, less, labels)
''')
os.environ["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
subprocess.run([str(Path(sys.executable).with_name("ray")), "start", "--head", "--num-cpus=0", "--port=6379",
                "--object-store-memory=83886080", "--include-dashboard=false", f"--temp-dir={temporary}",
                "--autoscaling-config=cluster.json"], check=True, stdout=subprocess.DEVNULL)
from sage_scale.config import load_recipe
from sage_scale.corpora.registry import read_corpus
from sage_scale.precompute import pool
from sage_scale.precompute.actor import UnitWorker
from sage_scale.precompute.job import PrecomputeJob
pool.LOOK_EVERY_S = 1.5  # the autoscalers look once a second
recipe = load_recipe(recipe_file, ["precompute.address=auto"])
class Waiting(UnitWorker):
    '''Its units wait until two nodes are there, the first one until one of them is gone again.'''
    def work(self, unit, *more):
        until = time.monotonic() + 100
        while not Path("grown" if unit.number else "shrunk").exists() and time.monotonic() < until:
            time.sleep(0.1)
        yield from super().work(unit, *more)
job = PrecomputeJob(recipe=recipe, manifest=read_corpus(recipe.corpus), url=out, quiet=True, worker=Waiting)
seen = []
def look():
    while not over.wait(0.3):
        try:
            nodes = sum(node["Alive"] for node in ray.nodes()) - 1
        except Exception:
            continue
        if not seen or seen[-1] != nodes:
            seen.append(nodes)
        if nodes == 2:
            Path("grown").touch()
        elif 2 in seen:
            Path("shrunk").touch()
over = threading.Event()
ray.init(address="127.0.0.1:6379", log_to_driver=False, logging_level="error")
threading.Thread(target=look, daemon=True).start()
job.execute()
seen.append("done")
until = time.monotonic() + 60
while seen[-1] != 0 and time.monotonic() < until:
    time.sleep(0.3)
over.set()
print(json.dumps(seen))
"""


@pytest.mark.extras
@pytest.mark.timeout(240)
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_rays_own_autoscaler_adds_nodes_and_takes_them_back(version, tmp_path) -> None:
    """Ray's nodes are processes of this machine, in namespaces of their own, which end with the test."""
    alone = [
        "unshare",
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--net",
        "--mount",
    ]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare (util-linux) and user namespaces")
    root = write_corpus(tmp_path / "videos", clips=20)
    recipe = recipe_for(root)
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    undisturbed = run_here(recipe, tmp_path / "undisturbed")
    undisturbed.execute()
    begin = 'ip link set lo up && exec "$@"'
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as temporary:  # a short path, for sockets
        arguments = [version, "recipe.yaml", "out", temporary]
        command = [*alone, "sh", "-c", begin, "sh", sys.executable, "-c", AUTOSCALED, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=220)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert hashes(tmp_path / "out") == hashes(tmp_path / "undisturbed")
    before, after = seen[: seen.index("done")], seen[seen.index("done") + 1 :]
    assert before[0] == 0 and max(before) == 2, seen
    assert before[-1] < 2, f"a node without a unit went before the last unit was done: {seen}"
    assert after[-1] == 0, f"the request was withdrawn: {seen}"
