"""Stage 2 of Sign2GPT: a frozen causal language model translates through adapters (Sign2GPT, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sage_scale.config import Recipe, Stage
from sage_scale.models.sign2gpt.checkpoint import unsaved_frozen_weights
from sage_scale.models.sign2gpt.decoder import load_causal_model, make_texts
from sage_scale.models.sign2gpt.export import save_translator
from sage_scale.models.sign2gpt.model import Sign2GptTranslator, load_signs
from sage_scale.models.sign2gpt.operations import Sign2GptOperations
from sage_scale.models.sign2gpt.spatial import check_spatial, frozen_files, sizes
from sage_scale.shards import Dataset
from sage_scale.streaming import Batch
from sage_scale.training.export import load_tensors
from sage_scale.training.frozen import FrozenOutputs
from sage_scale.training.language.prepare import check_language_model, prepare_language_model
from sage_scale.training.stage import STAGE1, TaskContext
from sage_scale.training.translation_task import TranslationTask, choose_attention
from sage_scale.vision.packed import PackedVideo


class Sign2GptTranslation(TranslationTask):
    """Stage 2 of Sign2GPT."""

    @staticmethod
    def check(recipe: Recipe, folder: Path, datasets: Sequence[Dataset]) -> None:
        if recipe.model.sign2gpt.spatial == "signs":  # stage 1 gives nothing
            check_language_model(recipe, folder, datasets)
        else:
            check_spatial(recipe)
            TranslationTask.check(recipe, folder, datasets)

    def __init__(self, context: TaskContext) -> None:
        super().__init__(context)
        recipe = context.recipe
        prepared = prepare_language_model(
            recipe, context.folder, context.datasets, context.ranks, share=context.share
        )
        # A path that is no folder is a name in the local cache or hub.
        self.language_folder = prepared if prepared.is_dir() else str(prepared)
        self.model, self.tokenizer = self._make()
        taken = []
        if self.stage.init != "none" and self.model.spatial is not None:
            load_signs(self.model, load_tensors(context.folder / STAGE1))
            if self.stage.freeze != "none" or unsaved_frozen_weights(self.model, recipe):
                taken = [context.folder / STAGE1]
        self.outputs = Sign2GptOutputs(self.model, self.stage)
        self.forward = self.outputs.forward
        if not recipe.model.sign2gpt.language_lr_scale:
            taken.insert(0, prepared)
        self.frozen = [*taken, *frozen_files(recipe)]
        self.operations = Sign2GptOperations(recipe, "finetune", self.model.decoder.language_model.config)

    def _make(self) -> tuple[Sign2GptTranslator, Any]:
        settings = self.recipe.model.sign2gpt
        language_model, tokenizer = load_causal_model(self.language_folder, settings.language_dtype)
        choose_attention(language_model, self.context.ranks.device)
        return Sign2GptTranslator(self.recipe, language_model), tokenizer

    def build(self) -> Sign2GptTranslator:
        return self._make()[0]

    def texts(self, metas: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        return make_texts(
            self.tokenizer, [meta["sentence"] for meta in metas], self.recipe.evaluation.max_tokens
        )

    def sizes(self, batch: Batch) -> dict[str, float]:
        return sizes(self.recipe, batch)

    def save(self, model: Any, folder: Path) -> None:
        save_translator(model, self.tokenizer, self.recipe, folder, self.language_folder)


class Sign2GptOutputs(FrozenOutputs):
    """Kept: features of the frame encoder, or sign features Z, from which the decoder's adapters alone train
    (Sign(Z)2GPT, Table 2)."""

    def __init__(self, model: Sign2GptTranslator, stage: Stage) -> None:
        if (
            model.spatial is None or model.sign_encoder is None
        ):  # stored sign features: there is nothing to freeze
            super().__init__(model, replace(stage, freeze="none"))
        else:
            super().__init__(model, stage, model.spatial.backbone, [model.spatial, model.sign_encoder])

    def forward_kept(self, video: PackedVideo, kept: Tensor, *text: Any) -> tuple[Tensor, Tensor]:
        model, frames_B = self.model, video.clip_frames_B()
        if self.kind == "backbone":
            tokens_ND, lengths_B = model.sign_encoder(model.spatial.rows(kept), frames_B, video.clip_seeds_B)
        else:
            tokens_ND, lengths_B = kept, model.sign_encoder.token_lengths(frames_B)
        return model.decoder(tokens_ND, lengths_B, *text, video.clip_seeds_B)

    def values(self, video: PackedVideo, augmented: bool) -> tuple[Tensor, list[int]]:
        model, frames_B = self.model, video.clip_frames_B()
        values_FC = model.spatial.frame_features(video, augmented=augmented)
        if self.kind == "backbone":
            return values_FC, frames_B.tolist()
        tokens_ND, lengths_B = model.sign_encoder(model.spatial.rows(values_FC), frames_B)
        return tokens_ND, lengths_B.tolist()
