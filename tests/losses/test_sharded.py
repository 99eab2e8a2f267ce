"""The loss of a batch spread over ranks against the loss of the whole batch in one process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from sage_scale.losses import clcl_loss, clcl_similarity, clip_loss, clip_similarity, sharded_clcl_loss


@dataclass(frozen=True)
class Options:
    loss: str = "clcl"
    variant: str = "paper"
    tau: float = 0.07
    alpha: float = 0.3
    same_text: str = "negative"
    implementation: str = "auto"
    products: str = "float32"


VISUAL = [3, 1, 4, 2, 5]
TEXT = [2, 6, 1, 3, 3]
IDS = [5, 9, 5, 7, 9]
CASES = {
    "paper": Options(),
    "released": Options(variant="released"),
    "masked": Options(same_text="masked"),
    "clip": Options(loss="clip"),
}


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    make = lambda rows: torch.randn(rows, 6, dtype=torch.float64, generator=generator)  # noqa: E731
    return make(sum(VISUAL)), make(sum(TEXT))


def whole(options: Options) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss and gradients of visual tokens and scale, in one process, from the reference."""
    visual, text = tokens()
    visual.requires_grad_()
    scale = torch.tensor([14.0], dtype=torch.float64, requires_grad=True)
    n, m, ids = torch.tensor(VISUAL), torch.tensor(TEXT), torch.tensor(IDS)
    if options.loss == "clip":
        loss = clip_loss(clip_similarity(visual, text, n, m), scale, ids, options.same_text)
    else:
        Zv, Zt = clcl_similarity(visual, text, n, m, options.tau, options.variant)
        loss = clcl_loss(Zv, Zt, scale, options.alpha, options.variant, ids, options.same_text)
    loss.backward()
    return loss.detach(), visual.grad, scale.grad


@pytest.mark.parametrize("name", CASES)
def test_one_process_gives_the_whole_loss(name):
    visual, text = tokens()
    visual.requires_grad_()
    scale = torch.tensor([14.0], dtype=torch.float64, requires_grad=True)
    share = sharded_clcl_loss(
        visual,
        text,
        torch.tensor(VISUAL),
        torch.tensor(TEXT),
        scale,
        clcl=CASES[name],
        text_ids_B=torch.tensor(IDS),
    )
    share.backward()
    wanted = whole(CASES[name])
    for found, value in zip((share.detach(), visual.grad, scale.grad), wanted):
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)


def test_masking_needs_ids_and_no_clips_cost_nothing():
    scale = torch.ones(1, requires_grad=True)
    empty = torch.zeros(0, 6, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    share = sharded_clcl_loss(empty, torch.zeros(0, 6), none, none, scale, clcl=Options())
    share.backward()
    assert share.item() == 0 and scale.grad.item() == 0 and empty.grad.shape == (0, 6)
    with pytest.raises(ValueError, match="needs text_ids_B"):
        sharded_clcl_loss(
            empty, torch.zeros(0, 6), none, none, scale, clcl=replace(Options(), same_text="masked")
        )


def _rank(rank: int, world: int, parts: list[list[int]], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    visual, text = tokens()
    results = {}
    for name, options in CASES.items():
        own = parts[rank]
        mine = torch.cat([visual[:0], *(visual.split(VISUAL)[clip] for clip in own)]).clone().requires_grad_()
        words = torch.cat([text[:0], *(text.split(TEXT)[clip] for clip in own)])
        scale = torch.tensor([14.0], dtype=torch.float64, requires_grad=True)
        lengths = [
            torch.tensor([values[clip] for clip in own], dtype=torch.int64) for values in (VISUAL, TEXT, IDS)
        ]
        share = sharded_clcl_loss(mine, words, *lengths[:2], scale, clcl=options, text_ids_B=lengths[2])
        share.backward()
        results[name] = (share.detach(), mine.grad, scale.grad)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.system
@pytest.mark.parametrize("parts", [[[0, 1], [2, 3, 4]], [[3], [], [0, 4, 2, 1]]], ids=["two", "one-empty"])
def test_shares_and_gradients_of_ranks_sum_to_the_whole(parts, tmp_path: Path):
    world = len(parts)
    mp.spawn(_rank, args=(world, parts, str(tmp_path)), nprocs=world)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    for name, options in CASES.items():
        loss, visual_grad, scale_grad = whole(options)
        shares = torch.stack([ranks[rank][name][0] for rank in range(world)])
        torch.testing.assert_close(shares.sum(), loss, rtol=0, atol=1e-9)
        torch.testing.assert_close(
            sum(ranks[rank][name][2] for rank in range(world)), scale_grad, rtol=0, atol=1e-9
        )
        for rank, own in enumerate(parts):
            wanted = torch.cat([visual_grad[:0], *(visual_grad.split(VISUAL)[clip] for clip in own)])
            torch.testing.assert_close(ranks[rank][name][1], wanted, rtol=0, atol=1e-9)
