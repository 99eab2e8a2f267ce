"""The containers of the renderings, run as their pods would be, without a cluster: the same commands, variables and
volumes, on a read-only root.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
from factories.containers import why_not
from factories.processes import wait_until
from factories.ranks import free_port
from factories.training import make_language_folder, make_shards, tiny_recipe
from k8s.kubelet import environment, placed
from k8s.objects import Pod, changed, find, objects_of, pods, rendered_file

from sage_scale import config
from sage_scale.shards import verify_dataset
from sage_scale.storage import open_store

pytestmark = [
    pytest.mark.extras,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(why_not()), reason=f"no container can be made here: {why_not()}"),
]
COORDINATOR = "metadata.annotations['jobset.sigs.k8s.io/coordinator']"
TINY = (
    "corpus.train_clips=16", "corpus.dev_clips=4", "corpus.test_clips=4", "corpus.heldout_clips=0",
    "shards.clips_per_unit=8", "precompute.actors=1", "denoise.steps=2",
    "pretrain.batch_size=8", "pretrain.max_steps=3", "pretrain.evaluate_every=-1",
    "finetune.batch_size=8", "finetune.max_steps=3", "finetune.frozen_views=0",
)  # fmt: skip


def with_recipe(name: str, recipe: config.Recipe) -> list[dict[str, Any]]:
    """The objects of an overlay with this recipe in the ConfigMap."""
    objects = objects_of(rendered_file(name).read_text())
    target = f"ConfigMap/{find(objects, 'ConfigMap')['metadata']['name']}"
    return changed(objects, (target, "data.recipe~yaml", config.to_yaml(recipe)))


class Node:
    """Starts containers of pods, which have emptyDirs of their own, common claims, and this machine's network."""

    def __init__(
        self, objects: list[dict[str, Any]], folder: Path, secret: dict[str, str] | None = None
    ) -> None:
        self.objects, self.folder, self.secret = objects, folder, secret or {}
        self.pods = {pod.where: pod for pod in pods(objects)}
        self.rendezvous = free_port()

    def start(
        self, where: str, name: str, number: int = 0, words: list[str] | None = None, http: int = 0
    ) -> subprocess.Popen[str]:
        """Start a container of pod `number` of a template, with its own words or those given."""
        pod: Pod = self.pods[where]
        container = next(one for one in pod.containers() if one["name"] == name)
        folder = self.folder / f"{where.replace(' ', '-').replace(',', '')}-{number}"
        box = placed(self.objects, pod, container, folder, self.folder / "claims")
        given = environment(container, {COORDINATOR: "127.0.0.1"}, self.secret)
        given |= {"JOB_COMPLETION_INDEX": str(number)} if "JobSet" in where else {}
        ports = {
            "--master-port=29500": f"--master-port={self.rendezvous}",
            "watch.http_port=9400": f"watch.http_port={http or free_port()}",
        }
        return box.start([ports.get(word, word) for word in words or container["args"]], given)

    def run(self, where: str, name: str, words: list[str] | None = None) -> None:
        """Run a container to its end, which must be 0."""
        process = self.start(where, name, 0, words)
        printed, _ = process.communicate(timeout=600)
        assert process.returncode == 0, printed[-6000:]


def test_single_node_from_nothing_to_a_translator(tmp_path):
    """Init container, check, entrypoint and both stages of the overlay `single-node`, in the order of their pods."""
    objects = with_recipe("single-node", config.override(config.load_recipe("demo"), TINY))
    node = Node(objects, tmp_path)
    node.run("RayJob precompute, head", "corpus")
    node.run("RayJob precompute, submitter", "check")
    # Ray is this machine's own here, where KubeRay's would be joined.
    entrypoint = shlex.split(find(objects, "RayJob")["spec"]["entrypoint"])
    node.run("RayJob precompute, head", "ray-head", entrypoint)
    assert verify_dataset(tmp_path / "claims/data/shards").problems == ()
    node.run("JobSet pretrain, node", "node")
    node.run("JobSet finetune, node", "node")
    run = tmp_path / "claims/data/runs/demo"
    assert (run / "model/hashes.json").is_file() and (run / "pretrain/visual.safetensors").is_file()
    assert {path.name for path in (tmp_path / "claims/data").iterdir()} == {"corpus", "shards", "runs"}


def test_two_nodes_share_nothing_but_a_bucket(s3, tmp_path):
    """Both stages of `queued`, gpu-cluster with the secret of an object store: two pods a stage.

    A drained node gets SIGTERM: both pods save and end with 130, which podFailurePolicy ignores, and come back.
    """
    language = make_language_folder(tmp_path / "language")
    (language / "model.safetensors").chmod(0o644)  # transformers leaves it to its user alone
    recipe = tiny_recipe(
        "features", "model.language_model=/recipe/language", "pretrain.max_steps=400", "finetune.max_steps=2"
    )
    make_shards(f"{s3.url}/shards", recipe, [("train", 24), ("dev", 4), ("test", 3)])
    text = json.dumps(with_recipe("queued", recipe)).replace("s3://BUCKET", s3.url)
    objects = json.loads(text.replace("--ranks=4", "--ranks=1"))  # no GPU is here
    for files in (one["data"] for one in objects if one["kind"] == "ConfigMap"):
        files["language"] = language  # weights, where pods may read
    node = Node(objects, tmp_path, s3.server.environment())

    http = [free_port(), free_port()]
    both = [node.start("JobSet pretrain, node", "node", number, http=http[number]) for number in (0, 1)]
    assert wait_until(lambda: ready(http[0], both), 400)
    (first_process,) = psutil.Process(both[1].pid).children()
    first_process.terminate()
    job = find(objects, "JobSet", "pretrain")["spec"]["replicatedJobs"][0]["template"]["spec"]
    rules = job["podFailurePolicy"]["rules"][:2]
    actions = {code: rule["action"] for rule in rules for code in rule["onExitCodes"]["values"]}
    assert [actions.get(process.wait(300)) for process in both] == ["Ignore", "Ignore"]

    for stage in ("pretrain", "finetune"):
        both = [node.start(f"JobSet {stage}, node", "node", number) for number in (0, 1)]
        printed = [process.communicate(timeout=600)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0], printed
    run = open_store(f"{s3.url}/runs/demo")
    kept = {entry.name for entry in run.list()}
    assert {"recipe.yaml", "model/hashes.json", "pretrain/visual.safetensors"} <= kept
    rows = [json.loads(line) for line in run.get("pretrain/log.jsonl").splitlines()]
    assert [row["ranks"] for row in rows if row["event"] == "start"] == [2, 2]


def ready(port: int, processes: list[subprocess.Popen[str]]) -> bool:
    """Asks as the readiness probe does; fails if a pod has ended."""
    if any(process.poll() is not None for process in processes):
        pytest.fail("\n".join(process.communicate(timeout=60)[0][-3000:] for process in processes))
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
