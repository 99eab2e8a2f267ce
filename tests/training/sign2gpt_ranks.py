"""Both stages of Sign2GPT on the ranks that run this, through the engine: losses, trained weights, frozen ones' hash.

Run by each rank; rank 0 prints one JSON line for each of CASES and each ZeRO stage. `steps` is also called by the test
in one process.
"""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from factories.models import SENTENCES
from factories.sign2gpt import language_model, recipe, video, xglm_tokenizer
from torch import nn

from sage_scale.config import Stage
from sage_scale.models.sign2gpt.decoder import make_texts
from sage_scale.models.sign2gpt.model import Sign2GptPretrainer, Sign2GptTranslator
from sage_scale.training import distributed
from sage_scale.training.engine import Engine

CASES = [("pretrain", "float32"), ("finetune", "float32"), ("finetune", "bfloat16")]
"""A stage, and the type that the frozen language model is held in."""
CLIPS = {1: [(0, 1, 2)], 2: [(0, 1), (2,)]}
"""Clips of each rank, by the number of ranks; in every third step the second rank has none."""
STEPS = 4
GLOSSES = [[0, 3], [3], [8, 1]]


def make(stage: str, dtype: str) -> nn.Module:
    """The same weights at every call."""
    torch.manual_seed(0)
    if stage == "pretrain":
        return Sign2GptPretrainer(recipe(), torch.randn(9, 6))
    return Sign2GptTranslator(recipe(language_dtype=dtype), language_model("xglm"))


def clips_of(step: int, rank: int, world: int) -> tuple[int, ...]:
    if step % 3 == 2:
        return CLIPS[1][0] if rank == 0 else ()
    return CLIPS[world][rank]


def loss_of(stage: str, engine: Engine, clips: tuple[int, ...], step: int) -> Any:
    shown = video(clips)
    assert shown.clip_seeds_B is not None
    shown = replace(shown, clip_seeds_B=shown.clip_seeds_B + 100 * step)
    if stage == "pretrain":
        classes = torch.tensor([number for clip in clips for number in GLOSSES[clip]], dtype=torch.int64)
        counts = torch.tensor([len(GLOSSES[clip]) for clip in clips], dtype=torch.int64)
        return engine.forward(shown, classes, counts)[0] / (3 * 9)
    every = make_texts(xglm_tokenizer(), SENTENCES[:3])
    labels, inputs = (rows[list(clips)] for rows in every)
    return engine.forward(shown, labels, inputs, 0.1)[0] / int((every[0] != -100).sum())


def frozen_hash(model: nn.Module) -> str:
    """sha256 over the bytes of all frozen weights, with their types."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(f"{name} {parameter.dtype}".encode())
            digest.update(parameter.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def whole(engine: Engine) -> Any:
    """A context in which all weights are there, also under ZeRO-3."""
    if engine.stage.zero_stage < 3:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(engine.model.parameters()))


def steps(stage: str, dtype: str, zero: int) -> dict[str, Any]:
    """STEPS steps of SGD with momentum; what is said holds for all ranks together."""
    ranks = distributed.initialise()
    model = make(stage, dtype)
    before = frozen_hash(model)
    settings = Stage(lr=0.05, weight_decay=0.01, clip=1.0, zero_stage=zero, schedule="constant")
    engine = Engine(model, settings, ranks)
    losses = []
    for step in range(STEPS):
        engine.model.train()
        share = loss_of(stage, engine, clips_of(step, ranks.rank, ranks.world), step)
        engine.backward(share)
        engine.step(0.0)
        losses.append(sum(distributed.gather_objects(float(share.detach()))))
    with whole(engine):
        after = frozen_hash(model)
        weights = {
            name: float(parameter.detach().double().norm())
            for name, parameter in engine.trainable_parameters()
        }
    return {"losses": losses, "before": before, "after": after, "weights": weights}


if __name__ == "__main__":
    from factories.ranks import leave

    for case in CASES:
        for number in (1, 2, 3):
            found = steps(*case, number)
            if distributed.initialise().is_main:
                print(json.dumps({"case": case, "zero": number, **found}), flush=True)
    leave()
