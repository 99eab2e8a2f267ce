"""Changes the vocabulary of a language model and its unigram tokenizer: trims mBART's, expands XGLM's.

Trimming (SAGE): mBART-50 has 250,054 subwords, of which a corpus of one language uses a few thousand; their embeddings
are 256 of its 611 million parameters. Kept are the pieces of the training sentences and lemmas, every single character
(so that an unseen word is spelled, not lost), the special tokens and the language codes: all 52, because transformers'
tokenizer would append missing ones behind the embeddings. The best segmentation of a training sentence remains and no
better one can appear, so training text is encoded exactly as before; the effect on other text is reported per split.

Expanding (Sign2GPT, appendix A.2): XGLM has no piece for some Chinese characters (252 of CSL-Daily), which would all
be one `<unk>`. Each becomes a piece of the unigram vocabulary, of the smallest score there is, so that text without
such characters is encoded as before. transformers' added tokens would cut the text at each of them, and a blank would
follow. New embeddings are the mean of the others with slight noise (Hewitt 2021), and stay frozen like the others.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from sage_scale.errors import CheckpointError
from sage_scale.text.hub import LARGEST_FILE, loading, model_source
from sage_scale.text.languages import split_words, unspaced
from sage_scale.text.tokenizer import apply_nfkc, encode_texts, load_tokenizer, set_language
from sage_scale.untrusted.hashes import apply_umask

NOISE = 1e-5
"""Variance of the noise of new embeddings over that of the others (Hewitt 2021)."""
_TOKEN_IDS = ("bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id", "forced_bos_token_id",
              "forced_eos_token_id")  # fmt: skip
_EMBEDDINGS = (
    "shared.weight",
    "embed_tokens.weight",
    "embed_in.weight",
    "lm_head.weight",
    "embed_out.weight",
)


@dataclass(frozen=True)
class SplitLoss:
    """Effect of trimming on the sentences of a split."""

    sentences: int
    sentences_changed: int
    """Sentences that are encoded differently."""
    words: int
    words_changed: int
    """Running words that are cut into other (smaller) pieces, or lost."""
    tokens_before: int
    tokens_after: int
    unknown_before: int
    unknown_after: int
    """Tokens that are `<unk>`."""
    unit: str = "words"
    """`characters` in a language that is written without spaces, each counted by itself."""
    examples: list[str] = field(default_factory=list)
    """The most frequent changed words, with their pieces before and after."""


@dataclass(frozen=True)
class TrimReport:
    """Sizes before and after trimming, and the loss by split."""

    pieces_before: int
    pieces_after: int
    parameters_before: int
    parameters_after: int
    splits: dict[str, SplitLoss]

    def lines(self) -> list[str]:
        """Returns the report for a person."""
        share = self.pieces_after / self.pieces_before
        lines = [
            f"vocabulary {self.pieces_before:,} -> {self.pieces_after:,} pieces ({share:.1%}), "
            f"parameters {self.parameters_before:,} -> {self.parameters_after:,}"
        ]
        for name, loss in self.splits.items():
            lines.append(
                f"{name}: {loss.words_changed:,} of {loss.words:,} {loss.unit} re-segmented, "
                f"{loss.unknown_after - loss.unknown_before:,} more <unk>, tokens {loss.tokens_before:,} -> "
                f"{loss.tokens_after:,}, {loss.sentences_changed:,} of {loss.sentences:,} sentences touched"
            )
        return lines


@dataclass(frozen=True)
class Expansion:
    """The characters added to a vocabulary."""

    characters: tuple[str, ...]
    """In the order of their ids."""
    first_id: int
    """Id of the first of them."""


def trim_vocabulary(
    source: str | Path,
    target: str | Path,
    sentences: Sequence[str],
    lemmas: Iterable[str] = (),
    language: str = "de",
    check: Mapping[str, Sequence[str]] | None = None,
) -> TrimReport:
    """Trims the mBART in `source` (folder or hub name) to a corpus and writes it to the folder `target`.

    `sentences` and `lemmas` are the training split's; `check` maps split names to sentences whose loss is
    reported. `target` then opens with from_pretrained; `vocabulary.json` in it holds the report and the kept ids.
    """
    folder = model_source(source)
    tokenizer = load_tokenizer(folder, language)
    with loading(folder):
        model = AutoModelForSeq2SeqLM.from_pretrained(str(folder))
    kept = kept_pieces(tokenizer, [*sentences, *lemmas])
    smaller, trimmed = trim_model(model, kept), trim_tokenizer(tokenizer, kept, target)
    set_language(trimmed, language)
    report = TrimReport(
        pieces_before=len(tokenizer),
        pieces_after=len(trimmed),
        parameters_before=model.num_parameters(),
        parameters_after=smaller.num_parameters(),
        splits={
            name: measure_loss(tokenizer, trimmed, kept, texts, language)
            for name, texts in {"train": sentences, **(check or {})}.items()
        },
    )
    _save(smaller, Path(target), "vocabulary.json", {"report": asdict(report), "kept_ids": kept})
    return report


def expand_vocabulary(
    model: Any, tokenizer: Any, sentences: Iterable[str], folder: str | Path, seed: int = 0
) -> tuple[Any, Any, Expansion]:
    """Returns model and tokenizer with every character of the sentences, also written to the folder `folder`.

    Where none is missing both are returned as they are, and nothing is written.
    """
    first = len(tokenizer)
    characters = missing_characters(tokenizer, sentences)
    report = Expansion(tuple(characters), first)
    if not characters:
        return model, tokenizer, report
    larger = expand_model(model, first, len(characters), seed)
    expanded = expand_tokenizer(tokenizer, characters, folder)
    document = {"characters": report.characters, "first_id": first, "seed": seed}
    _save(larger, Path(folder), "expansion.json", document)
    return larger, expanded, report


def kept_pieces(tokenizer: Any, texts: Iterable[str]) -> list[int]:
    """Returns ids to keep, ascending: special tokens and codes, single characters, pieces used by `texts`."""
    kept = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    kept |= {number for piece, number in tokenizer.get_vocab().items() if len(piece) == 1}
    for ids in encode_texts(tokenizer, texts):
        kept.update(ids)
    return sorted(kept)


def missing_characters(tokenizer: Any, sentences: Iterable[str]) -> list[str]:
    """Returns the characters of the sentences, normalised, that the tokenizer encodes as `<unk>`; sorted."""
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return []
    normalizer = tokenizer.backend_tokenizer.normalizer
    characters: set[str] = set()
    for character in {character for sentence in sentences for character in apply_nfkc(tokenizer, sentence)}:
        characters |= set(normalizer.normalize_str(character) if normalizer else character)
    wanted = sorted(character for character in characters if not character.isspace())
    encoded = encode_texts(tokenizer, wanted)
    return [character for character, ids in zip(wanted, encoded) if unknown in ids]


def trim_tokenizer(tokenizer: Any, kept: Sequence[int], folder: str | Path) -> Any:
    """Writes the tokenizer with only the `kept` ids, renumbered in order, to `folder` and loads it from there."""
    renumbered = {old: new for new, old in enumerate(kept)}
    backend = _unigram(tokenizer, "trimmed")
    vocabulary = backend["model"]["vocab"]
    backend["model"]["vocab"] = [vocabulary[old] for old in kept if old < len(vocabulary)]
    backend["model"]["unk_id"] = renumbered[backend["model"]["unk_id"]]
    backend["added_tokens"] = [
        token | {"id": renumbered[token["id"]]}
        for token in backend["added_tokens"]
        if token["id"] in renumbered
    ]
    for special in (backend.get("post_processor") or {}).get("special_tokens", {}).values():
        special["ids"] = [renumbered[old] for old in special["ids"]]
    return load_tokenizer(_write_tokenizer(tokenizer, backend, folder))


def expand_tokenizer(tokenizer: Any, characters: Sequence[str], folder: str | Path) -> Any:
    """Writes the tokenizer with the characters as last pieces, in order, to `folder` and loads it from there."""
    backend = _unigram(tokenizer, "expanded")
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
    return AutoTokenizer.from_pretrained(str(_write_tokenizer(tokenizer, backend, folder)))


def trim_model(model: Any, kept: Sequence[int]) -> Any:
    """Returns a new mBART with only the rows `kept` of embeddings, output layer and output bias.

    Logits over kept ids equal the old model's. Token ids in its configuration are renumbered. Raises CheckpointError
    where one of them was not kept, or the model has fewer embeddings than the tokenizer ids.
    """
    renumbered = {old: new for new, old in enumerate(kept)}
    rows = torch.tensor(kept)
    _check_size(model, kept[-1])
    config, generation = copy.deepcopy(model.config), copy.deepcopy(model.generation_config)
    config.vocab_size = len(kept)
    for settings in (config, generation):
        for name in _TOKEN_IDS:
            old = getattr(settings, name, None)
            if old is not None:
                if old not in renumbered:
                    raise CheckpointError(f"{name}={old} of the model's configuration is no kept token")
                setattr(settings, name, renumbered[old])
    state = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(_EMBEDDINGS):
            tensor = tensor[rows]
        elif name == "final_logits_bias":
            tensor = tensor[:, rows]
        state[name] = tensor.clone()
    return _rebuilt(model, config, generation, state)


def expand_model(model: Any, first: int, count: int, seed: int = 0) -> Any:
    """Returns a new model with embeddings up to id `first + count - 1`, the last `count` of them made by `seed`.

    Logits of old ids are the old model's. Raises CheckpointError where it has fewer than `first` embeddings.
    """
    _check_size(model, first - 1)
    config = copy.deepcopy(model.config)
    config.vocab_size = max(model.config.vocab_size, first + count)
    state = {}
    made: dict[int, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(_EMBEDDINGS):
            # Input and output embeddings that are one tensor stay equal.
            if tensor.data_ptr() not in made:
                made[tensor.data_ptr()] = _with_rows(tensor, first, count, seed)
            tensor = made[tensor.data_ptr()]
        state[name] = tensor
    return _rebuilt(model, config, copy.deepcopy(model.generation_config), state)


def measure_loss(
    before: Any, after: Any, kept: Sequence[int], texts: Sequence[str], language: str = "de"
) -> SplitLoss:
    """Returns how the encodings of `texts`, sentences in `language` (BCP 47), by both tokenizers differ."""
    old, new = encode_texts(before, texts), [[kept[i] for i in ids] for ids in encode_texts(after, texts)]
    words = Counter(word for text in texts for word in split_words(text, language))
    distinct = sorted(words)
    pairs = zip(encode_texts(before, distinct), encode_texts(after, distinct), strict=True)
    changed = {
        word: f"{_spell(before, a)} -> {_spell(after, b)}"
        for word, (a, b) in zip(distinct, pairs, strict=True)
        if a != [kept[i] for i in b]
    }
    return SplitLoss(
        sentences=len(texts),
        sentences_changed=sum(a != b for a, b in zip(old, new, strict=True)),
        words=words.total(),
        words_changed=sum(words[word] for word in changed),
        tokens_before=sum(map(len, old)),
        tokens_after=sum(map(len, new)),
        unknown_before=sum(ids.count(before.unk_token_id) for ids in old),
        unit="characters" if unspaced(language) else "words",
        unknown_after=sum(ids.count(before.unk_token_id) for ids in new),
        examples=[changed[word] for word in sorted(changed, key=lambda word: (-words[word], word))[:20]],
    )


def _spell(tokenizer: Any, ids: list[int]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def _unigram(tokenizer: Any, change: str) -> dict[str, Any]:
    """Returns a tokenizer's own JSON. Raises CheckpointError where it is not unigram."""
    backend: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = backend["model"]["type"]
    if kind != "Unigram":
        raise CheckpointError(f"only a unigram tokenizer can be {change}, not one of type {kind}")
    return backend


