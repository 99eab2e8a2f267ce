"""A dataset of very many shards over few real bytes: every shard is the same file under another name."""

import dataclasses
import os

import numpy as np
from made_dataset import make_dataset

from sage_scale.shards import open_dataset
from sage_scale.shards.dataset import index_json
from sage_scale.shards.layout import INDEX_JSON, PlannedUnit, tar_name


def make_wide_dataset(folder, shards, clips):
    """`shards` shards of `clips` clips each, opened by one read of index.json. Returns its path."""
    one = folder / "one"
    make_dataset(one, folder, "features", [("train", clips)])
    opened = open_dataset(one)
    wide = folder / "wide"
    wide.mkdir()
    for unit in range(shards):
        os.link(one / tar_name(0), wide / tar_name(unit))
    units = [dataclasses.replace(opened.units[0], unit=unit) for unit in range(shards)]
    plan = tuple(PlannedUnit(split="train", clips=clips) for _ in range(shards))
    info = dataclasses.replace(opened.info, units=plan)
    (wide / INDEX_JSON).write_bytes(index_json(info, units, np.tile(opened.records, shards)))
    return wide
