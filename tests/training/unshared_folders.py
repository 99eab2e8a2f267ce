"""Two ranks whose hosts share no folder save to one of the same name: unshared_folders.py FOLDER."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from factories.ranks import leave
from toy_stage import Toy

from sage_scale.config import Stage
from sage_scale.errors import StorageError
from sage_scale.training import distributed
from sage_scale.training.checkpoint.checkpoints import Checkpoints, TrainingProgress
from sage_scale.training.checkpoint.saving import Saver
from sage_scale.training.engine import Engine

ranks = distributed.initialise()
torch.manual_seed(0)
engine = Engine(Toy(), Stage(zero_stage=1), ranks)
saver = Saver(Checkpoints(Path(sys.argv[1]) / f"host-{ranks.rank}"), ranks, patience_s=1.0)
saver.save(engine, TrainingProgress(step=1))
try:
    saver.finish()
except StorageError as error:
    print(error, flush=True)
leave()
