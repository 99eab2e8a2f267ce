"""What a clip costs the visual encoder, mapper and context encoder: bytes kept for the backward pass, and operations.

Counted layer by layer from the recipe (docs/clcl.md, "The encoder"). A convolution with its BatchNorm and ReLU keeps
two maps: what BatchNorm saw, and what the next layer sees.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import MBartConfig

from sage_scale.config import Recipe
from sage_scale.models.sage.describe import language_model_config
from sage_scale.planning.resnet import halved, resnet_convolutions
from sage_scale.planning.step import ClipSize


@dataclass(frozen=True, slots=True)
class ClipCost:
    """What one clip costs."""

    frame_bytes: float
    """Kept by the frame encoder for one frame between its forward and backward pass."""
    frame_output_bytes: float
    """What the frame encoder gives for a frame."""
    frame_operations: float
    """Of one frame's forward pass through the frame encoder."""
    frames: float
    """Frames of the clip."""
    after_bytes: float
    """Kept by all that follows, for the clip."""
    after_operations: float
    """Of its forward pass."""
    token_bytes: float
    """Tokens and hidden states in float32, with their gradients."""
    input_bytes: float
    """Frames or features as they come from the loader."""

    @property
    def activation_bytes(self) -> float:
        """Kept between the clip's forward and backward pass, all its frames at once."""
        return self.frames * self.frame_bytes + self.after_bytes

    @property
    def operations(self) -> float:
        """Of a forward pass; backward takes twice as many."""
        return self.frames * self.frame_operations + self.after_operations

    def held_bytes(self, clips: float, chunk_frames: int) -> float:
        """Kept for so many clips whose frames pass the frame encoder in chunks (0: at once)."""
        frames = clips * self.frames
        if not chunk_frames or frames <= chunk_frames:
            return clips * self.activation_bytes
        return chunk_frames * self.frame_bytes + frames * self.frame_output_bytes + clips * self.after_bytes

    def step_operations(self, clips: float, passes: int, chunk_frames: int) -> float:
        """Of a step with so many forward passes of each clip, and one backward; chunks pass once more."""
        again = bool(chunk_frames) and clips * self.frames > chunk_frames
        return clips * (passes + 2) * self.operations + again * clips * self.frames * self.frame_operations


def clip_cost(
    recipe: Recipe, clip: ClipSize, bf16: bool, context: bool = True, language: MBartConfig | None = None
) -> ClipCost:
    """Counts for one clip under the recipe, with stage 1's `context` encoder or without; `language` is the language
    model's configuration where that is at hand. Raises CheckpointError where it is not, and the recipe's is unknown.
    """
    model, value = recipe.model, 2 if bf16 else 4
    language = language or language_model_config(recipe)
    per_frame = frame_operations = kept = operations = 0.0
    width, stored = model.feature_dim, 2.0 * model.feature_dim
    if recipe.vision.kind == "frames":
        width = model.backbone.widths[-1]
        pixels = 3 * recipe.vision.crop**2
        stored = 3.0 * recipe.vision.size**2
        layers = list(resnet_convolutions(recipe))
        pooled = model.backbone.widths[0] * halved(layers[0].side) ** 2
        # Pixels as floats and normalised, the stem's pooled map, and where each maximum stood (int64).
        per_frame += pixels * (4 + 4 + 2 * bf16) + pooled * (value + 8)
        per_frame += sum(layer.kept_maps * layer.map for layer in layers) * value
        frame_operations += sum(layer.operations for layer in layers)
        if model.backbone.pool == "flatten":
            flat = width * layers[-1].side ** 2
            per_frame += flat * value
            frame_operations += 2 * flat * width
    # Temporal convolution as one product over windows, BatchNorm, ReLU, mean.
    window = model.conv_kernel * width
    kept += clip.frames * (window * (value + (4 if bf16 else 0)) + 2 * model.token_dim * value)
    operations += clip.frames * 2 * window * model.token_dim
    D, inputs = language.d_model, model.token_dim
    for _ in range(model.mapper_blocks):  # normalised, product, dropout's pattern and what it leaves
        kept += clip.visual_tokens * (inputs + 3 * D) * 4
        operations += clip.visual_tokens * 2 * inputs * D
        inputs = D
    feed = language.encoder_ffn_dim
    # Two norms, q, k, v, attention, two dropouts with residuals; two values of the feed-forward part.
    layers_of_context = model.context_layers if context else 0
    kept += clip.visual_tokens * layers_of_context * (12 * D + 2 * feed) * 4
    operations += clip.visual_tokens * layers_of_context * 2 * (4 * D * D + 2 * D * feed)
    sides = 2 if layers_of_context else 1
    return ClipCost(
        frame_bytes=per_frame,
        frame_output_bytes=width * value,
        frame_operations=frame_operations,
        frames=clip.frames,
        after_bytes=kept,
        after_operations=operations,
        token_bytes=sides * 2 * 4 * D * clip.visual_tokens,
        input_bytes=clip.frames * stored,
    )
