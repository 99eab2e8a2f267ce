"""Time of a training stage on a number of GPUs: the longest of arithmetic, decoding, network and storage, step by step.

The parts of a step overlap, so that a step takes the time of its slowest part, which is named; without loader workers
a local dataset is decoded in the trainer's process, between steps, and its seconds are added to the arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sage_scale.config import Recipe, Stage
from sage_scale.planning.constants import Constants
from sage_scale.planning.corpus_size import CorpusSize
from sage_scale.planning.preprocessing import Storage
from sage_scale.planning.step import PASSES, RESERVED, ClipSize, Gpu, StagePlans, StepPlan

STAGES = ("pretrain", "finetune")
THREADS = 2
"""Threads that decode frames of an object store ahead where there are no loader workers (streaming/stream.py)."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Hardware of a layout."""

    gpu: str
    """Name of the device, or cpu."""
    device: Gpu
    cpus: float
    """CPUs of a node for each of its GPUs."""
    share: float
    """Share of the device's matrix rate that is reached; 0: that of the constants."""
    remote: bool
    """Whether the dataset lies in an object store."""


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """A stage on one layout."""

    stage: str
    nodes: int
    gpus: int
    """GPUs of a node."""
    steps: int
    parts: Mapping[str, float]
    """Seconds of a step by part: compute, decoding, network, store."""
    first_epoch_store: float
    """Seconds of a step's reading while the node cache is being filled."""
    seconds: float
    """Of the whole stage."""
    extra: Mapping[str, float]
    """Of these, outside of steps: start, evaluations, saves, frozen outputs."""
    memory_bytes: float
    """Peak of a rank."""
    fits: bool
    inline: bool
    """Whether clips are decoded between steps, in the trainer's process."""
    micro_batch: int
    """Clips that a rank must hold at once to fit, 0 where it holds all."""
    checkpoint_bytes: float
    save_seconds: float
    """Of the background write of a checkpoint."""

    @property
    def ranks(self) -> int:
        """Returns the number of GPUs."""
        return self.nodes * self.gpus

    @property
    def bound(self) -> str:
        """Returns the part that decides a step's time."""
        return max(self.parts, key=self.parts.__getitem__)

    @property
    def step_seconds(self) -> float:
        """Returns the time of a step after the first epoch."""
        return max(self.parts.values())

    @property
    def hours(self) -> float:
        """Returns the hours of the stage."""
        return self.seconds / 3600

    @property
    def gpu_hours(self) -> float:
        """Returns the hours of all GPUs."""
        return self.hours * self.ranks


