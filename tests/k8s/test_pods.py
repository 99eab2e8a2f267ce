"""The containers of the renderings, run one after the other as their pods would be: no cluster, but the same commands,
variables, volumes and read-only root.
"""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from factories.containers import why_not
from k8s.kubelet import environment, placed
from k8s.objects import Pod, changed, find, objects_of, pods, rendered_file

from sage_scale import config
from sage_scale.shards import verify_dataset

pytestmark = [
    pytest.mark.extras,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(why_not()), reason=f"no container can be made here: {why_not()}"),
]
COORDINATOR = "metadata.annotations['jobset.sigs.k8s.io/coordinator']"
TINY = (
    "corpus.train_clips=16", "corpus.dev_clips=4", "corpus.test_clips=4", "corpus.heldout_clips=0",
    "shards.clips_per_unit=8", "precompute.actors=1", "denoise.steps=2",
    "pretrain.batch_size=8", "pretrain.max_steps=3", "pretrain.evaluate_every=-1",
    "finetune.batch_size=8", "finetune.max_steps=3", "finetune.frozen_views=0",
)  # fmt: skip


def with_recipe(name: str, *overrides: str) -> list[dict[str, Any]]:
    """The objects of an overlay with a smaller recipe in the ConfigMap."""
    objects = objects_of(rendered_file(name).read_text())
    there = find(objects, "ConfigMap")
    recipe = config.override(config.load_recipe("demo"), [*TINY, *overrides])
    return changed(
        objects, (f"ConfigMap/{there['metadata']['name']}", "data.recipe~yaml", config.to_yaml(recipe))
    )


class Node:
    """Starts containers of pods; each pod has emptyDirs of its own, claims are common to all."""

    def __init__(self, objects: list[dict[str, Any]], folder: Path, secret: dict[str, str] | None = None):
        self.objects, self.folder, self.secret = objects, folder, secret or {}
        self.pods = {pod.where: pod for pod in pods(objects)}

    def start(
        self, where: str, name: str, number: int = 0, words: list[str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a container of pod `number` of a template, with its own words or those given."""
        pod: Pod = self.pods[where]
        container = next(one for one in pod.containers() if one["name"] == name)
        folder = self.folder / f"{where.replace(' ', '-').replace(',', '')}-{number}"
        box = placed(self.objects, pod, container, folder, self.folder / "claims")
        given = environment(container, {COORDINATOR: "127.0.0.1"}, self.secret)
        given |= {"JOB_COMPLETION_INDEX": str(number)} if "JobSet" in where else {}
        return box.start(words or container["args"], given)

    def run(self, where: str, name: str, words: list[str] | None = None) -> str:
        process = self.start(where, name, 0, words)
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed[-6000:]
        return printed


def test_single_node_from_nothing_to_a_translator(tmp_path):
    """Init containers, check, entrypoint and both stages of the overlay `single-node`, in the order of their pods."""
    objects = with_recipe("single-node")
    node = Node(objects, tmp_path)
    node.run("RayJob precompute, head", "corpus")
    node.run("RayJob precompute, submitter", "check")
    assert not (tmp_path / "claims/data/shards/dataset.json").exists()
    # Ray is this machine's own here, where KubeRay's would be joined.
    entrypoint = shlex.split(find(objects, "RayJob")["spec"]["entrypoint"])
    node.run("RayJob precompute, head", "ray-head", entrypoint)
    assert verify_dataset(tmp_path / "claims/data/shards").problems == ()
    node.run("JobSet pretrain, node", "node")
    node.run("JobSet finetune, node", "node")
    run = tmp_path / "claims/data/runs/demo"
    assert (run / "model/hashes.json").is_file() and (run / "pretrain/visual.safetensors").is_file()
    assert {path.name for path in (tmp_path / "claims/data").iterdir()} == {"corpus", "shards", "runs"}
