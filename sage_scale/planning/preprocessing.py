"""Storage of a dataset, and time of the precompute run that makes it, before either exists."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sage_scale.config import Recipe
from sage_scale.config.data import Vision, feature_width
from sage_scale.planning.constants import Constants
from sage_scale.planning.corpus_size import CorpusSize
from sage_scale.planning.step import ClipSize, Gpu
from sage_scale.shards.index import RECORD
from sage_scale.shards.tar import BLOCK
from sage_scale.text.languages import unspaced

HALF_PAD = (BLOCK - 1) / 2
"""Mean zeros behind a member whose size is any number."""
NPY_HEADER = 128
DESCRIPTION = 230
"""Bytes of a sample's description beside sentence and pseudo-glosses."""
SHARD_BYTES = 2 * 2 * BLOCK + 2 * BLOCK
"""`__shard__`, `__rejects__` and the end of a tar."""
MARKER_BYTES = 640
INDEX_HEADER = 32
NEURAL_RULES = ("published", "trained", "hands-on")


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Bytes of a dataset."""

    kind: str
    """frames or features."""
    views: int
    sample_bytes: float
    """Mean bytes of a sample with headers and padding."""
    parts: Mapping[str, float]
    """The whole dataset's bytes by part."""
    units: int
    """Shards."""

    @property
    def total(self) -> float:
        """Returns the bytes of all objects."""
        return sum(self.parts.values())


def clip_size(recipe: Recipe, corpus: CorpusSize, constants: Constants) -> ClipSize:
    """Returns the mean clip of a corpus as a step sees it: stored frames, visual tokens, text tokens."""
    frames = corpus.seconds * recipe.vision.fps
    tokens = corpus.segments or frames * constants.number("tokens.per_frame", _rule(recipe))
    kind = "character" if unspaced(corpus.language) else "word"
    if recipe.text.target == "sentence":
        texts = corpus.words * constants.number("text.subwords", kind)
    else:
        glosses = corpus.glosses or corpus.words * constants.number("text.glosses", kind)
        texts = glosses * constants.number("text.subwords", "gloss")
    return ClipSize(frames / recipe.vision.frame_stride, max(1.0, tokens), max(1.0, texts))


def _rule(recipe: Recipe) -> str:
    return "uniform" if recipe.segmentation.tagger == "uniform" else "signs"


def storage(recipe: Recipe, corpus: CorpusSize, clip: ClipSize, constants: Constants) -> Storage:
    """Returns the bytes of the dataset; a corpus that was measured in a dataset has its mean sample."""
    vision, clips = recipe.vision, corpus.clips
    described = DESCRIPTION + 7 * corpus.words * 1.5
    sample: dict[str, float] = {
        "descriptions and segments": BLOCK
        + math.ceil(described / BLOCK) * BLOCK
        + BLOCK
        + math.ceil((NPY_HEADER + 8 * clip.visual_tokens) / BLOCK) * BLOCK
    }
    rows = math.ceil(corpus.seconds * vision.fps / vision.frame_stride)
    views = vision.feature_views if vision.kind == "features" else 1
    if corpus.stored_bytes:
        sample = {"samples, as measured": corpus.stored_bytes}
    elif vision.kind == "features":
        width = feature_width(vision) or recipe.model.feature_dim
        one = BLOCK + NPY_HEADER + 2 * rows * width + HALF_PAD
        sample["features of view 0"] = one
        sample["features of the other views"] = (views - 1) * one
    else:
        jpeg = constants.by_area("jpeg.bytes", vision.size)
        jpeg *= constants.number("jpeg.quality", str(_quality(vision)))
        pictures = rows + (vision.background == "median")
        sample["frames, JPEG"] = pictures * (BLOCK + jpeg + HALF_PAD)
    units = unit_count(recipe, corpus)
    parts = {name: clips * size for name, size in sample.items() if size}
    parts["indexes and markers"] = clips * (RECORD.itemsize + RECORD.itemsize * 4 / 3)
    parts["indexes and markers"] += units * (SHARD_BYTES + INDEX_HEADER + 2 * MARKER_BYTES)
    return Storage(kind=vision.kind, views=views, sample_bytes=sum(sample.values()), parts=parts, units=units)


def stored_otherwise(
    recipe: Recipe, corpus: CorpusSize, clip: ClipSize, constants: Constants
) -> dict[str, float]:
    """Returns the bytes of the same clips as other kinds of samples: frames, and features of one and four views."""
    vision = recipe.vision
    named = vision if vision.kind == "features" else replace(vision, backbone="dinov2-vits14")
    width = feature_width(named) or recipe.model.feature_dim
    kinds = {f"frames of {vision.size} pixels": replace(vision, kind="frames")}
    for views in (1, 4):
        title = f"features of {width} numbers, {views} view{'s' * (views > 1)}"
        kinds[title] = replace(named, kind="features", feature_views=views)
    measured = replace(corpus, stored_bytes=0.0)
    return {
        title: storage(replace(recipe, vision=kind), measured, clip, constants).total
        for title, kind in kinds.items()
    }


def _quality(vision: Vision) -> int:
    return min((75, 85, 92, 95), key=lambda known: abs(known - vision.jpeg_quality))


