"""The sections of a recipe of models, losses, stages and scores: nested frozen dataclasses, one docstring a field."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, make_dataclass, replace
from typing import Any, Literal

from sage_scale.config import extension
from sage_scale.config.data import Augment
from sage_scale.config.sign2gpt import Sign2Gpt


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """The frame encoder (SAGE, section 3.1.3)."""

    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Basic blocks in each stage; (3, 4, 6, 3) is ResNet-34."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Channels of each stage."""
    pool: Literal["mean", "flatten"] = "mean"
    """mean: global average (paper); flatten: all positions of the last map, projected to the last width."""
    weights: str = ""
    """Initial weights: a torchvision or transformers ResNet file or folder; empty: random."""
    folder: str = extension.since("0.2.0", "")
    """Folder of an image model that transformers' AutoModel or AutoBackbone opens (ViT, ConvNeXt, Swin, DINOv2). It is
    trained in place of the ResNet, from its own weights; its configuration gives the width of the features,
    `vision.crop` is the side of its pictures. The other keys of the section are not read then."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """SAGE: visual encoder, vision-to-language mapper, context encoder, language model. Or Sign2GPT."""

    kind: Literal["sage", "sign2gpt"] = "sage"
    """Model: SAGE (Low et al. 2025) or Sign2GPT (Wong et al. 2024), which reads `sign2gpt`, `backbone` (its
    ablation with a ResNet), `feature_dim`, `batchnorm` and `language_model` only."""
    language_model: str = ""
    """Hugging Face folder or name of an mBART checkpoint (sign2gpt: of an XGLM, or another causal language model);
    relative paths start at the run folder."""
    sign2gpt: Sign2Gpt = field(default_factory=Sign2Gpt)
    """Sign2GPT's own settings."""
    backbone: Backbone = field(default_factory=Backbone)
    """The frame encoder."""
    feature_dim: int = 512
    """Width of stored features, for vision.kind=features; unless it is given, that of vision.backbone."""
    conv_kernel: int = 5
    """Kernel of the temporal convolution, frames (SAGE, section 3.1.3)."""
    pooling: Literal["mean", "max", "window", "first"] = extension.since("0.2.0", "mean")
    """From the stored frames of a segment to its token (docs/segmentation.md, "Reductions"). mean: temporal convolution
    inside the segment, then the mean (SAGE). The others convolve over the clip. max: the segment's maximum (max
    pooling); window: the mean of the segment and `window_margin` frames on both sides (sliding window); first: the
    segment's first frame, the only one that passes the frame encoder (strided)."""
    window_margin: int = extension.since("0.2.0", 2)
    """Stored frames on both sides of a segment that its token also sees, for `pooling=window`."""
    token_dim: int = 1024
    """Width of a visual token before the mapper (SAGE, section 3.1.3)."""
    mapper_blocks: int = 3
    """Feed-forward blocks of the mapper (SAGE, section 3.1.4)."""
    mapper_last: Literal["full", "linear"] = "full"
    """Third block: full (paper: LayerNorm, Linear, GELU, Dropout) or Linear only (released code)."""
    mapper_norm: Literal["layer", "batch"] = "layer"
    """Normalisation inside the mapper's blocks; layer is the paper's."""
    dropout: float = 0.1
    """Dropout of mapper and context encoder (SAGE, section 4.2)."""
    context_layers: int = 3
    """Layers of the context encoder of stage 1: 0, 3 or 12 (SAGE, Table 5)."""
    context_init: Literal["language_model", "random"] = "language_model"
    """language_model copies the first layers of mBART's encoder."""
    batchnorm: Literal["sync", "group", "frozen"] = "sync"
    """Statistics of the whole global batch, of one fixed chunk, or the running ones."""

    def __reduce__(self) -> Any:
        """Returns a pickle by value: the class with the sections of registered models is made anew where it is read."""
        return _restore_model, (vars(self),)


def model_section() -> Model:
    """Returns the default section `model`, with the sections of all registered models as fields."""
    extension.import_plugins()
    return _model_type(tuple(extension.sections.items()))()


@functools.cache
def _model_type(sections: tuple[tuple[str, type], ...]) -> type[Model]:
    if not sections:
        return Model
    fields = [(name, kind, extension.since("0.2.0", factory=kind)) for name, kind in sections]
    return make_dataclass(
        "Model", fields, bases=(Model,), frozen=True, kw_only=True, namespace={"__module__": __name__}
    )


def _restore_model(values: dict[str, Any]) -> Model:
    return replace(model_section(), **values)


