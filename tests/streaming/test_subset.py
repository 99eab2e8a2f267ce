"""`stream.fraction`: nested subsets by each clip's own key, whatever the layout, and no byte read in vain."""

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest
from factories.datasets import stream_recipe, stream_sample, write_dataset
from factories.properties import many
from hypothesis import strategies as some
from networks import Network, read
from test_stream import steps_of

from sage_scale.config import Recipe, override
from sage_scale.config import Stream as Settings
from sage_scale.errors import CheckpointError, DatasetError, RecipeError, UsageError
from sage_scale.shards import open_dataset, sample_key
from sage_scale.shards.merge import merge_datasets
from sage_scale.shards.webdataset_index import index_webdataset
from sage_scale.storage import open_store
from sage_scale.streaming import open_evaluation, open_stream, open_webdataset
from sage_scale.streaming.object_reader import ObjectReader
from sage_scale.streaming.subset import in_fraction, splitmix64
from sage_scale.training.checkpoint.compatibility import RunIdentity

keys = some.lists(some.integers(0, 2**64 - 1), max_size=80, unique=True)
fractions = some.floats(1e-6, 1.0)


def chosen(numbers, fraction):
    key_S = np.array(numbers, np.uint64)
    return set(key_S[in_fraction(key_S, fraction)].tolist())


def train_keys(url, recipe, **named):
    stream = open_stream(url, recipe, batch_size=7, epochs=1, **named)
    return [key for batch in stream for key in batch.keys]


def test_the_hash_is_splitmix64_by_its_published_vectors():
    """First outputs of seed 1234567, of the reference implementation (prng.di.unimi.it/splitmix64.c)."""
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = [(1234567 + n * 0x9E3779B97F4A7C15) % 2**64 for n in range(4)]
    assert splitmix64(np.array(states, np.uint64)).tolist() == outputs


@many(keys, fractions, fractions)
def test_subsets_are_nested(numbers, one, other):
    less, more = sorted((one, other))
    assert chosen(numbers, less) <= chosen(numbers, more) <= chosen(numbers, 1.0) == set(numbers)


@many(keys, keys, fractions, some.randoms())
def test_a_clip_s_choice_depends_on_no_other_clip_and_on_no_order(numbers, others, fraction, random):
    together = list({*numbers, *others})
    random.shuffle(together)
    assert chosen(together, fraction) == chosen(numbers, fraction) | chosen(others, fraction)


@many(some.integers(0, 10**6), fractions)
def test_the_size_is_binomial_also_of_clips_that_a_split_by_hash_has_left(begin, fraction):
    """Corpora without published splits put clips with a low sha256 into dev and test."""
    ids = [f"video-{number}" for number in range(begin, begin + 1500)]
    train = [key for key in (int(sample_key(name), 16) for name in ids) if key >= 0.1 * 2**64]
    wanted, deviation = fraction * len(train), (fraction * (1 - fraction) * len(train)) ** 0.5
    assert abs(len(chosen(train, fraction)) - wanted) <= 6 * deviation + 1


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """Eighty training clips and five of dev: as one dataset of five shards, as two datasets, and those merged."""
    place = tmp_path_factory.mktemp("layouts")
    samples = [stream_sample(number, "train", "features") for number in range(80)]
    recipe = stream_recipe("features")
    dev = [stream_sample(number, "dev", "features") for number in range(5)]
    units = [("train", samples[begin : begin + 16]) for begin in range(0, 80, 16)]
    write_dataset(place / "whole", [*units, ("dev", dev)], recipe)
    turned = samples[::-1]
    write_dataset(place / "left", [("train", turned[:50]), ("train", turned[50:53])], recipe)
    write_dataset(place / "right", [("train", turned[53:]), ("dev", dev)], recipe)
    parts = [open_dataset(place / name) for name in ("left", "right")]
    merge_datasets(open_store(place / "merged"), parts)
    return place, {sample.key for sample in samples}


@pytest.mark.parametrize("fraction", [0.2, 0.25, 0.5])
def test_every_layout_and_mixture_of_the_clips_has_the_same_subset(layouts, fraction):
    place, every = layouts
    recipe = stream_recipe("features", fraction=fraction)
    wanted = {f"{key:016x}" for key in chosen([int(key, 16) for key in every], fraction)}
    assert 0 < len(wanted) < 80
    both = [place / "left", place / "right"]
    for url in (place / "whole", place / "merged", both):
        found = train_keys(url, recipe)
        assert len(found) == len(wanted) and set(found) == wanted
    for settings in ({"mix": "dataset", "weights": (3.0, 1.0)}, {"mix": "language", "epoch_samples": 200}):
        mixed = stream_recipe("features", fraction=fraction, **settings)
        stream = open_stream(both, mixed, batch_size=9, epochs=4)
        times = Counter(key for batch in stream for key in batch.keys)
        assert set(times) <= wanted and len(times) >= 0.9 * len(wanted)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_ranks_workers_and_resuming_change_nothing(layouts):
    place, _ = layouts
    recipe = stream_recipe("features", fraction=0.5)
    whole, _ = steps_of(place / "whole", recipe, 1, 6)
    for world in (2, 3, 7):
        assert steps_of(place / "whole", recipe, world, 6)[0] == whole
    assert steps_of(place / "whole", recipe, 1, 6, workers=2)[0] == whole
    for done in (1, 5, 9):
        _, state = steps_of(place / "whole", recipe, 2, 6, limit=done)
        assert steps_of(place / "whole", recipe, 3, 6, state=state)[0] == whole[done:]


