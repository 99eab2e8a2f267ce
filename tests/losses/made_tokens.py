"""Tokens, lengths and the loss by the reference, for the tests of the faster versions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sage_scale.losses import clcl_loss, clip_loss, clip_similarity, reference_similarity


@dataclass(frozen=True)
class Options:
    """As `config.Clcl`."""

    loss: str = "clcl"
    variant: str = "paper"
    tau: float = 0.07
    alpha: float = 0.3
    same_text: str = "negative"
    implementation: str = "auto"
    products: str = "float32"
    scale_init: float = 1 / 0.07


def random_lengths(count: int, longest: int, seed: int) -> list[int]:
    """From 1 to `longest`, both of them among the lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [*lengths[: count - 2], longest, 1] if count > 1 else lengths


def random_tokens(rows: int, width: int, seed: int) -> torch.Tensor:
    """float64, of very different lengths, so that normalising matters."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(rows, width, dtype=torch.float64, generator=generator)
    return tokens * torch.rand(rows, 1, dtype=torch.float64, generator=generator).add(0.05) * 3


def aligned_tokens(visual_lengths: list[int], text_lengths: list[int], width: int, seed: int):
    """Visual and text tokens of which some are nearly equal to the other side's: sharp softmaxes."""
    visual = random_tokens(sum(visual_lengths), width, seed)
    text = random_tokens(sum(text_lengths), width, seed + 1)
    some = torch.arange(0, min(len(visual), len(text)), 3)
    visual[some] = text[some] * 2 + 0.1 * visual[some]
    return visual, text


def reference_loss(visual, text, scale, n, m, options, ids=None, bias=None):
    """The loss of a whole batch by the reference."""
    if options.loss in ("clip", "siglip"):
        Z = clip_similarity(visual, text, n, m)
        Zv, Zt = Z, Z
    else:
        Zv, Zt = reference_similarity(visual, text, n, m, 0 if options.loss == "maxsim" else options.tau)
    if options.loss.startswith("siglip"):
        return pairwise_sigmoid(Zv, Zt, scale, bias, options, ids)
    if options.loss == "clip":
        return clip_loss(Zv, scale, ids, options.same_text)
    return clcl_loss(Zv, Zt, scale, options.alpha, options.variant, ids, options.same_text)


def pairwise_sigmoid(Zv, Zt, scale, bias, options, ids=None):
    """SigLIP's equation, pair by pair: -1/B sum of log 1 / (1 + exp(-z (t Z + b))), z = 1 for a clip's own text."""
    B, total = len(Zv), 0.0
    for weight, Z in ((options.alpha, Zv), (1 - options.alpha, Zt)):
        for a in range(B):
            for b in range(B):
                if options.same_text == "masked" and a != b and ids is not None and ids[a] == ids[b]:
                    continue
                z = 1 if a == b else -1
                total = total + weight * torch.log1p(torch.exp(-z * (scale * Z[a, b] + bias)))
    return total.sum() / B


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative, in norm."""
    return float((found.double() - wanted).norm() / wanted.norm().clamp_min(1e-300))


class CountedProducts(TorchDispatchMode):
    """Counts the operations (2 R K C) of the matrix products inside the `with`."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        factors = {"mm": args[:2], "bmm": args[:2], "addmm": args[1:3], "addmm_": args[1:3]}.get(name)
        assert factors or "mm" not in name, f"a product that is not counted: {name}"
        if factors:
            self.operations += 2 * factors[0].numel() * factors[1].shape[-1]
        return func(*args, **(kwargs or {}))
