"""Stage 2 of SAGE: mBART translates the visual tokens (SAGE, section 3.2, equation 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sage_scale.config import Recipe, Stage
from sage_scale.errors import CheckpointError
from sage_scale.models.sage import export
from sage_scale.models.sage.mbart import LONGEST_TEXT, load_language_model, make_labels, source_ids
from sage_scale.models.sage.model import SageTranslator, load_visual
from sage_scale.models.sage.operations import StepOperations
from sage_scale.nn.dropout import token_seeds
from sage_scale.nn.frame_encoder import check_frame_encoder, load_backbone
from sage_scale.nn.weights import put_weights
from sage_scale.shards import Dataset
from sage_scale.streaming import Batch
from sage_scale.training.engine import Engine
from sage_scale.training.export import load_tensors
from sage_scale.training.frozen import FrozenOutputs
from sage_scale.training.gold_glosses import GoldGlosses, gold_glosses
from sage_scale.training.language.prepare import prepare_language_model
from sage_scale.training.stage import STAGE1, TaskContext
from sage_scale.training.translation_task import TranslationTask, choose_attention
from sage_scale.vision.packed import PackedVideo


class SageTranslation(TranslationTask):
    """Stage 2 of SAGE."""

    @staticmethod
    def check(recipe: Recipe, folder: Path, datasets: Sequence[Dataset]) -> None:
        check_frame_encoder(recipe)
        TranslationTask.check(recipe, folder, datasets)

    def __init__(self, context: TaskContext) -> None:
        super().__init__(context)
        recipe = context.recipe
        self.language_folder = prepare_language_model(
            recipe, context.folder, context.datasets, context.ranks, share=context.share
        )
        language_model, self.tokenizer = load_language_model(self.language_folder)
        choose_attention(language_model, context.ranks.device)
        # A label has two positions more than subwords: the language code and the end mark.
        self.longest_text = min(LONGEST_TEXT, language_model.config.max_position_embeddings - 2)
        self.model: SageTranslator = SageTranslator(recipe, language_model)
        glosses = gold_glosses(recipe)
        if glosses is not None:
            self.outputs: FrozenOutputs = GlossInputs(self.model, recipe, glosses, self.tokenizer)
        else:
            load_stage1(self.model, recipe, context.folder)
            self.outputs = SageOutputs(self.model, self.stage)
            self.frozen = [context.folder / STAGE1] if self.stage.freeze != "none" else []
        self.forward = self.outputs.forward
        self.operations = StepOperations(recipe, "finetune", language_model.config)

    def build(self) -> SageTranslator:
        return SageTranslator(self.recipe, load_language_model(self.language_folder)[0])

    def texts(self, metas: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        sentences = [meta["sentence"] for meta in metas]
        languages = [meta["language"] for meta in metas]
        return make_labels(self.tokenizer, sentences, languages, self.longest_text)

    def save(self, model: Any, folder: Path) -> None:
        export.save_translator(model, self.tokenizer, self.recipe, folder, Path(self.language_folder))


class SageOutputs(FrozenOutputs):
    """Kept: features of the frame encoder, or tokens behind the mapper."""

    def __init__(self, model: SageTranslator, stage: Stage) -> None:
        super().__init__(model, stage, model.visual.backbone, [model.visual, model.mapper])

    def forward_kept(self, video: PackedVideo, kept: Tensor, *text: Any) -> tuple[Tensor, Tensor]:
        model = self.model
        tokens_ND = kept
        if self.kind == "backbone":
            seeds_N = token_seeds(video.clip_seeds_B, video.clip_segments_B)
            tokens_ND = model.mapper(model.visual.tokens(kept, model.visual.pooled_frames(video)), seeds_N)
        return model.forward_tokens(tokens_ND, video.clip_segments_B, *text, video.clip_seeds_B)

    def values(self, video: PackedVideo, augmented: bool) -> tuple[Tensor, list[int]]:
        visual = self.model.visual
        video = visual.pooled_frames(video)
        values = visual.frame_features(video, augmented=augmented)
        if self.kind == "visual":
            return self.model.mapper(visual.tokens(values, video), None), video.clip_segments_B.tolist()
        return values, video.clip_frames_B().tolist()


class GlossInputs(FrozenOutputs):
    """Glosses of the clips, which the language model reads in place of visual tokens (`finetune.glosses`); the visual
    side is not trained."""

    def __init__(self, model: SageTranslator, recipe: Recipe, glosses: GoldGlosses, tokenizer: Any) -> None:
        super().__init__(
            model, replace(recipe.finetune, freeze="visual"), visual=[model.visual, model.mapper]
        )
        self.recipe, self.glosses, self.tokenizer = recipe, glosses, tokenizer

    def inputs(self, batch: Batch, engine: Engine) -> tuple[PackedVideo, Tensor | None]:
        texts = [self.glosses.text(meta) for meta in batch.metas]
        languages = [meta["language"] or self.recipe.corpus.language for meta in batch.metas]
        ids_M, lengths_B = source_ids(self.tokenizer, texts, languages, self.model.positions)
        video = replace(batch.video, frames_FCHW=None, background_BCHW=None, features_FC=None)
        return replace(video, clip_segments_B=lengths_B).to(engine.ranks.device), ids_M.to(
            engine.ranks.device
        )

    def forward_kept(self, video: PackedVideo, kept: Tensor, *text: Any) -> tuple[Tensor, Tensor]:
        tokens_MD = self.model.embed(kept)
        return self.model.forward_tokens(tokens_MD, video.clip_segments_B, *text, video.clip_seeds_B)


def load_stage1(model: SageTranslator, recipe: Recipe, run: Path) -> None:
    """Load the weights of stage 1: visual encoder and mapper, and the context encoder where the recipe says so."""
    init = recipe.finetune.init
    if init == "none":
        if model.visual.backbone is not None:
            load_backbone(model.visual.backbone, recipe.model.backbone.weights)
        return
    state = load_tensors(run / STAGE1)
    load_visual(model, state)
    if init == "visual_context":
        _load_context(model, state, run / STAGE1)


def _load_context(model: SageTranslator, state: Mapping[str, Tensor], source: Path) -> None:
    """Put stage 1's context encoder in place of the same part of mBART's encoder: all of it where both have as many
    layers, else its layers and input, and the norm behind the last layer stays mBART's.

    Raises CheckpointError where stage 1 has no context encoder, or a deeper one.
    """
    own = {name.partition(".")[2]: value for name, value in state.items() if name.startswith("context.")}
    if not own:
        raise CheckpointError(f"{source} has no context encoder to take over; set finetune.init=visual")
    encoder = model.language_model.get_encoder()
    depth = 1 + max(int(name.split(".")[1]) for name in own if name.startswith("layers."))
    if depth > len(encoder.layers):
        raise CheckpointError(
            f"{source} has a context encoder of {depth} layers, the language model's encoder {len(encoder.layers)}: "
            "set finetune.init=visual, or train stage 1 again with fewer model.context_layers"
        )
    names = set(own) if depth == len(encoder.layers) else {n for n in own if not n.startswith("layer_norm.")}
    put_weights(encoder, own, names, "stage 1's context encoder")
