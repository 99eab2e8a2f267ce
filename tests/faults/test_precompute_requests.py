"""Requests of a run before it works, counted at a proxy; for 10,000 shards: tests/campaigns/precompute_requests.py."""

from __future__ import annotations

import precompute_requests
import pytest

pytestmark = pytest.mark.system


@pytest.mark.parametrize("shards", [3, 350])
def test_a_second_run_is_a_get_and_a_head_or_one_listing(s3, behind_proxy, shards) -> None:
    precompute_requests.make_output(s3.url, shards)
    seen = behind_proxy(s3).seen
    assert precompute_requests.count(seen, s3.url, shards)[0] == {"GET index.json": 1, "HEAD changed.json": 1}
    found = precompute_requests.unfinished(seen, s3.url, shards)[0]
    pages = (3 * shards - 3 + 1 - 1) // 1000  # beyond the first thousand of names
    assert found == {
        "GET index.json": 1,
        "GET dataset.json": 1,
        "LIST": 1,
        **({"LIST (page)": pages} if pages else {}),
    }
