"""Ranges of recipe values, and values that contradict each other."""

from __future__ import annotations

from sage_scale.config import extension
from sage_scale.config.data import Augment
from sage_scale.config.extension import Need
from sage_scale.config.learning import Stage
from sage_scale.config.recipe import Recipe, flat, to_mapping
from sage_scale.errors import RecipeError, UsageError
from sage_scale.untrusted.display import shortened

MAX_NAME = 100
# Ranges go by the key or its last part. All other numbers are at least 0.
_ANY_SIGN = {"seed", "length_penalty", "evaluate_every", "save_every"}
_AT_LEAST_ONE = {
    "backbone_batch", "batch_size", "beams", "clips_per_unit", "dim", "feature_dim", "feature_views", "ffn",
    "frame_stride", "frames_per_unit", "heads", "lanes", "max_tokens", "steps", "token_dim",
    "uniform_frames", "vit_heads", "vit_image", "vit_patch", "vit_width", "vocabulary", "width", "window",
    "segmentation.min_frames",
}  # fmt: skip
_MAY_BE_ZERO = {"pretrain.max_tokens", "finetune.max_tokens", "model.sign2gpt.window"}
_POSITIVE = {
    "clcl.tau", "fps", "fraction", "give_up_after_s", "hang_timeout_s", "long_timeout_s", "scale_init", "scale_max",
    "source_aspect", "start_timeout_s", "stop_notice_every_s", "temperature", "pretrain.lr", "finetune.lr",
}  # fmt: skip
_AT_MOST_ONE = {
    "alpha", "beta", "colour_share", "decoding_threshold", "drop_path", "dropout", "final_lr", "flip", "fraction",
    "gloss_noise", "glosses", "grey", "label_smoothing", "lora_dropout", "mask", "max_frequency",
    "max_reject_rate", "momentum", "recombined", "rotation_share", "single", "warmup", "warn_wait",
}  # fmt: skip
_BETWEEN = {
    "http_port": (0, 65535),
    "jpeg_quality": (1, 95),
    "window_margin": (0, 10_000),
    "zero_stage": (0, 3),
    "extractor_complexity": (0, 2),
}


def check_lanes(world: int, lanes: int) -> None:
    """Raise UsageError for more ranks than `stream.lanes`."""
    if world > lanes:
        raise UsageError(
            f"{world} ranks cannot share {lanes} lanes: set stream.lanes={world} or a multiple of it (another order of "
            f"the samples, so only before a run starts), or use at most {lanes} ranks"
        )


def check(recipe: Recipe) -> None:
    """Raise RecipeError where values leave their range or contradict each other."""

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise RecipeError(f"recipe '{recipe.name}': {message}")

    if len(recipe.name) > MAX_NAME or not recipe.name.isprintable():
        raise RecipeError(f"name={shortened(recipe.name)}: must be one line of at most {MAX_NAME} characters")
    for key, value in flat(to_mapping(recipe)).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool):
                _check_range(key, number, need)
    _check_data(recipe, need)
    m, c = recipe.model, recipe.clcl
    same = len(m.backbone.depths) == len(m.backbone.widths)
    need(same, "model.backbone.depths and widths differ in length")
    need(m.conv_kernel % 2 == 1, f"model.conv_kernel={m.conv_kernel} must be odd")
    need(c.beta == 1 or m.context_layers > 0, "model.context_layers=0 has no hidden states: set clcl.beta=1")
    _check_stage("pretrain", recipe.pretrain, need)
    _check_stage("finetune", recipe.finetune, need)
    need(not recipe.pretrain.glosses, "pretrain.glosses: stage 2 alone reads glosses (finetune.glosses)")
    if m.kind in extension.checks:
        extension.checks[m.kind](recipe, need)
    silent = recipe.watch.contact_timeout_s
    need(silent >= 2, f"watch.contact_timeout_s={silent} must be at least 2")
    need(recipe.finetune.freeze == "none" or recipe.finetune.init != "none",
         "finetune.freeze needs a visual encoder from stage 1: set finetune.freeze=none or init=visual")  # fmt: skip
    need(recipe.pretrain.micro_batch == 0 or m.batchnorm != "sync", "pretrain.micro_batch passes clips through the "
         "encoder in chunks, and model.batchnorm=sync needs all of them at once: set model.batchnorm=group (the "
         "statistics of a chunk) or frozen, or pretrain.micro_batch=0")  # fmt: skip


