"""One dataset of frames and one of features for the tests of streaming."""

import pytest
from factories.datasets import MUTE, PLAN, make_stream_dataset, stream_recipe


@pytest.fixture(scope="session")
def frames_dataset(tmp_path_factory):
    place = tmp_path_factory.mktemp("frames")
    made = make_stream_dataset(place / "set", "frames", PLAN, MUTE)
    return place / "set", stream_recipe("frames"), made


@pytest.fixture(scope="session")
def features_dataset(tmp_path_factory):
    place = tmp_path_factory.mktemp("features")
    made = make_stream_dataset(place / "set", "features", PLAN, MUTE)
    return place / "set", stream_recipe("features"), made
