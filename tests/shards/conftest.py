"""A dataset without a fault for each test, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from factories.datasets import fill, make_dataset, snapshot

from sage_scale.cli.main import run
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


@pytest.fixture
def shards(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Calls `sage-scale shards VERB ...`, expects the exit code `code`, and returns what was printed."""

    def call(*arguments: object, code: int = 0) -> str:
        assert run(["shards", *map(str, arguments)]) == code
        said = capsys.readouterr()
        assert "Traceback" not in said.err and "fault" not in said.err
        return said.out + said.err

    return call
