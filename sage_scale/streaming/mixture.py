"""Mixtures: one dataset, several, or their languages as one stream, with a weight for each; pure functions.

`stream.mix` of the recipe chooses the sources. `none`: all clips are one pool, each drawn once an epoch. `dataset`:
every dataset is a source. `language`: every language is one, wherever its clips lie. Sources are drawn in proportion
to `stream.weights`, or else to their clips to the power 1 / `stream.temperature` (as multilingual language models do,
Conneau et al., 2020): 1 leaves the shares as they are, 5 brings small languages near to large ones.

A mixture has a fixed epoch length E, whatever the sizes of its sources. Source s gets q_s of the E positions, the
largest-remainder share of its weight (Hamilton's method), at the times (j + 1/2) / q_s, so that any stretch of the
epoch holds nearly its share. The n-th draw of a source, counted from the start of training, is position n mod S_s of
its own epoch n div S_s: small sources repeat, large ones go on where the last epoch stopped, and neither loses or
doubles a sample. A draw belongs to the lane of its own source, so that a rank keeps reading few lanes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sage_scale.config import Stream
from sage_scale.errors import DatasetError, RecipeError, UsageError
from sage_scale.shards import Dataset, SampleTable, open_dataset
from sage_scale.shards.index_json import Allocate, Arrays, Once, alone, private
from sage_scale.streaming.catalog import Catalog
from sage_scale.streaming.order import Column, Integers, Order, dataset_order, lanes_in_turn

Data = str | Path | Dataset | Sequence[str | Path | Dataset]
"""A dataset, by its URL or opened, or several."""


def temperature_weights(sizes: Sequence[float], temperature: float) -> NDArray[np.float64]:
    """Returns weights proportional to size ** (1 / temperature): 1 is proportional, large ones near to uniform."""
    if temperature <= 0:
        raise UsageError(f"temperature={temperature}: must be positive")
    weights = np.asarray(sizes, dtype=np.float64) ** (1.0 / temperature)
    return weights / weights.sum()


def quotas(weights: Sequence[float], length: int) -> Integers:
    """Returns the positions of each source among `length`: rounded down, the rest to the largest remainders."""
    weights_s = np.asarray(weights, dtype=np.float64)
    if not len(weights_s) or not np.all(weights_s > 0):
        raise UsageError(f"mixture weights {list(weights)}: each must be positive")
    exact = weights_s / math.fsum(weights) * length
    whole = np.floor(exact).astype(np.int64)
    order = np.argsort(whole - exact, kind="stable")
    whole[order[: length - int(whole.sum())]] += 1
    return whole


def schedule(quotas_s: Integers) -> Integers:
    """Returns (E,) int64: the source of each position; source s occurs quotas_s[s] times, evenly spread."""
    sources = np.repeat(np.arange(len(quotas_s)), quotas_s)
    draws = np.concatenate([np.arange(quota) for quota in quotas_s.tolist()])
    return sources[np.lexsort((sources, (2 * draws + 1) / (2 * quotas_s[sources])))]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The order of several datasets. One dataset alone is the mixture whose epoch is its own."""

    orders: tuple[Order, ...]
    """The order of each source."""
    weights: tuple[float, ...]
    """Share of each source, in any unit."""
    length: int
    """E, positions of an epoch."""

    @property
    def lanes(self) -> int:
        """Lanes of every source."""
        return self.orders[0].lanes

    def describe(self) -> str:
        """Returns the text that identifies this order, for the digest of a stream's state."""
        sources = " + ".join(
            f"{weight!r} of {order.describe()}" for weight, order in zip(self.weights, self.orders)
        )
        return f"{self.length} of ({sources})"

    def epoch(self, epoch: int) -> tuple[Integers, Column]:
        """Returns sample (E,) and lane (E,) of each position; samples are numbered through all sources."""
        if len(self.orders) == 1 and self.length == self.orders[0].samples:
            return self.orders[0].epoch(epoch), lanes_in_turn(self.length, self.lanes)
        quotas_s = quotas(self.weights, self.length)
        source_P = schedule(quotas_s)
        sample_P, lane_P = np.empty(self.length, dtype=np.int64), np.empty(self.length, dtype=np.int64)
        offset = 0
        for number, order in enumerate(self.orders):
            draws = epoch * int(quotas_s[number]) + np.arange(quotas_s[number])
            own_P = np.flatnonzero(source_P == number)
            own_epochs, own_positions = np.divmod(draws, order.samples)
            for own in np.unique(own_epochs).tolist():
                chosen = own_epochs == own
                sample_P[own_P[chosen]] = offset + order.epoch(own)[own_positions[chosen]]
            lane_P[own_P] = own_positions % order.lanes
            offset += order.samples
        return sample_P, lane_P


