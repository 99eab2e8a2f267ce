"""Batches against an independent slow reader: tarfile, Pillow and the definition, segment by segment."""

import dataclasses
import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from sage_scale.errors import DatasetError
from sage_scale.streaming import open_evaluation, open_stream


def slow_read(folder):
    """key -> member suffix -> bytes, of every tar."""
    samples = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                key, _, suffix = member.name.partition(".")
                samples.setdefault(key, {})[suffix] = tar.extractfile(member).read()
    return samples


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)


def clips(batch):
    """Key, and the content of each segment, of each clip of a batch."""
    content = batch.video.frames_FCHW if batch.video.features_FC is None else batch.video.features_FC
    runs = content.split(batch.video.segment_frames_N.tolist())
    begin = 0
    for number, segments in enumerate(batch.video.clip_segments_B.tolist()):
        yield number, batch.keys[number], [run.numpy() for run in runs[begin : begin + segments]]
        begin += segments
    assert begin == len(runs)


def expected(members, stride):
    segments = np.load(io.BytesIO(members["segments.npy"]))
    total = json.loads(members["json"])["frames"]
    for start, end in segments.tolist():
        numbers = [n for n in range(0, total, stride) if start <= n < end]
        if not numbers:
            away = [max(start - n, n - end + 1) for n in range(0, total, stride)]
            numbers = [int(np.argmin(away)) * stride]
        if "features.npy" in members:
            yield np.load(io.BytesIO(members["features.npy"]))[[n // stride for n in numbers]]
        else:
            yield np.stack([pixels(members[f"{n:06d}.jpg"]) for n in numbers])


@pytest.mark.parametrize("kind", ["frames", "features"])
def test_batches_are_what_a_slow_reader_finds_in_the_tars(kind, request):
    url, recipe, made = request.getfixturevalue(f"{kind}_dataset")
    slow = slow_read(url)
    seen = []
    for batch in open_stream(url, recipe, batch_size=9, epochs=1):
        for number, key, runs in clips(batch):
            members = slow[key]
            wanted = list(expected(members, recipe.vision.frame_stride))
            assert len(runs) == len(wanted)
            assert all(np.array_equal(run, want) for run, want in zip(runs, wanted))
            assert batch.metas[number] == json.loads(members["json"])
            if kind == "frames":
                background = batch.video.background_BCHW[number].numpy()
                assert np.array_equal(background, pixels(members["background.jpg"]))
            seen.append(key)
        assert batch.weights_B.tolist() == [1.0] * len(batch.keys)
    texts = [
        key for key, sample in made.items() if sample.meta["split"] == "train" and sample.meta["sentence"]
    ]
    assert sorted(seen) == sorted(texts) and len(seen) == 41 - 2


def test_draws_depend_on_seed_epoch_and_sample_and_nothing_else(features_dataset):
    url, recipe, _ = features_dataset

    def draws(**options):
        stream = open_stream(url, recipe, epochs=2, **options)
        return {
            (batch.epoch, key): int(number)
            for batch in stream
            for key, number in zip(batch.keys, batch.video.clip_seeds_B)
        }

    first = draws(batch_size=7)
    assert first == draws(batch_size=39)
    assert len(set(first.values())) == len(first) == 2 * 39
    assert all(0 <= number < 2**63 for number in first.values())
    assert not set(first.values()) & set(draws(batch_size=7, seed=6).values())


@pytest.mark.parametrize("kind", ["frames", "features"])
def test_a_rank_without_a_clip_gets_tensors_of_the_right_shapes(kind, request):
    url, recipe, _ = request.getfixturevalue(f"{kind}_dataset")
    full = next(iter(open_stream(url, recipe, batch_size=8)))
    parts = [next(iter(open_stream(url, recipe, batch_size=1, rank=rank, world=2))) for rank in range(2)]
    empty = [part for part in parts if not part.keys]
    assert len(empty) == 1 and empty[0].global_batch == 1
    assert empty[0].video.clips == 0 and empty[0].weights_B.shape == (0,)
    for name, value in vars(full.video).items():
        if isinstance(value, torch.Tensor):
            other = getattr(empty[0].video, name)
            assert other.dtype == value.dtype and other.shape == (0, *value.shape[1:])


def test_the_cache_of_decoded_samples_changes_nothing_but_the_reading(frames_dataset):
    url, recipe, _ = frames_dataset
    plain = list(open_stream(url, recipe, batch_size=8, epochs=2))
    for megabytes, hits in ((1, 39), (0, 0)):
        cached = dataclasses.replace(
            recipe, stream=dataclasses.replace(recipe.stream, cache_decoded_mb=megabytes)
        )
        stream = open_stream(url, cached, batch_size=8, epochs=2)
        for batch, wanted in zip(stream, plain, strict=True):
            assert batch.keys == wanted.keys
            assert torch.equal(batch.video.frames_FCHW, wanted.video.frames_FCHW)
            assert torch.equal(batch.video.clip_seeds_B, wanted.video.clip_seeds_B)
        assert stream.counts.cache_hits == hits and stream.counts.samples == 2 * 39


def test_the_cache_stays_within_its_bound(frames_dataset):
    url, recipe, _ = frames_dataset
    dataset = open_stream(url, recipe, batch_size=8).dataset
    dataset.cache_bytes = 60_000
    dataset._open()
    stream = open_stream(url, recipe, batch_size=8, epochs=2)
    stream.dataset = dataset
    sizes = [dataset._decoded.size for _ in stream]
    assert 0 < max(sizes) <= 60_000
    assert dataset._decoded.size == sum(size for _, size in dataset._decoded._items.values())


def test_a_recipe_of_other_frames_is_refused_by_name(frames_dataset, features_dataset):
    url, recipe, _ = frames_dataset
    other = dataclasses.replace(recipe, vision=dataclasses.replace(recipe.vision, size=32, crop=32))
    with pytest.raises(DatasetError, match=r"vision\.size=16.*32"):
        open_stream(url, other, batch_size=4)
    with pytest.raises(DatasetError, match=r"vision\.kind=frames"):
        open_stream(url, features_dataset[1], batch_size=4)
    wide = dataclasses.replace(features_dataset[1], model=dataclasses.replace(recipe.model, feature_dim=25))
    with pytest.raises(DatasetError, match=r"width 25.*model\.feature_dim"):
        next(iter(open_stream(features_dataset[0], wide, batch_size=4)))


def test_an_evaluation_gives_each_sample_once_in_dataset_order(frames_dataset):
    url, recipe, made = frames_dataset
    for split in ("dev", "train"):
        order = [key for key, sample in made.items() if sample.meta["split"] == split]
        for world in (1, 2, 3):
            ranks = [
                open_evaluation(url, recipe, split, rank=rank, world=world, batch_size=4)
                for rank in range(world)
            ]
            for _ in range(2):  # each iteration begins anew
                steps = [list(rank) for rank in ranks]
                assert len({len(rank) for rank in steps}) == 1
                found = {}
                for rank in steps:
                    for batch in rank:
                        found.update(zip(batch.positions_B.tolist(), batch.keys))
                assert [found[place] for place in range(len(order))] == order
                assert sum(len(batch.keys) for rank in steps for batch in rank) == len(order)


@pytest.mark.parametrize("kind", ["frames", "features"])
@pytest.mark.parametrize("rows", [[], [4], [5, 0, 5, 3], slice(2, 5), slice(7, 7)])
def test_chosen_clips_of_a_batch_are_those_clips(kind, rows, request):
    url, recipe, made = request.getfixturevalue(f"{kind}_dataset")
    batch = next(iter(open_stream(url, recipe, batch_size=7)))
    content = {key: (runs, number) for number, key, runs in clips(batch)}
    keys = batch.keys[rows] if isinstance(rows, slice) else [batch.keys[row] for row in rows]
    part = batch.select(rows)
    assert part.keys == keys == [key for _, key, _ in clips(part)]
    for number, key, runs in clips(part):
        wanted, before = content[key]
        assert all(np.array_equal(run, want) for run, want in zip(runs, wanted, strict=True))
        assert part.video.clip_seeds_B[number] == batch.video.clip_seeds_B[before]
        assert part.positions_B[number] == batch.positions_B[before]
        assert np.array_equal(part.segments[number], made[key].segments)
        if kind == "frames":
            assert torch.equal(part.video.background_BCHW[number], batch.video.background_BCHW[before])


def test_clips_of_like_length_stand_side_by_side_and_no_clip_is_lost(features_dataset):
    url, recipe, _ = features_dataset
    for batch in open_stream(url, recipe, batch_size=12, epochs=1):
        grouped = batch.by_length()
        lengths = grouped.video.clip_segments_B.tolist()
        assert lengths == sorted(lengths) and sorted(grouped.keys) == sorted(batch.keys)
        before = dict(zip(batch.keys, batch.positions_B.tolist()))
        assert grouped.positions_B.tolist() == [before[key] for key in grouped.keys]
        if len(lengths) < 12:
            continue
        # Two micro-batches of six, each padded to its longest clip: no split of the clips costs less.
        padded = [_padded(rows) for rows in (lengths, batch.video.clip_segments_B.tolist())]
        assert padded[0] <= padded[1]


def _padded(lengths):
    return sum(max(part) * len(part) for part in (lengths[:6], lengths[6:]) if part)
