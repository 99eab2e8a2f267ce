"""Rank 0 takes longer than the run's time-out to prepare something; the others wait for it."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from factories.ranks import leave

from sage_scale.training import distributed

ranks = distributed.initialise(timeout_s=3)
waiting = distributed.long_timeout_group()
if ranks.first:
    time.sleep(8)
print("got", distributed.from_first("it" if ranks.first else None, waiting))
leave()
