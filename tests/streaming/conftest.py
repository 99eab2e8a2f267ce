"""One dataset of frames and one of features for the tests of streaming."""

import pytest
from made_dataset import MUTE, PLAN, make_dataset, make_recipe


@pytest.fixture(scope="session")
def frames_dataset(tmp_path_factory):
    place = tmp_path_factory.mktemp("frames")
    made = make_dataset(place / "set", place, "frames", PLAN, MUTE)
    return place / "set", make_recipe("frames"), made


@pytest.fixture(scope="session")
def features_dataset(tmp_path_factory):
    place = tmp_path_factory.mktemp("features")
    made = make_dataset(place / "set", place, "features", PLAN, MUTE)
    return place / "set", make_recipe("features"), made
