"""Two ranks, of which rank 1 gets a loss that is no number in its fourth step: one_bad_rank.py ZERO."""

import json
import math
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from factories.ranks import leave
from toy_stage import Toy

from sage_scale.config import Stage
from sage_scale.training import distributed
from sage_scale.training.checkpoint.checkpoints import TrainingProgress
from sage_scale.training.engine import Engine
from sage_scale.training.loss_guard import LossGuard

ranks = distributed.initialise()
stage = Stage(zero_stage=int(sys.argv[1]), optimizer="sgd", lr=0.05, clip=0.5, on_bad_loss="skip")
torch.manual_seed(0)
engine = Engine(Toy(), stage, ranks)
guard, progress, updated = LossGuard(engine, stage), TrainingProgress(), []
for step in range(5):
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(6, 5, generator=generator), torch.randn(6, 3, generator=generator)
    guard.begin()
    share = engine.forward(x[ranks.rank :: 2], y[ranks.rank :: 2], 6)
    if step == 3 and ranks.rank == 1:
        share = share * math.nan
    engine.backward(share)
    engine.step(0.0, hold=bool(guard.judge(float(share.detach()), progress)))
    updated.append(engine.updated)
head = next(engine.weight(parameter) for name, parameter in engine.trained() if name.startswith("head"))
print(json.dumps({"updated": updated, "head": head.flatten().tolist()}), flush=True)
leave()
