"""Views of features: another one of each clip every epoch, the plain one in evaluation, by every way of reading."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from factories.datasets import WIDTH, make_stream_dataset, stream_recipe
from test_features import assert_equal, both_ways

from sage_scale.errors import DatasetError
from sage_scale.streaming import open_evaluation, open_stream
from sage_scale.streaming.packing import grid_rows, run_indices

PLAN = [("train", 13), ("dev", 5), ("train", 9)]
VIEWS = 3


@pytest.fixture(scope="module")
def views_dataset(tmp_path_factory):
    place = tmp_path_factory.mktemp("views")
    made = make_stream_dataset(place / "set", "features", PLAN, views=VIEWS)
    return place / "set", stream_recipe("features", VIEWS), made


def rows_of(sample, view):
    """The rows of the sample's segments in a view."""
    stored = sample.features if view == 0 else sample.views[view - 1]
    stride, count = int(sample.meta["frame_stride"]), np.array([len(sample.segments)])
    return stored[run_indices(*grid_rows(sample.segments, count, stride, np.array([len(stored)])))]


def views_seen(batch, made):
    """(key, view) of each clip of a batch, by its content."""
    frames_B = torch.segment_reduce(
        batch.video.segment_frames_N.double(), "sum", lengths=batch.video.clip_segments_B
    ).long()
    for key, rows in zip(batch.keys, batch.video.features_FC.split(frames_B.tolist()), strict=True):
        fits = [view for view in range(VIEWS) if np.array_equal(rows.numpy(), rows_of(made[key], view))]
        assert len(fits) == 1, "the rows are of no view, or of several"
        yield key, fits[0]


@pytest.mark.parametrize("cache_mb", [0, 10])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_every_clip_is_seen_in_every_view_in_its_turn(views_dataset, views, cache_mb):
    url, _, made = views_dataset
    recipe = stream_recipe("features", views, cache_decoded_mb=cache_mb)
    seen: dict[str, list[int]] = {}
    first_epoch = []
    for batch in open_stream(url, recipe, batch_size=4, epochs=2 * views):
        for key, view in views_seen(batch, made):
            seen.setdefault(key, []).append(view)
            first_epoch += [view] * (batch.epoch == 0)
    assert len(seen) == 22
    for turns in seen.values():
        assert sorted(turns[:views]) == list(range(views)) and turns[views:] == turns[:views]
    assert set(first_epoch) == set(range(views))  # not all clips in the same one


@pytest.mark.parametrize("batch_size", [1, 5, 22])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_the_fast_way_gives_what_the_general_reader_gives(views_dataset, monkeypatch, views, batch_size):
    url, _, _ = views_dataset
    fast, general = both_ways(url, stream_recipe("features", views), batch_size=batch_size)
    for batch, wanted in zip(fast, general, strict=True):
        assert_equal(batch, wanted)
    stream = open_stream(url, stream_recipe("features", views), batch_size=6, epochs=3)
    monkeypatch.setattr(type(stream.dataset._reader), "read", None)  # the general reader could not answer
    assert sum(len(batch.keys) for batch in stream) == 66


def test_object_storage_gives_the_same_bytes(views_dataset, s3, tmp_path):
    url, recipe, _ = views_dataset
    made = make_stream_dataset(s3.url, "features", PLAN, views=VIEWS)
    recipe = dataclasses.replace(
        recipe, stream=dataclasses.replace(recipe.stream, cache_dir=str(tmp_path / "c"))
    )
    here = open_stream(url, recipe, batch_size=5, epochs=VIEWS)
    there = open_stream(s3.url, recipe, batch_size=5, epochs=VIEWS)
    for batch, wanted in zip(there, here, strict=True):
        assert batch.keys == wanted.keys and torch.equal(batch.video.features_FC, wanted.video.features_FC)
        assert list(views_seen(batch, made))


def test_ranks_and_workers_change_no_view(views_dataset):
    url, recipe, made = views_dataset
    whole = {
        (batch.epoch, key): view
        for batch in open_stream(url, recipe, batch_size=6, epochs=2)
        for key, view in views_seen(batch, made)
    }
    parts = {
        (batch.epoch, key): view
        for rank in range(3)
        for batch in open_stream(url, recipe, rank=rank, world=3, workers=rank, batch_size=6, epochs=2)
        for key, view in views_seen(batch, made)
    }
    assert parts == whole and len(whole) == 44


def test_evaluation_sees_the_plain_view(views_dataset):
    url, recipe, made = views_dataset
    for _ in range(2):
        seen = [
            pair
            for batch in open_evaluation(url, recipe, "dev", batch_size=2)
            for pair in views_seen(batch, made)
        ]
        assert len(seen) == 5 and {view for _, view in seen} == {0}


def test_damage_to_a_view_that_is_not_taken_is_found_too(tmp_path):
    make_stream_dataset(tmp_path / "set", "features", [("train", 3)], views=VIEWS)
    tar = tmp_path / "set" / "000000.tar"
    data = bytearray(tar.read_bytes())
    place = data.index(b".features.2.npy") + 512 + 128
    data[place + 3 * WIDTH] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DatasetError, match=r"000000\.tar"):
        list(open_stream(tmp_path / "set", stream_recipe("features", 1), batch_size=3, epochs=1))


def test_more_views_than_there_are_and_datasets_that_differ_are_refused(views_dataset, tmp_path):
    url, _, _ = views_dataset
    with pytest.raises(DatasetError, match=r"holds 3 views.*feature_views=4: set it to 3"):
        open_stream(url, stream_recipe("features", 4), batch_size=2)
    make_stream_dataset(tmp_path / "other", "features", [("train", 3)], prefix="other-")
    with pytest.raises(DatasetError, match=r"holds 3 views of each clip's features and .*other 1"):
        open_stream([url, tmp_path / "other"], stream_recipe("features"), batch_size=2)