def stage_steps(stage: Stage, clips: float) -> int:
    """Returns the optimizer steps of a stage; its limits of minutes and tokens do not count."""
    steps = round(stage.epochs * -(-clips // stage.batch_size))
    return max(1, min(steps, stage.max_steps) if stage.max_steps else steps)


def stage_time(
    recipe: Recipe,
    name: str,
    plans: StagePlans,
    corpus: CorpusSize,
    clip: ClipSize,
    stored: Storage,
    constants: Constants,
    machine: Machine,
    nodes: int,
    gpus: int,
) -> StageTime:
    """Returns the time and memory of a stage on nodes with so many GPUs each."""
    stage: Stage = getattr(recipe, name)
    ranks, batch = nodes * gpus, stage.batch_size
    used = min(ranks, batch)
    clips = max(1.0, corpus.train * recipe.stream.fraction)
    steps = stage_steps(stage, clips)
    step, micro = fitting_step(plans, stage, name, ranks, machine.device)
    rate = _rate(recipe, name, constants, machine)
    floor = 0.0 if machine.gpu == "cpu" else constants.number("gpu.step_floor_s")
    compute = step.operations / rate + floor
    own = -(-batch // used)
    frozen = name == "finetune" and stage.freeze != "none"
    decoding, processes = _decoding(recipe, own, clip, stored, constants, machine)
    decoded_once = frozen or recipe.stream.cache_decoded_mb * 1e6 * ranks >= _decoded_bytes(
        recipe, clip, clips
    )
    later = 0.0 if decoded_once else decoding
    inline = processes == 0
    per_node = own * min(gpus, used) * stored.sample_bytes
    cached = not machine.remote or stored.total <= recipe.stream.cache_gb * 1e9
    disk = per_node / constants.number("disk.bytes_per_s")
    remote = per_node / constants.number("store.bytes_per_s") if machine.remote else disk
    parts = {
        "compute": compute + (later if inline else 0.0),
        "decoding": 0.0 if inline else later,
        "network": _network(stage, step, plans.trained[name], nodes, gpus, constants),
        "store": 0.0 if decoded_once else disk if cached else remote,
    }
    epoch = -(-clips // batch)
    first = max(compute + decoding if inline else compute, decoding, parts["network"], remote)
    beginning = min(steps, epoch)
    working = beginning * first + (steps - beginning) * max(parts.values())
    states = 2 if stage.optimizer == "adamw" else int(stage.momentum > 0)
    checkpoint = 4 * plans.trained[name] * (1 + states)
    save = checkpoint / ranks / constants.number("save.bytes_per_s")
    saves = max(1, steps // (stage.save_every or epoch))
    forward = step.operations / PASSES / own / rate
    extra = {
        "start": _start(recipe, name, constants, machine),
        "evaluations": _evaluations(stage, steps, epoch)
        * _evaluation(recipe, name, corpus, clip, forward, used, constants, machine),
        "frozen outputs": _frozen_outputs(
            recipe, plans, steps * batch, clips, _rate(recipe, "pretrain", constants, machine), used
        )
        if frozen
        else 0.0,
        "saves": saves * checkpoint / ranks / constants.number("save.copied_bytes_per_s") + save,
    }
    return StageTime(
        stage=name,
        nodes=nodes,
        gpus=gpus,
        steps=steps,
        parts=parts,
        first_epoch_store=remote,
        seconds=working + sum(extra.values()),
        extra=extra,
        memory_bytes=step.device_bytes,
        fits=step.device_bytes <= (1 - RESERVED) * machine.device.memory_gb * 1e9,
        inline=inline and later > 0,
        micro_batch=micro,
        checkpoint_bytes=checkpoint,
        save_seconds=save,
    )


def fitting_step(plans: StagePlans, stage: Stage, name: str, ranks: int, device: Gpu) -> tuple[StepPlan, int]:
    """Returns the recipe's step, or where it does not fit into the device's memory the one that holds fewer clips at
    once and fits, with that number (0: the recipe's own); the recipe's where none fits."""
    room = (1 - RESERVED) * device.memory_gb * 1e9
    plain = plans.step(name, stage.batch_size, ranks, stage.micro_batch)
    if plain.device_bytes <= room:
        return plain, 0
    held = 1 << max(0, (stage.micro_batch or -(-stage.batch_size // ranks)).bit_length() - 1)
    while held:
        step = plans.step(name, stage.batch_size, ranks, held)
        if step.device_bytes <= room:
            return step, held
        held //= 2
    return plain, 0


def _frozen_outputs(
    recipe: Recipe, plans: StagePlans, seen: float, clips: float, rate: float, ranks: int
) -> float:
    """Returns the seconds in which the frozen part computes its outputs, once for each view of a clip that is seen."""
    forward = plans.step("pretrain", 1, 1, 0).operations / PASSES
    views = min(max(1, recipe.finetune.frozen_views) * clips, seen)
    return views * forward / rate / ranks


def _start(recipe: Recipe, name: str, constants: Constants, machine: Machine) -> float:
    """Returns the seconds of a stage before its first step, measured of this recipe where there is a calibration."""
    if machine.gpu != "cpu":
        return constants.number("start_gpu_s")
    if constants.knows("train.start_cpu_s", f"{recipe.name} {name}"):
        return constants.number("train.start_cpu_s", f"{recipe.name} {name}")
    return constants.number("start_cpu_s")


def _rate(recipe: Recipe, name: str, constants: Constants, machine: Machine) -> float:
    """Returns the FLOPs a second that a rank reaches."""
    precision = getattr(recipe, name).precision
    if machine.gpu == "cpu":
        if constants.knows("train.flops_per_cpu_s", f"{recipe.name} {name}"):
            return constants.number("train.flops_per_cpu_s", f"{recipe.name} {name}")
        half = "bfloat16" if precision == "bf16" else "float32"
        rate = constants.number("cpu.flops_per_cpu_s", half)
        return rate * (machine.share or constants.number("cpu.share"))
    if constants.knows("train.flops_per_gpu_s", f"{recipe.name} {name}"):
        return constants.number("train.flops_per_gpu_s", f"{recipe.name} {name}")
    share = machine.share or constants.number("gpu.share", "training")
    if precision == "fp32":
        share *= constants.number("gpu.float32_rate")
    measured = "gpu.matrix_flops_per_s"
    sheet = machine.device.bf16_tflops * 1e12
    return share * (constants.number(measured) if constants.knows(measured) else sheet)


def _decoding(
    recipe: Recipe, clips: float, clip: ClipSize, stored: Storage, constants: Constants, machine: Machine
) -> tuple[float, int]:
    """Returns the seconds in which a rank's clips of a step are decoded, and the processes or threads beside the
    trainer that do it."""
    frames = recipe.vision.kind == "frames"
    processes = recipe.stream.workers or (THREADS if frames else 1) * machine.remote
    if frames:
        work = clips * clip.frames * constants.seconds("jpeg.decode_frames_per_cpu_s", recipe.vision.size)
    else:
        work = clips * stored.sample_bytes / constants.number("loader.bytes_per_cpu_s")
    return work / max(1.0, min(processes, machine.cpus)), processes


def _decoded_bytes(recipe: Recipe, clip: ClipSize, clips: float) -> float:
    vision = recipe.vision
    frame = 3.0 * vision.size**2 if vision.kind == "frames" else 2.0 * recipe.model.feature_dim
    return clips * clip.frames * frame * (recipe.vision.feature_views if vision.kind == "features" else 1)


def _network(
    stage: Stage, step: StepPlan, trained: float, nodes: int, gpus: int, constants: Constants
) -> float:
    """Returns the seconds in which gradients (and, under ZeRO, weights) and the loss's tokens pass the slowest link."""
    if nodes * gpus == 1:
        return 0.0
    passes = 3 if stage.zero_stage == 3 else 2
    moved = passes * 4 * trained + step.exchanged
    return moved / constants.number(f"network.{'between_nodes' if nodes > 1 else 'in_node'}_bytes_per_s")


def _evaluations(stage: Stage, steps: int, epoch: float) -> int:
    every = stage.evaluate_every
    return 1 if every < 0 else max(1, int(steps // (every or epoch)))


def _evaluation(
    recipe: Recipe,
    name: str,
    corpus: CorpusSize,
    clip: ClipSize,
    forward: float,
    ranks: int,
    constants: Constants,
    machine: Machine,
) -> float:
    """Returns the seconds of one evaluation on dev: a forward pass of each clip, and in stage 2 a beam search."""
    each = corpus.dev / ranks
    if name == "pretrain":
        return each * forward
    rounds = -(-each // recipe.evaluation.batch_size) * (clip.text_tokens + 2)
    kind = "cpu" if machine.gpu == "cpu" else "gpu"
    return each * forward + rounds * constants.number(f"generate_{kind}_token_s")
