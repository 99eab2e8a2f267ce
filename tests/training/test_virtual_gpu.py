"""Both stages, evaluation and translation on a GPU that is not there: nothing mixes devices, losses are the CPU's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from factories.training import (
    losses,
    make_causal_folder,
    make_language_folder,
    make_shards,
    sign2gpt_recipe,
    tiny_recipe,
)
from virtual_gpu import CUDA, VirtualGpu

from sage_scale.config import Recipe, override
from sage_scale.streaming import open_evaluation
from sage_scale.training import distributed, evaluate_run, export
from sage_scale.training.distributed import Ranks
from sage_scale.training.stage import run_stage

STAGES = ("pretrain", "finetune")
ONE_RANK = [
    "clcl.implementation=tiled",
    *(f"{name}.{key}" for name in STAGES for key in ("precision=fp32", "clip=0", "zero_stage=0", "epochs=1")),
]
"""Of the plain engine below, which neither clips nor shards; a GPU that is not there runs no Triton kernels."""


class PlainEngine:
    """What DeepSpeed's does without ZeRO; its own moves the model to the device of its accelerator, here the CPU."""

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, **_: Any) -> None:
        self.module, self.optimizer = model, optimizer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> None:
        self.module.train(mode)

    def set_gradient_accumulation_boundary(self, last: bool) -> None:
        pass

    def backward(self, loss: torch.Tensor, scale_wrt_gas: bool) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> VirtualGpu:
    initialise = distributed.initialise

    def on_gpu(*args: Any, **kwargs: Any) -> Ranks:
        initialise(*args, **kwargs)
        return Ranks(0, 1, 0, CUDA)

    def plain(model: Any, optimizer: Any, **_: Any) -> tuple[Any, Any, None, None]:
        return PlainEngine(model, optimizer), optimizer, None, None

    monkeypatch.setattr(distributed, "initialise", on_gpu)
    monkeypatch.setattr(deepspeed, "initialize", plain)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 1_000_000)
    return VirtualGpu()


def train(recipe: Recipe, run: Path, data: str) -> None:
    """Stage 1 in two parts, of which the second resumes, and stage 2."""
    run_stage("pretrain", override(recipe, ["pretrain.max_steps=1"]), run, data)
    run_stage("pretrain", recipe, run, data)
    run_stage("finetune", recipe, run, data)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("sage", []),
        ("sage", ["pretrain.optimizer=adamw", "pretrain.micro_batch=2", "model.batchnorm=group"]),
        ("sage", ["finetune.freeze=visual", "clcl.implementation=reference", "text.trim_vocabulary=true"]),
        ("sign2gpt", []),
        ("sign2gpt", ["finetune.chunk_frames=8", "pretrain.recompute=true"]),
    ],
    ids=["sage", "sage-adamw-in-chunks", "sage-frozen", "sign2gpt", "sign2gpt-in-chunks"],
)
def test_both_stages_evaluation_and_translation(
    tmp_path: Path, gpu: VirtualGpu, kind: str, changes: list[str]
) -> None:
    if kind == "sage":
        language = f"model.language_model={make_language_folder(tmp_path / 'language')}"
        recipe = tiny_recipe("frames", language, *ONE_RANK, *changes)
    else:
        language = f"model.language_model={make_causal_folder(tmp_path / 'language')}"
        recipe = sign2gpt_recipe("frames", language, *ONE_RANK, *changes)
    data = str(tmp_path / "shards")
    make_shards(tmp_path / "shards", recipe, [("train", 12), ("dev", 4), ("test", 4)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "initialise", lambda *_, **__: Ranks(0, 1, 0, torch.device("cpu")))
        train(recipe, tmp_path / "cpu", data)
        scores = evaluate_run.run(tmp_path / "cpu", data, controls=False)
    with gpu:
        train(recipe, tmp_path / "gpu", data)
        assert evaluate_run.run(tmp_path / "gpu", data, controls=False)["bleu4"] == scores["bleu4"]
        model, tokenizer, _ = export.load_translator(tmp_path / "gpu", CUDA)
        batch = next(iter(open_evaluation(data, recipe, "test", batch_size=4)))
        assert len(model.generate(batch.video.to(CUDA), tokenizer, ["de"] * 4, beams=2, max_tokens=8)) == 4
    for stage in STAGES:
        assert losses(tmp_path / "gpu", stage) == pytest.approx(losses(tmp_path / "cpu", stage), abs=2e-5)


def test_the_virtual_gpu_refuses_what_a_gpu_does() -> None:
    with VirtualGpu():
        here, there = torch.ones(3, 4), torch.ones(3, 4).to(CUDA)
        assert there.device == (there + 1).device == torch.zeros(2, device=CUDA).device == CUDA
        assert (there * torch.tensor(2.0)).tolist() == [[2.0] * 4] * 3  # one number may lie on the host
        assert there[torch.tensor([1])].device == CUDA and there.cpu().device.type == "cpu"
        for wrong in (
            lambda: there + here,
            lambda: here[torch.tensor([1], device=CUDA)],
            lambda: torch.cat([here, there]),
            lambda: torch.nn.Linear(4, 2)(there),
        ):
            with pytest.raises(RuntimeError, match="cpu"):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        weight = torch.nn.Linear(4, 2).to(CUDA).weight
        optimizer = torch.optim.AdamW([weight], fused=True)
        weight.sum().backward()
        assert weight.grad.device == CUDA
        optimizer.step()
        optimizer.state[weight]["step"] = torch.tensor(1.0)
        with pytest.raises(RuntimeError, match="_fused_adamw_"):
            optimizer.step()
