"""The stream: the same global batches whatever the layout, exact resume, damage found and not delivered."""

import dataclasses
import itertools
import pickle
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from factories.datasets import make_stream_dataset

from sage_scale.errors import CheckpointError, DatasetError, UsageError
from sage_scale.streaming import open_stream


def joined(steps):
    return list(itertools.chain.from_iterable(steps))


def steps_of(url, recipe, world, batch_size, workers=0, epochs=2, state=None, limit=None):
    """The global batches: for each step, the keys in the order of their positions, over all ranks."""
    streams = [
        open_stream(
            url, recipe, rank=rank, world=world, batch_size=batch_size, epochs=epochs, workers=workers
        )
        for rank in range(world)
    ]
    steps = []
    for stream in streams:
        if state:
            stream.load_state_dict(state)
    for parts in zip(*streams, strict=True):
        assert len({(part.epoch, part.position, part.global_batch) for part in parts}) == 1
        keys = {}
        for part in parts:
            keys.update(zip(part.positions_B.tolist(), part.keys, strict=True))
        assert len(keys) == parts[0].global_batch == sum(len(part.keys) for part in parts)
        steps.append([keys[place] for place in sorted(keys)])
        if limit and len(steps) == limit:
            break
    states = [stream.state_dict() for stream in streams]
    assert all(state == states[0] for state in states)
    return steps, states[0]


@pytest.mark.parametrize("batch_size", [1, 6, 8, 39, 100])
def test_global_batches_are_the_same_for_any_number_of_ranks(features_dataset, batch_size):
    url, recipe, _ = features_dataset
    alone, _ = steps_of(url, recipe, 1, batch_size)
    assert [len(step) for step in alone] == 2 * (
        39 // batch_size * [batch_size] + [39 % batch_size][: 39 % batch_size]
    )
    for world in (2, 3, 4, 7):
        assert steps_of(url, recipe, world, batch_size)[0] == alone


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_cannot_change_the_order(features_dataset):
    url, recipe, _ = features_dataset
    assert steps_of(url, recipe, 1, 6, workers=3)[0] == steps_of(url, recipe, 1, 6)[0]


def test_each_epoch_holds_each_sample_once_and_differs(features_dataset):
    url, recipe, made = features_dataset
    steps, _ = steps_of(url, recipe, 1, 39)
    texts = {
        key for key, sample in made.items() if sample.meta["split"] == "train" and sample.meta["sentence"]
    }
    assert set(steps[0]) == set(steps[1]) == texts and len(steps[0]) == len(texts)
    assert steps[0] != steps[1]


@pytest.mark.parametrize("done", [0, 1, 3, 6, 7, 11])
@pytest.mark.parametrize("world", [1, 3])
def test_resume_equals_the_uninterrupted_run_also_with_other_ranks_and_workers(features_dataset, done, world):
    url, recipe, _ = features_dataset
    whole, _ = steps_of(url, recipe, 1, 6)
    state = None
    if done:
        before, state = steps_of(url, recipe, world, 6, limit=done)
        assert before == whole[:done]
    for other in (1, 2, 7):
        assert steps_of(url, recipe, other, 6, state=state)[0] == whole[done:]


def test_resume_with_another_batch_size_goes_on_at_the_same_sample(features_dataset):
    url, recipe, _ = features_dataset
    whole = joined(steps_of(url, recipe, 1, 6)[0])
    _, state = steps_of(url, recipe, 2, 6, limit=4)
    assert joined(steps_of(url, recipe, 3, 5, state=state)[0]) == whole[24:]


def test_what_workers_read_ahead_is_not_counted(features_dataset):
    url, recipe, _ = features_dataset
    stream = open_stream(url, recipe, batch_size=6, workers=2)
    batches = iter(stream)
    for step in range(3):
        next(batches)
        assert stream.state_dict()["position"] == 6 * (step + 1)
    batches.close()
    assert next(iter(stream)).position == 24


def test_the_state_is_two_numbers_and_a_digest(features_dataset):
    url, recipe, _ = features_dataset
    state = open_stream(url, recipe, batch_size=6).state_dict()
    assert state["epoch"] == 0 and state["position"] == 0 and len(state) == 3
    assert state == open_stream(url, recipe, batch_size=9, rank=1, world=3, workers=1).state_dict()


