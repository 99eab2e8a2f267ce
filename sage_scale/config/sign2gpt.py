"""The sections of a recipe that only Sign2GPT reads (Wong, Camgoz, Bowden 2024): `model.sign2gpt` and `prototypes`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sage_scale.config.extension import Need, check_chunks_of_frames, register_model, since

if TYPE_CHECKING:
    from sage_scale.config.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Sign2Gpt:
    """Spatial model, sign encoder and adapters of Sign2GPT (sections 3.1 and 4.2); read if model.kind=sign2gpt.

    The language model is `model.language_model`: XGLM, or a model of the form of GPT-NeoX or Qwen2.
    """

    spatial: Literal["dinov2", "resnet", "signs"] = "dinov2"
    """Spatial model: a vision transformer with adapters, or the fully trained ResNet of `model.backbone`
    (Table 7; depths 2, 2, 2, 2 is ResNet-18). signs: no spatial model and no sign encoder, since the dataset's features
    are sign features Z (Sign(Z)2GPT, Table 2; stage 2 only, vision.kind=features)."""
    vit_weights: str = ""
    """DINOv2 weights: the published .pth or a transformers file or folder; empty: random."""
    vit_width: int = 384
    """Width of the vision transformer; the defaults are DINOv2 ViT-S/14."""
    vit_layers: int = 12
    """Blocks of the vision transformer."""
    vit_heads: int = 6
    """Attention heads of the vision transformer."""
    vit_patch: int = 14
    """Side of a patch, pixels."""
    vit_image: int = 518
    """Picture side of the position embeddings, pixels; they are interpolated for other sizes."""
    vit_adapted: int = 3
    """Top blocks with LoRA (section 4.2); 0 freezes all blocks (Table 4, "No Spatial Adapters")."""
    max_frames: int = 256
    """Most stored frames of a clip in a training step; longer clips are subsampled at random, in order; 0 takes all
    (released code). Evaluation uses all frames."""
    start_jitter: int = 3
    """Largest random shift of a clip's start in training, frames at `vision.fps` (released code)."""
    width: int = 512
    """Width of the sign encoder (section 4.2)."""
    layers: int = 4
    """Layers of the sign encoder; 0, with downsample_after=0, removes it (Table 10)."""
    heads: int = 8
    """Attention heads of the sign encoder."""
    ffn: int = 2048
    """Feed-forward width of the sign encoder."""
    window: int = 7
    """Frames of the centred attention window, odd; 0 is global attention (Table 4)."""
    downsample_after: int = 2
    """Layer after which frames are averaged to half their number; 0 is off (Table 4)."""
    dropout: float = 0.1
    """Dropout of the sign encoder, after attention and in the feed-forward part (released code)."""
    drop_path: float = 0.1
    """Stochastic depth of the last layer; rises linearly from 0 (released code)."""
    layer_scale: float = 1e-5
    """Initial LayerScale of both branches (released code)."""
    padding: Literal["none", "released"] = "none"
    """none: padding is not computed; released: padded frames are averaged into a clip's last token, and an even
    clip shorter than the batch's longest gets one more token, as in the released code."""
    positions: Literal["sine", "none", "learned_zero", "learned_random"] = "sine"
    """Positions added to the tokens before the decoder's linear layer (section 3.3; Table 4)."""
    lora_rank: int = 4
    """Rank of every LoRA pair (section 4.2)."""
    lora_alpha: float = 4.0
    """LoRA alpha; the scale is alpha / rank (section 4.2)."""
    lora_dropout: float = 0.1
    """Dropout before LoRA (released code)."""
    language_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the frozen language model's weights; adapters are always float32."""
    language_lr_scale: float = since("0.2.0", 0.0)
    """Learning rate of the language model's own weights, relative to `finetune.lr`. 0 freezes them (paper); otherwise
    they are trained along with the adapters, and the export holds them."""
    language_dropout: bool = False
    """Keep the frozen language model's own dropout in training, drawn by torch's generator (released code)."""


