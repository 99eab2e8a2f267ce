"""A toy stage for tests: a small network trained on a fixed stream of batches, checkpointed and resumed.

Run by each rank: toy_stage.py FOLDER ZERO OPTIMIZER FROM_STEP TO_STEP. Rank r takes rows r, r + W, ... of a batch.
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from sage_scale.config import Stage
from sage_scale.training import distributed
from sage_scale.training.checkpoint.checkpoints import Checkpoints, TrainingProgress
from sage_scale.training.checkpoint.saving import Saver
from sage_scale.training.engine import Engine

BOUNDS = {"scale": (1.49, 1.6)}
"""The scale begins at 1.5, and its gradients lead below."""


class Toy(nn.Module):
    """Odd sizes, so that no weight divides evenly by the ranks, and a parameter of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Linear(5, 7)
        self.head = nn.Linear(7, 3, bias=False)
        self.scale = nn.Parameter(torch.tensor([1.5]))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x_BC: torch.Tensor, y_BD: torch.Tensor, total: int) -> torch.Tensor:
        self.seen += 1
        error = self.head(torch.tanh(self.visual(x_BC))) * self.scale - y_BD
        return error.square().sum() / total


def main(folder: str, zero: str, optimizer: str, first: str, last: str) -> None:
    ranks = distributed.initialise()
    stage = Stage(zero_stage=int(zero), optimizer=optimizer, lr=0.05, weight_decay=0.01, clip=0.5, warmup=0.2)
    torch.manual_seed(0)
    model = Toy()
    model.bounds = BOUNDS
    engine = Engine(model, stage, ranks)
    checkpoints = Checkpoints(Path(folder), keep=3)
    progress = checkpoints.load(engine, int(first)) if int(first) else TrainingProgress()
    for step in range(int(first), int(last)):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(6, 5, generator=generator), torch.randn(6, 3, generator=generator)
        share = engine.forward(x[ranks.rank :: ranks.world], y[ranks.rank :: ranks.world], 6)
        engine.backward(share)
        engine.step(step / 12)
        loss = distributed.sum_over_ranks([float(share.detach())], ranks.device)[0]
        if ranks.is_main:
            print(json.dumps({"step": step, "loss": loss}), flush=True)
        progress.step = step + 1
    progress.updates = progress.step
    saver = Saver(checkpoints, ranks)
    saver.save(engine, progress)
    saver.finish()


if __name__ == "__main__":
    from factories.ranks import leave

    main(*sys.argv[1:])
    leave()