def _check_range(key: str, number: float, need: Need) -> None:
    names = {key, key.rpartition(".")[2]}
    if names & _ANY_SIGN:
        return
    least = int(bool(names & _AT_LEAST_ONE) and key not in _MAY_BE_ZERO)
    need(number >= least, f"{key}={number} must be at least {least}")
    need(number > 0 or not names & _POSITIVE, f"{key}={number} must be positive")
    need(number <= 1 or not names & _AT_MOST_ONE, f"{key}={number} must be at most 1")
    for low, high in (_BETWEEN[name] for name in names & _BETWEEN.keys()):
        need(low <= number <= high, f"{key}={number} must be between {low} and {high}")


def _check_data(recipe: Recipe, need: Need) -> None:
    v, s, corpus, stream = recipe.vision, recipe.segmentation, recipe.corpus, recipe.stream
    need(0 < v.crop <= v.size, f"vision.crop={v.crop} must be between 1 and vision.size={v.size}")
    if v.feature_views > 1:
        need(v.kind == "features", "vision.feature_views are views of features: set vision.kind=features, or 1 (frames "
             "are augmented while training)")  # fmt: skip
        need(v.backbone != "keypoints", "vision.feature_views are views of pictures, which the backbone keypoints "
             "does not see: set it to 1")  # fmt: skip
        need(v.view_augment.active, "vision.feature_views without any change in vision.view_augment would be "
             "copies: set one of its keys, or vision.feature_views=1")  # fmt: skip
        _check_augment("vision.view_augment", v.view_augment, need)
    need(s.min_frames <= s.max_frames, "segmentation.min_frames must be at most segmentation.max_frames")
    memory = recipe.precompute.actor_memory_mb
    enough = memory == 0 or memory >= 256
    need(enough, f"precompute.actor_memory_mb={memory} is less than an idle actor has: 0, or 256")
    need(min(stream.weights, default=1) > 0, "stream.weights must be positive: leave a dataset out instead")
    weighted = not stream.weights or stream.mix == "dataset"
    need(weighted, "stream.weights are shares of datasets: set stream.mix=dataset")
    mixed = not stream.epoch_samples or stream.mix != "none"
    need(mixed, "stream.epoch_samples needs a mixture: set stream.mix=dataset or language")
    some = corpus.dev_share + corpus.test_share < 1
    need(some, "corpus.dev_share and corpus.test_share must leave something to train on")
    least, most = corpus.captions.min_seconds, corpus.captions.max_seconds
    need(not most or least <= most, "corpus.captions.min_seconds must be at most max_seconds")


def _check_stage(name: str, stage: Stage, need: Need) -> None:
    need(stage.offload == "none" or stage.zero_stage > 0, f"{name}.offload={stage.offload} needs "
         f"{name}.zero_stage 1, 2 or 3")  # fmt: skip
    need(stage.offload != "nvme" or (stage.zero_stage == 3 and bool(stage.offload_dir)),
         f"{name}.offload=nvme needs {name}.zero_stage=3 and a folder in {name}.offload_dir")  # fmt: skip
    need(len(stage.betas) == 2, f"{name}.betas must be two numbers")
    _check_augment(f"{name}.augment", stage.augment, need)
    need(stage.spike_factor == 0 or stage.spike_factor > 1, f"{name}.spike_factor must be 0 or above 1")
    need(not (stage.compile and stage.zero_stage == 3), f"{name}.compile does not go with {name}.zero_stage=3, "
         "which gathers weights while a pass runs: set one or the other")  # fmt: skip


def _check_augment(name: str, a: Augment, need: Need) -> None:
    need(a.crop < 1 and a.crop_ratio < 1, f"{name}.crop and crop_ratio must be below 1")
