"""The decoder of Sign2GPT: a frozen causal language model that looks at sign features (section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sage_scale.config import Sign2Gpt
from sage_scale.errors import CheckpointError
from sage_scale.losses.tokens import pad_packed
from sage_scale.models.sign2gpt.adapters import FORMS, adapt, train_along
from sage_scale.models.sign2gpt.positions import TokenPositions, packed_positions
from sage_scale.nn.beam_search import Candidate, by_clip, mean_log_probabilities, ranked
from sage_scale.nn.weights import FiniteScores
from sage_scale.text.hub import loading
from sage_scale.text.tokenizer import truncated_ids
from sage_scale.training.language.prepare import open_language_model
from sage_scale.vision.packed import mix


class SignDecoder(nn.Module):
    """Tokens Z of the sign encoder to text."""

    def __init__(self, settings: Sign2Gpt, language_model: PreTrainedModel) -> None:
        """The language model is held in `language_dtype` and gets its adapters in place; it is frozen unless
        `language_lr_scale` says otherwise."""
        super().__init__()
        language_model.to(getattr(torch, settings.language_dtype))  # type: ignore[arg-type]
        hidden = language_model.config.hidden_size
        self.positions = TokenPositions(settings.positions, settings.width)
        self.project = nn.Linear(settings.width, hidden)
        self.memory = adapt(language_model, settings, settings.language_dropout)
        if settings.language_lr_scale:
            train_along(language_model, settings.language_lr_scale)
        self.language_model: Any = language_model

    def forward(
        self,
        tokens_ND: Tensor,
        lengths_B: Tensor,
        labels_BL: Tensor,
        input_ids_BL: Tensor,
        label_smoothing: float = 0.0,
        clip_seeds_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns label-smoothed cross-entropy summed over the labels that are not -100, and their number (int64).

        No clips give 0, still connected to every trained parameter. `clip_seeds_B` (int64) decide the dropout of LoRA.
        """
        count = (labels_BL != -100).sum()
        if not lengths_B.numel():
            # One clip of one token of zeros without a target: no loss, and a zero gradient everywhere.
            tokens_ND = tokens_ND.sum(0).expand(1, -1)
            lengths_B = lengths_B.new_ones(1)
            input_ids_BL, labels_BL = labels_BL.new_zeros(1, 1), labels_BL.new_full((1, 1), -100)
            clip_seeds_B = None if clip_seeds_B is None else clip_seeds_B.new_zeros(1)
        hidden_BLD = self.hidden(tokens_ND, lengths_B, input_ids_BL, clip_seeds_B)
        # Logits over 256,008 subwords are made where there is a label alone.
        asked_BL = labels_BL != -100
        logits_MV = self.language_model.get_output_embeddings()(hidden_BLD[asked_BL])
        logits_MV = logits_MV if logits_MV.dtype == torch.float64 else logits_MV.float()
        loss = F.cross_entropy(
            logits_MV, labels_BL[asked_BL], label_smoothing=label_smoothing, reduction="sum"
        )
        return loss, count

    def hidden(
        self, tokens_ND: Tensor, lengths_B: Tensor, input_ids_BL: Tensor, clip_seeds_B: Tensor | None = None
    ) -> Tensor:
        """Returns (B, L, hidden): the language model's last states of a text, teacher-forced.

        Texts are padded at their ends, which a causal model does not see.
        """
        self._set_features(tokens_ND, lengths_B, clip_seeds_B, input_ids_BL.shape[1])
        return self.language_model.base_model(input_ids=input_ids_BL, use_cache=False).last_hidden_state

    def _set_features(
        self,
        tokens_ND: Tensor,
        lengths_B: Tensor,
        clip_seeds_B: Tensor | None,
        length: int,
        keep: bool = False,
    ) -> None:
        projected_ND = self.project(self.positions(tokens_ND, packed_positions(lengths_B)[1]))
        features_BSD, mask_BS = pad_packed(projected_ND, lengths_B)
        self.memory.set_features(features_BSD.to(self.language_model.dtype), mask_BS, keep)
        for salt, seeds, rows in (
            (1, self.memory.text, length),
            (2, self.memory.signs, features_BSD.shape[1]),
        ):
            seeds.seeds_BL = None
            if clip_seeds_B is not None:
                seeds.seeds_BL = mix(
                    mix(clip_seeds_B, salt)[:, None], torch.arange(rows, device=clip_seeds_B.device)
                )

    @torch.no_grad()
    def generate(
        self,
        tokens_ND: Tensor,
        lengths_B: Tensor,
        tokenizer: PreTrainedTokenizerBase,
        beams: int = 4,
        max_tokens: int = 64,
        length_penalty: float = 1.0,
    ) -> list[str]:
        """Returns a sentence for each clip, the best one of `search`."""
        found = self.search(tokens_ND, lengths_B, tokenizer, beams, max_tokens, length_penalty)
        return [candidates[0].sentence for candidates in found]

    @torch.no_grad()
    def search(
        self,
        tokens_ND: Tensor,
        lengths_B: Tensor,
        tokenizer: PreTrainedTokenizerBase,
        beams: int = 4,
        max_tokens: int = 64,
        length_penalty: float = 1.0,
        count: int = 0,
        finish: Callable[[str, int], str] = lambda text, clip: text,
    ) -> list[list[Candidate]]:
        """Returns the `count` best sentences of each clip with scores, by beam search (section 4.2) from "</s>" on;
        with `count` 0 the best one without its score. `finish` changes the text of a clip.

        The keys and values of text and of signs are kept, those of signs once for all beams of a clip.
        """
        if not lengths_B.numel():
            return []
        start = torch.full((lengths_B.numel(), 1), int(tokenizer.eos_token_id), device=tokens_ND.device)
        self._set_features(tokens_ND, lengths_B, None, 1, keep=True)
        try:
            ids = self.language_model.generate(
                input_ids=start,
                attention_mask=torch.ones_like(start),
                num_beams=beams,
                num_return_sequences=max(count, 1),
                max_new_tokens=max(1, max_tokens - 1),
                length_penalty=length_penalty,
                do_sample=False,
                logits_processor=[FiniteScores()],
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=padding_id(tokenizer),
            )
        finally:
            self.memory.clear()

        def score(ids_BL: Tensor) -> list[float]:
            hidden_BLD = self.hidden(tokens_ND, lengths_B, torch.cat([start, ids_BL[:, :-1]], dim=1))
            logits_BLV = self.language_model.get_output_embeddings()(hidden_BLD)
            return mean_log_probabilities(logits_BLV, ids_BL, int(tokenizer.eos_token_id))

        return ranked(
            by_clip(ids[:, 1:], max(count, 1)),
            tokenizer,
            lambda text, clip: finish(text.strip(), clip),
            score if count else None,
        )


