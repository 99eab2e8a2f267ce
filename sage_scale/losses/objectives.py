"""Objectives of stage 1: one class each, selected by `clcl.loss`.

An objective is a similarity of videos and texts, and a loss of all pairs of a batch. `Objective.share` gathers the
tokens of all ranks and computes both directly, which is correct at any number of ranks. The built-in objectives compute
the same share faster (`clcl_ring`), and store only the matrices of their own clips. Equations and sources:
docs/objectives.md.

Rank r holds the visual tokens of its own clips and the text tokens of the same clips, and returns its share of the
loss of the whole batch: the shares sum to that loss, and the ranks' gradients to its gradient. A rank may hold no clip
at all; it still takes part in every collective.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from sage_scale.errors import RecipeError
from sage_scale.losses.clcl import Variant, clcl_loss, clip_similarity, mean_tokens, reference_similarity
from sage_scale.losses.clcl_ring import Batch, ring_loss
from sage_scale.losses.clcl_tile import Softmax, Tile, TorchTile
from sage_scale.losses.clcl_tiled import tiled_clcl_similarity
from sage_scale.losses.collectives import gather_counts, gather_rows, world_size
from sage_scale.losses.pair_losses import InfoNce, PairLoss
from sage_scale.losses.products import Precision

Implementation = Literal["auto", "reference", "tiled", "triton"]


class Settings(Protocol):
    """Recipe keys that an objective reads; `config.Clcl` implements it."""

    @property
    def loss(self) -> str: ...
    @property
    def variant(self) -> Variant: ...
    @property
    def tau(self) -> float: ...
    @property
    def alpha(self) -> float: ...
    @property
    def same_text(self) -> Literal["negative", "masked"]: ...
    @property
    def implementation(self) -> Implementation: ...
    @property
    def products(self) -> Precision: ...
    @property
    def scale_init(self) -> float: ...


class Objective(ABC):
    """A contrastive objective over packed tokens (sum of lengths, D). A subclass writes `name` and `similarity`."""

    name: ClassVar[str]
    """The value of `clcl.loss`."""
    bias_start: ClassVar[float | None] = None
    """Start of the logits' bias, a trained number a level; None: the objective has none."""
    second_view: ClassVar[bool] = False
    """Whether `share` takes a second view of the texts (`cico`)."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def scale_start(self) -> float:
        """Returns the start of the logit scale."""
        return self.settings.scale_init

    @abstractmethod
    def similarity(
        self, visual_ND: Tensor, text_MD: Tensor, visual_lengths_B: Tensor, text_lengths_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns video-to-text and text-to-video similarities, both (Bv, Bt), before the logit scale."""

    def loss(
        self,
        Zv_BB: Tensor,
        Zt_BB: Tensor,
        scale: Tensor | float,
        text_ids_B: Tensor | None = None,
        bias: Tensor | float | None = None,
    ) -> Tensor:
        """Returns the loss of the global batch, a scalar: InfoNCE as in `clcl_loss`.

        `bias` is given to objectives that have a `bias_start`, and to no other.
        """
        settings = self.settings
        return clcl_loss(
            Zv_BB, Zt_BB, scale, settings.alpha, settings.variant, text_ids_B, settings.same_text
        )

    def share(
        self,
        visual_ND: Tensor,
        text_MD: Tensor,
        visual_lengths_B: Tensor,
        text_lengths_B: Tensor,
        scale: Tensor,
        text_ids_B: Tensor | None = None,
        group: dist.ProcessGroup | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Returns this rank's share of the loss of one level, a scalar; in one process the whole loss.

        Tokens and lengths are this rank's own; gradients reach the tokens of both sides, scale and bias. `text_ids_B`
        (int64, equal for equal texts) is needed for `same_text=masked`. A collective, as is its backward pass.
        """
        every = gather_counts([len(visual_lengths_B), len(visual_ND), len(text_MD)], group, visual_ND.device)
        clips, visual, text = ([counts[side] for counts in every] for side in range(3))
        visual_lengths_B, text_lengths_B = (
            gather_rows(lengths_B.to(visual_ND.device), clips, group)
            for lengths_B in (visual_lengths_B, text_lengths_B)
        )
        ids_B = None if text_ids_B is None else gather_rows(text_ids_B.to(visual_ND.device), clips, group)
        Z = self.similarity(
            gather_rows(_float32(visual_ND), visual, group),
            gather_rows(_float32(text_MD), text, group),
            visual_lengths_B,
            text_lengths_B,
        )
        return self.loss(*Z, scale, ids_B, **_given(bias)) / world_size(group)


class Clcl(Objective):
    """Token-level CLCL (SAGE, section 3.1.5)."""

    name = "clcl"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.tau, self.variant = settings.tau, settings.variant

    def similarity(
        self, visual_ND: Tensor, text_MD: Tensor, visual_lengths_B: Tensor, text_lengths_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        return clcl_similarity(visual_ND, text_MD, visual_lengths_B, text_lengths_B, self.tau)

    def share(
        self,
        visual_ND: Tensor,
        text_MD: Tensor,
        visual_lengths_B: Tensor,
        text_lengths_B: Tensor,
        scale: Tensor,
        text_ids_B: Tensor | None = None,
        group: dist.ProcessGroup | None = None,
        bias: Tensor | None = None,
        pair_loss: PairLoss | None = None,
    ) -> Tensor:
        """Returns `Objective.share`, by tiles and a ring over the ranks; half precision is computed in float32.
        `pair_loss` replaces the objective's own.

        Raises ValueError where lengths do not fit the tokens, RecipeError where the implementation cannot be had.
        """
        settings, device = self.settings, visual_ND.device
        every = gather_counts(
            [visual_lengths_B.numel(), int(visual_ND.requires_grad), int(text_MD.requires_grad)],
            group,
            device,
        )
        clips = [counts[0] for counts in every]
        text_ids = None
        if settings.same_text == "masked":
            if text_ids_B is None:
                raise ValueError("same_text=masked needs text_ids_B")
            text_ids = list(gather_rows(text_ids_B.to(device), clips, group).split(clips))
        visual_lengths, text_lengths = (
            [part.tolist() for part in gather_rows(lengths_B.to(device), clips, group).split(clips)]
            for lengths_B in (visual_lengths_B, text_lengths_B)
        )
        chosen = chosen_implementation(device, settings.implementation)
        if chosen == "reference" and pair_loss is None:
            if len(clips) > 1:
                raise RecipeError("clcl.implementation=reference is for one process: take auto")
            Z = reference_similarity(visual_ND, text_MD, visual_lengths_B, text_lengths_B, self.tau)
            return self.loss(*Z, scale, text_ids_B, **_given(bias))
        trained = (any(counts[1] for counts in every), any(counts[2] for counts in every))
        batch = Batch(visual_lengths, text_lengths, text_ids, trained, group)
        return ring_loss(
            visual_ND, text_MD, scale, bias, batch, pair_loss or self.pair_loss(), Softmax(self.tau),
            settings.products, tile_maker(chosen),
        )  # fmt: skip

    def pair_loss(self) -> PairLoss:
        """Returns `loss` as it is streamed over tiles: equation 4, or the released code's rows of Zv and columns of
        Zt."""
        if self.variant == "one_direction":
            return InfoNce(rows=(0.5, 0.0), columns=(0.0, 0.5))
        halves = (self.settings.alpha / 2, (1 - self.settings.alpha) / 2)
        return InfoNce(rows=halves, columns=halves)


class MaxSim(Clcl):
    """ColBERT's MaxSim in both directions: the maximum in place of the inner softmax."""

    name = "maxsim"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.tau = 0.0


class Clip(Clcl):
    """The CLIP-style loss that CLCL is compared with: one vector a clip, the mean of its tokens (SAGE, Table 4a)."""

    name = "clip"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.variant = "paper"

    def similarity(
        self, visual_ND: Tensor, text_MD: Tensor, visual_lengths_B: Tensor, text_lengths_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        Z = clip_similarity(visual_ND, text_MD, visual_lengths_B, text_lengths_B)
        return Z, Z

    def share(
        self, visual_ND: Tensor, text_MD: Tensor, visual_lengths_B: Tensor, text_lengths_B: Tensor, *rest: Any,
        **options: Any,
    ) -> Tensor:  # fmt: skip
        """Returns `Clcl.share` of one token a clip."""
        visual_BD, text_BD = mean_tokens(visual_ND, visual_lengths_B), mean_tokens(text_MD, text_lengths_B)
        ones_B = torch.ones_like(visual_lengths_B)
        return super().share(visual_BD, text_BD, ones_B, ones_B, *rest, **options)


OBJECTIVES: dict[str, type[Objective]] = {kind.name: kind for kind in (Clcl, MaxSim, Clip)}
"""By name. The files of others add theirs (`siglip`), as `registry.register_objective` does."""


def objective_of(settings: Settings) -> Objective:
    """Returns the objective that `clcl.loss` names. Raises RecipeError for an unknown name."""
    if settings.loss not in OBJECTIVES:
        raise RecipeError(f"clcl.loss={settings.loss}: must be one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[settings.loss](settings)


def _given(bias: Tensor | None) -> dict[str, Any]:
    """Returns the argument of `Objective.loss`, which an objective without a bias need not take."""
    return {} if bias is None else {"bias": bias}


def _float32(tokens_ND: Tensor) -> Tensor:
    return tokens_ND.float() if tokens_ND.dtype in (torch.float16, torch.bfloat16) else tokens_ND


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
    """Returns Zv and Zt of `clcl.reference_similarity`, both (Bv, Bt), before the logit scale.

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
    """Returns the implementation that `wanted` selects on a device: reference, tiled or triton.

    Raises RecipeError if triton is requested but not available.
    """
    lacking = triton_lacks(device)
    if wanted == "triton" and lacking:
        raise RecipeError(f"clcl.implementation=triton, but {lacking}: take auto")
    if wanted == "auto":
        return "tiled" if lacking or torch.device(device).type != "cuda" else "triton"
    return wanted


def triton_lacks(device: torch.device | str) -> str:
    """Returns why Triton kernels cannot run on a device, or ""."""
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
    folders = {sysconfig.get_path("include"), sysconfig.get_path("include", "posix_prefix")}
    if not any((Path(folder) / "Python.h").is_file() for folder in folders):
        return "triton needs Python's headers (Debian and Ubuntu: python3-dev)"
    return ""


def tile_maker(chosen: Implementation) -> type[Tile]:
    """Returns the class of tile computations: TorchTile or TritonTile."""
    if chosen == "triton":
        from sage_scale.losses.clcl_triton import TritonTile

        return TritonTile
    return TorchTile