def open_datasets(data: Data, once: Once = alone) -> tuple[Dataset, ...]:
    """Returns the datasets, opened by one GET each; open ones are returned themselves.

    With `once` (`OncePerNode`) every rank calls it, and each index is fetched and parsed once a node.

    Raises DatasetError where none or the same one twice is given.
    """
    given = (data,) if isinstance(data, str | Path | Dataset) else tuple(data)
    datasets = tuple(each if isinstance(each, Dataset) else open_dataset(each, once=once) for each in given)
    if not datasets:
        raise DatasetError("no dataset was given")
    urls = [dataset.url.rstrip("/") for dataset in datasets]
    for number, url in enumerate(urls):
        if url in urls[:number]:
            raise DatasetError(f"{url} is given twice: to draw from it more often, set stream.weights")
    return datasets


def catalogs_of(
    datasets: Sequence[Dataset], split: str, *, require_text: bool, allocate: Allocate = private
) -> list[Catalog]:
    """Returns the split's samples in each dataset that has it. Raises DatasetError where none has."""
    having = [dataset for dataset in datasets if split in dataset.splits]
    if not having:
        datasets[0].samples(split)  # says which splits there are
    return [Catalog.of(dataset, split, require_text=require_text, allocate=allocate) for dataset in having]


def mixed_order(
    datasets: Sequence[Dataset],
    split: str,
    stream: Stream,
    *,
    seed: int,
    require_text: bool,
    once: Once = alone,
) -> tuple[Catalog, Mixture]:
    """Returns the samples of a split over all datasets that have it, of which `stream.fraction` is taken, and their
    order.

    With `once` every rank calls it, and one a node makes the samples' table, the blocks and the digest.

    Raises DatasetError where no dataset has the split or a usable clip, RecipeError for a wrong number of weights.
    """
    having = [dataset for dataset in datasets if split in dataset.splits]

    def make(allocate: Allocate) -> Arrays:
        whole = catalogs_of(datasets, split, require_text=require_text, allocate=allocate)
        return _arrays_of(*_mixed(having, whole, split, stream, seed, require_text))

    arrays = once(make, " + ".join(dataset.url for dataset in datasets))
    return _of_arrays(having, arrays, stream, seed)


def _mixed(
    having: Sequence[Dataset],
    whole: Sequence[Catalog],
    split: str,
    stream: Stream,
    seed: int,
    require_text: bool,
) -> tuple[Catalog, Mixture]:
    catalogs = [catalog.subset(stream.fraction) for catalog in whole]
    languages = []
    if stream.mix == "language":
        languages = [catalog.samples.language for catalog in catalogs]
        # A source is a run of the catalog: the clips of a language lie together, in dataset order.
        rows = [np.argsort(language_S, kind="stable") for language_S in languages]
        catalogs = [catalog.take(chosen) for catalog, chosen in zip(catalogs, rows)]
        languages = [language_S[chosen] for language_S, chosen in zip(languages, rows)]
    catalog = Catalog.joined(catalogs)
    if not len(catalog):
        refuse_empty_subset(catalog, stream)
        what = "sample with a sentence" if require_text else "sample"
        raise DatasetError(f"{catalog.url} has no {what} in split '{split}': there is nothing to train on")
    sizes = [len(part) for part in catalogs]
    if stream.mix == "none":
        bounds, weights = np.array([0, len(catalog)]), np.ones(1)
    elif stream.mix == "dataset":
        if 0 in sizes:
            empty = having[sizes.index(0)].url
            refuse_empty_subset(catalogs[sizes.index(0)], stream)
            raise DatasetError(f"{empty} has no usable clip in split '{split}': leave it out of the mixture")
        bounds, weights = np.cumsum([0, *sizes]), _weights(sizes, stream)
    else:
        bounds, weights = _by_language(having, languages, stream)
    return catalog, Mixture(
        orders=tuple(
            source_order(catalog, slice(begin, end), stream, seed=seed, source=number)
            for number, (begin, end) in enumerate(itertools.pairwise(bounds.tolist()))
        ),
        weights=tuple(weights.tolist()),
        length=stream.epoch_samples or len(catalog),
    )


