"""Real processes over gloo, forked from one that has torch loaded, for test_ring.py.

    python ring_of_ranks.py CASES.pt FOLDER

Groups of the first 1, 2, 3, ... ranks compute the loss of each case with their part of the clips and write what they
find to FOLDER/<group>-<rank>.pt.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))
from factories.ranks import fork_all
from made_tokens import CountedProducts, Options

from sage_scale.losses import Objective, objective_of
from sage_scale.losses import clcl_tiled as tiled_module


def compute(case: dict, own: list[int], asked: float, group: dist.ProcessGroup) -> dict[str, torch.Tensor]:
    """One rank's share, gradients and operations, from its own clips."""
    dtype = getattr(torch, case["dtype"])
    options = Options(**case["options"])

    def part(tokens: torch.Tensor, lengths: list[int], trained: bool) -> torch.Tensor:
        clips = tokens.split(lengths)
        return torch.cat([tokens[:0], *(clips[clip] for clip in own)]).to(dtype).requires_grad_(trained)

    visual = part(case["visual"], case["n"], True)
    text = part(case["text"], case["m"], case["text_trained"])
    scale = torch.tensor([case["scale"]], dtype=dtype, requires_grad=True)
    n, m, ids = (
        torch.tensor([case[key][clip] for clip in own], dtype=torch.int64) for key in ("n", "m", "ids")
    )
    counter = CountedProducts()
    objective = objective_of(options)
    bias = torch.tensor([case["bias"]], dtype=dtype, requires_grad=True)
    given = {} if objective.bias_start is None else {"bias": bias}
    with counter if case["counted"] else nullcontext():
        way = Objective.share if case["plain"] else type(objective).share
        share = way(objective, visual, text, n, m, scale, text_ids_B=ids, group=group, **given)
        (asked * share).backward()
    return {
        "share": share.detach(),
        "visual": visual.grad,
        "text": text.grad if case["text_trained"] else torch.zeros(0),
        "scale": scale.grad,
        "bias": bias.grad if given else torch.zeros(1),
        "operations": torch.tensor(counter.operations),
    }


def work(rank: int, world: int, cases: dict, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    for size in range(1, world + 1):
        group = dist.new_group(list(range(size)))
        if rank < size:
            found = {
                name: compute(case, case["parts"][size][rank], case["asked"][rank], group)
                for name, case in cases.items()
            }
            torch.save(found, folder / f"{size}-{rank}.pt")
        dist.barrier()


def main(cases_path: str, folder: str, world: int = 4) -> None:
    cases = torch.load(cases_path)
    tiled_module.CPU_TILE = (64, 32)
    codes = fork_all(world, lambda rank: work(rank, world, cases, Path(folder)))
    sys.exit(f"ranks ended with {codes}" if any(codes) else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