def _write_tokenizer(tokenizer: Any, backend: Mapping[str, Any], folder: str | Path) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(backend, ensure_ascii=False), encoding="utf-8")
    return folder


def _check_size(model: Any, last: int) -> None:
    size = model.config.vocab_size
    if last >= size:
        raise CheckpointError(f"the tokenizer has ids up to {last}, but the model only {size} embeddings")


def _with_rows(weight_VD: Tensor, first: int, count: int, seed: int) -> Tensor:
    known = weight_VD[:first].float()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, weight_VD.shape[1], generator=generator) * NOISE**0.5
    rows = known.mean(0) + noise.to(known.device) * known.std(0)
    return torch.cat([weight_VD[:first], rows.to(weight_VD.dtype), weight_VD[first + count :]])


def _rebuilt(model: Any, config: Any, generation: Any, state: Mapping[str, Tensor]) -> Any:
    """Returns a model of another configuration with the weights `state` and the old model's other buffers."""
    with torch.device("meta"):
        rebuilt = type(model)(config)
    rebuilt.load_state_dict(state, strict=False, assign=True)
    buffers = dict(model.named_buffers())
    for name, _ in list(rebuilt.named_buffers()):
        if name not in state:
            module, _, last = name.rpartition(".")
            setattr(rebuilt.get_submodule(module), last, buffers[name].clone())
    rebuilt.tie_weights()
    rebuilt.generation_config = generation
    return rebuilt.train(model.training)


def _save(model: Any, folder: Path, name: str, document: Mapping[str, Any]) -> None:
    """Writes a model and a JSON document beside its tokenizer."""
    model.save_pretrained(folder, max_shard_size=LARGEST_FILE)
    apply_umask(folder)
    (folder / name).write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")
