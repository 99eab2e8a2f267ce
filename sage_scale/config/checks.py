"""What values of a recipe must not contradict each other, and which range they may have."""

from __future__ import annotations

from collections.abc import Callable

from sage_scale.config import extension
from sage_scale.config.augmentation import Augment
from sage_scale.config.recipe import Recipe, flat, to_mapping
from sage_scale.errors import RecipeError
from sage_scale.untrusted.display import shortened

MAX_NAME = 100
_ANY_SIGN = {"seed", "length_penalty", "evaluate_every", "save_every"}
_AT_LEAST_ONE = {
    "backbone_batch", "batch_size", "beams", "dim", "feature_dim", "ffn", "frames_per_unit", "heads", "max_tokens",
    "steps", "token_dim", "uniform_frames", "vit_heads", "vit_image", "vit_patch", "vit_width", "vocabulary", "width",
}  # fmt: skip
_SHARES = {
    "dropout", "drop_path", "final_lr", "gloss_noise", "glosses", "label_smoothing", "lora_dropout", "mask",
    "max_frequency", "momentum", "recombined", "single", "warmup",
}  # fmt: skip
_NO_BUDGET = {"pretrain.max_tokens", "finetune.max_tokens"}


def check(recipe: Recipe) -> None:
    """Raise RecipeError where values contradict each other or leave their range."""

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise RecipeError(f"recipe '{recipe.name}': {message}")

    if len(recipe.name) > MAX_NAME or not recipe.name.isprintable():
        raise RecipeError(f"name={shortened(recipe.name)}: must be one line of at most {MAX_NAME} characters")
    for key, value in flat(to_mapping(recipe)).items():
        last = key.rpartition(".")[2]
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float) or last in _ANY_SIGN:
                continue
            least = int(last in _AT_LEAST_ONE and key not in _NO_BUDGET)
            need(number >= least, f"{key}={number} must be at least {least}")
            need(number <= 1 or last not in _SHARES, f"{key}={number} must be at most 1")
    v, s, m, c = recipe.vision, recipe.segmentation, recipe.model, recipe.clcl
    need(0 < v.crop <= v.size, f"vision.crop={v.crop} must be between 1 and vision.size={v.size}")
    need(v.fps > 0 and v.frame_stride >= 1, "vision.fps and vision.frame_stride must be positive")
    need(v.feature_views >= 1, f"vision.feature_views={v.feature_views} must be at least 1, the plain view")
    if v.feature_views > 1:
        need(v.kind == "features", "vision.feature_views are views of features: set vision.kind=features, or 1 (frames "
             "are augmented while training)")  # fmt: skip
        need(v.backbone != "keypoints", "vision.feature_views are views of pictures, which the backbone keypoints "
             "does not see: set it to 1")  # fmt: skip
        need(v.view_augment.active, "vision.feature_views without any change in vision.view_augment would be "
             "copies: set one of its keys, or vision.feature_views=1")  # fmt: skip
        _check_augment("vision.view_augment", v.view_augment, need)
    need(1 <= v.jpeg_quality <= 95, f"vision.jpeg_quality={v.jpeg_quality} must be between 1 and 95")
    need(0 < s.min_frames <= s.max_frames, "segmentation.min_frames must be at most segmentation.max_frames")
    need(
        len(m.backbone.depths) == len(m.backbone.widths), "model.backbone.depths and widths differ in length"
    )
    need(m.conv_kernel % 2 == 1, f"model.conv_kernel={m.conv_kernel} must be odd")
    need(0 <= c.alpha <= 1 and 0 <= c.beta <= 1, "clcl.alpha and clcl.beta must be between 0 and 1")
    need(
        min(c.tau, c.scale_init, c.scale_max) > 0,
        "clcl.tau, clcl.scale_init and clcl.scale_max must be positive",
    )
    need(c.beta == 1 or m.context_layers > 0, "model.context_layers=0 has no hidden states: set clcl.beta=1")
    need(0 <= recipe.shards.max_reject_rate <= 1, "shards.max_reject_rate must be between 0 and 1")
    memory = recipe.precompute.actor_memory_mb
    need(
        memory == 0 or memory >= 256,
        f"precompute.actor_memory_mb={memory} is less than an idle actor has: 0, or 256",
    )
    need(recipe.precompute.price_per_cpu_hour >= 0, "precompute.price_per_cpu_hour must not be negative")
    need(recipe.shards.clips_per_unit >= 1, "shards.clips_per_unit must be at least 1")
    need(
        recipe.stream.lanes >= 1 and recipe.stream.window >= 1,
        "stream.lanes and stream.window must be positive",
    )
    stream = recipe.stream
    need(stream.temperature > 0, f"stream.temperature={stream.temperature} must be positive")
    need(
        all(weight > 0 for weight in stream.weights),
        "stream.weights must be positive: leave a dataset out instead",
    )
    need(
        not stream.weights or stream.mix == "dataset",
        "stream.weights are shares of datasets: set stream.mix=dataset",
    )
    need(stream.epoch_samples >= 0, "stream.epoch_samples must not be negative")
    need(not stream.epoch_samples or stream.mix != "none",
         "stream.epoch_samples needs a mixture: set stream.mix=dataset or language")  # fmt: skip
    need(0 <= stream.warn_wait <= 1, f"stream.warn_wait={stream.warn_wait} must be between 0 and 1")
    need(stream.cache_gb >= 0, f"stream.cache_gb={stream.cache_gb} must not be negative")
    need(stream.memory_mb >= 0, f"stream.memory_mb={stream.memory_mb} must not be negative")
    need(stream.give_up_after_s > 0, f"stream.give_up_after_s={stream.give_up_after_s} must be positive")
    corpus, captions = recipe.corpus, recipe.corpus.captions
    shares = (corpus.dev_share, corpus.test_share)
    need(
        min(shares) >= 0 and sum(shares) < 1,
        "corpus.dev_share and corpus.test_share must leave something to train on",
    )
    need(
        min(captions.min_seconds, captions.max_seconds, captions.overlap_s, captions.repeat_s) >= 0
        and min(captions.min_characters, captions.max_characters) >= 0,
        "the bounds of corpus.captions must not be negative; 0 is off",
    )
    need(
        not captions.max_seconds or captions.min_seconds <= captions.max_seconds,
        "corpus.captions.min_seconds must be at most max_seconds",
    )
    for name, stage in (("pretrain", recipe.pretrain), ("finetune", recipe.finetune)):
        need(stage.batch_size >= 1, f"{name}.batch_size must be at least 1")
        need(stage.micro_batch >= 0, f"{name}.micro_batch={stage.micro_batch} must not be negative")
        need(stage.zero_stage in (0, 1, 2, 3), f"{name}.zero_stage={stage.zero_stage} must be 0, 1, 2 or 3")
        need(stage.lr > 0, f"{name}.lr must be positive")
        need(stage.max_tokens >= 0, f"{name}.max_tokens={stage.max_tokens} must not be negative")
        need(stage.offload == "none" or stage.zero_stage > 0, f"{name}.offload={stage.offload} needs "
             f"{name}.zero_stage 1, 2 or 3")  # fmt: skip
        need(stage.offload != "nvme" or (stage.zero_stage == 3 and bool(stage.offload_dir)),
             f"{name}.offload=nvme needs {name}.zero_stage=3 and a folder in {name}.offload_dir")  # fmt: skip
        need(
            min(stage.patience, stage.profile_steps) >= 0,
            f"{name}.patience and profile_steps must not be negative",
        )
        need(len(stage.betas) == 2, f"{name}.betas must be two numbers")
        _check_augment(f"{name}.augment", stage.augment, need)
        need(stage.spike_factor == 0 or stage.spike_factor > 1, f"{name}.spike_factor must be 0 or above 1")
        need(stage.max_bad_steps >= 0, f"{name}.max_bad_steps must not be negative")
    if m.kind in extension.checks:
        extension.checks[m.kind](recipe, need)
    w = recipe.watch
    need(w.contact_timeout_s >= 2, f"watch.contact_timeout_s={w.contact_timeout_s} must be at least 2")
    need(
        min(w.start_timeout_s, w.hang_timeout_s, w.long_timeout_s, w.stop_notice_every_s) > 0,
        "the times of the section watch must be positive",
    )
    need(recipe.finetune.freeze == "none" or recipe.finetune.init != "none",
         "finetune.freeze needs a visual encoder from stage 1: set finetune.freeze=none or init=visual")  # fmt: skip
    need(recipe.pretrain.micro_batch == 0 or m.batchnorm != "sync", "pretrain.micro_batch passes clips through the "
         "encoder in chunks, and model.batchnorm=sync needs all of them at once: set model.batchnorm=group (the "
         "statistics of a chunk) or frozen, or pretrain.micro_batch=0")  # fmt: skip
    for name, stage in (("pretrain", recipe.pretrain), ("finetune", recipe.finetune)):
        trained = name == "pretrain" or stage.freeze == "none"
        need(stage.chunk_frames >= 0, f"{name}.chunk_frames={stage.chunk_frames} must not be negative")
        # In DINOv2's way BatchNorm stands behind the chunks, over all frames at once.
        inside = m.kind == "sage" or m.sign2gpt.spatial == "resnet"
        need(not (stage.chunk_frames and trained and inside and m.batchnorm == "sync"), f"{name}.chunk_frames passes "
             "frames through the frame encoder in chunks, and model.batchnorm=sync needs all of them at once: set "
             f"model.batchnorm=frozen or group (the statistics of a chunk), or {name}.chunk_frames=0")  # fmt: skip
        need(not (stage.compile and stage.zero_stage == 3), f"{name}.compile does not go with {name}.zero_stage=3, "
             "which gathers weights while a pass runs: set one or the other")  # fmt: skip


def _check_augment(name: str, a: Augment, need: Callable[[bool, str], None]) -> None:
    need(all(0 <= share <= 1 for share in (a.rotation_share, a.flip, a.colour_share, a.grey)),
         f"{name}: rotation_share, flip, colour_share and grey are shares of clips, 0 to 1")  # fmt: skip
    need(0 <= a.crop < 1 and 0 <= a.crop_ratio < 1, f"{name}.crop and crop_ratio must be below 1")
