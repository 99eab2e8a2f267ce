"""Characters that a causal language model's vocabulary lacks, added to it (Sign2GPT, appendix A.2).

XGLM has no piece for some Chinese characters (252 of CSL-Daily), which would all be one `<unk>`. Each becomes a piece
of the unigram vocabulary, of the smallest score there is, so that text without such characters is encoded as before.
An added token, which transformers offers for this, would cut the text at each of them, and a blank would follow.

Embeddings of new pieces are the mean of the others with slight noise (Hewitt 2021), and stay frozen like the others.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from sage_scale.errors import CheckpointError
from sage_scale.text.tokenizer import composed, encode_texts
from sage_scale.untrusted.hashes import share

NOISE = 1e-5
"""Variance of the noise over that of the embeddings (Hewitt 2021)."""
_EMBEDDINGS = ("embed_tokens.weight", "embed_in.weight", "lm_head.weight", "embed_out.weight")


@dataclass(frozen=True)
class Expansion:
    """What was added."""

    characters: tuple[str, ...]
    """In the order of their ids."""
    first_id: int
    """Id of the first of them."""


def missing_characters(tokenizer: Any, sentences: Iterable[str]) -> list[str]:
    """Characters of the sentences, as the tokenizer normalises them, that it encodes as `<unk>`; sorted."""
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return []
    normalizer = tokenizer.backend_tokenizer.normalizer
    characters: set[str] = set()
    for character in {character for sentence in sentences for character in composed(tokenizer, sentence)}:
        characters |= set(normalizer.normalize_str(character) if normalizer else character)
    wanted = sorted(character for character in characters if not character.isspace())
    if not wanted:
        return []
    encoded = encode_texts(tokenizer, wanted)
    return [character for character, ids in zip(wanted, encoded) if unknown in ids]


def expand_tokenizer(tokenizer: Any, characters: Sequence[str], folder: str | Path) -> Any:
    """Write the tokenizer with the characters as further pieces to `folder` and load it from there; ids in order behind
    all others. Raises CheckpointError for one that is not unigram."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = backend["model"]["type"]
    if kind != "Unigram":
        raise CheckpointError(f"characters can be added to a unigram tokenizer, not to one of type {kind}")
    vocabulary: list[list[Any]] = backend["model"]["vocab"]
    lowest = min(score for _, score in vocabulary)
    # Tokens that transformers adds have ids behind the pieces: as pieces of their own they keep them.
    behind = sorted(
        (token["id"], token["content"]) for token in backend["added_tokens"] if token["id"] >= len(vocabulary)
    )
    for number, content in behind:
        if number != len(vocabulary):
            raise CheckpointError(f"the tokenizer has no piece and no token of id {len(vocabulary)}")
        vocabulary.append([content, 0.0])
    vocabulary += [[character, lowest] for character in characters]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(backend, ensure_ascii=False), encoding="utf-8")
    return AutoTokenizer.from_pretrained(str(folder))


def expand_model(model: Any, first: int, count: int, seed: int = 0) -> Any:
    """A new model with embeddings up to id `first + count - 1`, the last `count` of them made; the old one stays.

    The same seed gives the same rows. Logits of old ids are the old model's.
    """
    size = model.config.vocab_size
    if first > size:
        raise CheckpointError(
            f"the tokenizer has ids up to {first - 1}, but the model only {size} embeddings"
        )
    config = copy.deepcopy(model.config)
    config.vocab_size = max(size, first + count)
    state = {}
    made: dict[int, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(_EMBEDDINGS):
            # Input and output embeddings that are one tensor stay equal.
            if tensor.data_ptr() not in made:
                made[tensor.data_ptr()] = _with_rows(tensor, first, count, seed)
            tensor = made[tensor.data_ptr()]
        state[name] = tensor
    buffers = dict(model.named_buffers())
    with torch.device("meta"):
        larger = type(model)(config)
    larger.load_state_dict(state, strict=False, assign=True)
    for name, _ in list(larger.named_buffers()):
        place, _, last = name.rpartition(".")
        setattr(larger.get_submodule(place), last, buffers[name].clone())
    larger.tie_weights()
    larger.generation_config = copy.deepcopy(model.generation_config)
    return larger.train(model.training)


def _with_rows(weight_VD: Tensor, first: int, count: int, seed: int) -> Tensor:
    known = weight_VD[:first].float()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, weight_VD.shape[1], generator=generator) * NOISE**0.5
    rows = known.mean(0) + noise.to(known.device) * known.std(0)
    return torch.cat([weight_VD[:first], rows.to(weight_VD.dtype), weight_VD[first + count :]])


def expand_vocabulary(
    model: Any, tokenizer: Any, sentences: Iterable[str], folder: str | Path, seed: int = 0
) -> tuple[Any, Any, Expansion]:
    """Model and tokenizer with every character of the sentences, also written to the Hugging Face folder `folder`.

    Where none is missing, both as they are, and nothing is written.
    """
    first = len(tokenizer)
    characters = missing_characters(tokenizer, sentences)
    if not characters:
        return model, tokenizer, Expansion((), first)
    larger = expand_model(model, first, len(characters), seed)
    expanded = expand_tokenizer(tokenizer, characters, folder)
    larger.save_pretrained(folder)
    share(Path(folder))
    report = Expansion(tuple(characters), first)
    document = {"characters": report.characters, "first_id": first, "seed": seed}
    (Path(folder) / "expansion.json").write_text(
        json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return larger, expanded, report
