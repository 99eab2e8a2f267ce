"""CLCL's similarities by the fastest way that this machine has: the one place that chooses."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sage_scale.errors import RecipeError
from sage_scale.losses.clcl import reference_similarity
from sage_scale.losses.clcl_tile import Tile, TorchTile
from sage_scale.losses.clcl_tiled import tiled_clcl_similarity
from sage_scale.losses.products import Precision

Implementation = Literal["auto", "reference", "tiled", "triton"]


def clcl_similarity(
    visual: Tensor,
    text: Tensor,
    visual_lengths: Tensor,
    text_lengths: Tensor,
    tau: float = 0.07,
    *,
    implementation: Implementation = "auto",
    products: Precision = "float32",
) -> tuple[Tensor, Tensor]:
    """Zv and Zt, both (Bv, Bt), before the logit scale: `clcl.reference_similarity` says what they are.

    Tokens are packed, (sum of lengths, D), of any floating type; float64 is computed in float64, all others in
    float32 with matrix products of the precision `products`. Raises ValueError where lengths do not fit the tokens.
    """
    chosen = chosen_implementation(visual.device, implementation)
    if chosen == "reference":
        return reference_similarity(visual, text, visual_lengths, text_lengths, tau)
    return tiled_clcl_similarity(
        visual, text, visual_lengths, text_lengths, tau, products, tile_maker(chosen)
    )


def chosen_implementation(device: torch.device | str, wanted: Implementation = "auto") -> Implementation:
    """What `wanted` comes to on a device: reference, tiled or triton.

    Raises RecipeError where triton is demanded but cannot be had.
    """
    lacking = triton_lacks(device)
    if wanted == "triton" and lacking:
        raise RecipeError(f"clcl.implementation=triton, but {lacking}: take auto")
    if wanted == "auto":
        return "tiled" if lacking or torch.device(device).type != "cuda" else "triton"
    return wanted


def triton_lacks(device: torch.device | str) -> str:
    """Why Triton kernels cannot run on a device, or an empty string."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    if torch.device(device).type != "cuda":
        return "triton needs a GPU"
    # It compiles the code that starts a kernel when it first does.
    compilers = [os.environ.get("CC", ""), "gcc", "clang", "cc"]
    if not any(name and shutil.which(name) for name in compilers):
        return "triton needs a C compiler (gcc)"
    places = {sysconfig.get_path("include"), sysconfig.get_path("include", "posix_prefix")}
    if not any((Path(place) / "Python.h").is_file() for place in places):
        return "triton needs Python's headers (Debian and Ubuntu: python3-dev)"
    return ""


def tile_maker(chosen: Implementation) -> type[Tile]:
    """The class that treats tiles: torch operations or Triton kernels."""
    if chosen == "triton":
        from sage_scale.losses.clcl_triton import TritonTile

        return TritonTile
    return TorchTile
