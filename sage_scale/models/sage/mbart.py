"""The language model, its frozen text side (SAGE, section 3.1.2), and the search of its sentences."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import MBartForConditionalGeneration, PreTrainedTokenizerBase

from sage_scale.errors import CheckpointError
from sage_scale.losses.tokens import pad_packed
from sage_scale.nn.beam_search import Candidate, by_clip, mean_log_probabilities, ranked
from sage_scale.nn.weights import FiniteScores
from sage_scale.text.hub import loading
from sage_scale.text.languages import mbart50_code, restore_punctuation
from sage_scale.text.tokenizer import load_tokenizer, truncated_ids
from sage_scale.training.language.prepare import open_language_model

LONGEST_TEXT = 512
"""Subwords after which a sentence to learn is cut."""


@dataclass(frozen=True, kw_only=True)
class TextTargets:
    """Targets of the visual tokens of B clips, packed; M text tokens of all clips."""

    embeddings_MD: Tensor
    """(M, d_model): input embeddings E[t] (equation 1), unscaled."""
    hidden_MD: Tensor
    """(M, d_model): last hidden states of the encoder for the same tokens (equation 2); (M, 0) where no level reads
    them."""
    lengths_B: Tensor
    """int64 (B,): text tokens of each clip, at least 1."""
    labels_BL: Tensor | None = None
    """int64 (B, L): subwords of each clip's sentence, as `make_labels` gives them; None where no term reads them."""
    inputs_BL: Tensor | None = None
    """int64 (B, L): the decoder's inputs for these labels."""
    view: TextTargets | None = None
    """A second view of the texts (`losses.cico`)."""

    def to(self, device: torch.device | str) -> TextTargets:
        """Returns the same targets on another device."""
        moved: dict[str, Any] = {
            name: value.to(device) if name == "view" else value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if value is not None
        }
        return replace(self, **moved)

    def select(self, clips: slice) -> TextTargets:
        """Returns the targets of some clips, without the second view."""
        start = int(self.lengths_B[: clips.start].sum())
        tokens = slice(start, start + int(self.lengths_B[clips].sum()))
        return TextTargets(
            embeddings_MD=self.embeddings_MD[tokens],
            hidden_MD=self.hidden_MD[tokens],
            lengths_B=self.lengths_B[clips],
            labels_BL=None if self.labels_BL is None else self.labels_BL[clips],
            inputs_BL=None if self.inputs_BL is None else self.inputs_BL[clips],
        )


def load_language_model(folder: str | Path) -> tuple[MBartForConditionalGeneration, PreTrainedTokenizerBase]:
    """Returns an mBART model in float32 and its tokenizer, from a Hugging Face folder, or a name in the local cache or
    hub.

    Raises CheckpointError, with one line, where it is missing, incomplete or no mBART.
    """
    model, source = open_language_model(MBartForConditionalGeneration, folder, torch.float32, "an mBART")
    with loading(source):
        return model, load_tokenizer(source)


def language_id(tokenizer: PreTrainedTokenizerBase, language: str) -> int:
    """Returns token id of a language, given as mBART's code (de_DE) or as BCP 47 (de)."""
    # Never the tag itself: "de" and "en" are ordinary subwords as well.
    found = tokenizer.convert_tokens_to_ids(mbart50_code(language))
    if found is None or found == tokenizer.unk_token_id:
        raise CheckpointError(f"the language model's tokenizer has no language code for '{language}'")
    assert isinstance(found, int)
    return found