def unit_count(recipe: Recipe, corpus: CorpusSize) -> int:
    """Returns the work units of a corpus of mean clips."""
    frames = max(1.0, corpus.seconds * recipe.vision.fps)
    each = max(1, min(recipe.shards.clips_per_unit, int(recipe.shards.frames_per_unit / frames)))
    return sum(-(-count // each) for count in (corpus.train, corpus.dev, corpus.test))


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Time of a precompute run."""

    cpu_seconds: Mapping[str, float]
    """Of all actors, by stage."""
    gpu_seconds: float
    """Of the frozen backbone on GPUs, 0 on CPUs."""
    actors: int
    wall_seconds: float
    """With the start, and with actors that wait for the last units."""
    device: str
    """cpu or the GPU's name: where a frozen backbone runs."""

    @property
    def cpu_hours(self) -> float:
        """Returns the CPU hours of all stages."""
        return sum(self.cpu_seconds.values()) / 3600


def preprocessing(
    recipe: Recipe,
    corpus: CorpusSize,
    stored: Storage,
    constants: Constants,
    cpus: int,
    gpu: Gpu | None = None,
    gpus: int = 0,
) -> Preprocessing:
    """Returns the time of precompute on `cpus` CPUs; a frozen backbone uses `gpus` of kind `gpu` where
    `precompute.gpus_per_actor` says so."""
    vision, clips = recipe.vision, corpus.clips
    frames = clips * corpus.seconds * vision.fps
    rows = frames / vision.frame_stride
    seconds: dict[str, float] = {}
    if corpus.height:
        rate = "decode.folder_frames_per_cpu_s" if corpus.pictures else "decode.frames_per_cpu_s"
        seconds["decode"] = frames * constants.seconds(rate, corpus.height)
    tagger = recipe.segmentation.tagger
    rule = "network" if tagger in NEURAL_RULES else "motion" if tagger in ("motion", "auto") else "labels"
    seconds["segment"] = frames / constants.number(f"segment.{rule}_frames_per_cpu_s")
    kind = "characters" if unspaced(corpus.language) else "words"
    seconds["text"] = clips / constants.number(f"text.{kind}_sentences_per_cpu_s")
    on_gpu = gpu is not None and gpus > 0 and recipe.precompute.gpus_per_actor > 0
    gpu_seconds = 0.0
    if vision.kind == "frames":
        seconds["encode"] = rows * constants.seconds("jpeg.encode_frames_per_cpu_s", vision.size)
    elif vision.backbone != "keypoints":
        passes = rows * vision.feature_views
        if on_gpu and gpu is not None:
            gpu_seconds = passes * _gpu_backbone_seconds(recipe, constants, gpu)
        else:
            seconds["features"] = passes * backbone_seconds(recipe, constants)
    seconds["write"] = stored.total / constants.number("write.bytes_per_cpu_s")
    actors = min(recipe.precompute.actors or cpus, stored.units, cpus)
    waves = -(-stored.units // actors)
    work = sum(seconds.values()) / stored.units * waves
    wall = max(work, gpu_seconds / gpus if on_gpu else 0.0) + constants.number("precompute.start_s")
    return Preprocessing(
        cpu_seconds=seconds,
        gpu_seconds=gpu_seconds,
        actors=actors,
        wall_seconds=wall,
        device="gpu" if on_gpu else "cpu",
    )


def backbone_operations(recipe: Recipe, constants: Constants) -> float:
    """Returns the FLOPs of a frame in the frozen backbone, by the area of its picture; a folder's is unknown and
    counts as ResNet-34."""
    name = recipe.vision.backbone
    known = name if constants.knows("backbone.flops", name) else "resnet34"
    return constants.number("backbone.flops", known) * (recipe.vision.crop / 224) ** 2


def _gpu_backbone_seconds(recipe: Recipe, constants: Constants, gpu: Gpu) -> float:
    vision = recipe.vision
    timed = f"{vision.backbone} {vision.backbone_dtype}"
    if constants.knows("backbone.frames_per_gpu_s", timed):
        return (vision.crop / 224) ** 2 / constants.number("backbone.frames_per_gpu_s", timed)
    rate = constants.number("gpu.share", "backbone") * gpu.bf16_tflops * 1e12
    if vision.backbone_dtype == "float32":
        rate *= constants.number("gpu.float32_rate")
    return backbone_operations(recipe, constants) / rate


def backbone_seconds(recipe: Recipe, constants: Constants) -> float:
    """Returns the CPU seconds of a frame in the frozen backbone."""
    vision = recipe.vision
    name = vision.backbone if constants.knows("backbone.flops", vision.backbone) else "resnet34"
    rate = constants.number("backbone.frames_per_cpu_s", f"{name} {vision.backbone_dtype}")
    return (vision.crop / 224) ** 2 / rate


def half_precision_gain(recipe: Recipe, constants: Constants) -> float:
    """Returns how many times faster a frozen backbone is in bfloat16 on CPUs with matrix units for it; 0 where the
    recipe has none in float32."""
    vision = recipe.vision
    if vision.kind != "features" or vision.backbone == "keypoints" or vision.backbone_dtype == "bfloat16":
        return 0.0
    half = replace(recipe, vision=replace(vision, backbone_dtype="bfloat16"))
    return backbone_seconds(recipe, constants) / backbone_seconds(half, constants)
