"""The commands inside manifests, parsed by the real command line, and what their values must have in common."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import typer
from k8s.objects import jobset_specs, pods

from sage_scale import config
from sage_scale.cli.main import app, message
from sage_scale.errors import UsageError
from sage_scale.storage import open_store

RECIPE = "/recipe/recipe.yaml"
"""Where every pod has the recipe."""


class Command(NamedTuple):
    """The words of a command, where they stand, and the job of a stage whose pods run it."""

    where: str
    words: list[str]
    job: dict[str, Any] | None = None


def commands(objects: list[dict[str, Any]]) -> Iterator[Command]:
    """Yields every command: of containers, of RayJobs' entrypoints and of TrainJobs."""
    for pod in pods(objects):
        for container in pod.containers():
            if words := [*container.get("command", []), *container.get("args", [])]:
                yield Command(f"{pod.where}, {container['name']}", words, _job(objects, pod.where))
    for one in objects:
        where = f"{one['kind']} {one['metadata']['name']}"
        if one["kind"] == "RayJob":
            yield Command(f"{where}, entrypoint", shlex.split(one["spec"].get("entrypoint", "")))
        if one["kind"] == "TrainJob":
            trainer, runtime = one["spec"]["trainer"], one["spec"]["runtimeRef"]["name"]
            job = _job(objects, f"TrainingRuntime {runtime}, node")
            yield Command(where, [*trainer.get("command", []), *trainer.get("args", [])], job)


def _job(objects: list[dict[str, Any]], where: str) -> dict[str, Any] | None:
    """Returns the specification of the job whose pods stand at `where`."""
    for owner, spec in jobset_specs(objects):
        for job in spec["replicatedJobs"]:
            if where == f"{owner}, {job['name']}":
                return job["template"]["spec"]
    return None


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """Returns verb and options of a `sage-scale` command as the command line reads them; raises what it raises."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("sage-scale", list(words))
    verb = []
    while hasattr(group, "resolve_command"):
        name, group, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        context = group.make_context(name, rest, parent=context)
        verb.append(name)
    return " ".join(verb), context.params


def command_findings(objects: list[dict[str, Any]]) -> list[str]:
    """Returns one line for each command that the command line would refuse, or that contradicts the manifest."""
    lines: list[str] = []
    places: dict[str, set[str]] = {"shards": set(), "run": set(), "corpus": set()}
    for where, words, job in commands(objects):
        if words[:1] == ["tensorboard"]:
            continue
        if words[:1] != ["sage-scale"]:
            lines.append(f"{where}: '{' '.join(words[:1])}' is not sage-scale")
            continue
        try:
            verb, given = parsed(words[1:])
            if given["recipe"] != RECIPE:
                raise UsageError(f"the recipe is {given['recipe']}, not {RECIPE}")
            recipe = recipe_of(objects, given.get("overrides") or [])
            for url in [given.get("out"), *(given.get("data") or [])]:
                if url:
                    open_store(url)
                    places["shards"].add(url)
        except Exception as error:  # as the command line, which turns any into its line
            lines.append(f"{where}: {message(error)}")
            continue
        if verb in ("pretrain", "finetune"):
            places["run"].add(str(given["run"]))
            lines.extend(f"{where}: {line}" for line in _layout(given, recipe, job or {}))
        else:
            places["corpus"].add(given["root"])
    if not any(words[-1:] == ["--check"] for _, words, _ in commands(objects)):
        lines.append("nothing checks the recipe, the corpus and the output before workers are paid")
    return lines + [f"{name}: {sorted(seen)} differ" for name, seen in places.items() if len(seen) > 1]


def recipe_of(objects: list[dict[str, Any]], overrides: Sequence[str] = ()) -> config.Recipe:
    """Returns the recipe of the ConfigMap, changed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(
            next(one["data"]["recipe.yaml"] for one in objects if "recipe.yaml" in one.get("data", {}))
        )
        return config.load_recipe(str(file), list(overrides))


def _layout(given: dict[str, Any], recipe: config.Recipe, job: dict[str, Any]) -> Iterator[str]:
    """Yields what a stage's command and the pods that run it contradict each other in."""
    container = job["template"]["spec"]["containers"][0]
    count = job["parallelism"]
    gpus = int(container.get("resources", {}).get("limits", {}).get("nvidia.com/gpu", 0))
    if given["nodes"] != count:
        yield f"--nodes {given['nodes']}, and {count} pods"
    if gpus and given["ranks"] != gpus:
        yield f"--ranks {given['ranks']}, and {gpus} GPUs"
    if count * given["ranks"] > recipe.stream.lanes:
        yield f"{count * given['ranks']} ranks, and stream.lanes is {recipe.stream.lanes}"
    ports = {port.get("name"): port["containerPort"] for port in container.get("ports", [])}
    probed = container.get("readinessProbe", {}).get("httpGet", {}).get("port")
    if probed is not None and ports.get(probed, probed) != recipe.watch.http_port:
        yield f"probes port {ports.get(probed, probed)}, and watch.http_port is {recipe.watch.http_port}"
