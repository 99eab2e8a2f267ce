"""Ray that is slow to start on a busy machine: tried again, then one line."""

from __future__ import annotations

import pytest
import ray

from sage_scale.config import Recipe
from sage_scale.errors import SageError
from sage_scale.precompute.ray_session import ray_session

SLOW = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_a_slow_start_is_tried_once_more(monkeypatch, slow: int) -> None:
    tried, ended = [], []

    def init(**settings) -> None:
        tried.append(settings)
        if len(tried) <= slow:
            raise Exception(SLOW)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    if slow == 2:
        with (
            pytest.raises(SageError, match=r"did not start .* twice: .*run the same command again") as told,
            ray_session(Recipe()),
        ):
            pass
        assert "\n" not in str(told.value)
    else:
        with ray_session(Recipe()):
            assert len(tried) == slow + 1 and len(ended) == slow
    assert all(settings["address"] == "local" for settings in tried)


def test_other_faults_are_told_as_they_are(monkeypatch) -> None:
    def init(**_) -> None:
        raise RuntimeError("no permission")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RuntimeError, match="no permission"), ray_session(Recipe()):
        pass
