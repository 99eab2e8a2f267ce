"""A rank that reads files together with the others: reading_ranks.py FOLDER DAMAGED. Prints what it got as JSON."""

import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from factories.ranks import leave

from sage_scale.errors import CheckpointError
from sage_scale.training import distributed
from sage_scale.training.checkpoint.checkpoints import read_together

folder, damaged = Path(sys.argv[1]), sys.argv[2]
ranks = distributed.initialise()
asked: list[str] = []


def read(name: str) -> bytes:
    asked.append(name)
    if name == damaged:
        raise CheckpointError(f"{name} is damaged")
    return (folder / name).read_bytes()


got, error = [], ""
try:
    for data in read_together(read, sorted(path.name for path in folder.iterdir()), ranks):
        got.append(hashlib.sha256(data).hexdigest())
except CheckpointError as failure:
    error = str(failure)
print(json.dumps({"asked": asked, "got": got, "error": error}), flush=True)
distributed.barrier()
leave()
