from pathlib import Path

import pytest
from factories.precompute import write_corpus


@pytest.fixture(scope="session")
def corpus_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of seven train and two dev videos. Read-only: copy it to change it."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "videos")