def language_first(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Returns True for mBART-50's form "lang X </s>", False for cc25's "X </s> lang"."""
    return tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id


def make_labels(
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    languages: Sequence[str],
    max_tokens: int = LONGEST_TEXT,
) -> tuple[Tensor, Tensor]:
    """Returns labels, -100 on padding, and decoder inputs, both int64 (B, L); sentences are cut after `max_tokens`
    subwords.

    mBART-50: labels "lang X </s>", the decoder starts with </s>; cc25: "X </s> lang", it starts with lang. The language
    code is a target in both. Inputs are made here since mBART's own shift wraps a label's last token round.
    """
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    rows, starts = [], []
    for ids, language in zip(truncated_ids(tokenizer, sentences, max_tokens), languages, strict=True):
        code = language_id(tokenizer, language)
        first = language_first(tokenizer)
        rows.append([code, *ids, eos] if first else [*ids, eos, code])
        starts.append(eos if first else code)
    width = max(map(len, rows), default=0)
    labels_BL = torch.tensor([row + [-100] * (width - len(row)) for row in rows], dtype=torch.int64)
    inputs_BL = torch.tensor(
        [[start, *row[:-1]] + [pad] * (width - len(row)) for start, row in zip(starts, rows)],
        dtype=torch.int64,
    )
    return labels_BL.reshape(len(rows), width), inputs_BL.reshape(len(rows), width)


def source_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], languages: Sequence[str], longest: int
) -> tuple[Tensor, Tensor]:
    """Returns the encoder's input of texts, packed: token ids int64 (M,) with language code and end mark, and the
    number of each text's, int64 (B,), at most `longest`."""
    rows = []
    for ids, language in zip(truncated_ids(tokenizer, texts, longest - 2), languages, strict=True):
        code, eos = language_id(tokenizer, language), tokenizer.eos_token_id
        rows.append([code, *ids, eos] if language_first(tokenizer) else [*ids, eos, code])
    lengths_B = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    return torch.tensor([token for row in rows for token in row], dtype=torch.int64), lengths_B


TextKey = tuple[str, str]
"""A text and its language."""
Encoded = tuple[list[int], Tensor]
"""Subwords of a text, M of them, and their hidden states (M, d_model), float32."""


class TextEncoder:
    """The frozen text side: embeddings and hidden states of texts, computed once and kept on the CPU as far as it goes.

    It is no nn.Module, so that no optimizer, checkpoint or parameter count meets it.
    """

    def __init__(
        self,
        model: MBartForConditionalGeneration | str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        batch: int = 32,
        cache_bytes: int = 2_000_000_000,
        hidden: bool = True,
    ) -> None:
        """`model` is a loaded mBART with its tokenizer, or a folder. The model's weights are not copied, so a model
        that is trained must not be given. Hidden states of the texts used last are kept in at most `cache_bytes`;
        without `hidden` none are computed."""
        if isinstance(model, str | Path):
            model, tokenizer = load_language_model(model)
        if tokenizer is None:
            raise ValueError("a loaded model needs its tokenizer")
        self.tokenizer = tokenizer
        self.encoder = model.model.encoder.eval().requires_grad_(False)
        self.language_first = language_first(tokenizer)
        self.max_tokens = model.config.max_position_embeddings - 2
        self.batch = batch
        self.cache_bytes, self.hidden = cache_bytes, hidden
        self.kept_bytes = 0
        self._kept: OrderedDict[TextKey, Encoded] = OrderedDict()

    def to(self, device: torch.device | str) -> TextEncoder:
        """Compute on another device from now on."""
        self.encoder.to(device)
        return self

    def encode(
        self, texts: Sequence[str], languages: Sequence[str], device: torch.device | str = "cpu"
    ) -> TextTargets:
        """Returns the targets of each text in order; language code and end of sentence took part and are stripped."""
        keys = list(zip(texts, languages, strict=True))
        known = {key: self._kept[key] for key in keys if key in self._kept}
        missing = sorted({key for key in keys if key not in known}, key=lambda key: (len(key[0]), key))
        for start in range(0, len(missing), self.batch):
            known |= self._compute(missing[start : start + self.batch])
        self._keep(known)
        weight = self.encoder.embed_tokens.weight
        ids = torch.tensor([token for key in keys for token in known[key][0]], dtype=torch.int64)
        return TextTargets(
            embeddings_MD=weight[ids.to(weight.device)].detach().float(),
            hidden_MD=torch.cat(
                [torch.zeros(0, weight.shape[1] * self.hidden), *(known[key][1] for key in keys)]
            ),
            lengths_B=torch.tensor([len(known[key][0]) for key in keys], dtype=torch.int64),
        ).to(device)

    def _keep(self, used: dict[TextKey, Encoded]) -> None:
        for key, encoded in used.items():
            if key not in self._kept:
                self._kept[key] = encoded
                self.kept_bytes += encoded[1].nbytes
            self._kept.move_to_end(key)
        while self.kept_bytes > self.cache_bytes:
            self.kept_bytes -= self._kept.popitem(last=False)[1][1].nbytes

    @torch.no_grad()
    def _compute(self, keys: list[TextKey]) -> dict[TextKey, Encoded]:
        self.encoder.eval()
        weight = self.encoder.embed_tokens.weight
        texts, languages = [text for text, _ in keys], [language for _, language in keys]
        ids = truncated_ids(self.tokenizer, texts, self.max_tokens)
        if not self.hidden:
            return {key: (row, torch.zeros(len(row), 0)) for key, row in zip(keys, ids)}
        packed_M, lengths_B = source_ids(self.tokenizer, texts, languages, self.max_tokens + 2)
        packed_M, lengths_B = packed_M.to(weight.device), lengths_B.to(weight.device)
        ids_BL, mask_BL = pad_packed(packed_M, lengths_B)
        ids_BL = ids_BL.masked_fill(~mask_BL, self.tokenizer.pad_token_id)
        hidden_BLD = self.encoder(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state
        first = 1 if self.language_first else 0
        hidden_BLD = hidden_BLD.float().cpu()
        # Clones: a view would keep its whole batch.
        return {
            key: (row, hidden_BLD[number, first : first + len(row)].clone())
            for number, (key, row) in enumerate(zip(keys, ids))
        }


def search_sentences(
    model: MBartForConditionalGeneration,
    embeds_BLD: Tensor,
    mask_BL: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    languages: Sequence[str],
    beams: int,
    max_tokens: int,
    length_penalty: float,
    count: int = 0,
) -> list[list[Candidate]]:
    """Returns the `count` best sentences of each row of inputs, in its language, with scores, by beam search; with
    `count` 0 the best one without its score."""
    found: list[list[Candidate]] = [[] for _ in languages]
    generator: Any = model
    for language in sorted(set(languages)):
        rows = [row for row, other in enumerate(languages) if other == language]
        code, first = language_id(tokenizer, language), language_first(tokenizer)
        start = (
            {"decoder_start_token_id": tokenizer.eos_token_id, "forced_bos_token_id": code}
            if first
            else {"decoder_start_token_id": code, "forced_bos_token_id": None}
        )
        read = {"inputs_embeds": embeds_BLD[rows], "attention_mask": mask_BL[rows].long()}
        ids = generator.generate(
            **read,
            num_beams=beams,
            num_return_sequences=max(count, 1),
            max_new_tokens=max_tokens,
            length_penalty=length_penalty,
            do_sample=False,
            logits_processor=[FiniteScores()],
            **start,
        )

        def score(ids_BL: Tensor, read: Any = read, first: bool = first) -> list[float]:
            logits_BLV = generator(**read, decoder_input_ids=ids_BL[:, :-1]).logits
            end: Any = tokenizer.eos_token_id
            return mean_log_probabilities(logits_BLV, ids_BL[:, 1:], end, forced=first)

        def finish(text: str, _clip: int, language: str = language) -> str:
            return restore_punctuation(text.strip(), language)

        some = ranked(by_clip(ids, max(count, 1)), tokenizer, finish, score if count else None)
        for row, candidates in zip(rows, some, strict=True):
            found[row] = candidates
    return found