@dataclass(frozen=True, kw_only=True)
class Clcl:
    """The contrastive objective (SAGE, section 3.1.5; equations 3 to 5)."""

    loss: Literal["clcl", "clip", "maxsim", "siglip", "siglip_tokens", "cico"] = "clcl"
    """Objective (docs/objectives.md): token-level CLCL; clip, the CLIP-style loss of mean-pooled tokens (Table 4a);
    maxsim, ColBERT's MaxSim both ways; SigLIP's sigmoid loss over pooled tokens or CLCL's similarities; cico, CLCL with
    swapped words in the text-to-video similarities."""
    variant: Literal["paper", "one_direction"] = "paper"
    """paper: InfoNCE over rows and columns of both similarities (equations 3 and 4); one_direction: over rows of video
    to text and columns of text to video, as in the released code."""
    tau: float = 0.07
    """Temperature of the inner softmax (CiCo)."""
    alpha: float = 0.5
    """Weight of video to text against text to video (equation 4)."""
    beta: float = 0.6
    """Weight of the embedding level against the hidden-state level (equation 5)."""
    scale_init: float = 1 / 0.07
    """Start of the logit scales; their logarithms are trained, without weight decay (CiCo). SigLIP starts at 10 where
    this is the default."""
    scale_max: float = 100.0
    """Largest logit scale: the trained values are clamped to it after each step (CiCo)."""
    same_text: Literal["negative", "masked"] = "negative"
    """Role of other clips with the same sentence in a batch: negatives, or masked out of the loss."""
    implementation: Literal["auto", "reference", "tiled", "triton"] = "auto"
    """Implementation; all give equal results. auto: triton on a GPU if installed, else tiled; reference: the
    equations as written, with all token similarities in memory, in one process only."""
    products: Literal["float32", "tfloat32", "bfloat16"] = "float32"
    """Precision of the factors of its matrix products; sums are float32. bfloat16 is accurate to 1% and faster."""
    neighbours: float = extension.since("0.2.0", 0.0)
    """Weight of SignCL's term, added to any objective: near frames of a clip alike, distant ones apart (Ye et al. 2024;
    published: 0.01). 0: none."""
    sentence: float = extension.since("0.2.0", 0.0)
    """Weight of C2RL's second task, added to any objective: a light decoder writes the clip's sentence, with
    pretrain.label_smoothing (Chen et al. 2024). 0: none."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training stage."""

    batch_size: int = 16
    """Clips in a global batch, over all ranks."""
    micro_batch: int = 0
    """Most clips of a forward pass on a rank; 0 means all of its clips. Stage 1: chunks of the embedding cache, which
    keep all negatives and need model.batchnorm group or frozen; stage 2: gradient accumulation."""
    text_cache_mb: int = 2000
    """Stage 1: cache of the texts' hidden states on a rank, MB; 2,000 hold about 40,000 short texts."""
    chunk_frames: int = 0
    """Frames of one pass of the frame encoder, 0 for all; the backward pass recomputes each chunk, so that memory does
    not grow with the clips. Needs model.batchnorm frozen, or group (a group is then a chunk)."""
    compile: bool = False
    """torch.compile the frame encoder: faster on a GPU after minutes of compilation; best with chunk_frames (one
    shape)."""
    epochs: float = 80.0
    """Passes over the training clips; `max_steps` may end the stage earlier."""
    max_steps: int = 0
    """Optimizer steps; 0 means the steps of `epochs`."""
    max_minutes: float = 0.0
    """Time limit of the stage, minutes; 0 means none. The cosine follows the larger fraction of steps or minutes; log
    and report state the number of steps made."""
    max_tokens: int = 0
    """Budget of the stage in visual and text tokens of all ranks, to compare models with different numbers of tokens
    per clip; 0 means none. The cosine follows it."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD in the paper (section 4.2)."""
    lr: float = 0.03
    """Initial learning rate."""
    visual_lr_scale: float = 1.0
    """Factor on the learning rate of the visual encoder and mapper."""
    momentum: float = 0.9
    """SGD momentum."""
    nesterov: bool = False
    """Nesterov momentum (released code)."""
    betas: tuple[float, ...] = (0.9, 0.98)
    """AdamW betas."""
    weight_decay: float = 0.0
    """Weight decay; none on biases, norms and scales."""
    clip: float = 1.0
    """Gradient norm is clipped to this; 0 means no clipping."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning-rate schedule."""
    warmup: float = 0.0
    """Share of the steps with linear warm-up."""
    final_lr: float = 0.0
    """Final learning rate of the cosine, share of the initial one."""
    label_smoothing: float = 0.2
    """Label smoothing of stage 2 (SAGE, section 4.2), and of stage 1's `clcl.sentence`."""
    zero_stage: int = 1
    """DeepSpeed ZeRO stage, 0 to 3."""
    offload: Literal["none", "cpu", "nvme"] = "none"
    """Offloading of weights and optimizer states (ZeRO-Offload, ZeRO-Infinity): none, to host memory (zero_stage 1 to
    3; with 3 also the weights of forward and backward), or states to disk (3 only)."""
    offload_dir: str = ""
    """Folder on a local disk for offload=nvme; each rank uses a subfolder."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Arithmetic of forward and backward; fp16 scales the loss; auto is bf16 on devices with fast bf16 matrix
    units. Weights, gradients and optimizer stay float32."""
    recompute: bool = False
    """Activation checkpointing of the language model's and context encoder's layers: less memory, a third more work,
    equal gradients. For the frame encoder see chunk_frames."""
    patience: int = 0
    """Early stopping: consecutive evaluations on dev without improvement; 0 is off."""
    freeze: Literal["none", "backbone", "visual"] = "none"
    """Stage 2: part frozen after stage 1. Its outputs are computed once and kept in memory."""
    frozen_views: int = 1
    """Stage 2 with a frozen part: number of views of a clip kept in memory; view 0 is unaugmented."""
    init: Literal["visual", "visual_context", "none"] = "visual"
    """Stage 2: weights from stage 1 (SAGE, Table 5): visual encoder and mapper; these, and the context encoder in place
    of mBART's encoder; or none."""
    glosses: str = extension.since("0.2.0", "")
    """Stage 2: file or folder of the clips' glosses, which the language model reads in place of visual tokens: the
    ceiling of a translator that recognises every sign. A folder `gold` of a synthetic or acted corpus, or a table of
    `corpus act` with the clips' ids. Stage 1 is then not needed."""
    evaluate_every: int = 0
    """Steps between evaluations on dev; 0 means once an epoch, -1 only at the end."""
    save_every: int = 0
    """Steps between checkpoints; 0 means once an epoch."""
    keep_checkpoints: int = 2
    """Checkpoints kept besides the best."""
    checkpoints: str = ""
    """Folder or s3:// URL of the checkpoints, with a subfolder for each run and stage; empty: the run's folder."""
    async_save: bool = True
    """Write checkpoints while training continues; a step then waits only for the copy to host memory."""
    on_bad_loss: Literal["stop", "skip", "roll_back"] = "stop"
    """Reaction to NaN or infinite losses and gradients, and to spikes of the loss: stop, skip the batch, or load the
    last checkpoint's weights and continue with the next batch."""
    spike_factor: float = 0.0
    """A spike is a loss above this multiple of the median of the last 64; 0 is off."""
    profile_steps: int = 0
    """Number of steps, from the fourth on, traced by torch.profiler on rank 0 into the run's folder; 0 is off."""
    wandb: str = ""
    """Weights & Biases project that also receives the log (needs the extra `wandb`); empty: none."""
    max_bad_steps: int = 20
    """Bad steps of a stage after which it stops, for any on_bad_loss."""
    seed: int = 0
    """Seed of initial weights, dropout and augmentation."""
    augment: Augment = field(default_factory=Augment)
    """Image augmentation."""


