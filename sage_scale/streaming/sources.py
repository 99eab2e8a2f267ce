"""What a stream draws from: one dataset, several, or the languages of them, with a weight for each.

`stream.mix` of the recipe says what a source is. `none`: all clips are one pool, each drawn once an epoch. `dataset`:
every dataset is a source. `language`: every language is one, wherever its clips lie. Sources are drawn in proportion
to `stream.weights`, or else to their clips to the power 1 / `stream.temperature` (as multilingual language models do,
Conneau et al., 2020): 1 leaves the shares as they are, 5 brings small languages near to large ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sage_scale.config import Stream
from sage_scale.errors import DatasetError, RecipeError
from sage_scale.shards import Dataset, open_dataset
from sage_scale.streaming.catalog import Catalog, joined
from sage_scale.streaming.mixture import Mixture, temperature_weights
from sage_scale.streaming.order import dataset_order

Place = str | Path | Dataset
Data = Place | Sequence[Place]
"""A dataset, by its URL or opened, or several."""


def open_datasets(data: Data) -> tuple[Dataset, ...]:
    """The datasets, opened by one GET each; those that are open already are taken as they are.

    Raises DatasetError where there is none, or one is given twice.
    """
    places = (data,) if isinstance(data, str | Path | Dataset) else tuple(data)
    datasets = tuple(place if isinstance(place, Dataset) else open_dataset(place) for place in places)
    if not datasets:
        raise DatasetError("no dataset was given")
    urls = [dataset.url.rstrip("/") for dataset in datasets]
    for number, url in enumerate(urls):
        if url in urls[:number]:
            raise DatasetError(f"{url} is given twice: to draw from it more often, set stream.weights")
    return datasets


def catalogs_of(datasets: Sequence[Dataset], split: str, *, require_text: bool) -> list[Catalog]:
    """The split's samples in each dataset that has it. Raises DatasetError where none has."""
    having = [dataset for dataset in datasets if split in dataset.splits]
    if not having:
        datasets[0].samples(split)  # says which splits there are
    return [Catalog.of(dataset, split, require_text=require_text) for dataset in having]


def draw_from(
    datasets: Sequence[Dataset], split: str, stream: Stream, *, seed: int, require_text: bool
) -> tuple[Catalog, Mixture]:
    """The samples of a split over all datasets that have it, and the order in which they are drawn.

    Raises DatasetError where no dataset has the split or a usable clip, RecipeError for weights that do not fit.
    """
    having = [dataset for dataset in datasets if split in dataset.splits]
    catalogs = catalogs_of(datasets, split, require_text=require_text)
    spoken = [catalog.samples.language for catalog in catalogs]
    if stream.mix == "language":
        # A source is a run of the catalog: the clips of a language lie together, in dataset order.
        rows = [np.argsort(language_S, kind="stable") for language_S in spoken]
        catalogs = [catalog.take(chosen) for catalog, chosen in zip(catalogs, rows)]
        spoken = [language_S[chosen] for language_S, chosen in zip(spoken, rows)]
    catalog = joined(catalogs)
    if not len(catalog):
        what = "sample with a sentence" if require_text else "sample"
        raise DatasetError(f"{catalog.url} has no {what} in split '{split}': there is nothing to train on")
    sizes = [len(part) for part in catalogs]
    if stream.mix == "none":
        bounds, weights = np.array([0, len(catalog)]), np.ones(1)
    elif stream.mix == "dataset":
        if 0 in sizes:
            empty = having[sizes.index(0)].url
            raise DatasetError(f"{empty} has no usable clip in split '{split}': leave it out of the mixture")
        bounds, weights = np.cumsum([0, *sizes]), _weights(sizes, stream)
    else:
        bounds, weights = _by_language(having, spoken, stream)
    return catalog, Mixture(
        orders=tuple(
            dataset_order(
                catalog.samples.unit[begin:end],
                catalog.samples.length[begin:end],
                lanes=stream.lanes,
                window=stream.window,
                block_bytes=int(stream.block_mb * (1 << 20)),
                seed=seed,
                source=number,
            )
            for number, (begin, end) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist()))
        ),
        weights=tuple(weights.tolist()),
        length=stream.epoch_samples or len(catalog),
    )


def _weights(sizes: Sequence[int], stream: Stream) -> NDArray[np.float64]:
    if not stream.weights:
        return temperature_weights(sizes, stream.temperature)
    if len(stream.weights) != len(sizes):
        raise RecipeError(
            f"stream.weights has {len(stream.weights)} numbers for {len(sizes)} datasets: give one for each --data"
        )
    return np.asarray(stream.weights, np.float64)


def _by_language(
    datasets: Sequence[Dataset], spoken: Sequence[NDArray[np.int32]], stream: Stream
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Bounds of the runs of one language in one dataset, and each run's weight: its share of its language's."""
    names: list[str] = []
    counts: list[int] = []
    for dataset, language_S in zip(datasets, spoken):
        numbers, run_lengths = np.unique(language_S, return_counts=True)
        names += [dataset.languages[number] for number in numbers.tolist()]
        counts += run_lengths.tolist()
    totals = {name: sum(c for n, c in zip(names, counts) if n == name) for name in names}
    shares = dict(zip(totals, temperature_weights(list(totals.values()), stream.temperature).tolist()))
    weights = [shares[name] * count / totals[name] for name, count in zip(names, counts)]
    return np.cumsum([0, *counts]), np.asarray(weights, np.float64)
