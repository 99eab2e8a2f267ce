"""Sign2GPT's visual side between the stages: what is stored of it, what comes from files, how many tokens it gives."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sage_scale.config import Recipe
from sage_scale.models.sign2gpt.checkpoint import adapter_state
from sage_scale.models.sign2gpt.model import SignFeatures
from sage_scale.models.sign2gpt.spatial import clip_frames
from sage_scale.nn.frame_encoder import save_encoder_config
from sage_scale.streaming import Batch
from sage_scale.training.export import save_tensors
from sage_scale.untrusted.files import expanded

VIT = "spatial.backbone.dino."
"""Names of the vision transformer, frozen but for its adapters."""


def frozen_files(recipe: Recipe) -> list[Path]:
    """Files that the frozen part of the visual side comes from."""
    weights = recipe.model.sign2gpt.vit_weights
    frames = recipe.vision.kind == "frames" and recipe.model.sign2gpt.spatial == "dinov2"
    return [expanded(weights)] if weights and frames else []


def homeless_weights(model: SignFeatures, recipe: Recipe) -> dict[str, Tensor]:
    """Frozen weights that no file holds: those of a vision transformer that started at random."""
    if recipe.model.sign2gpt.vit_weights:
        return {}
    own = adapter_state(model)
    state = model.state_dict()
    return {name: value for name, value in state.items() if name.startswith(VIT) and name not in own}


def save_signs(model: SignFeatures, recipe: Recipe, path: Path) -> None:
    """Write what stage 1 trained, its statistics, and frozen weights that no file holds."""
    save_encoder_config(model.spatial and model.spatial.backbone, path.parent)
    save_tensors(adapter_state(model) | homeless_weights(model, recipe), path)


def sizes(recipe: Recipe, batch: Batch) -> dict[str, float]:
    """Frames and tokens (of the sign encoder) of a rank's part of a batch, shares of the global ones."""
    frames_B = clip_frames(batch.video)
    settings = recipe.model.sign2gpt
    halved = settings.spatial != "signs" and settings.downsample_after > 0
    tokens_B = (frames_B + 1) // 2 if halved else frames_B
    return {"frames": float(frames_B.sum()), "visual_tokens": float(tokens_B.sum())}
