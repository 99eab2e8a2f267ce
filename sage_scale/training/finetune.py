"""Stage 2: mBART translates the visual tokens (SAGE, section 3.2, equation 6).

sage-scale finetune --run runs/NAME --data URL --recipe NAME
deepspeed --num_gpus 8 launch/finetune.py --run runs/NAME --data URL --recipe NAME
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sage_scale.config import Recipe, to_yaml
from sage_scale.errors import CheckpointError
from sage_scale.evaluation.metrics import score
from sage_scale.models.language import load_language_model, make_labels
from sage_scale.models.resnet import load_backbone
from sage_scale.models.sage import SageTranslator, load_visual
from sage_scale.streaming import Batch, Data, open_datasets, open_stream
from sage_scale.training import distributed, export
from sage_scale.training.decode import translate_split
from sage_scale.training.embedding_cache import even_slices
from sage_scale.training.engine import Engine
from sage_scale.training.frozen import FrozenOutputs
from sage_scale.training.language.prepare import prepare_language_model
from sage_scale.training.loop import Loop
from sage_scale.training.meter import video_sizes
from sage_scale.training.pretrain import STAGE1
from sage_scale.training.runlog import memory_mb, record_timing


def run(recipe: Recipe, run_folder: str | Path, data: Data) -> dict[str, Any]:
    """Train stage 2 to its end (or go on with it) in `run_folder`, from the dataset, or several, of `data`.

    Takes over what `finetune.init` says from stage 1 of the same run, writes `finetune/log.jsonl`, checkpoints and
    the export `model/`, and returns the dev scores of the weights kept. Called by every rank.
    """
    folder = Path(run_folder)
    ranks = distributed.initialise()
    stage = recipe.finetune
    torch.manual_seed(stage.seed)
    datasets = open_datasets(data)  # before anything is written: a wrong place leaves nothing behind
    if ranks.first:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    language_folder = prepare_language_model(recipe, folder, datasets, ranks)
    language_model, tokenizer = load_language_model(language_folder)
    if ranks.device.type == "cpu":
        # The backward of torch's fused attention takes longer on a CPU than all matrix products of a small model.
        language_model.set_attn_implementation("eager")
    model = SageTranslator(recipe, language_model)
    take_over(model, recipe, folder)

    def build() -> SageTranslator:
        return SageTranslator(recipe, load_language_model(language_folder)[0])

    frozen = FrozenOutputs(model, stage)
    stream = open_stream(
        datasets,
        recipe,
        "train",
        rank=ranks.rank,
        world=ranks.world,
        batch_size=stage.batch_size,
        seed=stage.seed + 1,
    )
    engine = Engine(model, stage, ranks, forward=frozen.forward, build=build)
    taken = [folder / STAGE1] if stage.freeze != "none" else []
    loop = Loop("finetune", recipe, folder, engine, stream, frozen=taken, language=language_model.config)
    loop.resume()

    def compute(batch: Batch) -> dict[str, float]:
        frozen.set_mode()
        if stage.micro_batch:
            batch = batch.by_length()
        sentences = [meta["sentence"] for meta in batch.metas]
        languages = [meta["language"] for meta in batch.metas]
        labels, decoder_input_ids = make_labels(tokenizer, sentences, languages)
        # Over ranks and accumulation alike: the loss is a mean over the tokens of the whole global batch.
        tokens = int((labels != -100).sum())
        total_tokens, chunks = _agree(tokens, len(batch.keys), stage.micro_batch, ranks.device)
        loss_sum = 0.0
        for number, rows in enumerate(even_slices(len(batch.keys), chunks)):
            part = batch.select(rows) if chunks > 1 else batch
            video, kept = frozen.inputs(part, engine)
            summed, _ = engine.forward(
                video,
                kept,
                labels[rows].to(ranks.device),
                decoder_input_ids[rows].to(ranks.device),
                stage.label_smoothing,
            )
            engine.backward(summed / max(total_tokens, 1), last=number == chunks - 1)
            loss_sum += float(summed.detach())
        sizes = video_sizes(batch) | {"text_tokens": float(tokens)}
        return {"loss": loss_sum / max(total_tokens, 1), **sizes}

    def evaluate(step: int) -> tuple[dict[str, float], float]:
        rows = translate_split(recipe, engine.whole, tokenizer, datasets, "dev", ranks, engine.precision)
        if not rows:
            return {"clips": 0}, 0.0
        scores = score(
            [row["hypothesis"] for row in rows], [row["reference"] for row in rows], recipe.corpus.language
        )
        shown = {name: scores[name] for name in ("bleu4", "bleu1", "rouge_l")}
        return {"clips": len(rows), **shown}, float(scores["bleu4"])

    progress = loop.train(compute, evaluate)
    with engine.evaluating() as whole:
        if ranks.first:
            export.save_translator(whole, tokenizer, recipe, folder / "model", Path(language_folder))
    if ranks.first:
        record_timing(folder, "finetune", progress.seconds, memory_mb(ranks.device))
    distributed.barrier()
    return {"steps": progress.step, "seconds": progress.seconds, "dev_bleu4": progress.best_score}


def take_over(model: SageTranslator, recipe: Recipe, run: Path) -> None:
    """Load what stage 1 gives: visual encoder and mapper, and the context encoder where the recipe says so."""
    init = recipe.finetune.init
    if init == "none":
        weights = recipe.model.backbone.weights
        if weights and model.visual.backbone is not None:
            load_backbone(model.visual.backbone, weights)
        return
    state = export.load_visual_file(run / STAGE1)
    load_visual(model, state)
    if init == "visual_context":
        encoder = model.language_model.get_encoder()
        layers = {
            name.split(".layers.", 1)[1]: value
            for name, value in state.items()
            if ".layers." in name and name.startswith("context.")
        }
        if not layers:
            raise CheckpointError(
                f"{run / STAGE1} has no context encoder to take over; set finetune.init=visual"
            )
        own = encoder.layers.state_dict()
        encoder.layers.load_state_dict(
            {**own, **{name: value for name, value in layers.items() if name in own}}
        )


def _agree(tokens: int, clips: int, micro: int, device: torch.device) -> tuple[int, int]:
    """Tokens of the global batch, and micro-batches of this step: as many on every rank as the fullest needs."""
    chunks = -(-clips // micro) if micro else 1
    gathered = distributed.gather_objects((tokens, chunks))
    return sum(part[0] for part in gathered), max(1, *(part[1] for part in gathered))
