"""Opens datasets for training or evaluation, by one GET of each index, or one a node."""

from __future__ import annotations

from dataclasses import replace

from sage_scale.config import Recipe
from sage_scale.errors import OtherDataset
from sage_scale.shards import Dataset
from sage_scale.shards.index_json import Once, alone
from sage_scale.streaming.batch import SampleShape
from sage_scale.streaming.catalog import Catalog
from sage_scale.streaming.dataset import SampleDataset
from sage_scale.streaming.mixture import Data, catalogs_of, mixed_order, open_datasets
from sage_scale.streaming.prefetch import plan_reads
from sage_scale.streaming.stream import SequentialOrder, Stream


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
    once: Once = alone,
) -> Stream:
    """Returns the training stream of one rank: the recipe's global order over the samples of a split.

    `data` is a dataset or several, by URL or opened, mixed by `stream.mix`. `batch_size` counts the clips of all ranks.
    With `once` (`per_node.OncePerNode`) every rank calls it, and index, table and blocks are made once a node.
    `seed` and `workers` are the recipe's unless given. The stream yields `epochs` epochs in all; without it, it does
    not end. Samples without a sentence are left out unless `require_text` is false, and of the others
    `stream.fraction` is taken. Raises DatasetError where the dataset has no such split, no usable sample, or was made
    by a recipe with other frames; UsageError for more ranks than lanes.
    """
    settings = recipe.stream
    seed = settings.seed if seed is None else seed
    workers = settings.workers if workers is None else workers
    datasets = _open(data, recipe, once)
    catalog, order = mixed_order(datasets, split, settings, seed=seed, require_text=require_text, once=once)
    samples = SampleDataset(
        catalog,
        _shape(datasets, recipe, training=True),
        seed=seed,
        on_corrupt=settings.on_corrupt,
        cache_bytes=settings.cache_decoded_mb * 1_000_000 // max(1, workers),
        plan=plan_reads(settings, catalog, order, world=world, workers=workers),
    )
    return Stream(
        samples,
        order,
        rank=rank,
        world=world,
        batch_size=batch_size,
        workers=workers,
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
    most: int = 0,
) -> Stream:
    """Returns a stream of every sample of a split exactly once, in dataset order; each iteration starts over.

    The split is whole, whatever `stream.fraction`; of a larger one about `most` samples, where given, chosen by a hash
    of their keys. `batch_size` counts the clips of all ranks; rank r takes the
    positions p with p mod W = r, and every rank gets as many batches. A damaged sample raises, whatever the recipe
    says: a score must not leave clips out.
    """
    datasets = _open(data, recipe)
    catalog = Catalog.joined(catalogs_of(datasets, split, require_text=require_text))
    if most and len(catalog) > most:
        catalog = catalog.subset(most / len(catalog))
    samples = SampleDataset(
        catalog,
        _shape(datasets, recipe, training=False),
        seed=recipe.stream.seed,
        plan=plan_reads(recipe.stream, catalog, world=world, workers=workers),
    )
    return Stream(
        samples,
        SequentialOrder(len(catalog), world),
        rank=rank,
        world=world,
        batch_size=batch_size,
        workers=workers,
        pin_memory=pin_memory,
        epochs=1,
        restart=True,
    )


def check_datasets(datasets: tuple[Dataset, ...], recipe: Recipe) -> None:
    """Raises OtherDataset where a dataset's frames or features differ from the recipe's."""
    wanted = recipe.vision
    names = ["kind", "fps", "frame_stride"]
    if wanted.kind == "frames":
        names += ["size", "background"] if wanted.background == "median" else ["size"]
    for dataset in datasets:
        made = dict(dataset.info.recipe_part).get("vision", {})
        for name in names:
            if name in made and made[name] != getattr(wanted, name):
                raise OtherDataset(
                    f"{dataset.url} was made with vision.{name}={made[name]}, the recipe says "
                    f"{getattr(wanted, name)}: use the dataset's recipe, or precompute with this one"
                )
    _shape(datasets, recipe, training=True)


def _open(data: Data, recipe: Recipe, once: Once = alone) -> tuple[Dataset, ...]:
    datasets = open_datasets(data, once)
    check_datasets(datasets, recipe)
    return datasets


def _shape(datasets: tuple[Dataset, ...], recipe: Recipe, *, training: bool) -> SampleShape:
    """Returns the shape of the datasets' samples; evaluation takes the plain view."""
    stored = {dataset.url: dataset.info.feature_views for dataset in datasets}
    wanted = recipe.vision.feature_views if recipe.vision.kind == "features" else 1
    fewest = min(stored, key=stored.__getitem__)
    if len(set(stored.values())) > 1:
        most = max(stored, key=stored.__getitem__)
        raise OtherDataset(
            f"{most} holds {stored[most]} views of each clip's features and {fewest} {stored[fewest]}: precompute one "
            "of them with the other's vision.feature_views"
        )
    if wanted > stored[fewest]:
        raise OtherDataset(
            f"{fewest} holds {stored[fewest]} views of each clip's features, the recipe says vision.feature_views="
            f"{wanted}: set it to {stored[fewest]}, or precompute with this recipe"
        )
    return replace(SampleShape.of(recipe), stored_views=stored[fewest], views=wanted if training else 1)
