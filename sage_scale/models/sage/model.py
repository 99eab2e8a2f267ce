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
from sage_scale.losses.collectives import gather_counts
from sage_scale.losses.neighbours import neighbour_loss
from sage_scale.losses.objectives import objective_of
from sage_scale.losses.tokens import pad_packed
from sage_scale.models.sage.context import ContextEncoder, position_mask
from sage_scale.models.sage.mbart import TextTargets, make_labels, search_sentences, source_ids
from sage_scale.models.sage.sentence import SentenceDecoder
from sage_scale.models.sage.visual import Mapper, VisualEncoder
from sage_scale.nn.beam_search import Candidate, log_probabilities
from sage_scale.nn.dropout import LanguageModelDropout, token_seeds
from sage_scale.nn.frame_encoder import load_backbone
from sage_scale.nn.weights import put_weights
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
        start = min(math.log(self.objective.scale_start), greatest)
        self.log_scale_embedding = nn.Parameter(torch.tensor([start]))
        self.log_scale_hidden = nn.Parameter(torch.tensor([start]))
        self.bounds = dict.fromkeys(("log_scale_embedding", "log_scale_hidden"), (-math.inf, greatest))
        if self.objective.bias_start is not None:
            self.bias_embedding = nn.Parameter(torch.tensor([self.objective.bias_start]))
            self.bias_hidden = nn.Parameter(torch.tensor([self.objective.bias_start]))

        added = {"neighbours": recipe.clcl.neighbours, "sentence": recipe.clcl.sentence}
        self.term_weights = {name: weight for name, weight in added.items() if weight > 0}
        """Weights of the terms added to equation 5, by name."""
        self.label_smoothing = recipe.pretrain.label_smoothing
        self.sentence: SentenceDecoder | None = None
        if "sentence" in self.term_weights:
            copied = recipe.model.context_init == "language_model"
            self.sentence = SentenceDecoder(language_model, copied)

    def logit_parameters(self) -> dict[str, nn.Parameter]:
        """Returns the trained numbers of the objective by name, each (1,): log_scale_LEVEL, and bias_LEVEL where it
        has a bias, for the levels embedding and hidden."""
        kinds = ("log_scale",) if self.objective.bias_start is None else ("log_scale", "bias")
        names = [f"{kind}_{level}" for kind in kinds for level in ("embedding", "hidden")]
        return {name: getattr(self, name) for name in names}

    def logit_values(self, numbers: Mapping[str, Tensor] | None = None) -> dict[str, dict[str, Tensor]]:
        """Returns `scale` and, where the objective has one, `bias` of each level, each (1,), from `logit_parameters`
        or from `numbers` in their place."""
        given: Mapping[str, Tensor] = self.logit_parameters() if numbers is None else numbers
        values: dict[str, dict[str, Tensor]] = {}
        for name, number in given.items():
            kind, _, level = name.rpartition("_")
            kind, number = ("scale", number.exp()) if kind == "log_scale" else (kind, number)
            values.setdefault(level, {})[kind] = number
        return values

    def encode(self, video: PackedVideo) -> tuple[Tensor, Tensor | None]:
        """Returns L (N, d_model), and the context encoder's hidden states (N, d_model); None where nothing reads
        them: without a context encoder, and at beta=1 without `clcl.sentence`."""
        seeds_N = token_seeds(video.clip_seeds_B, video.clip_segments_B)
        tokens_ND = self.mapper(self.visual(video), seeds_N)
        return self._contextual(tokens_ND, video, seeds_N)

    def encode_with_terms(
        self, video: PackedVideo, text: TextTargets, counts: Mapping[str, int]
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Returns `encode`, and the added terms of these clips by name (`clcl.neighbours`, `clcl.sentence`): their
        shares of a mean over the `counts` of the global batch (`term_counts`)."""
        if not self.term_weights:
            return *self.encode(video), {}
        seeds_N = token_seeds(video.clip_seeds_B, video.clip_segments_B)
        frames_FD, frames_B, visual_ND = self.visual.with_frames(video)
        tokens_ND, hidden_ND = self._contextual(self.mapper(visual_ND, seeds_N), video, seeds_N)
        terms = {}
        if "neighbours" in self.term_weights:
            terms["neighbours"] = neighbour_loss(frames_FD, frames_B, text.lengths_B)
        if self.sentence is not None:
            read_ND = tokens_ND if hidden_ND is None else hidden_ND
            terms["sentence"] = self.sentence(
                read_ND, video.clip_segments_B, text.labels_BL, text.inputs_BL, self.label_smoothing
            )
        return tokens_ND, hidden_ND, {name: term / max(counts[name], 1) for name, term in terms.items()}

    def term_counts(
        self, video: PackedVideo, text: TextTargets, group: dist.ProcessGroup | None = None
    ) -> dict[str, int]:
        """Returns what each added term is a mean over, in the whole batch: clips, labels (a collective, where there
        are such terms)."""
        if not self.term_weights:
            return {}
        labels = 0 if text.labels_BL is None else int((text.labels_BL != -100).sum())
        every = gather_counts([video.clips, labels], group, video.clip_segments_B.device)
        return dict(zip(("neighbours", "sentence"), (sum(column) for column in zip(*every))))

    def _contextual(
        self, tokens_ND: Tensor, video: PackedVideo, seeds_N: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.context is None:
            return tokens_ND, None
        if self.beta == 1 and self.sentence is None:
            # No clips, as on an empty rank: no work, and a zero gradient for every weight, which ZeRO waits for.
            none_N = None if seeds_N is None else seeds_N[:0]
            nothing_ND = self.context(tokens_ND[:0], video.clip_segments_B[:0], none_N)
            return tokens_ND + nothing_ND.sum() * 0, None
        return tokens_ND, self.context(tokens_ND, video.clip_segments_B, seeds_N)

    def forward(
        self,
        video: PackedVideo,
        text: TextTargets,
        text_ids_B: Tensor | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns this rank's share of beta CE + (1 - beta) HS (equation 5) and the added terms, and its parts,
        detached.

        Shares sum to the loss of the whole batch over the ranks of `group`; so do the parts named loss_*.
        """
        counts = self.term_counts(video, text, group)
        tokens_ND, hidden_ND, terms = self.encode_with_terms(video, text, counts)
        share, parts = self.loss(tokens_ND, hidden_ND, video.clip_segments_B, text, text_ids_B, group)
        for name, term in terms.items():
            share = share + self.term_weights[name] * term
            parts[f"loss_{name}"] = term.detach()
        return share, parts

    def loss(
        self,
        tokens_ND: Tensor,
        hidden_ND: Tensor | None,
        clip_segments_B: Tensor,
        text: TextTargets,
        text_ids_B: Tensor | None = None,
        group: dist.ProcessGroup | None = None,
        logit_parameters: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns `forward` without the added terms, from the outputs of `encode`; `logit_parameters` replace the
        model's own."""
        beta, values = self.beta, self.logit_values(logit_parameters)
        named = {f"{kind}_{level}": v for level, kinds in values.items() for kind, v in kinds.items()}
        parts = {name: value.detach()[0] for name, value in named.items()}
        # All numbers and outputs stay in the graph at any beta: ZeRO waits for every parameter's gradient.
        share = torch.cat([value * 0 for value in named.values()]).sum() + tokens_ND.sum() * 0
        levels = [("embedding", beta, tokens_ND, "embeddings_MD")]
        if hidden_ND is not None:
            share = share + hidden_ND.sum() * 0
            levels.append(("hidden", 1 - beta, hidden_ND, "hidden_MD"))
        for level, weight, visual_ND, side in levels:
            if weight == 0:
                continue
            options: dict[str, Any] = dict(values[level])
            if text.view is not None:
                options["view"] = getattr(text.view, side), text.view.lengths_B
            part = self.objective.share(
                visual_ND, getattr(text, side), clip_segments_B, text.lengths_B, text_ids_B=text_ids_B, group=group,
                **options,
            )  # fmt: skip
            parts[f"loss_{level}"] = part.detach()
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

    def visual_tokens(self, video: PackedVideo) -> tuple[Tensor, Tensor]:
        """Returns the input of `search`: tokens before the mapper (N, token_dim), and those of each clip, int64
        (B,)."""
        return self.visual(video), video.clip_segments_B

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
        found = self._search(
            tokens_ND, clip_segments_B, tokenizer, languages, beams, max_tokens, length_penalty
        )
        return [candidates[0].sentence for candidates in found]

    @torch.no_grad()
    def search(
        self,
        tokens_ND: Tensor,
        clip_segments_B: Tensor,
        tokenizer: PreTrainedTokenizerBase,
        languages: Sequence[str],
        beams: int = 4,
        max_tokens: int = 150,
        length_penalty: float = 1.0,
        count: int = 0,
    ) -> list[list[Candidate]]:
        """Returns the `count` best sentences of each clip's tokens (`visual_tokens`) with scores; with `count` 0 the
        best one without its score."""
        given = clip_segments_B, tokenizer, languages, beams, max_tokens, length_penalty, count
        return self._search(self.mapper(tokens_ND), *given)

    def _search(
        self,
        tokens_ND: Tensor,
        clip_segments_B: Tensor,
        tokenizer: PreTrainedTokenizerBase,
        languages: Sequence[str],
        beams: int,
        max_tokens: int,
        length_penalty: float,
        count: int = 0,
    ) -> list[list[Candidate]]:
        """Returns `search` from the input of the language model."""
        if len(languages) != clip_segments_B.numel():
            raise ValueError(f"{len(languages)} languages for {clip_segments_B.numel()} clips")
        if not languages:
            return []
        embeds_BLD, mask_BL = self._pad(tokens_ND, clip_segments_B)
        embeds_BLD = embeds_BLD.to(self.language_model.dtype)
        limit = min(max_tokens, self.language_model.config.max_position_embeddings - 2)
        given = beams, limit, length_penalty, count
        return search_sentences(self.language_model, embeds_BLD, mask_BL, tokenizer, languages, *given)

    def score_sentence(
        self,
        tokens_ND: Tensor,
        clip_segments_B: Tensor,
        tokenizer: PreTrainedTokenizerBase,
        sentence: str,
        language: str,
    ) -> tuple[list[int], Tensor]:
        """Returns the sentence's subword ids (L), and their log-probabilities under each clip's tokens (B, L)."""
        limit = self.language_model.config.max_position_embeddings - 2
        labels_BL, inputs_BL = make_labels(tokenizer, [sentence], [language], limit)
        embeds_BLD, mask_BL = self._pad(self.mapper(tokens_ND), clip_segments_B)
        clips = clip_segments_B.numel()
        logits_BLV = self.language_model(
            inputs_embeds=embeds_BLD.to(self.language_model.dtype), attention_mask=mask_BL.long(),
            decoder_input_ids=inputs_BL.to(tokens_ND.device).expand(clips, -1),
        ).logits  # fmt: skip
        return labels_BL[0].tolist(), log_probabilities(logits_BLV, labels_BL.to(tokens_ND.device))


def load_visual(module: SageTranslator | SageAligner, state: Mapping[str, Tensor]) -> None:
    """Load visual encoder and mapper from a state dict of stage 1.

    Raises CheckpointError where a weight is missing or of another shape.
    """
    names = {name for name in module.state_dict() if name.startswith(("visual.", "mapper."))}
    put_weights(module, state, names, "stage 1")
