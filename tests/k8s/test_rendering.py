"""The manifests under `k8s/` as kustomize renders them: the committed renderings, and what they hold."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
import yaml
from k8s.objects import OVERLAYS, ROOT, find, objects_of, pods, rendered_file
from k8s.rules import findings

from sage_scale import config

COMPONENTS = ["object-store", "tensorboard", "trainjob", "kueue"]


def kustomize() -> list[str]:
    """The command that renders a folder by kustomize 5, of kubectl or alone; empty without one."""
    tried = (
        (["kubectl", "kustomize"], ["kubectl", "version", "--client"]),
        (["kustomize", "build"], ["kustomize", "version"]),
    )
    for command, version in tried:
        if shutil.which(command[0]):
            said = subprocess.run(version, capture_output=True, text=True, check=False).stdout
            if re.search(r"(Kustomize Version: |^)v?5\.", said, re.MULTILINE):
                return command
    return []


KUSTOMIZE = kustomize()
BY_KUSTOMIZE = pytest.mark.skipif(
    not KUSTOMIZE, reason="neither kubectl nor kustomize of version 5 is installed"
)


def kustomized(folder) -> list[dict]:
    done = subprocess.run([*KUSTOMIZE, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return objects_of(done.stdout)


@BY_KUSTOMIZE
@pytest.mark.parametrize("name", OVERLAYS)
def test_the_committed_rendering_is_what_kustomize_makes(name):
    file, folder = rendered_file(name).relative_to(ROOT), OVERLAYS[name].relative_to(ROOT)
    committed = objects_of((ROOT / file).read_text())
    assert kustomized(OVERLAYS[name]) == committed, f"{' '.join(KUSTOMIZE)} {folder} > {file}"


@BY_KUSTOMIZE
def test_another_recipe_reaches_every_pod_under_its_new_name(tmp_path):
    """kustomize names a ConfigMap by its content, and rewrites the names in custom resources as it is told."""
    (tmp_path / "recipe.yaml").write_text("name: other\n")
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namePrefix": "team-",
        "resources": [os.path.relpath(OVERLAYS["gpu-cluster"], tmp_path.resolve())],
        "configMapGenerator": [{"name": "recipe", "behavior": "replace", "files": ["recipe.yaml"]}],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    objects = kustomized(tmp_path)
    name = find(objects, "ConfigMap")["metadata"]["name"]
    before = find(objects_of(rendered_file("gpu-cluster").read_text()), "ConfigMap")["metadata"]["name"]
    assert name.startswith("team-recipe-") and name != f"team-{before}"
    mounted = {
        volume["configMap"]["name"]
        for pod in pods(objects)
        for volume in pod.spec["volumes"]
        if "configMap" in volume
    }
    assert mounted == {name}


@BY_KUSTOMIZE
@pytest.mark.parametrize("name", ["single-node", "gpu-cluster", "aws"])
def test_any_components_on_any_overlay_keep_every_rule(name, tmp_path):
    """Each component alone, and all of them in the order of the README."""
    for number, chosen in enumerate([[], *([one] for one in COMPONENTS), COMPONENTS]):
        folder = tmp_path / str(number)
        folder.mkdir()
        base = os.path.relpath(ROOT / "k8s", folder.resolve())
        overlay = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [f"{base}/overlays/{name}"],
            "components": [f"{base}/components/{one}" for one in chosen],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
        assert findings(kustomized(folder)) == [], chosen


@BY_KUSTOMIZE
def test_the_overlay_of_the_readme_renders(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "k8s/README.md").read_text(), re.DOTALL)
    base = os.path.relpath(ROOT / "k8s", tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(text.replace("../k8s", base))
    objects = kustomized(tmp_path)
    assert findings(objects) == []
    assert {one["metadata"]["namespace"] for one in objects} == {"signs"}


def test_recipes_are_those_that_ship():
    """The base has the demo's recipe; Amazon's overlay adds the backbone's weights to the one of YouTube-SL-25."""
    assert (ROOT / "k8s/base/recipe.yaml").read_bytes() == (ROOT / "launch/recipes/demo.yaml").read_bytes()
    mine = config.load_recipe(str(ROOT / "k8s/overlays/aws/recipe.yaml"))
    theirs = config.load_recipe(
        "sage-youtube-sl25", [f"vision.backbone_weights={mine.vision.backbone_weights}"]
    )
    assert mine == theirs and mine.vision.backbone_weights


def test_pods_run_as_the_user_of_the_images():
    """Commands are `args`, so that the images' init process starts them; KubeRay starts Ray by a shell of its own."""
    for file in (ROOT / "launch/docker").glob("Dockerfile.*"):
        assert {"USER 1000:1000", 'ENTRYPOINT ["tini", "--"]'} <= set(file.read_text().splitlines())
    for pod in (pod for name in OVERLAYS for pod in pods(objects_of(rendered_file(name).read_text()))):
        assert (pod.spec["securityContext"]["runAsUser"], pod.spec["securityContext"]["runAsGroup"]) == (
            1000,
            1000,
        )
        assert not any("command" in container for container in pod.containers())


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_object_of_the_kustomizations_alone_is_sent(name):
    objects = objects_of(rendered_file(name).read_text())
    assert not any("local-config" in str(one["metadata"]) for one in objects)
    steps = {one["metadata"]["labels"]["app.kubernetes.io/component"] for one in objects}
    assert {"shared", "precompute", "pretrain", "finetune"} <= steps  # what `kubectl apply -l` selects by