def _arrays_of(catalog: Catalog, mixture: Mixture) -> Arrays:
    """Returns all that takes memory or time in a catalog and its order."""
    parts = catalog.parts or (catalog,)
    return {
        "records": catalog.samples.records,
        "unit": catalog.samples.unit,
        "samples": np.array([len(part) for part in parts]),
        "left_out": np.array([part.left_out for part in parts]),
        "digest": np.frombuffer(catalog.digest().encode(), np.uint8).copy(),
        "weights": np.array(mixture.weights),
        "length": np.array([mixture.length]),
        **{f"unit of {number}": part.samples.unit for number, part in enumerate(catalog.parts)},
        **{f"cuts of {number}": order.cuts for number, order in enumerate(mixture.orders)},
    }


def _of_arrays(
    having: Sequence[Dataset], arrays: Arrays, stream: Stream, seed: int
) -> tuple[Catalog, Mixture]:
    """Returns catalog and order of the arrays."""
    ends = np.cumsum(arrays["samples"]).tolist()
    parts = [
        Catalog(
            url=dataset.url,
            shards=dataset.units.tars(),
            samples=SampleTable(
                records=arrays["records"][begin:end],
                unit=arrays.get(f"unit of {number}", arrays["unit"]),
                languages=dataset.units.language_lists(),
            ),
            left_out=int(arrays["left_out"][number]),
        )
        for number, (dataset, begin, end) in enumerate(zip(having, [0, *ends], ends))
    ]
    catalog = Catalog.joined(parts, records=arrays["records"], unit=arrays["unit"])
    orders = (
        Order(cuts=arrays[f"cuts of {n}"], lanes=stream.lanes, window=stream.window, seed=seed, source=n)
        for n in range(len(arrays["weights"]))
    )
    mixture = Mixture(
        orders=tuple(orders), weights=tuple(arrays["weights"].tolist()), length=int(arrays["length"][0])
    )
    return replace(catalog, known_digest=arrays["digest"].tobytes().decode()), mixture


def source_order(
    catalog: Catalog, rows: slice, stream: Stream, *, seed: int | None = None, source: int = 0
) -> Order:
    """Returns the order of these rows of the catalog by the settings; `seed` is theirs unless given.

    Blocks of a subset are cut by the bytes that are read, which are more than its samples'.
    """
    return dataset_order(
        catalog.samples.unit[rows],
        catalog.read_bytes()[rows],
        lanes=stream.lanes,
        window=stream.window,
        block_bytes=int(stream.block_mb * (1 << 20)),
        seed=stream.seed if seed is None else seed,
        source=source,
    )


def refuse_empty_subset(catalog: Catalog, stream: Stream) -> None:
    """Raises DatasetError where `stream.fraction` has left no sample."""
    if not len(catalog) and catalog.left_out:
        raise DatasetError(
            f"stream.fraction={stream.fraction:g} chooses none of the {catalog.left_out:,} training clips of "
            f"{catalog.url}: raise it"
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
    datasets: Sequence[Dataset], languages: Sequence[NDArray[np.int32]], stream: Stream
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns the bounds of the runs of one language in one dataset, and each run's share of its language's weight."""
    names: list[str] = []
    counts: list[int] = []
    for dataset, language_S in zip(datasets, languages):
        numbers, run_lengths = np.unique(language_S, return_counts=True)
        names += [dataset.languages[number] for number in numbers.tolist()]
        counts += run_lengths.tolist()
    totals = {name: sum(c for n, c in zip(names, counts) if n == name) for name in names}
    shares = dict(zip(totals, temperature_weights(list(totals.values()), stream.temperature).tolist()))
    weights = [shares[name] * count / totals[name] for name, count in zip(names, counts)]
    return np.cumsum([0, *counts]), np.asarray(weights, np.float64)
