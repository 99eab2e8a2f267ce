"""A machine that is lent with a GPU, as far as a process sees its packages: what only precompute needs is not there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

FORBIDDEN = (
    "ray", "av", "spacy", "boto3", "botocore", "jieba", "HanTa", "webdataset", "langcodes", "tenacity", "fastapi",
    "prometheus_client",
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]

SITE = """
import importlib.abc, importlib.metadata, sys

FORBIDDEN = {forbidden!r}

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def distribution(name, found=importlib.metadata.distribution):
    if name.lower() in [each.lower() for each in FORBIDDEN]:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)

sys.meta_path.insert(0, Absent())
importlib.metadata.distribution = distribution
"""
"""Every Python process imports it first: the packages can neither be imported nor found by name."""


def environment(folder: Path, forbidden: Sequence[str] = FORBIDDEN) -> dict[str, str]:
    """The environment of such a machine's processes, their children included; `folder` gets the hook."""
    folder.mkdir(exist_ok=True)
    site = SITE.replace("{forbidden!r}", repr(tuple(forbidden)))
    (folder / "sitecustomize.py").write_text(site, encoding="utf-8")
    own = {"PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **own}