@dataclass(frozen=True, kw_only=True)
class Denoise:
    """The demo's own small mBART, pretrained by denoising the training sentences (mBART, section 2).

    For model.kind=sign2gpt a small XGLM, which learns to predict their next subword: `mask`, `glosses`, `single` and
    `gloss_noise` are not read then."""

    enabled: bool = False
    """Train the language model on the corpus; otherwise `model.language_model` must exist."""
    vocabulary: int = 1000
    """SentencePiece pieces."""
    width: int = 256
    """d_model."""
    layers: int = 2
    """Encoder and decoder layers each."""
    heads: int = 4
    """Attention heads."""
    steps: int = 800
    """Optimizer steps."""
    max_minutes: float = 1.5
    """Time limit, minutes; 0 means none."""
    batch_size: int = 64
    """Sentences a step."""
    lr: float = 3e-3
    """Peak rate of AdamW."""
    mask: float = 0.35
    """Share of the words masked."""
    glosses: float = 0.85
    """Share of inputs made of a sentence's pseudo-glosses instead of its masked words."""
    single: float = 0.02
    """Share of inputs made of a single lemma of the sentence."""
    recombined: float = 1.0
    """Share of examples with recombined training sentences (GECA), falling to 0 at the end."""
    gloss_noise: float = 0.1
    """Rate at which these pseudo-glosses are dropped, repeated and replaced: 0 never, 1 often."""
    dropout: float = 0.1
    """Dropout."""
    weight_decay: float = 0.01
    """AdamW weight decay of matrices."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Decoding and scores (SAGE, section 4.2)."""

    beams: int = 4
    """Beam width."""
    max_tokens: int = 150
    """Longest output, subwords."""
    length_penalty: float = 1.0
    """Beam search length penalty."""
    batch_size: int = 32
    """Clips decoded at once."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Time-outs of the rank monitor, and announced stops of the machine (docs/training.md)."""

    contact_timeout_s: float = 20.0
    """Silence after which a host counts as lost and the run ends on every rank, seconds. Below 10 an overloaded
    host may count as lost."""
    start_timeout_s: float = 600.0
    """Time for every rank to start and join, seconds."""
    hang_timeout_s: float = 600.0
    """Time without a finished step before a rank counts as hung and the run ends, seconds."""
    long_timeout_s: float = 7200.0
    """Longest evaluation, save, load and first step (which may compile), seconds."""
    stop_notice: str = "none"
    """Source of the notice that this machine will be withdrawn; the run then saves and stops. none, auto (detects AWS
    or Google at the start), aws, gcp, the path of a file that appears, or a URL that answers 200."""
    stop_notice_every_s: float = 5.0
    """Interval of these checks on each host, seconds."""
    http_port: int = extension.since("0.2.0", 0)
    """Port of an endpoint on each host, on all its addresses, with /healthz, /readyz and /metrics (docs/training.md);
    0: none."""


extension.register_model("sage", check=extension.check_chunks_of_frames)