def test_the_bytes_of_a_clip_are_those_of_the_whole_stream(layouts):
    place, _ = layouts
    every = {}
    for batch in open_stream(place / "whole", stream_recipe("features"), batch_size=1, epochs=1):
        every[batch.keys[0]] = batch.video
    for batch in open_stream(
        place / "whole", stream_recipe("features", fraction=0.25), batch_size=1, epochs=1
    ):
        assert batch.video.features_FC.equal(every[batch.keys[0]].features_FC)
        assert batch.video.clip_seeds_B.equal(every[batch.keys[0]].clip_seeds_B)


def test_evaluation_is_whole(layouts):
    place, _ = layouts
    recipe = stream_recipe("features", fraction=0.1)
    for split, clips in (("dev", 5), ("train", 80)):
        batches = open_evaluation(place / "whole", recipe, split, batch_size=9)
        assert sum(len(batch.keys) for batch in batches) == clips


@pytest.mark.parametrize("keep", ["disk", "memory", "nothing"])
def test_no_byte_outside_the_chosen_clips_is_fetched(layouts, tmp_path, monkeypatch, keep):
    """Where clips are larger than a gap that costs less than a request."""
    place, _ = layouts
    for module in ("catalog", "prefetch", "object_reader"):
        monkeypatch.setattr(f"sage_scale.streaming.{module}.COALESCE_GAP", 0)
    room = {
        "disk": {"cache_gb": 1.0},
        "memory": {"cache_gb": 0.0},
        "nothing": {"cache_gb": 0.0, "memory_mb": 0},
    }
    recipe = stream_recipe("features", fraction=0.25, cache_dir=str(tmp_path), lanes=2, **room[keep])
    stream = open_stream(place / "whole", recipe, batch_size=4, epochs=1)
    catalog, plan = stream.dataset.catalog, stream.dataset.plan
    network = Network(catalog.url)
    assert plan.keep == keep
    data, _ = read(ObjectReader(catalog, network, plan), range(len(catalog)))
    assert all(isinstance(each, bytes) for each in data)
    table = catalog.samples
    asked = set(itertools.chain(*(range(o, o + n) for _, o, n in network.requests if _ == catalog.shards[0])))
    first = table.unit == 0
    spans = zip(table.offset[first].tolist(), table.length[first].tolist())
    assert asked == set(itertools.chain(*(range(offset, offset + length) for offset, length in spans)))
    assert sum(length for _, _, length in network.requests) == int(table.length.sum())


def test_small_clips_share_a_request_over_short_gaps_and_plans_count_those_bytes(layouts):
    place, _ = layouts
    recipe = stream_recipe("features", fraction=0.25, cache_gb=1.0, lanes=1)
    stream = open_stream(place / "whole", recipe, batch_size=4, epochs=1)
    catalog, plan = stream.dataset.catalog, stream.dataset.plan
    sizes = np.add.reduceat(catalog.read_bytes(), plan.cuts[:-1])
    table = catalog.samples
    last = plan.cuts[1:] - 1
    spans = table.offset[last] + table.length[last] - table.offset[plan.cuts[:-1]]
    inside = np.diff(plan.cuts) > 1
    assert (
        inside.any()
        and np.all(sizes >= spans)
        and np.all(sizes[inside] > table.length[plan.cuts[:-1]][inside])
    )


def test_a_webdataset_has_the_subset_of_the_same_keys(layouts, tmp_path):
    """Our shards are WebDatasets, too; any writer's keys are hashed, here the keys themselves."""
    place, _ = layouts
    index = tmp_path / "index"
    index_webdataset(open_store(place / "left"), open_store(index))
    streams = {
        share: open_webdataset(
            str(index), batch_size=5, epochs=1, settings=Settings(lanes=4, window=8, fraction=share)
        )
        for share in (0.25, 0.5, 1.0)
    }
    found = {
        share: [sample["__key__"] for batch in stream for sample in batch.samples]
        for share, stream in streams.items()
    }
    assert set(found[0.25]) < set(found[0.5]) < set(found[1.0])
    numbers = {int(sample_key(name), 16): name for name in found[1.0]}
    for share, names in found.items():
        assert sorted(names) == sorted(numbers[key] for key in chosen(list(numbers), share))
    with pytest.raises(DatasetError, match=r"fraction=1e-09 chooses none of the"):
        open_webdataset(str(index), batch_size=5, settings=Settings(fraction=1e-9))


def test_wrong_and_empty_fractions_are_one_clear_line(layouts):
    place, _ = layouts
    for value, said in ((0.0, "positive"), (-0.5, "at least 0"), (1.5, "at most 1")):
        with pytest.raises(RecipeError, match=rf"stream\.fraction={value} must be {said}"):
            override(Recipe(), [f"stream.fraction={value}"])
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        open_stream(place / "whole", stream_recipe("features", fraction=2.0), batch_size=4)
    with pytest.raises(
        DatasetError, match=r"stream\.fraction=1e-09 chooses none of the 80 training clips of"
    ):
        open_stream(place / "whole", stream_recipe("features", fraction=1e-9), batch_size=4)
    tiny = stream_recipe("features", fraction=1e-9, mix="dataset")
    with pytest.raises(DatasetError, match="chooses none of the 80"):
        open_stream([place / "left", place / "right"], tiny, batch_size=4)


def test_a_checkpoint_of_another_fraction_is_refused(layouts):
    place, _ = layouts
    recipes = [stream_recipe("features", fraction=share) for share in (0.5, 0.25)]
    saved = RunIdentity.of("pretrain", recipes[0])
    with pytest.raises(CheckpointError, match=r"stream\.fraction=0\.25 \(there: 0\.5\)"):
        RunIdentity.of("pretrain", recipes[1]).compare(dataclasses.asdict(saved), "there", lambda line: None)
    state = open_stream(place / "whole", recipes[0], batch_size=4).state_dict()
    with pytest.raises(CheckpointError):
        open_stream(place / "whole", recipes[1], batch_size=4).load_state_dict(state)
