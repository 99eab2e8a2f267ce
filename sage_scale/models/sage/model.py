"""SAGE: the aligner of stage 1 and the translator of stage 2 (SAGE, sections 3.1 and 3.2).

video -> VisualEncoder -> Mapper -> L     stage 1: L against text embeddings (CE), ContextEncoder(L) against
                                          the text encoder's hidden states (HS)
                                          stage 2: L into mBART, a sentence out
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MBartForConditionalGeneration, PreTrainedTokenizerBase

from sage_scale.config import Recipe
from sage_scale.errors import CheckpointError
from sage_scale.losses.objectives import objective_of
from sage_scale.losses.tokens import pad_packed
from sage_scale.models.sage.context import ContextEncoder, position_mask
from sage_scale.models.sage.mbart import TextTargets, language_first, language_id, source_ids
from sage_scale.models.sage.visual import Mapper, VisualEncoder
from sage_scale.nn.dropout import LanguageModelDropout, token_seeds
from sage_scale.nn.frame_encoder import load_backbone
from sage_scale.nn.weights import FiniteScores, put_weights
from sage_scale.text.languages import restore_punctuation
from sage_scale.vision.packed import PackedVideo


class SageAligner(nn.Module):
    """Stage 1. The frozen text side is outside of it (`TextEncoder`)."""

    old_scale_names: ClassVar = {"scale_embedding": "log_scale_embedding", "scale_hidden": "log_scale_hidden"}
    """Version 0.1.0's scales, by name, and the parameters that now hold their logarithms."""

    def __init__(self, recipe: Recipe, language_model: MBartForConditionalGeneration) -> None:
        """`language_model` gives the width and, for `context_init=language_model`, the context encoder's start."""
        super().__init__()
        self.beta = recipe.clcl.beta
        self.objective = objective_of(recipe.clcl)
        self.visual = VisualEncoder(recipe, recipe.pretrain)
        if self.visual.backbone is not None:
            load_backbone(self.visual.backbone, recipe.model.backbone.weights)
        self.mapper = Mapper(recipe.model, language_model.config.d_model)
        self.context: ContextEncoder | None = None
        if recipe.model.context_layers:
            available = language_model.config.encoder_layers
            if recipe.model.context_init == "language_model" and recipe.model.context_layers > available:
                raise CheckpointError(
                    f"model.context_layers={recipe.model.context_layers}, but the language model's encoder has "
                    f"{available} layers to copy: lower it, or set model.context_init=random"
                )
            self.context = ContextEncoder(
                language_model.config, recipe.model.context_layers, recipe.model.dropout
            )
            self.context.recompute = recipe.pretrain.recompute
            if recipe.model.context_init == "language_model":
                self.context.copy_from(language_model)
        # Logarithms, as in CLIP, CiCo and the released SAGE: a step on the scale itself would be scale^2 times smaller.
        # Of shape (1,): a parameter of no dimension crashes DeepSpeed over gloo.
        greatest = math.log(recipe.clcl.scale_max)
        start = min(math.log(recipe.clcl.scale_init), greatest)
        self.log_scale_embedding = nn.Parameter(torch.tensor([start]))
        self.log_scale_hidden = nn.Parameter(torch.tensor([start]))
        self.bounds = dict.fromkeys(("log_scale_embedding", "log_scale_hidden"), (-math.inf, greatest))

    def encode(self, video: PackedVideo) -> tuple[Tensor, Tensor | None]:
        """Returns L (N, d_model), and the context encoder's hidden states (N, d_model) or None without one."""
        seeds_N = token_seeds(video.clip_seeds_B, video.clip_segments_B)
        tokens_ND = self.mapper(self.visual(video), seeds_N)
        hidden_ND = None if self.context is None else self.context(tokens_ND, video.clip_segments_B, seeds_N)
        return tokens_ND, hidden_ND

    def forward(
        self,
        video: PackedVideo,
        text: TextTargets,
        text_ids_B: Tensor | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns this rank's share of beta CE + (1 - beta) HS (equation 5), and its parts, detached.

        Shares sum to the loss of the whole batch over the ranks of `group`; so do `loss_embedding` and `loss_hidden`.
        """
        tokens_ND, hidden_ND = self.encode(video)
        return self.loss(tokens_ND, hidden_ND, video.clip_segments_B, text, text_ids_B, group)

    def loss(
        self,
        tokens_ND: Tensor,
        hidden_ND: Tensor | None,
        clip_segments_B: Tensor,
        text: TextTargets,
        text_ids_B: Tensor | None = None,
        group: dist.ProcessGroup | None = None,
        log_scales: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns `forward` from the outputs of `encode`; `log_scales`, each (1,), replace the model's own two."""
        beta = self.beta
        own = (self.log_scale_embedding, self.log_scale_hidden) if log_scales is None else log_scales
        scale_embedding, scale_hidden = (log_scale.exp() for log_scale in own)
        # Both scales and both outputs stay in the graph at any beta: ZeRO waits for every parameter's gradient.
        share = (scale_embedding * 0).sum() + (scale_hidden * 0).sum() + tokens_ND.sum() * 0
        parts = {"scale_embedding": scale_embedding.detach()[0], "scale_hidden": scale_hidden.detach()[0]}
        levels = [("loss_embedding", beta, tokens_ND, text.embeddings_MD, scale_embedding)]
        if hidden_ND is not None:
            share = share + hidden_ND.sum() * 0
            levels.append(("loss_hidden", 1 - beta, hidden_ND, text.hidden_MD, scale_hidden))
        for name, weight, visual_ND, text_MD, scale in levels:
            if weight == 0:
                continue
            part = self.objective.share(
                visual_ND, text_MD, clip_segments_B, text.lengths_B, scale, text_ids_B, group
            )
            parts[name] = part.detach()
            share = share + weight * part
        return share, parts


class SageTranslator(nn.Module):
    """Stage 2 and inference: a video in, a sentence out."""

    def __init__(self, recipe: Recipe, language_model: MBartForConditionalGeneration) -> None:
        super().__init__()
        self.visual = VisualEncoder(recipe, recipe.finetune)
        self.mapper = Mapper(recipe.model, language_model.config.d_model)
        self.language_model = language_model
        if recipe.finetune.recompute:
            # Under ZeRO-3 what is saved differs between the passes, which a comparison would take for an error.
            language_model.activation_checkpointing_enable(
                {"use_reentrant": False, "determinism_check": "none"}
            )
        self._dropout = LanguageModelDropout.of(language_model)

    def encode_tokens(self, video: PackedVideo) -> Tensor:
        """Returns L (N, d_model), the input of the language model; it may be kept where the visual side is frozen."""
        seeds_N = token_seeds(video.clip_seeds_B, video.clip_segments_B)
        return self.mapper(self.visual(video), seeds_N)

    @property
    def positions(self) -> int:
        """The longest input of the language model, tokens."""
        return int(self.language_model.config.max_position_embeddings)

    def embed(self, ids_M: Tensor) -> Tensor:
        """Returns text tokens (M, d_model) as the language model reads them, with its embedding scale."""
        return self.language_model.get_encoder().embed_tokens(ids_M)

    def forward(
        self,
        video: PackedVideo,
        labels_BL: Tensor,
        decoder_input_ids_BL: Tensor,
        label_smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Returns label-smoothed cross-entropy summed over the labels that are not -100, and their number (int64).

        No clips give 0, still connected to every parameter.
        """
        return self.forward_tokens(
            self.encode_tokens(video),
            video.clip_segments_B,
            labels_BL,
            decoder_input_ids_BL,
            label_smoothing,
            video.clip_seeds_B,
        )

    def forward_tokens(
        self,
        tokens_ND: Tensor,
        clip_segments_B: Tensor,
        labels_BL: Tensor,
        decoder_input_ids_BL: Tensor,
        label_smoothing: float = 0.0,
        clip_seeds_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns `forward` from the tokens; `clip_seeds_B` (int64) decide the language model's dropout."""
        count = (labels_BL != -100).sum()
        if clip_segments_B.numel() == 0:
            # One clip of one token of zeros without a target: finite, no loss, and a zero gradient everywhere.
            decoder_input_ids_BL = labels_BL.new_zeros((1, 1))
            labels_BL = labels_BL.new_full((1, 1), -100)
            embeds_BLD = tokens_ND.sum(0).expand(1, 1, -1)
            mask_BL = torch.ones(1, 1, dtype=torch.bool, device=tokens_ND.device)
            clip_seeds_B = None
        else:
            embeds_BLD, mask_BL = self._pad(tokens_ND, clip_segments_B)
        self._dropout.set_keys(clip_seeds_B, embeds_BLD.shape[1], decoder_input_ids_BL.shape[1])
        logits_BLV = self.language_model(
            inputs_embeds=embeds_BLD, attention_mask=mask_BL.long(), decoder_input_ids=decoder_input_ids_BL
        ).logits
        loss = F.cross_entropy(
            logits_BLV.float().flatten(0, 1)
            if logits_BLV.dtype != torch.float64
            else logits_BLV.flatten(0, 1),
            labels_BL.flatten(),
            ignore_index=-100,
            label_smoothing=label_smoothing,
            reduction="sum",
        )
        return loss, count

    def _pad(self, tokens_ND: Tensor, clip_segments_B: Tensor) -> tuple[Tensor, Tensor]:
        # transformers scales token ids by sqrt(d_model) inside its embedding; inputs_embeds enter as they are, as
        # the released SAGE has it.
        mask_BL = position_mask(clip_segments_B, self.language_model.config.max_position_embeddings)
        return pad_packed(tokens_ND, clip_segments_B, mask_BL.shape[1])

    @torch.no_grad()
    def generate(
        self,
        video: PackedVideo,
        tokenizer: PreTrainedTokenizerBase,
        languages: Sequence[str],
        beams: int = 4,
        max_tokens: int = 150,
        length_penalty: float = 1.0,
        texts: Sequence[str] | None = None,
    ) -> list[str]:
        """Returns a sentence for each clip, in its language (an mBART code or BCP 47) and its punctuation, by beam
        search. `texts`, glosses of the clips, are read in place of the video."""
        if texts is None:
            tokens_ND, clip_segments_B = self.encode_tokens(video), video.clip_segments_B
        else:
            ids_M, clip_segments_B = source_ids(tokenizer, texts, languages, self.positions)
            clip_segments_B = clip_segments_B.to(video.clip_segments_B.device)
            tokens_ND = self.embed(ids_M.to(clip_segments_B.device))
        if len(languages) != clip_segments_B.numel():
            raise ValueError(f"{len(languages)} languages for {clip_segments_B.numel()} clips")
        if not languages:
            return []
        embeds_BLD, mask_BL = self._pad(tokens_ND, clip_segments_B)
        embeds_BLD = embeds_BLD.to(self.language_model.dtype)
        limit = min(max_tokens, self.language_model.config.max_position_embeddings - 2)
        sentences = [""] * len(languages)
        generator: Any = self.language_model
        for language in sorted(set(languages)):
            rows = [row for row, other in enumerate(languages) if other == language]
            code = language_id(tokenizer, language)
            if language_first(tokenizer):
                start = {"decoder_start_token_id": tokenizer.eos_token_id, "forced_bos_token_id": code}
            else:
                start = {"decoder_start_token_id": code, "forced_bos_token_id": None}
            ids = generator.generate(
                inputs_embeds=embeds_BLD[rows],
                attention_mask=mask_BL[rows].long(),
                num_beams=beams,
                max_new_tokens=limit,
                length_penalty=length_penalty,
                do_sample=False,
                logits_processor=[FiniteScores()],
                **start,
            )
            for row, sentence in zip(rows, tokenizer.batch_decode(ids, skip_special_tokens=True)):
                sentences[row] = restore_punctuation(sentence.strip(), language)
        return sentences


def load_visual(module: SageTranslator | SageAligner, state: Mapping[str, Tensor]) -> None:
    """Load visual encoder and mapper from a state dict of stage 1.

    Raises CheckpointError where a weight is missing or of another shape.
    """
    names = {name for name in module.state_dict() if name.startswith(("visual.", "mapper."))}
    put_weights(module, state, names, "stage 1")
