"""The Triton kernels on a CPU, for test_clcl_triton.py: TRITON_INTERPRET=1 python triton_by_interpreter.py

Prints one JSON line: the largest relative error of similarities and gradients of each case against the reference.
"""

from __future__ import annotations

import json
import sys

import torch
from made_tokens import Options, aligned_tokens, error, random_lengths, reference_loss

from sage_scale.losses import clcl_tiled as tiled_module
from sage_scale.losses import objective_of, reference_similarity, tiled_clcl_similarity
from sage_scale.losses.clcl_tile import Softmax, TorchTile
from sage_scale.losses.clcl_triton import TritonTile
from sage_scale.losses.tokens import blocks_of

TAUS = (0, 0.01, 0.07, 1.0)


def errors(
    device: str, tile: tuple[int, int], clips: int, longest: tuple[int, int], dtypes, taus
) -> dict[str, float]:
    """By case, for every temperature; types but the first at the default temperature only."""
    tiled_module.CPU_TILE = tiled_module.CUDA_TILE = tile
    found = {}
    n, m = random_lengths(clips, longest[0], 0), random_lengths(clips + 1, longest[1], 1)
    visual, text = aligned_tokens(n, m, 16, 2)
    n, m = torch.tensor(n), torch.tensor(m)
    weight = torch.randn(2, clips, clips + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def computed(way, dtype, place, tau, **options):
        v, t = (
            visual.to(place, dtype, copy=True).requires_grad_(),
            text.to(place, dtype, copy=True).requires_grad_(),
        )
        Z = torch.stack(way(v, t, n, m, tau, **options))
        (Z * weight.to(Z)).sum().backward()
        return Z.detach().cpu(), v.grad.cpu(), t.grad.cpu()

    for tau in taus:
        wanted = computed(reference_similarity, torch.float64, "cpu", tau)
        for dtype in dtypes if tau == 0.07 else dtypes[:1]:
            values = computed(tiled_clcl_similarity, dtype, device, tau, tile=TritonTile)
            worst = max(error(value, whole) for value, whole in zip(values, wanted))
            found[f"{tau} {str(dtype)[6:]}"] = worst
    return found


def loss_error(device: str, options: Options) -> float:
    """Of the streamed loss and its gradients."""
    n, m = torch.tensor([5, 1, 7, 3]), torch.tensor([2, 4, 1, 3])
    visual, text = aligned_tokens(n.tolist(), m.tolist(), 16, 5)
    worst = 0.0
    results = []
    for place in ("cpu", device):
        v, t = (side.to(place, copy=True).requires_grad_() for side in (visual, text))
        scale = torch.tensor([14.0], dtype=torch.float64, device=place, requires_grad=True)
        if not results:
            loss = reference_loss(v, t, scale, n, m, options, bias=-2.0)
        else:
            objective = objective_of(options)
            given = {} if objective.bias_start is None else {"bias": torch.full_like(scale, -2.0)}
            loss = objective.share(v, t, n.to(place), m.to(place), scale, **given)
        loss.backward()
        results.append([value.cpu() for value in (loss.detach(), v.grad, t.grad, scale.grad)])
    for value, whole in zip(results[1], results[0]):
        worst = max(worst, error(value, whole))
    return worst


def narrow_error(device: str) -> float:
    """Of a tile's gradient that is written as a factor of products of bfloat16, against torch operations."""
    rows, columns = blocks_of([2, 3, 3, 7], 99)[0], blocks_of([1, 4, 4], 99)[0]
    generator = torch.Generator().manual_seed(6)
    u, G, H = (torch.randn(*size, generator=generator).to(device) for size in ((15, 9), (4, 3), (4, 3)))
    softmax = Softmax(0.07)
    wanted = TorchTile(softmax).gradient(u.clone(), None, G, H, rows, columns)
    found = TritonTile(softmax, torch.bfloat16).gradient(u.clone(), None, G, H, rows, columns)
    assert found.dtype == torch.bfloat16
    return error(found.cpu(), wanted.double().cpu())


def main() -> None:
    dtypes = (torch.float64, torch.float32)
    found = errors("cpu", (24, 20), 3, (13, 9), dtypes, TAUS)
    # One pair of more values than a program takes: its tile goes through torch operations.
    found |= {
        f"long {name}": value
        for name, value in errors("cpu", (24, 20), 2, (130, 129), dtypes[:1], (0.07,)).items()
    }
    found["loss float64"] = loss_error("cpu", Options(implementation="triton"))
    found["sigmoid loss float64"] = loss_error("cpu", Options(loss="siglip_tokens", implementation="triton"))
    found["narrow bfloat16"] = narrow_error("cpu")
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
