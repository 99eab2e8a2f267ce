"""Real processes over gloo, forked from one that has torch loaded, for test_retrieval.py.

    python retrieval_of_ranks.py FOLDER

Groups of the first 1, 2, 4 ranks score the clips of FOLDER/case.pt, each rank with its part, and write what they find
to FOLDER/<group>-<rank>.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))
from evaluation.test_retrieval import LargestTensor
from factories.ranks import fork_all
from losses.made_tokens import Options

from sage_scale.evaluation import stage1_scores
from sage_scale.losses import objective_of
from sage_scale.losses.ring import sum_over_ranks


def work(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    case = torch.load(folder / "case.pt")
    (visual, text, n, m), objective = case["made"], objective_of(Options())
    for size, parts in case["parts"].items():
        group = dist.new_group(list(range(size)))
        if rank < size:
            own = parts[rank]
            sides = (
                torch.cat([tokens[:0], *(tokens.split(lengths)[clip] for clip in own)])
                for tokens, lengths in ((visual, n), (text, m))
            )
            lengths = ([every[clip] for clip in own] for every in (n, m))
            with LargestTensor() as largest:
                packed, counts = list(sides), list(lengths)
                figures = stage1_scores.tiled_retrieval(objective, *packed, *counts, group=group)
            exact = (tokens.double() for tokens in packed)
            share = objective.share(
                *exact,
                *(torch.tensor(count, dtype=torch.int64) for count in counts),
                torch.tensor([14.0]),
                group=group,
            )
            found = {
                "figures": figures,
                "largest": largest.numbers,
                "loss": float(sum_over_ranks(share, group)),
            }
            (folder / f"{size}-{rank}.json").write_text(json.dumps(found))
        dist.barrier()


def main(folder: str, world: int = 4) -> None:
    stage1_scores.TILE_TOKENS, stage1_scores.TILE_CLIPS = 40, 12
    codes = fork_all(world, lambda rank: work(rank, world, Path(folder)))
    sys.exit(f"ranks ended with {codes}" if any(codes) else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
