"""The recipe: the only configuration of sage_scale.

A recipe is a tree of frozen dataclasses, read from YAML (`launch/recipes/*.yaml`), changed on the command line
with `section.key=value`, printed whole by every run and stored with its outputs. An unknown key is refused with
the nearest known one. Each field's docstring says its unit and, where it comes from a paper, the section.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from sage_scale.errors import RecipeError

RECIPE_FOLDER = Path(__file__).resolve().parent.parent / "launch" / "recipes"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Where the clips come from."""

    name: str = "synthetic"
    """Name of a corpus reader: synthetic, phoenix14t, videos, manifest."""
    root: str = ""
    """Folder or URL of the downloaded corpus, or of the folder into which `synthetic` is made."""
    language: str = "de"
    """Spoken language of the sentences, BCP 47."""
    seed: int = 0
    """Seed of the synthetic corpus; the same seed gives the same bytes."""
    train_clips: int = 480
    """Training clips of the synthetic corpus."""
    dev_clips: int = 64
    """Dev clips of the synthetic corpus."""
    test_clips: int = 96
    """Test clips of the synthetic corpus, signed by the training signers."""
    heldout_clips: int = 48
    """Test clips of the synthetic corpus by signers who never occur in training (split `test_heldout`)."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """Pseudo-glosses and vocabulary (SAGE, section 3.1.2)."""

    target: Literal["pseudo_gloss", "sentence"] = "pseudo_gloss"
    """What the visual tokens are aligned with: pseudo-glosses (paper) or every subword (released code)."""
    tagger: Literal["auto", "spacy", "hanta", "jieba", "none"] = "auto"
    """Part-of-speech tagger; auto takes an installed spaCy pipeline, else HanTa or jieba, else none."""
    keep_pos: tuple[str, ...] = ("NOUN", "NUM", "ADV", "PRON", "PROPN", "ADJ", "VERB")
    """Universal part-of-speech tags whose lemmas become pseudo-glosses (Sign2GPT, section 3.2)."""
    drop_lemmas: tuple[str, ...] = ("es", "sich")
    """Lemmas left out (released SAGE)."""
    lowercase: bool = True
    """Lower-case the lemmas (released SAGE)."""
    trim_vocabulary: bool = True
    """Keep only the subwords that the training sentences and lemmas use, and all single characters."""


@dataclass(frozen=True, kw_only=True)
class Vision:
    """From a video to the frames or features of a sample."""

    kind: Literal["frames", "features"] = "frames"
    """What a shard holds: JPEG frames (the backbone is trained) or float16 features of a frozen backbone."""
    fps: float = 25.0
    """Frame rate to which every video is brought, frames per second."""
    frame_stride: int = 2
    """Every how many frames one is stored (SAGE: every second frame of a segment)."""
    size: int = 256
    """Side of a stored square frame, pixels (SAGE, section 4.2)."""
    crop: int = 224
    """Side of the square that the backbone sees, pixels (SAGE, section 4.2)."""
    jpeg_quality: int = 92
    """JPEG quality of stored frames, 1 to 95."""
    background: Literal["none", "median"] = "none"
    """median stores the clip's median frame as well and training subtracts it (a still camera is needed)."""
    fit: Literal["auto", "crop", "stretch"] = "auto"
    """How a picture becomes a square: its middle, or stretched; auto crops video files and stretches folders of
    frames, as the field does with PHOENIX14T's 210 x 260."""
    source_fps: float = 25.0
    """Frame rate of sources that do not state one (folders of frames, keypoint files), frames per second."""
    keypoint_velocities: bool = False
    """Add each point's movement since the frame before to the features of the backbone keypoints."""
    backbone: str = "resnet34"
    """Frozen backbone of `features`: resnet34, dinov2-vits14 or keypoints."""
    backbone_weights: str = ""
    """File or folder with the backbone's weights (safetensors, or a torchvision state dict); empty is refused
    for a frozen backbone unless `allow_random_backbone` is set."""
    allow_random_backbone: bool = False
    """Permit a frozen backbone with random weights, for tests."""
    backbone_batch: int = 32
    """Frames in one fixed, padded backbone batch: float results depend on the batch shape."""
    max_frames: int = 3000
    """Frames after which a clip is rejected as too long (at `fps`)."""
    min_frames: int = 8
    """Frames below which a clip is rejected as too short (at `fps`)."""


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """How a clip is cut into sign segments (SAGE, section 3.1.1 and released code)."""

    tagger: Literal["precomputed", "motion", "uniform"] = "motion"
    """Where the O/I/B labels come from: a file beside the corpus, hand motion (no training), equal lengths."""
    labels: str = ""
    """Folder or file of precomputed labels or segments, for `precomputed`."""
    rule: Literal["sage", "plain"] = "sage"
    """sage: the released rule (cut at every B, halve long segments, drop short ones); plain: B to next B."""
    min_frames: int = 4
    """Segments shorter than this many frames (25 fps) are dropped by the rule `sage`."""
    max_frames: int = 10
    """Segments longer than this many frames (25 fps) are halved, recursively, by the rule `sage`."""
    uniform_frames: int = 8
    """Segment length of the tagger `uniform`, frames (25 fps)."""