def test_another_order_or_dataset_is_refused(features_dataset, frames_dataset):
    url, recipe, _ = features_dataset
    state = open_stream(url, recipe, batch_size=6).state_dict()
    for change in ({"seed": 6}, {"lanes": 9}, {"window": 3}):
        other = dataclasses.replace(recipe, stream=dataclasses.replace(recipe.stream, **change))
        with pytest.raises(CheckpointError, match=r"another order.*stream\.seed"):
            open_stream(url, other, batch_size=6).load_state_dict(state)
    with pytest.raises(CheckpointError, match="another dataset"):
        open_stream(frames_dataset[0], frames_dataset[1], batch_size=6).load_state_dict(state)
    with pytest.raises(CheckpointError, match="damaged"):
        open_stream(url, recipe, batch_size=6).load_state_dict({"epoch": 0})


def test_fewer_samples_than_lanes_and_more_ranks_than_lanes(tmp_path, features_dataset):
    made = make_stream_dataset(tmp_path / "set", "features", [("train", 3)])
    recipe = features_dataset[1]
    steps, _ = steps_of(tmp_path / "set", recipe, 8, 2)
    assert [len(step) for step in steps] == [2, 1, 2, 1]
    assert sorted(joined(steps[:2])) == sorted(made)
    with pytest.raises(UsageError, match="9 ranks cannot share 8 lanes"):
        open_stream(tmp_path / "set", recipe, rank=0, world=9, batch_size=2)


def test_a_split_without_sentences_is_no_training_stream(tmp_path, features_dataset):
    make_stream_dataset(tmp_path / "set", "features", [("train", 2)], mute=(0, 1))
    with pytest.raises(DatasetError, match="no sample with a sentence in split 'train'"):
        open_stream(tmp_path / "set", features_dataset[1], batch_size=2)
    assert open_stream(tmp_path / "set", features_dataset[1], batch_size=2, require_text=False).samples == 2
    with pytest.raises(DatasetError, match="no split 'trian'"):
        open_stream(tmp_path / "set", features_dataset[1], "trian", batch_size=2)


def damage(url, kind, catalog, sample):
    tar = url / catalog.shard(sample)
    begin, length = int(catalog.samples.offset[sample]), int(catalog.samples.length[sample])
    data = bytearray(tar.read_bytes())
    if kind == "flip":
        data[begin + length // 2] ^= 4
    elif kind == "truncate":
        del data[begin + length - 1 :]
    elif kind == "swap":
        data[begin : begin + length] = data[begin + 512 : begin + length] + data[begin : begin + 512]
    tar.write_bytes(data)
    if kind == "missing":
        tar.unlink()


@pytest.mark.parametrize("kind", ["flip", "truncate", "swap", "missing"])
@pytest.mark.parametrize("workers", [0, 1])
def test_damage_is_found_named_and_not_delivered(features_dataset, tmp_path, kind, workers, caplog):
    url, recipe, _ = features_dataset
    shutil.copytree(url, tmp_path / "set")
    url = tmp_path / "set"
    catalog = open_stream(url, recipe, batch_size=6).dataset.catalog
    units = catalog.samples.unit
    sample = int(np.flatnonzero(units == units[-1])[-1]) if kind == "truncate" else 17
    damage(url, kind, catalog, sample)
    lost = {
        catalog.key(s) for s in (np.flatnonzero(units == units[sample]) if kind == "missing" else [sample])
    }
    with pytest.raises(
        DatasetError, match=rf"{catalog.key(sample)}.*{catalog.shard(sample)}|missing"
    ) as caught:
        list(open_stream(url, recipe, batch_size=6, epochs=1, workers=workers))
    assert "\n" not in str(caught.value) and "shards verify" in str(caught.value)
    skipping = dataclasses.replace(recipe, stream=dataclasses.replace(recipe.stream, on_corrupt="skip"))
    stream = open_stream(url, skipping, batch_size=6, epochs=1, workers=workers)
    found = [key for batch in stream for key in batch.keys]
    assert len(found) == len(set(found)) == 39 - len(lost) and not lost & set(found)
    assert len(stream.counts.skipped) == len(lost) == len(caplog.records)
    assert all(any(key in line for line in stream.counts.skipped) for key in lost)


def test_a_dataset_of_steps_is_pickled_without_its_descriptors(features_dataset):
    url, recipe, _ = features_dataset
    stream = open_stream(url, recipe, batch_size=6)
    request = next(stream._requests(0, 0))
    first = stream.dataset[request]
    again = pickle.loads(pickle.dumps(stream.dataset))[request]
    assert again.keys == first.keys and torch.equal(again.video.features_FC, first.video.features_FC)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_dataloader_of_torch_s_own_keeps_the_order(features_dataset, workers):
    url, recipe, _ = features_dataset
    wanted = [batch.keys for batch in open_stream(url, recipe, batch_size=7, epochs=2)]
    stream = open_stream(url, recipe, batch_size=7, epochs=2)
    loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=workers)
    batches = list(loader)
    assert [batch.keys for batch in batches] == wanted
    for done in (1, len(wanted) // 2, len(wanted) - 2):
        resumed = open_stream(url, recipe, batch_size=7, epochs=2)
        resumed.load_state_dict(stream.state_after(batches[done - 1]))
        again = torch.utils.data.DataLoader(resumed, batch_size=None, num_workers=workers)
        assert [batch.keys for batch in again] == wanted[done:]


def test_the_states_of_a_dataloader_s_workers_resume_each_worker(features_dataset, monkeypatch):
    """What a stateful loader does: it keeps each worker's own state and gives it back to a worker of that number."""
    url, recipe, _ = features_dataset
    wanted = [batch.keys for batch in open_stream(url, recipe, batch_size=4, epochs=2)]
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: worker)
    found = {}
    for number, done in ((0, 2), (1, 1), (2, 0)):
        worker = SimpleNamespace(id=number, num_workers=3)
        first = open_stream(url, recipe, batch_size=4, epochs=2)
        batches = iter(first)
        for step in range(done):
            found[number + 3 * step] = next(batches).keys
        second = open_stream(url, recipe, batch_size=4, epochs=2)
        second.load_state_dict(first.state_dict())
        for step, batch in enumerate(second, start=done):
            found[number + 3 * step] = batch.keys
    assert [found[step] for step in range(len(found))] == wanted