@dataclass(frozen=True, kw_only=True)
class Prototypes:
    """Prototype pretraining, stage 1 of Sign2GPT (section 3.3; equations 2 to 5)."""

    vectors: Literal["fasttext", "cooccurrence", "random"] = "fasttext"
    """Frozen prototypes: fastText vectors (paper); co-occurrence vectors of the training split's pseudo-glosses,
    without a file; or random directions, the control."""
    fasttext: str = ""
    """fastText vectors of the language, .bin or .vec (cc.de.300.bin), for vectors=fasttext."""
    dim: int = 300
    """Width of the prototypes; must equal the vectors' width."""
    dropout: float = 0.2
    """Dropout before the projection (released code)."""
    tau_time: float = 0.1
    """Initial temperature over time, learnable (section 4.2)."""
    tau_class: float = 0.1
    """Initial temperature over prototypes, learnable (section 4.2)."""
    tau_min: float = 0.01
    """Smallest temperature: both are clamped to it after each step (released code: in the forward pass)."""
    tau_max: float = 1.0
    """Largest temperature."""
    weight: float = 1.0
    """Factor on the loss; 10 in the released code."""
    max_frequency: float = 1.0
    """Pseudo-glosses whose occurrences, divided by the number of distinct sentences, reach this share get no
    prototype; 1 keeps all (paper), released code: 0.4."""
    splits: tuple[str, ...] = ("train", "dev", "test")
    """Splits whose pseudo-glosses get prototypes (released code: all three)."""
    threshold: float = 0.2
    """Presence above which a pseudo-gloss counts as detected (Table 8)."""


def check_sign2gpt(recipe: Recipe, need: Need) -> None:
    """Check the keys of Sign2GPT: calls need(condition, message) for each rule."""
    g, p, where, crop = recipe.model.sign2gpt, recipe.prototypes, "model.sign2gpt", recipe.vision.crop
    if g.spatial == "dinov2" and recipe.vision.kind == "frames":
        whole = crop % g.vit_patch == 0
        need(whole, f"vision.crop={crop} is no multiple of {where}.vit_patch={g.vit_patch}")
        need(g.vit_adapted <= g.vit_layers, f"{where}.vit_adapted={g.vit_adapted} must be between 0 and "
             f"{where}.vit_layers={g.vit_layers}")  # fmt: skip
    odd = g.window == 0 or g.window % 2 == 1
    need(odd, f"{where}.window={g.window} must be odd, or 0 for global attention")
    need(g.downsample_after < max(g.layers, 1), f"{where}.downsample_after={g.downsample_after} must be 0, or a "
         f"layer before the last of {where}.layers={g.layers}")  # fmt: skip
    paired = g.width % (2 * g.heads) == 0
    need(paired, f"{where}.width={g.width} must be a multiple of twice {where}.heads={g.heads}")
    if g.spatial == "signs":
        need(recipe.vision.kind == "features", f"{where}.spatial=signs wants vision.kind=features: sign features "
             "that stage 1 has written")  # fmt: skip
        need(recipe.model.feature_dim == g.width, f"{where}.spatial=signs: model.feature_dim="
             f"{recipe.model.feature_dim} must be {where}.width={g.width}")  # fmt: skip
    need(not g.language_lr_scale or g.language_dtype == "float32", f"{where}.language_lr_scale={g.language_lr_scale:g} "
         f"trains the language model: set {where}.language_dtype=float32")  # fmt: skip
    need(g.lora_rank >= 1, f"{where}.lora_rank={g.lora_rank} must be at least 1")
    need(max(g.dropout, g.drop_path, g.lora_dropout, p.dropout) < 1,
         f"the dropout rates of {where} and prototypes must be at least 0 and below 1")  # fmt: skip
    need(0 < p.tau_min <= min(p.tau_time, p.tau_class) <= max(p.tau_time, p.tau_class) <= p.tau_max,
         "prototypes.tau_time and tau_class must lie between tau_min and tau_max, above 0")  # fmt: skip
    need(p.max_frequency > 0, f"prototypes.max_frequency={p.max_frequency} must be above 0 and at most 1")
    need(recipe.finetune.init != "visual_context", "finetune.init=visual_context takes SAGE's context encoder over: "
         "set it to visual or none")  # fmt: skip
    for name, stage in (("pretrain", recipe.pretrain), ("finetune", recipe.finetune)):
        need(
            not stage.compile, f"{name}.compile is for the frame encoder of model.kind=sage: set it to false"
        )
    if g.spatial == "resnet":  # behind DINOv2, BatchNorm sees all frames at once
        check_chunks_of_frames(recipe, need)


register_model("sign2gpt", check=check_sign2gpt)