@dataclass(frozen=True, kw_only=True)
class Shards:
    """How samples are grouped into shards."""

    clips_per_unit: int = 64
    """At most this many clips a work unit, which is one shard."""
    frames_per_unit: int = 60_000
    """At most this many expected frames a work unit, where durations are known."""
    max_reject_rate: float = 0.02
    """A run with more rejected clips than this share ends with exit code 3."""


@dataclass(frozen=True, kw_only=True)
class Precompute:
    """Resources of a preprocessing run; none of them changes a byte of the result."""

    actors: int = 0
    """Ray actors; 0 means one for each CPU (or each fraction of a GPU) of the cluster."""
    address: str = ""
    """Ray cluster address; empty starts Ray locally, `auto` joins the running cluster."""
    object_store_mb: int = 256
    """Size of a locally started Ray object store, MB."""
    gpus_per_actor: float = 0.0
    """Share of a GPU given to each actor's backbone."""
    max_restarts: int = 4
    """How often an actor is restarted, and a unit tried again, after it died."""
    unit_timeout_s: float = 3600.0
    """A unit that takes longer is left open, seconds."""
    allow_mixed: bool = False
    """Go on with other versions or another kind of device than the output was begun with: the dataset is then
    complete and without doubles, but not byte-identical to an undisturbed run's."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The global order of samples (docs/design/order.md)."""

    seed: int = 0
    """Seed of the order."""
    lanes: int = 64
    """Lanes of the order; at most this many ranks may share a run."""
    window: int = 256
    """Samples in the moving window that shuffles each lane."""
    block_mb: float = 8.0
    """Runs of samples of at most this size are shuffled as a whole, MB."""
    workers: int = 0
    """Loader worker processes a rank."""
    on_corrupt: Literal["raise", "skip"] = "raise"
    """What happens when a sample's hash is wrong; a skip is counted and reported."""
    cache_decoded_mb: int = 0
    """Decoded samples kept in the memory of a rank, MB; small corpora decode once."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """The frame encoder (SAGE, section 3.1.3)."""

    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Basic blocks in each stage; (3, 4, 6, 3) is ResNet-34."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Channels of each stage."""
    pool: Literal["mean", "flatten"] = "mean"
    """mean: global average (paper); flatten keeps the places of the last map, projected to the last width."""
    weights: str = ""
    """Initial weights: a torchvision or transformers ResNet file or folder; empty starts at random."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """SAGE: visual encoder, vision-to-language mapper, context encoder, language model."""

    language_model: str = ""
    """Hugging Face folder or name of an mBART checkpoint; relative paths are seen from the run."""
    backbone: Backbone = field(default_factory=Backbone)
    """The frame encoder."""
    feature_dim: int = 512
    """Width of stored features, for vision.kind=features."""
    conv_kernel: int = 5
    """Kernel of the temporal convolution, frames (SAGE, section 3.1.3)."""
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
    """Statistics over the whole global batch, over one fixed chunk, or the running ones."""


@dataclass(frozen=True, kw_only=True)
class Clcl:
    """The contrastive objective (SAGE, section 3.1.5; equations 3 to 5)."""

    loss: Literal["clcl", "clip"] = "clcl"
    """Token-level CLCL, or the CLIP-style loss of mean-pooled tokens (Table 4a)."""
    variant: Literal["paper", "released"] = "paper"
    """paper: both InfoNCE directions, masked; released: one direction each, softmax over padding."""
    tau: float = 0.07
    """Temperature of the inner softmax (CiCo)."""
    alpha: float = 0.5
    """Weight of video to text against text to video (equation 4)."""
    beta: float = 0.6
    """Weight of the embedding level against the hidden-state level (equation 5)."""
    scale_init: float = 1 / 0.07
    """Start of the learnable logit scales."""
    scale_max: float = 100.0
    """Logit scales are clamped to this value (CiCo)."""
    same_text: Literal["negative", "masked"] = "negative"
    """Whether clips of the same sentence in a batch count as negatives."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Drawn once per clip and epoch, equal for all its frames (SAGE, section 4.2; after GFSLT)."""

    rotation: float = 0.0
    """Largest rotation, degrees."""
    translate: float = 0.0
    """Largest shift, share of the side."""
    scale: float = 0.0
    """Largest change of size, share."""
    brightness: float = 0.0
    """Largest change of brightness, share."""
    contrast: float = 0.0
    """Largest change of contrast, share."""
    saturation: float = 0.0
    """Largest change of colour saturation, share."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training stage."""

    batch_size: int = 16
    """Clips in a global batch, over all ranks."""
    micro_batch: int = 0
    """Clips a rank passes forward at once in stage 2 (gradient accumulation); 0 means its whole part."""
    epochs: float = 80.0
    """Passes over the training clips; `max_steps` may end earlier."""
    max_steps: int = 0
    """Optimizer steps; 0 means as many as the epochs need."""
    max_minutes: float = 0.0
    """Budget in minutes after which the stage ends in good order; 0 means none. The cosine follows it."""
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
    """Share of the initial rate that the cosine ends at."""
    label_smoothing: float = 0.2
    """Stage 2 label smoothing (SAGE, section 4.2)."""
    zero_stage: int = 1
    """DeepSpeed ZeRO stage, 0 to 3."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """Arithmetic of forward and backward; auto is bf16 where the device has fast bf16 matrix units."""
    freeze: Literal["none", "backbone", "visual"] = "none"
    """Stage 2: what stays as stage 1 left it. Outputs of a frozen part are computed once and kept in memory."""
    frozen_views: int = 1
    """Stage 2 with a frozen part: how many augmented views of a clip are kept; the first is not augmented."""
    init: Literal["visual", "visual_context", "none"] = "visual"
    """Stage 2: what is taken over from stage 1 (SAGE, Table 5): VLE, VLE with the context encoder, nothing."""
    evaluate_every: int = 0
    """Steps between evaluations on dev; 0 means once an epoch, -1 only at the end."""
    save_every: int = 0
    """Steps between checkpoints; 0 means once an epoch."""
    keep_checkpoints: int = 2
    """Checkpoints kept besides the best."""
    seed: int = 0
    """Seed of initial weights, dropout and augmentation."""
    augment: Augment = field(default_factory=Augment)
    """Image augmentation."""


@dataclass(frozen=True, kw_only=True)
class Denoise:
    """The demo's own small mBART, pretrained by denoising the training sentences (mBART, section 2)."""

    enabled: bool = False
    """Make the language model from the corpus; otherwise `model.language_model` must exist."""
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
    """Budget, minutes."""
    batch_size: int = 64
    """Sentences a step."""
    lr: float = 3e-3
    """Peak rate of AdamW."""
    mask: float = 0.35
    """Share of the words masked."""
    glosses: float = 0.85
    """Share of the inputs that are a sentence's pseudo-glosses instead of its masked words."""
    single: float = 0.02
    """Share of the inputs that are a single lemma of the sentence."""
    recombined: float = 1.0
    """Share of the examples, falling to 0 at the end, that are training sentences with words exchanged (GECA)."""
    gloss_noise: float = 0.1
    """How badly those pseudo-glosses are dropped, doubled and exchanged: 0 not at all, 1 often."""
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
class Recipe:
    """Everything that decides a run."""

    name: str = "custom"
    """Name of the recipe."""
    corpus: Corpus = field(default_factory=Corpus)
    """Where the clips come from."""
    text: Text = field(default_factory=Text)
    """Pseudo-glosses and vocabulary."""
    vision: Vision = field(default_factory=Vision)
    """Frames and features."""
    segmentation: Segmentation = field(default_factory=Segmentation)
    """Sign segments."""
    shards: Shards = field(default_factory=Shards)
    """Work units."""
    precompute: Precompute = field(default_factory=Precompute)
    """Resources of preprocessing."""
    stream: Stream = field(default_factory=Stream)
    """Order of samples."""
    model: Model = field(default_factory=Model)
    """The translator."""
    clcl: Clcl = field(default_factory=Clcl)
    """Contrastive objective."""
    denoise: Denoise = field(default_factory=Denoise)
    """The demo's language model."""
    pretrain: Stage = field(default_factory=Stage)
    """Stage 1."""
    finetune: Stage = field(
        default_factory=lambda: Stage(batch_size=8, lr=0.004, weight_decay=0.001, clip=5.0)
    )
    """Stage 2."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """Decoding."""

    def fingerprint(self) -> str:
        """16 hex digits of sha256 over the canonical JSON of every value except the name."""
        values = {key: value for key, value in to_mapping(self).items() if key != "name"}
        return _digest(values)

    def dataset_part(self) -> dict[str, Any]:
        """The sections that decide the bytes of a dataset: text, vision, segmentation and shard size."""
        values = to_mapping(self)
        part = {key: values[key] for key in ("vision", "segmentation", "shards")}
        part["text"] = {key: value for key, value in values["text"].items() if key != "trim_vocabulary"}
        part["corpus"] = {key: values["corpus"][key] for key in ("name", "language")}
        del part["shards"]["max_reject_rate"]
        return part

    def dataset_fingerprint(self) -> str:
        """16 hex digits of sha256 over `dataset_part`; two recipes that share it may share shards."""
        return _digest(self.dataset_part())


def _digest(values: Any) -> str:
    canonical = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def to_mapping(value: Any) -> Any:
    """A recipe (or a part of it) as plain dictionaries, lists and scalars."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_mapping(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_mapping(item) for item in value]
    return value


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe as YAML, in the order of its fields."""
    return yaml.safe_dump(to_mapping(recipe), sort_keys=False, allow_unicode=True)


def from_mapping(values: Mapping[str, Any], base: Recipe | None = None) -> Recipe:
    """A recipe from nested dictionaries over `base` (the defaults). Raises RecipeError with the key's path."""
    recipe = _build(Recipe, values, base or Recipe(), "")
    check(recipe)
    return recipe