def make_texts(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], max_tokens: int = 64
) -> tuple[Tensor, Tensor]:
    """Returns labels "X </s>", -100 on padding, and inputs "</s> X", both int64 (B, L).

    "</s> X </s>" has at most `max_tokens` subwords: a longer sentence is truncated before its end mark.
    """
    end: Any = tokenizer.eos_token_id
    rows = truncated_ids(tokenizer, sentences, max_tokens - 2)
    width = max((len(row) + 1 for row in rows), default=0)
    labels_BL = torch.full((len(rows), width), -100)
    input_ids_BL = torch.full((len(rows), width), padding_id(tokenizer))
    for number, row in enumerate(rows):
        labels_BL[number, : len(row) + 1] = torch.tensor([*row, end])
        input_ids_BL[number, : len(row) + 1] = torch.tensor([end, *row])
    return labels_BL, input_ids_BL


def padding_id(tokenizer: Any) -> int:
    """Returns the padding token, or the end mark where a model has none."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def load_causal_model(
    folder: str | Path, dtype: str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns a causal language model and its tokenizer, from a Hugging Face folder, or a name in the local cache or
    hub.

    Raises CheckpointError, with one line, where it is missing, incomplete or of a family that cannot be adapted.
    """
    model, source = open_language_model(AutoModelForCausalLM, folder, getattr(torch, dtype), "an XGLM")
    if model.config.model_type not in FORMS:
        raise CheckpointError(
            f"language model '{folder}' is of type '{model.config.model_type}', which has no adapters; known are "
            f"{', '.join(sorted(FORMS))}"
        )
    with loading(source):
        return model, AutoTokenizer.from_pretrained(str(source))
