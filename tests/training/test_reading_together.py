"""A checkpoint's files reach every rank, and each is read by one of them."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
from factories.ranks import run_ranks

pytestmark = pytest.mark.system
RANK = Path(__file__).with_name("rank_tasks.py")


@pytest.mark.parametrize(("world", "damaged"), [(3, ""), (2, ""), (3, "03")])
def test_every_file_on_every_rank_by_one_request(tmp_path, world, damaged):
    generator = random.Random(world)
    sizes = [generator.randrange(2_000_000), 0, 1, *(generator.randrange(100_000) for _ in range(4))]
    for number, size in enumerate(sizes):
        (tmp_path / f"{number:02d}").write_bytes(generator.randbytes(size))
    outputs = run_ranks(RANK, world, ["reading", tmp_path, damaged])
    told = [json.loads(next(line for line in text.splitlines() if line.startswith("{"))) for text in outputs]
    names = sorted(path.name for path in tmp_path.iterdir())
    reached = names[: names.index(damaged)] if damaged else names
    for rank in told:
        assert rank["got"] == [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in reached]
        assert rank["error"] == (f"{damaged} is damaged" if damaged else "")
    asked = sorted(name for rank in told for name in rank["asked"])
    assert len(asked) == len(set(asked))
    if not damaged:
        assert asked == names
