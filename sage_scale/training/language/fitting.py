"""Trains a small language model in this process, for some steps or minutes, without ranks or checkpoints.

The result is a Hugging Face folder with the model, its tokenizer and a report.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sage_scale.config import Denoise
from sage_scale.errors import RecipeError
from sage_scale.training.engine import has_fast_bf16
from sage_scale.untrusted.display import duration
from sage_scale.untrusted.hashes import apply_umask
from sage_scale.untrusted.progress import Progress

_WARMUP = 0.06
_TRIAL_STEPS = 30
Say = Callable[[str], None]
"""Called with a line for the user."""


def training_rows(
    sentences: Sequence[str], glosses: Sequence[Sequence[str]], languages: Sequence[str]
) -> list[tuple[str, list[str], str]]:
    """Returns (sentence, pseudo-glosses, language) of the sentences with text. Raises RecipeError if there are none."""
    rows = [
        (sentence.strip(), list(row), tag)
        for sentence, row, tag in zip(sentences, glosses, languages, strict=True)
        if sentence.strip()
    ]
    if not rows:
        raise RecipeError("denoise.enabled needs training sentences, and there are none")
    return rows


def fit_new(
    make: Callable[[], Any],
    tokenizer: Any,
    batch_of: Callable[[int], dict[str, Tensor]],
    loss_of: Callable[[Any, dict[str, Tensor]], Tensor],
    measure: Callable[[Any], Mapping[str, Any]],
    denoise: Denoise,
    folder: Path,
    report_name: str,
    seed: int,
    say: Say,
    name: str,
) -> None:
    """Make a model and `fit` it; write it to `folder` with its tokenizer and, as `report_name`, the figures of `fit`
    and `measure`.

    The same text and seed give the same weights on the same machine, unless `max_minutes` ended the training early,
    which the report says.
    """
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        # On a CPU the backward of torch's fused attention takes longer than all matrix products of this model.
        model.set_attn_implementation("eager")
        say(f"{model.num_parameters():,} parameters, {len(tokenizer):,} pieces")
        report = fit(model, batch_of, loss_of, denoise, say, name)
    model.eval()
    report |= {**measure(model), "seconds": round(time.monotonic() - started, 1)}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    apply_umask(folder)
    (folder / report_name).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def fit(
    model: Any,
    batch_of: Callable[[int], dict[str, Tensor]],
    loss_of: Callable[[Any, dict[str, Tensor]], Tensor],
    denoise: Denoise,
    say: Say,
    name: str,
) -> dict[str, Any]:
    """Train `model` on the batch of each step and return the report's figures; `name` names the loss.

    Raises RecipeError if the loss is not finite.
    """
    device = next(model.parameters()).device
    bf16 = has_fast_bf16(device)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": denoise.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=denoise.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    model.train()
    budget = 60 * denoise.max_minutes if denoise.max_minutes > 0 else math.inf
    started = time.monotonic()
    recent: list[float] = []
    shortened = False
    step = 0

    def state() -> str:
        spent = time.monotonic() - started
        by_steps, by_budget = spent / step * (denoise.steps - step), max(budget - spent, 0)
        # Where the minutes end it, the number of steps it would have says nothing.
        of = f" of {denoise.steps}" if by_steps <= by_budget else ""
        return f"language model: step {step}{of}, loss {_mean(recent):.3f}, {duration(min(by_steps, by_budget))} left"

    with Progress() as progress:
        while step < denoise.steps:
            elapsed = time.monotonic() - started
            done = step / denoise.steps
            # The schedule counts steps, so that a run repeats exactly. Only where the machine is too slow for all of
            # them does it follow the clock, so that the rate still comes down to zero before the budget ends.
            if step >= _TRIAL_STEPS and (shortened or elapsed / step * denoise.steps > budget):
                shortened = True
                done = max(done, elapsed / budget)
                if done >= 1:
                    break
            for group in optimizer.param_groups:
                group["lr"] = denoise.lr * _schedule(done)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                loss = loss_of(model, batch_of(step))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            recent = [*recent[-49:], loss.item()]
            step += 1
            progress.update(step, denoise.steps, state)
    if not math.isfinite(_mean(recent)):
        raise RecipeError(f"the {name} loss is not finite: lower denoise.lr={denoise.lr}")
    ended = ""
    if step < denoise.steps:
        ended = f"{step:,} of {denoise.steps:,} steps: max_minutes={denoise.max_minutes:g} ended it"
        say(ended)
    say(f"{step} steps in {time.monotonic() - started:.0f} s, {name} loss {_mean(recent):.3f}")
    return {
        "steps": step,
        "cut_short": ended,
        f"{name}_loss": round(_mean(recent), 4),
        "precision": "bf16" if bf16 else "fp32",
        "parameters": model.num_parameters(),
    }


def _schedule(done: float) -> float:
    """Returns the learning-rate factor, linear warm-up, then cosine; `done` is the finished share of training."""
    if done < _WARMUP:
        return (done + 0.002) / (_WARMUP + 0.002)
    return 0.5 * (1 + math.cos(math.pi * (done - _WARMUP) / (1 - _WARMUP)))


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))
