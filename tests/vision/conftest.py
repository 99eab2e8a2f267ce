"""The fixture `video`: small real videos whose pictures tell their own frame number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from factories.videos import write_video


@pytest.fixture
def video(tmp_path: Path) -> Callable[..., Path]:
    """`video(name, ...)` writes a video into the test's folder; see `write_video`."""

    def make(name: str = "clip.mp4", *arguments, **keywords) -> Path:
        return write_video(tmp_path / name, *arguments, **keywords)

    return make
