"""Renderings against the published schemas: core objects by kubernetes-validate, custom ones by definition and CEL."""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest
from k8s.mutations import BROKEN_COMMANDS, BROKEN_RULES, JOB, JOBSET, NODE, RAYJOB, Change
from k8s.objects import GONE, OVERLAYS, ROOT, changed, objects_of, rendered_file

DEFINITIONS = ROOT.parent / "shared" / "data" / "kubernetes_crds"
pytestmark = [
    pytest.mark.extras,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not DEFINITIONS.is_dir(), reason="../shared/data/kubernetes_crds is missing"),
]
REQUIREMENTS = Path(__file__).with_name("schemas.txt")

BROKEN_SCHEMAS: list[tuple[str, str, list[Change], list[Change]]] = [
    ("a mistyped field of a pod", "gpu-cluster",
     [(JOBSET, f"{JOB}.template.spec.restartpolicy", "Never")], [(JOBSET, f"{JOB}.template.spec.hostNetwork", False)]),
    ("a mistyped field of a RayJob", "gpu-cluster",
     [(RAYJOB, "spec.entryPoint", "x")], [(RAYJOB, "spec.entrypointNumCpus", 0)]),
    ("a number in the environment", "gpu-cluster",
     [(JOBSET, f"{NODE}.env.1.value", 1)], [(JOBSET, f"{NODE}.env.1.value", "1")]),
    ("an unknown action", "gpu-cluster",
     [(JOBSET, "spec.failurePolicy.rules.0.action", "Stop")],
     [(JOBSET, "spec.failurePolicy.rules.0.action", "RestartJobSet")]),
    ("an unknown token mode", "gpu-cluster",
     [(RAYJOB, "spec.rayClusterSpec.authOptions.mode", "Token")],
     [(RAYJOB, "spec.rayClusterSpec.authOptions.mode", "disabled")]),
    ("CEL: an order beside dependencies", "gpu-cluster",
     [(JOBSET, "spec.startupPolicy", {"startupPolicyOrder": "InOrder"}),
      (JOBSET, "spec.replicatedJobs.0.dependsOn", [{"name": "other", "status": "Complete"}])],
     [(JOBSET, "spec.startupPolicy", {"startupPolicyOrder": "InOrder"})]),
    ("CEL: half a deletion strategy", "gpu-cluster",
     [(RAYJOB, "spec.deletionStrategy", {"onSuccess": {"policy": "DeleteCluster"}})],
     [(RAYJOB, "spec.deletionStrategy",
       {"onSuccess": {"policy": "DeleteCluster"}, "onFailure": {"policy": "DeleteNone"}})]),
    ("CEL: a TrainJob in capitals", "trainjob",
     [("TrainJob", "metadata.name", "Finetune")], [("TrainJob", "metadata.name", "finetune")]),
    ("an access mode that is not there", "gpu-cluster",
     [("PersistentVolumeClaim", "spec.accessModes", "ReadWriteMany")],
     [("PersistentVolumeClaim", "spec.accessModes", ["ReadOnlyMany"])]),
    ("a mistyped field of a policy", "gpu-cluster",
     [("NetworkPolicy", "spec.policytypes", ["Ingress"])], [("NetworkPolicy", "spec.policyTypes", ["Ingress"])]),
    ("a deployment without a selector", "queued",
     [("Deployment", "spec.selector", GONE)], [("Deployment", "spec.revisionHistoryLimit", 1)]),
]  # fmt: skip


@pytest.fixture(scope="module")
def python(request: pytest.FixtureRequest) -> Path:
    """The Python of an environment with the validators, in pytest's cache."""
    folder = Path(str(request.config.cache.mkdir("k8s-schemas")))
    made, python = folder / "made.txt", folder / "bin" / "python"
    if not made.is_file() or made.read_text() != REQUIREMENTS.read_text():
        venv.create(folder, clear=True, with_pip=True)
        done = subprocess.run(
            [python, "-m", "pip", "install", "-q", "-r", REQUIREMENTS],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"the validators cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
        made.write_text(REQUIREMENTS.read_text())
    return python


def faults(python: Path, sets: list[list[dict[str, Any]]]) -> list[list[str]]:
    """The faults of each set of objects; one process validates all."""
    done = subprocess.run(
        [python, Path(__file__).with_name("validate.py"), DEFINITIONS],
        input=json.dumps([one for objects in sets for one in objects]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = iter(json.loads(done.stdout))
    return [[line for _ in objects for line in next(answers)] for objects in sets]


def objects(name: str, *changes: Change) -> list[dict[str, Any]]:
    return changed(objects_of(rendered_file(name).read_text()), *changes)


def touched(name: str, changes: list[Change]) -> list[dict[str, Any]]:
    """The objects that differ from the rendering."""
    before = objects(name)
    return [one for one in objects(name, *changes) if one not in before]


def test_renderings_pass(python):
    assert dict(zip(OVERLAYS, faults(python, [objects(name) for name in OVERLAYS]))) == {
        name: [] for name in OVERLAYS
    }


def test_mutations_of_fields_types_and_cel_are_found_and_their_twins_pass(python):
    bad = faults(python, [touched(overlay, changes) for _, overlay, changes, _ in BROKEN_SCHEMAS])
    good = faults(python, [touched(overlay, changes) for _, overlay, _, changes in BROKEN_SCHEMAS])
    for (name, *_), found, twin in zip(BROKEN_SCHEMAS, bad, good):
        assert found, name
        assert twin == [], name


def test_valid_twins_of_our_own_rules_pass_the_schemas(python):
    mutations = [*BROKEN_RULES, *BROKEN_COMMANDS]
    found = faults(python, [touched(one.overlay, one.twin) for one in mutations])
    assert {one.name: lines for one, lines in zip(mutations, found) if lines} == {}
