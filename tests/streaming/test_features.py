"""The fast way of features gives what the general reader gives, and leaves whatever is not in order to it."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from factories.datasets import WIDTH, make_stream_dataset, stream_recipe, stream_sample, write_dataset
from factories.properties import many
from hypothesis import strategies as st

from sage_scale.streaming import open_stream
from sage_scale.streaming.packing import grid_rows, run_indices


def both_ways(url, recipe, **settings):
    """The batches by the fast way, and by the general one."""
    fast = open_stream(url, recipe, epochs=2, **settings)
    assert fast.dataset.feature_reader is not None
    general = open_stream(url, recipe, epochs=2, **settings)
    general.dataset.feature_reader = None
    return fast, general


def assert_equal(batch, wanted):
    assert batch.keys == wanted.keys and batch.metas == wanted.metas
    for one, other in zip(batch.segments, wanted.segments, strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)
    for name, value in vars(wanted.video).items():
        found = getattr(batch.video, name)
        assert (value is None) == (found is None), name
        assert value is None or (found.dtype == value.dtype and torch.equal(found, value)), name
    for name in ("weights_B", "positions_B", "global_batch", "epoch", "position"):
        assert np.array_equal(getattr(batch, name), getattr(wanted, name)), name
    assert (batch.counts.samples, batch.counts.bytes) == (wanted.counts.samples, wanted.counts.bytes)


@pytest.mark.parametrize("batch_size", [1, 5, 39])
def test_the_fast_way_gives_what_the_general_reader_gives(features_dataset, batch_size):
    url, recipe, _ = features_dataset
    fast, general = both_ways(url, recipe, batch_size=batch_size)
    for batch, wanted in zip(fast, general, strict=True):
        # It did not hand the work on.
        assert not len(batch.keys) or batch.counts.read_s > 0
        assert_equal(batch, wanted)


def test_clips_that_are_whole_and_clips_that_are_not(tmp_path):
    """Segments that cover every row, of clips of one row up to several hundred, long descriptions, many segments."""
    rng = np.random.default_rng(3)
    samples = []
    for number, total in enumerate([1, 2, 3, 20, 120, 700, 701, 33, 8, 64]):
        sample = stream_sample(number, "train", "features")
        rows = -(-total // 2)
        edges = np.unique(np.r_[0, rng.integers(0, total, 40), total]).astype(np.int32)
        segments = np.stack([edges[:-1], edges[1:]], axis=1)
        if number % 3 == 2:
            segments = segments[:: 2 if len(segments) > 2 else 1]
        meta = {**sample.meta, "frames": total, "sentence": "ä wort " * (number * 60 + 1)}
        features = rng.standard_normal((rows, WIDTH)).astype(np.float16)
        samples.append(dataclasses.replace(sample, meta=meta, segments=segments, features=features))
    url = write(tmp_path, samples)
    fast, general = both_ways(url, stream_recipe("features"), batch_size=4)
    for batch, wanted in zip(fast, general, strict=True):
        assert_equal(batch, wanted)


def test_it_is_the_fast_way_that_answers(features_dataset, monkeypatch):
    url, recipe, _ = features_dataset
    stream = open_stream(url, recipe, batch_size=6, epochs=1)
    monkeypatch.setattr(type(stream.dataset._reader), "read", None)  # the general reader could not answer
    assert sum(len(batch.keys) for batch in stream) == stream.samples


def test_members_of_later_versions_are_left_to_the_general_reader(tmp_path):
    """A sample with one more member between its own: still read, by the reader that walks the headers."""
    from sage_scale.shards import writer

    samples = [stream_sample(number, "train", "features") for number in range(5)]
    members = writer.sample_members

    def with_one_more(sample):
        for name, data in members(sample):
            if name.endswith("segments.npy"):
                yield name.replace("segments.npy", "later.bin"), b"of another version"
            yield name, data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "sample_members", with_one_more)
        url = write(tmp_path, samples)
    fast, general = both_ways(url, stream_recipe("features"), batch_size=5)
    for batch, wanted in zip(fast, general, strict=True):
        assert_equal(batch, wanted)


@many(st.data())
def test_rows_of_a_batch_are_those_of_its_clips(data):
    stride = data.draw(st.integers(1, 5))
    totals = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    parts, wanted_counts, wanted_rows, offset = [], [], [], 0
    for total in totals:
        edges = sorted(data.draw(st.sets(st.integers(0, total), min_size=2, max_size=12)))
        pairs = np.array(list(itertools.pairwise(edges)), np.int32)
        keep = data.draw(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs)))
        segments = pairs[keep] if any(keep) else pairs
        rows = -(-total // stride)
        begin, counts = grid_rows(segments, np.array([len(segments)]), stride, np.array([rows]))
        wanted_counts += counts.tolist()
        wanted_rows += (offset + run_indices(begin, counts)).tolist()
        parts.append((segments, rows))
        offset += rows
    begin_N, counts_N = grid_rows(
        np.concatenate([segments for segments, _ in parts]),
        np.array([len(segments) for segments, _ in parts]),
        stride,
        np.array([rows for _, rows in parts]),
    )
    assert counts_N.tolist() == wanted_counts
    assert run_indices(begin_N, counts_N).tolist() == wanted_rows


def write(folder, samples):
    """One shard of these samples."""
    write_dataset(folder / "set", [("train", samples)], stream_recipe("features"))
    return folder / "set"


def test_another_stride_than_the_recipe_s_is_the_general_reader_s_to_judge(tmp_path):
    make_stream_dataset(tmp_path / "set", "features", [("train", 4)])
    stream = open_stream(tmp_path / "set", stream_recipe("features"), batch_size=4, epochs=1)
    stream.dataset.feature_reader.shape = dataclasses.replace(stream.dataset.feature_reader.shape, stride=4)
    (batch,) = stream
    (wanted,) = open_stream(tmp_path / "set", stream_recipe("features"), batch_size=4, epochs=1)
    assert_equal(batch, wanted)
