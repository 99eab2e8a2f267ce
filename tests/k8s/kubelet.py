"""Runs a container of a rendered pod as a kubelet would: its words, environment and volumes, on a read-only root."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from factories.containers import Container
from k8s.objects import Pod, find


def placed(
    objects: list[dict[str, Any]], pod: Pod, container: dict[str, Any], folder: Path, claims: Path
) -> Container:
    """Returns a container of a pod: `folder` holds the pod's emptyDirs, `claims` the persistent claims of all pods.

    A folder among the values of a ConfigMap is copied.
    """
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    read, writable = {}, []
    for mount in container["volumeMounts"]:
        volume, path = volumes[mount["name"]], mount["mountPath"]
        if config := volume.get("configMap"):
            read[path] = folder / "config" / config["name"]
            read[path].mkdir(parents=True, exist_ok=True)
            for name, text in find(objects, "ConfigMap", config["name"])["data"].items():
                if isinstance(text, Path):
                    shutil.copytree(text, read[path] / name, dirs_exist_ok=True)
                else:
                    (read[path] / name).write_text(text, encoding="utf-8")
        elif path != "/dev/shm":  # every container has one
            writable.append(path)
            if claim := volume.get("persistentVolumeClaim"):
                link = folder / "writable" / path.strip("/")
                if not link.is_symlink():
                    (claims / claim["claimName"]).mkdir(parents=True, exist_ok=True)
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(claims / claim["claimName"])
    return Container(folder, read, tuple(writable))


def environment(container: dict[str, Any], fields: dict[str, str], secret: dict[str, str]) -> dict[str, str]:
    """Returns a container's variables: `fields` by the path of the pod's field, `secret` where envFrom names one."""
    given = dict(secret) if container.get("envFrom") else {}
    for entry in container["env"]:
        path = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        given[entry["name"]] = fields[path] if path else entry["value"]
    return given
