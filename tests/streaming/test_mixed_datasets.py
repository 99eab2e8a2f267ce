"""Several datasets and languages in one stream."""

from collections import Counter

import pytest
import torch
from factories.datasets import make_stream_dataset, stream_recipe
from test_features import assert_equal

from sage_scale.errors import DatasetError, RecipeError
from sage_scale.shards import open_dataset
from sage_scale.storage import open_store
from sage_scale.streaming import open_evaluation, open_stream


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Datasets of 40, 12 and 8 training clips; the last has another language in half of its clips."""
    place = tmp_path_factory.mktemp("three")
    made = {}
    for number, plan in enumerate(
        ([("train", 25), ("train", 15), ("dev", 3)], [("train", 12)], [("train", 8)])
    ):
        name = "abc"[number]
        spoken = ("de", "fr") if name == "c" else ("de",)
        samples = make_stream_dataset(place / name, "features", plan, prefix=name, languages=spoken)
        made[name] = (place / name, samples)
    return made


def drawn(stream, count):
    """Keys of the next `count` clips."""
    keys = []
    for batch in stream:
        keys += batch.keys
        if len(keys) >= count:
            return keys[:count]
    return keys


def owners(three, keys):
    return Counter(name for key in keys for name, (_, samples) in three.items() if key in samples)


def urls(three):
    return [url for url, _ in three.values()]


def test_without_a_mixture_all_datasets_are_one_pool_drawn_once(three):
    stream = open_stream(urls(three), stream_recipe("features"), batch_size=7, epochs=2)
    keys = [key for batch in stream for key in batch.keys]
    train = [k for _, samples in three.values() for k, s in samples.items() if s.meta["split"] == "train"]
    assert sorted(keys[:60]) == sorted(train) == sorted(keys[60:])
    assert keys[:60] != keys[60:]


def test_each_clip_comes_with_its_own_dataset_s_bytes(three):
    stream = open_stream(urls(three), stream_recipe("features"), batch_size=13, epochs=1)
    all_samples = {key: sample for _, samples in three.values() for key, sample in samples.items()}
    for batch in stream:
        for row, key in enumerate(batch.keys):
            assert batch.metas[row] == all_samples[key].meta
            clip = batch.select([row])
            alone = next(
                b.select([b.keys.index(key)])
                for url, samples in three.values()
                if key in samples
                for b in open_stream(url, stream_recipe("features"), batch_size=64, epochs=1)
            )
            assert torch.equal(clip.video.features_FC, alone.video.features_FC)


def test_weights_are_kept_in_any_stretch_and_small_sources_repeat_evenly(three):
    recipe = stream_recipe("features", mix="dataset", weights=(1.0, 1.0, 2.0))
    keys = drawn(open_stream(urls(three), recipe, batch_size=10), 200)
    for begin in range(0, 160, 40):
        counts = owners(three, keys[begin : begin + 40])
        assert all(abs(counts[name] - share) <= 1 for name, share in zip("abc", (10, 10, 20))), counts
    times = Counter(key for key in keys if key in three["c"][1])
    assert max(times.values()) - min(times.values()) <= 1


def test_temperature_raises_small_datasets(three):
    proportional = drawn(
        open_stream(urls(three), stream_recipe("features", mix="dataset"), batch_size=10), 60
    )
    counts = owners(three, proportional)
    assert all(abs(counts[name] - size) <= 1 for name, size in zip("abc", (40, 12, 8)))
    recipe = stream_recipe("features", mix="dataset", temperature=1e6)
    counts = owners(three, drawn(open_stream(urls(three), recipe, batch_size=10), 60))
    assert all(abs(counts[name] - 20) <= 1 for name in "abc")


def test_languages_are_sources_wherever_their_clips_lie(three):
    recipe = stream_recipe("features", mix="language", temperature=1e6, epoch_samples=40)
    stream = open_stream(urls(three), recipe, batch_size=8, epochs=2)
    languages, sources = Counter(), Counter()
    for batch in stream:
        languages.update(meta["language"] for meta in batch.metas)
        sources.update(owners(three, batch.keys))
    # 56 German clips in three datasets, 4 French ones in the last: half of the draws each.
    assert abs(languages["de"] - 40) <= 3 and abs(languages["fr"] - 40) <= 3
    assert sources["a"] > sources["b"] > 0


def test_a_mixture_is_the_same_for_any_ranks_and_resumes(three):
    recipe = stream_recipe("features", mix="dataset", weights=(3.0, 2.0, 1.0), epoch_samples=50)
    whole = open_stream(urls(three), recipe, batch_size=9, epochs=2)
    wanted, states = [], []
    for batch in whole:
        wanted.append(sorted(zip(batch.positions_B.tolist(), batch.keys)))
        states.append(whole.state_dict())
    assert [len(step) for step in wanted] == [9, 9, 9, 9, 9, 5] * 2
    for world in (2, 3):
        streams = [
            open_stream(urls(three), recipe, rank=r, world=world, batch_size=9, epochs=2)
            for r in range(world)
        ]
        for stream in streams:
            stream.load_state_dict(states[3])
        for step, parts in zip(wanted[4:], zip(*streams, strict=True), strict=True):
            assert sorted(row for part in parts for row in zip(part.positions_B.tolist(), part.keys)) == step


def test_another_weight_is_another_order(three):
    from sage_scale.errors import CheckpointError

    stream = open_stream(urls(three), stream_recipe("features", mix="dataset"), batch_size=9)
    other = stream_recipe("features", mix="dataset", weights=(1.0, 1.0, 1.0))
    with pytest.raises(CheckpointError, match="order"):
        open_stream(urls(three), other, batch_size=9).load_state_dict(stream.state_dict())


def test_evaluation_goes_through_every_dataset_that_has_the_split(three):
    batches = open_evaluation(urls(three), stream_recipe("features"), "train", batch_size=11)
    keys = [key for batch in batches for key in batch.keys]
    assert keys == [
        k for _, samples in three.values() for k, s in samples.items() if s.meta["split"] == "train"
    ]
    dev = open_evaluation(urls(three), stream_recipe("features"), "dev", batch_size=11)
    assert sum(len(batch.keys) for batch in dev) == 3


def test_wrong_mixtures_are_one_clear_line(three):
    with pytest.raises(DatasetError, match="given twice"):
        open_stream([urls(three)[0]] * 2, stream_recipe("features"), batch_size=1)
    with pytest.raises(RecipeError, match="2 numbers for 3 datasets"):
        open_stream(urls(three), stream_recipe("features", mix="dataset", weights=(1.0, 2.0)), batch_size=1)
    with pytest.raises(DatasetError, match="no split 'trian'"):
        open_stream(urls(three), stream_recipe("features"), "trian", batch_size=1)
    with pytest.raises(DatasetError, match="no dataset"):
        open_stream([], stream_recipe("features"), batch_size=1)


def test_opened_datasets_are_taken_as_they_are(three):
    opened = [open_dataset(url) for url in urls(three)]
    by_url = open_stream(urls(three), stream_recipe("features"), batch_size=60, epochs=1)
    (wanted,) = [batch.keys for batch in by_url]
    (found,) = [
        batch.keys for batch in open_stream(opened, stream_recipe("features"), batch_size=60, epochs=1)
    ]
    assert found == wanted


def test_a_damaged_clip_names_its_own_dataset(three, tmp_path):
    make_stream_dataset(tmp_path / "d", "features", [("train", 6)], prefix="d")
    tar = tmp_path / "d" / "000000.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(DatasetError, match=r"/d/000000\.tar"):
        list(open_stream([*urls(three), tmp_path / "d"], stream_recipe("features"), batch_size=66, epochs=1))


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_a_folder_and_a_bucket_share_a_stream(three, s3, tmp_path, monkeypatch, cache_gb):
    here = [three["a"][0], three["b"][0]]
    bucket = open_store(f"{s3.url}/b")
    for path in here[1].iterdir():
        bucket.put(path.name, path)
    recipe = stream_recipe("features", cache_gb=cache_gb, memory_mb=0, cache_dir=str(tmp_path))
    stream = open_stream([here[0], bucket.url], recipe, batch_size=9, epochs=2)
    assert stream.dataset.remote
    monkeypatch.setattr(type(stream.dataset._reader), "read", None)  # rows go straight into the batch
    for batch, wanted in zip(stream, open_stream(here, recipe, batch_size=9, epochs=2), strict=True):
        assert_equal(batch, wanted)
