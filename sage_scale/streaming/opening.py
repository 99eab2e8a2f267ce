"""Opening a dataset for training or evaluation, by one GET of its index."""

from __future__ import annotations

from sage_scale.config import Recipe, Vision
from sage_scale.errors import DatasetError, UsageError
from sage_scale.shards import Dataset
from sage_scale.streaming.ahead import reading_of
from sage_scale.streaming.batches import SampleShape
from sage_scale.streaming.catalog import joined
from sage_scale.streaming.dataset import SampleDataset
from sage_scale.streaming.sources import Data, catalogs_of, draw_from, open_datasets
from sage_scale.streaming.stream import Sequence, Stream

REMOTE_READ_AHEAD = 4
"""Batches read ahead by threads from an object store, where there are no workers."""


def open_stream(
    data: Data,
    recipe: Recipe,
    split: str = "train",
    *,
    rank: int = 0,
    world: int = 1,
    batch_size: int,
    seed: int | None = None,
    epochs: int | None = None,
    require_text: bool = True,
    workers: int | None = None,
    pin_memory: bool = False,
) -> Stream:
    """The training stream of one rank: the recipe's global order over the samples of a split.

    `data` is a dataset or several, by URL or opened; what is drawn how often from them says `stream.mix`.
    `batch_size` counts the clips of all ranks. `seed` and `workers` are the recipe's unless given. Without
    `epochs` the stream does not end. Samples without a sentence are left out unless `require_text` is false.
    Raises DatasetError where the dataset has no such split, no usable sample, or was made by a recipe whose
    frames are other ones; UsageError for more ranks than lanes.
    """
    seed = recipe.stream.seed if seed is None else seed
    catalog, order = draw_from(
        _open(data, recipe), split, recipe.stream, seed=seed, require_text=require_text
    )
    workers = recipe.stream.workers if workers is None else workers
    samples = SampleDataset(
        catalog,
        SampleShape.of(recipe),
        seed=seed,
        on_corrupt=recipe.stream.on_corrupt,
        cache_bytes=recipe.stream.cache_decoded_mb * 1_000_000 // max(1, workers),
        reading=reading_of(recipe.stream, catalog, order, world=world, workers=workers),
    )
    return Stream(
        samples,
        order,
        rank=rank,
        world=world,
        batch_size=_positive(batch_size),
        workers=workers,
        read_ahead=REMOTE_READ_AHEAD if samples.remote else 0,
        pin_memory=pin_memory,
        epochs=epochs,
    )


def open_evaluation(
    data: Data,
    recipe: Recipe,
    split: str,
    *,
    rank: int = 0,
    world: int = 1,
    batch_size: int,
    require_text: bool = False,
    workers: int = 0,
    pin_memory: bool = False,
) -> Stream:
    """Every sample of a split exactly once, in dataset order; each iteration begins anew.

    `batch_size` counts the clips of all ranks; rank r takes the places p with p mod W = r, and every rank sees
    as many batches. A damaged sample raises, whatever the recipe says: a score must not leave clips out.
    """
    catalogs = catalogs_of(_open(data, recipe), split, require_text=require_text)
    catalog = joined(catalogs)
    samples = SampleDataset(
        catalog,
        SampleShape.of(recipe),
        seed=recipe.stream.seed,
        reading=reading_of(recipe.stream, catalog, world=world, workers=workers),
    )
    return Stream(
        samples,
        Sequence(len(catalog), world),
        rank=rank,
        world=world,
        batch_size=_positive(batch_size),
        workers=workers,
        read_ahead=REMOTE_READ_AHEAD if samples.remote else 0,
        pin_memory=pin_memory,
        epochs=1,
        restart=True,
    )


def _open(data: Data, recipe: Recipe) -> tuple[Dataset, ...]:
    datasets = open_datasets(data)
    for dataset in datasets:
        _check_made_alike(dataset, recipe.vision)
    return datasets


def _check_made_alike(dataset: Dataset, wanted: Vision) -> None:
    made = dict(dataset.info.recipe_part).get("vision", {})
    names = ["kind", "fps", "frame_stride", *(["size"] if wanted.kind == "frames" else [])]
    if _has_background(wanted):
        names.append("background")
    for name in names:
        if name in made and made[name] != getattr(wanted, name):
            raise DatasetError(
                f"{dataset.url} was made with vision.{name}={made[name]}, the recipe says "
                f"{getattr(wanted, name)}: use the dataset's recipe, or precompute with this one"
            )


def _has_background(vision: Vision) -> bool:
    return vision.kind == "frames" and vision.background == "median"


def _positive(batch_size: int) -> int:
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size}: must be at least 1")
    return batch_size
