"""Sign2GPT: prototype pretraining, then translation (Sign2GPT, Figure 1).

video -> SpatialModel -> Z* -> SignEncoder -> Z    stage 1: Z against prototypes of pseudo-glosses
                                                   stage 2: Z before a frozen language model, a sentence out
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sage_scale.config import Recipe, Stage
from sage_scale.models.sign2gpt.decoder import SignDecoder, make_texts
from sage_scale.models.sign2gpt.prototypes import PrototypeHead, PrototypeScores, prototype_loss
from sage_scale.models.sign2gpt.sign_encoder import SignEncoder
from sage_scale.models.sign2gpt.spatial import SpatialModel, drawn_frames
from sage_scale.nn.beam_search import Candidate, log_probabilities
from sage_scale.nn.weights import put_weights
from sage_scale.text.languages import restore_punctuation
from sage_scale.vision.packed import PackedVideo

SIGNS = ("spatial.", "sign_encoder.")
"""Prefixes of the weights that stage 2 loads from stage 1."""


class SignFeatures(nn.Module):
    """Common part of both stages: a video to sign features Z. Segments do not matter, only their frames."""

    def __init__(self, recipe: Recipe, stage: Stage) -> None:
        super().__init__()
        self.settings, self.stride = recipe.model.sign2gpt, recipe.vision.frame_stride
        self.spatial: SpatialModel | None = None
        self.sign_encoder: SignEncoder | None = None
        if recipe.model.sign2gpt.spatial != "signs":
            self.spatial = SpatialModel(recipe, stage)
            self.sign_encoder = SignEncoder(recipe.model.sign2gpt)

    def encode(self, video: PackedVideo) -> tuple[Tensor, Tensor]:
        """Returns Z (N, width) and the tokens of each clip, int64 (B,); in training, of the frames that are drawn.

        With `spatial=signs` the video's features are Z. Raises ValueError where it has none.
        """
        if self.spatial is None or self.sign_encoder is None:
            if video.features_FC is None:
                raise ValueError(
                    "model.sign2gpt.spatial=signs wants sign features, but the video holds frames"
                )
            return video.features_FC.float(), video.clip_frames_B()
        if self.training:
            g = self.settings
            video = drawn_frames(video, g.max_frames, g.start_jitter, self.stride)
        return self.sign_encoder(self.spatial(video), video.clip_frames_B(), video.clip_seeds_B)


class Sign2GptPretrainer(SignFeatures):
    """Stage 1: which pseudo-glosses occur (section 3.3)."""

    def __init__(self, recipe: Recipe, prototypes_UD: Tensor) -> None:
        super().__init__(recipe, recipe.pretrain)
        self.head = PrototypeHead(recipe.model.sign2gpt.width, recipe.prototypes, prototypes_UD)

    def forward(self, video: PackedVideo, classes_G: Tensor, counts_B: Tensor) -> tuple[Tensor, Tensor]:
        """Returns loss summed over clips and prototypes, times `prototypes.weight`, and the number of summands (int64).

        `classes_G` and `counts_B` are the clips' pseudo-glosses, as `prototype_loss` takes them. No clips give 0, still
        connected to every trained parameter.
        """
        loss, count = prototype_loss(self.scores(video).presence_BU, classes_G, counts_B)
        return self.head.settings.weight * loss, count

    def scores(self, video: PackedVideo) -> PrototypeScores:
        """Returns presence and localisation of every prototype in every clip."""
        tokens_ND, lengths_B = self.encode(video)
        return PrototypeScores(*self.head(tokens_ND, lengths_B, video.clip_seeds_B))


class Sign2GptTranslator(SignFeatures):
    """Stage 2 and inference: a video in, a sentence out. Called as `SageTranslator` is."""

    def __init__(self, recipe: Recipe, language_model: PreTrainedModel) -> None:
        """The language model is frozen and gets its adapters in place."""
        super().__init__(recipe, recipe.finetune)
        self.decoder = SignDecoder(recipe.model.sign2gpt, language_model)
        if recipe.finetune.recompute:
            self.decoder.language_model.activation_checkpointing_enable(
                {"use_reentrant": False, "determinism_check": "none"}
            )

    def forward(
        self,
        video: PackedVideo,
        labels_BL: Tensor,
        input_ids_BL: Tensor,
        label_smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Returns label-smoothed cross-entropy summed over the labels that are not -100, and their number (int64)."""
        tokens_ND, lengths_B = self.encode(video)
        return self.decoder(
            tokens_ND, lengths_B, labels_BL, input_ids_BL, label_smoothing, video.clip_seeds_B
        )

    @torch.no_grad()
    def generate(
        self,
        video: PackedVideo,
        tokenizer: PreTrainedTokenizerBase,
        languages: Sequence[str] = (),
        beams: int = 4,
        max_tokens: int = 64,
        length_penalty: float = 1.0,
    ) -> list[str]:
        """Returns a sentence for each clip by beam search, in the language that was trained; `languages` (BCP 47, one a
        clip) say whose punctuation to bring back."""
        found = self.search(*self.encode(video), tokenizer, languages, beams, max_tokens, length_penalty)
        return [candidates[0].sentence for candidates in found]

    def visual_tokens(self, video: PackedVideo) -> tuple[Tensor, Tensor]:
        """Returns the input of `search`: `encode`."""
        return self.encode(video)

    def search(
        self,
        tokens_ND: Tensor,
        lengths_B: Tensor,
        tokenizer: PreTrainedTokenizerBase,
        languages: Sequence[str] = (),
        beams: int = 4,
        max_tokens: int = 64,
        length_penalty: float = 1.0,
        count: int = 0,
    ) -> list[list[Candidate]]:
        """Returns the `count` best sentences of each clip's tokens (`visual_tokens`) with scores; with `count` 0 the
        best one without its score."""
        if languages and len(languages) != lengths_B.numel():
            raise ValueError(f"{len(languages)} languages for {lengths_B.numel()} clips")

        def finish(text: str, clip: int) -> str:
            return restore_punctuation(text, languages[clip]) if languages else text

        return self.decoder.search(
            tokens_ND, lengths_B, tokenizer, beams, max_tokens, length_penalty, count, finish
        )

    def score_sentence(
        self,
        tokens_ND: Tensor,
        lengths_B: Tensor,
        tokenizer: PreTrainedTokenizerBase,
        sentence: str,
        language: str,
    ) -> tuple[list[int], Tensor]:
        """Returns the sentence's subword ids (L), and their log-probabilities under each clip's tokens (B, L)."""
        labels_BL, inputs_BL = make_texts(tokenizer, [sentence], 512)
        inputs_BL = inputs_BL.to(tokens_ND.device).expand(lengths_B.numel(), -1)
        hidden_BLD = self.decoder.hidden(tokens_ND, lengths_B, inputs_BL)
        logits_BLV = self.decoder.language_model.get_output_embeddings()(hidden_BLD)
        return labels_BL[0].tolist(), log_probabilities(logits_BLV, labels_BL.to(tokens_ND.device))


def load_signs(module: SignFeatures, state: Mapping[str, Tensor]) -> None:
    """Load spatial model and sign encoder from tensors of stage 1, which may lack frozen weights.

    Raises CheckpointError where a trained weight or a running statistic is missing or of another shape.
    """
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    kept = {name for name, _ in module.named_buffers()}
    own = {name for name in module.state_dict() if name.startswith(SIGNS)}
    put_weights(module, state, own & (trained | kept | state.keys()), "stage 1")
