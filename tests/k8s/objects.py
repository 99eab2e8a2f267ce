"""Reading rendered manifests: the objects of a file, the pods inside them, and changes by path."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = {
    "single-node": ROOT / "k8s/overlays/single-node",
    "gpu-cluster": ROOT / "k8s/overlays/gpu-cluster",
    "aws": ROOT / "k8s/overlays/aws",
    "queued": ROOT / "tests/k8s/overlays/queued",
    "trainjob": ROOT / "tests/k8s/overlays/trainjob",
}
"""Every kustomization that is rendered: the three that ship, and two that use all components."""

GONE = object()
"""As a value of `changed`: the field is removed."""


def rendered_file(name: str) -> Path:
    """Returns the committed rendering of an overlay."""
    shipped = OVERLAYS[name].is_relative_to(ROOT / "k8s")
    return ROOT / f"k8s/rendered/{name}.yaml" if shipped else OVERLAYS[name] / "rendered.yaml"


def objects_of(text: str) -> list[dict[str, Any]]:
    """Returns the objects of a YAML text of several documents."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [one for one in yaml.load_all(text, loader) if one]


def at(one: Any, path: str) -> Any:
    """Returns the value at a path such as `spec.replicatedJobs.0.name`; a `~` in a part stands for a dot."""
    for part in path.split(".") if path else []:
        one = one[int(part)] if isinstance(one, list) else one[part.replace("~", ".")]
    return one


def find(objects: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """Returns the first object of a kind, and of a name if one is given."""
    return next(one for one in objects if one["kind"] == kind and name in ("", one["metadata"]["name"]))


def changed(objects: list[dict[str, Any]], *changes: tuple[str, str, Any]) -> list[dict[str, Any]]:
    """Returns a copy with changes (KIND or KIND/NAME, path, value or GONE); a number one past a list's end appends."""
    objects = copy.deepcopy(objects)
    for target, path, value in changes:
        kind, _, name = target.partition("/")
        parent, _, last = path.rpartition(".")
        holder = at(find(objects, kind, name), parent)
        key: Any = int(last) if isinstance(holder, list) else last.replace("~", ".")
        if value is GONE:
            del holder[key]
        elif isinstance(holder, list) and key == len(holder):
            holder.append(copy.deepcopy(value))
        else:
            holder[key] = copy.deepcopy(value)
    return objects


class Pod(NamedTuple):
    """A pod template and where it stands."""

    where: str
    """Object and role, such as `RayJob precompute, worker cpu`."""
    labels: dict[str, str]
    spec: dict[str, Any]

    def containers(self) -> list[dict[str, Any]]:
        """Returns the init containers and containers."""
        return [*self.spec.get("initContainers", []), *self.spec.get("containers", [])]


def jobset_specs(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (where, specification) of each JobSet, and of the JobSet inside each TrainingRuntime."""
    for one in objects:
        where = f"{one['kind']} {one['metadata']['name']}"
        if one["kind"] == "JobSet":
            yield where, one["spec"]
        elif one["kind"] == "TrainingRuntime":
            yield where, one["spec"]["template"]["spec"]


def pods(objects: list[dict[str, Any]]) -> Iterator[Pod]:
    """Yields every pod template of Deployments, RayJobs, JobSets and TrainingRuntimes."""
    for one in objects:
        where, spec = f"{one['kind']} {one['metadata']['name']}", one.get("spec", {})
        templates = {}
        if one["kind"] == "Deployment":
            templates[where] = spec["template"]
        elif one["kind"] == "RayJob":
            cluster = spec.get("rayClusterSpec", {})
            templates[f"{where}, submitter"] = spec.get("submitterPodTemplate", {"spec": {}})
            if head := cluster.get("headGroupSpec"):
                templates[f"{where}, head"] = _with_autoscaler(
                    head["template"], cluster.get("autoscalerOptions")
                )
            for group in cluster.get("workerGroupSpecs", []):
                templates[f"{where}, worker {group['groupName']}"] = group["template"]
        for place, template in templates.items():
            yield Pod(place, template.get("metadata", {}).get("labels", {}), template["spec"])
    for where, spec in jobset_specs(objects):
        for job in spec["replicatedJobs"]:
            template = job["template"]["spec"]["template"]
            labels = template.get("metadata", {}).get("labels", {})
            yield Pod(f"{where}, {job['name']}", labels, template["spec"])


def _with_autoscaler(template: dict[str, Any], options: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the head's template with the container that KubeRay adds: the head's image, and mounts of its volumes."""
    if not options:
        return template
    spec = template["spec"]
    container = {"name": "autoscaler", "image": spec["containers"][0].get("image", ""), **options}
    return {**template, "spec": {**spec, "containers": [*spec["containers"], container]}}