def load_recipe(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe by name (`demo`) or by path to a YAML file, with `section.key=value` overrides applied.

    Raises RecipeError for an unknown recipe, key or value; the message names the nearest known one.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = RECIPE_FOLDER / f"{name}.yaml"
        if not path.is_file():
            known = recipe_names()
            raise RecipeError(f"no recipe '{name}'{_nearest(str(name), known)}; known: {', '.join(known)}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise RecipeError(f"no recipe file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must hold a mapping of sections")
    values.setdefault("name", path.stem)
    return override(from_mapping(values), overrides)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the product."""
    return sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml"))


def override(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """The recipe with `section.key=value` assignments applied; values are read as YAML."""
    values: dict[str, Any] = {}
    for assignment in overrides:
        key, sign, text = assignment.partition("=")
        if not sign or not key:
            raise RecipeError(f"'{assignment}' is no override: write section.key=value")
        try:
            value = yaml.safe_load(text) if text else ""
        except yaml.YAMLError:
            raise RecipeError(f"the value of '{assignment}' is not YAML") from None
        node = values
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise RecipeError(f"'{key}': '{parent}' has been given a value already")
        node[last] = value
    return from_mapping(values, recipe)


def check(recipe: Recipe) -> None:
    """Raise RecipeError where values contradict each other or leave their range."""

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise RecipeError(f"recipe '{recipe.name}': {message}")

    v, s, m, c = recipe.vision, recipe.segmentation, recipe.model, recipe.clcl
    need(0 < v.crop <= v.size, f"vision.crop={v.crop} must be between 1 and vision.size={v.size}")
    need(v.fps > 0 and v.frame_stride >= 1, "vision.fps and vision.frame_stride must be positive")
    need(1 <= v.jpeg_quality <= 95, f"vision.jpeg_quality={v.jpeg_quality} must be between 1 and 95")
    need(0 < s.min_frames <= s.max_frames, "segmentation.min_frames must be at most segmentation.max_frames")
    need(
        len(m.backbone.depths) == len(m.backbone.widths), "model.backbone.depths and widths differ in length"
    )
    need(m.conv_kernel % 2 == 1, f"model.conv_kernel={m.conv_kernel} must be odd")
    need(0 <= c.alpha <= 1 and 0 <= c.beta <= 1, "clcl.alpha and clcl.beta must be between 0 and 1")
    need(c.tau > 0 and c.scale_init > 0, "clcl.tau and clcl.scale_init must be positive")
    need(c.beta == 1 or m.context_layers > 0, "model.context_layers=0 has no hidden states: set clcl.beta=1")
    need(0 <= recipe.shards.max_reject_rate <= 1, "shards.max_reject_rate must be between 0 and 1")
    need(recipe.shards.clips_per_unit >= 1, "shards.clips_per_unit must be at least 1")
    need(
        recipe.stream.lanes >= 1 and recipe.stream.window >= 1,
        "stream.lanes and stream.window must be positive",
    )
    for name, stage in (("pretrain", recipe.pretrain), ("finetune", recipe.finetune)):
        need(stage.batch_size >= 1, f"{name}.batch_size must be at least 1")
        need(stage.zero_stage in (0, 1, 2, 3), f"{name}.zero_stage={stage.zero_stage} must be 0, 1, 2 or 3")
        need(stage.lr > 0, f"{name}.lr must be positive")
        need(len(stage.betas) == 2, f"{name}.betas must be two numbers")
    need(recipe.finetune.freeze == "none" or recipe.finetune.init != "none",
         "finetune.freeze needs a visual encoder from stage 1: set finetune.freeze=none or init=visual")  # fmt: skip
    need(recipe.pretrain.micro_batch == 0, "pretrain.micro_batch: stage 1 never accumulates gradients, since "
         "that would change the negatives; leave it 0")  # fmt: skip


def _build(kind: type, values: Any, base: Any, path: str) -> Any:
    if not isinstance(values, Mapping):
        raise RecipeError(f"'{path.rstrip('.')}' is a section: write {path}KEY=VALUE")
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    changes = {}
    for key, value in values.items():
        if key not in known:
            where = f" in section '{path.rstrip('.')}'" if path else ""
            raise RecipeError(
                f"unknown key '{path}{key}'{_nearest(str(key), known) or _elsewhere(str(key))}{where}"
            )
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            changes[key] = _build(typing.cast(type, hint), value, getattr(base, key), f"{path}{key}.")
        else:
            changes[key] = _convert(hint, value, f"{path}{key}")
    return dataclasses.replace(base, **changes)


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin = get_origin(hint)
    if origin is Literal:
        if isinstance(value, bool):  # YAML reads a bare `none` as a string, but `off` and `no` as booleans
            value = str(value).lower()
        if value is None:
            value = "none"
        if value in get_args(hint):
            return value
        choices = [str(choice) for choice in get_args(hint)]
        raise RecipeError(
            f"{path}={value!r}: must be one of {', '.join(choices)}{_nearest(str(value), choices)}"
        )
    if origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_convert(get_args(hint)[0], item, f"{path}[{i}]") for i, item in enumerate(value))
        raise RecipeError(f"{path}={value!r}: must be a list")
    if origin in (types.UnionType, typing.Union):
        return value
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float and not isinstance(value, bool):
        try:  # YAML 1.1 reads 3e-4 as a string
            return float(value)
        except (TypeError, ValueError):
            pass
    if hint is int and isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            pass
    if hint is str and not isinstance(value, Mapping | list):
        return "" if value is None else str(value)
    raise RecipeError(f"{path}={value!r}: must be {'a number' if hint is float else hint.__name__}")


def _nearest(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""


def _elsewhere(name: str) -> str:
    paths = list(_paths(Recipe, ""))
    exact = [path for path in paths if path.rsplit(".", 1)[-1] == name]
    return f" (did you mean '{exact[0]}'?)" if exact else _nearest(name, paths)


def _paths(kind: type, path: str) -> Iterable[str]:
    hints = typing.get_type_hints(kind)
    for f in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[f.name]):
            yield from _paths(typing.cast(type, hints[f.name]), f"{path}{f.name}.")
        else:
            yield f"{path}{f.name}"