def test_a_stream_that_has_ended_says_so(features_dataset):
    """A second `for` over it would otherwise train nothing, in silence."""
    url, recipe, _ = features_dataset
    stream = open_stream(url, recipe, batch_size=16, epochs=1)
    state = stream.state_dict()
    assert sum(len(batch.keys) for batch in stream) == 39
    with pytest.raises(UsageError, match=r"has ended after epochs=1.*as many epochs as you need"):
        for _ in stream:
            pass
    stream.load_state_dict(state)
    assert sum(len(batch.keys) for batch in stream) == 39


def test_a_state_at_the_end_gives_nothing_more(features_dataset):
    """A job that is started again after its last step."""
    url, recipe, _ = features_dataset
    first, second = (open_stream(url, recipe, batch_size=16, epochs=1) for _ in range(2))
    assert len(list(first)) == 3
    second.load_state_dict(first.state_dict())
    assert list(second) == []


def test_stopping_early_and_iterating_again_goes_on(features_dataset):
    url, recipe, _ = features_dataset
    stream = open_stream(url, recipe, batch_size=16, epochs=1)
    begun = iter(stream)
    assert next(begun).position == 16
    begun.close()
    assert [batch.position for batch in stream] == [32, 39]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_with_a_batch_size_is_told_what_to_write(features_dataset, workers):
    url, recipe, _ = features_dataset
    stream = open_stream(url, recipe, batch_size=16, epochs=1)
    with pytest.raises(UsageError, match=r"DataLoader\(stream, batch_size=None\)"):
        next(iter(torch.utils.data.DataLoader(stream, batch_size=4, num_workers=workers)))


def test_a_batch_names_its_attributes(features_dataset):
    url, recipe, _ = features_dataset
    batch = next(iter(open_stream(url, recipe, batch_size=4, epochs=1)))
    with pytest.raises(TypeError, match=r"batch\.keys: keys, .*video.*sentences"):
        _ = batch["frames"]
    assert batch.sentences == [meta["sentence"] for meta in batch.metas] and len(batch.languages) == 4


def test_a_batch_moves_with_all_its_tensors(features_dataset):
    url, recipe, _ = features_dataset
    moved = next(iter(open_stream(url, recipe, batch_size=4, epochs=1))).to("meta")
    tensors = [*vars(moved.video).values(), moved.weights_B]
    assert {part.device.type for part in tensors if torch.is_tensor(part)} == {"meta"}
