"""Small datasets of frames or features, written by the product's own writer."""

import dataclasses
import io

import numpy as np
from hypothesis import given, settings
from PIL import Image

from sage_scale.config import Recipe, Stream, Vision
from sage_scale.shards import (
    DatasetInfo,
    PlannedUnit,
    Sample,
    finish_dataset,
    publish_shard,
    sample_key,
    start_dataset,
    write_shard,
)
from sage_scale.storage import open_store

SIZE, STRIDE, WIDTH = 16, 2, 24


def many(*strategies):
    """Sixty examples of a property, without a deadline: other tests share the cores."""
    return lambda test: settings(max_examples=60, deadline=None)(given(*strategies)(test))


def jpeg(rng):
    pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(SIZE // 4, 0).repeat(SIZE // 4, 1)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def make_sample(number, split, kind, sentence=None, prefix="", language="de", views=1):
    rng = np.random.default_rng([number, len(split), *prefix.encode()])
    total = int(rng.integers(20, 60))
    edges = np.unique(rng.integers(0, total + 1, 12))
    segments = np.stack([edges[:-1], edges[1:]], axis=1)[::2].astype(np.int32)
    clip = f"{prefix}{split}-{number}"
    meta = {
        "id": clip,
        "sentence": f"satz {number}" if sentence is None else sentence,
        "pseudo_glosses": ["satz"],
        "language": language,
        "fps": 25.0,
        "frame_stride": STRIDE,
        "frames": total,
        "source": "made",
        "signer": "s",
        "split": split,
    }
    grid = range(0, total, STRIDE)
    if kind == "frames":
        content = {"frames": {frame: jpeg(rng) for frame in grid}, "background": jpeg(rng)}
    else:
        first, *others = rng.standard_normal((views, len(grid), WIDTH)).astype(np.float16)
        content = {"features": first, "views": tuple(others)}
    return Sample(key=sample_key(clip), meta=meta, segments=segments, **content)


def make_recipe(kind, views=1, **stream):
    recipe = Recipe(
        vision=Vision(
            kind=kind, size=SIZE, crop=SIZE, frame_stride=STRIDE, background="median", feature_views=views
        ),
        stream=Stream(**{"lanes": 8, "window": 16, "seed": 5, **stream}),
    )
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, feature_dim=WIDTH))


def make_dataset(url, folder, kind, plan, mute=(), prefix="", languages=("de",), views=1):
    """Units of (split, clips); clips whose number is in `mute` have no sentence. Returns samples by key.

    `prefix` begins every clip's id; the languages take turns.
    """
    store = open_store(url)
    recipe = make_recipe(kind, views)
    info = start_dataset(
        store,
        DatasetInfo(
            kind=kind,
            recipe=recipe.dataset_fingerprint(),
            manifest="0" * 16,
            units=tuple(PlannedUnit(split=split, clips=clips) for split, clips in plan),
            recipe_part=recipe.dataset_part(),
        ),
    )
    made, number = {}, 0
    for unit, (split, clips) in enumerate(plan):
        samples = []
        for _ in range(clips):
            language = languages[number % len(languages)]
            sentence = "" if number in mute else None
            samples.append(make_sample(number, split, kind, sentence, prefix, language, views))
            number += 1
        tar = folder / f"unit-{unit}.tar"
        write_shard(tar, samples, unit=unit, split=split, dataset=info.digest)
        publish_shard(store, tar)
        made.update((sample.key, sample) for sample in samples)
    finish_dataset(store)
    return made


PLAN = [("train", 13), ("dev", 5), ("train", 1), ("train", 20), ("train", 7)]
MUTE = (2, 30)
