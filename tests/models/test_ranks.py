"""Stage 1 over several ranks equals one process: statistics, loss and every gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from factories.models import SENTENCES, moved_norms, recipe, small_mbart, small_tokenizer, video

from sage_scale.config import Augment
from sage_scale.models.sage.mbart import TextEncoder, make_labels
from sage_scale.models.sage.model import SageAligner

CASES = [
    ("sync", "mean", False), ("frozen", "mean", False), ("sync", "max", False), ("sync", "window", False),
    ("sync", "first", False), ("sync", "mean", True),
]  # fmt: skip
"""Values of model.batchnorm and model.pooling; whether the sigmoid objective with its bias and both added terms are
trained."""


def run(
    clips: list[int], mode: str, pooling: str, terms: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Loss, gradients and buffers after one step on some of the clips, in float64, with dropout and augmentation."""
    torch.manual_seed(0)
    added = {"loss": "siglip_tokens", "neighbours": 0.3, "sentence": 0.2} if terms else {}
    made = recipe(context_layers=1, dropout=0.3, batchnorm=mode, mapper_norm="batch", pooling=pooling)
    made = replace(made, pretrain=replace(made.pretrain, augment=Augment(brightness=0.3, contrast=0.2)))
    made = replace(made, clcl=replace(made.clcl, same_text="masked", **added))
    language_model = small_mbart()
    text = TextEncoder(language_model, small_tokenizer())
    sentences, languages = [SENTENCES[clip] for clip in clips], ["de"] * len(clips)
    labels, inputs = make_labels(small_tokenizer(), sentences, languages)
    model = moved_norms(SageAligner(made, language_model)).double().train()
    targets = replace(text.encode(sentences, languages), labels_BL=labels, inputs_BL=inputs)
    share, _ = model(video(clips, background=True), targets, torch.tensor(clips, dtype=torch.int64))
    share.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return share.detach(), gradients, dict(model.named_buffers())


LAYOUTS = {"unequal": [[1], [0, 2]], "one-empty": [[2, 0], [], [1]]}


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    results = {}
    for name, parts in LAYOUTS.items():
        if rank < len(parts):
            dist.init_process_group(
                "gloo", init_method=f"file://{folder}/{name}", rank=rank, world_size=len(parts)
            )
            results[name] = {case: run(parts[rank], *case) for case in CASES}
            dist.destroy_process_group()
    torch.save(results, f"{folder}/{rank}.pt")


@pytest.mark.system
def test_ranks_equal_one_process(tmp_path: Path):
    """Two ranks of unequal parts, and three of which one has no clip at all."""
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=3)
    saved = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    for layout, parts in LAYOUTS.items():
        for case in CASES:
            ranks = [saved[rank][layout][case] for rank in range(len(parts))]
            loss, gradients, buffers = run([0, 1, 2], *case)
            torch.testing.assert_close(sum(rank[0] for rank in ranks), loss, rtol=0, atol=1e-9)
            for name, gradient in gradients.items():
                found = sum(rank[1][name] for rank in ranks)
                note = f"{layout}, {case}: gradient of {name}"
                torch.testing.assert_close(found, gradient, rtol=1e-6, atol=1e-9, msg=note)
            for name, buffer in buffers.items():
                for rank in ranks:
                    torch.testing.assert_close(rank[2][name], buffer, rtol=1e-9, atol=1e-11)
