"""A dataset without a fault for each test, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from factories.datasets import fill, make_dataset, snapshot

from sage_scale.storage import Store, open_store


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Objects of a finished dataset (`make_dataset`)."""
    store = open_store(tmp_path_factory.mktemp("whole"))
    make_dataset(store)
    return snapshot(store)


@pytest.fixture
def store(tmp_path: Path, whole: dict[str, bytes]) -> Store:
    """A folder with these objects."""
    return fill(open_store(tmp_path / "data"), whole)
