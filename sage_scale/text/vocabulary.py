"""Trimming mBART's vocabulary to a corpus.

mBART-50 has 250,054 subwords, of which a corpus of one language uses a few thousand; their embeddings are 256 of
its 611 million parameters. Kept are the pieces that the training sentences and lemmas use,
every single character (so that an unseen word is spelled, not lost), the special tokens and the language codes.
All language codes stay (52 rows), because transformers' tokenizer would otherwise append them again behind the
embeddings.

The best segmentation of a training sentence is still there and no better one can appear, so training text is
encoded exactly as before; what happens to other text is reported per split.
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
from transformers import AutoModelForSeq2SeqLM

from sage_scale.errors import CheckpointError
from sage_scale.text.hub import loading, model_place
from sage_scale.text.languages import split_words, unspaced
from sage_scale.text.tokenizer import encode_texts, load_tokenizer, set_language
from sage_scale.untrusted.hashes import share

_TOKEN_IDS = ("bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id", "forced_bos_token_id",
              "forced_eos_token_id")  # fmt: skip
_EMBEDDINGS = ("shared.weight", "embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class SplitLoss:
    """What trimming does to the sentences of a split."""

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
    """`characters` in a language that is written without spaces, each looked at alone."""
    examples: list[str] = field(default_factory=list)
    """The most frequent changed words, with their pieces before and after."""


@dataclass(frozen=True)
class TrimReport:
    """What was kept and what is lost."""

    pieces_before: int
    pieces_after: int
    parameters_before: int
    parameters_after: int
    splits: dict[str, SplitLoss]

    def lines(self) -> list[str]:
        """The report for a person."""
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


def kept_pieces(tokenizer: Any, texts: Iterable[str]) -> list[int]:
    """Ids to keep, ascending: special tokens and language codes, single characters, pieces used by `texts`."""
    kept = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    kept |= {number for piece, number in tokenizer.get_vocab().items() if len(piece) == 1}
    for ids in encode_texts(tokenizer, texts):
        kept.update(ids)
    return sorted(kept)


def trim_tokenizer(tokenizer: Any, kept: Sequence[int], folder: str | Path) -> Any:
    """Write the tokenizer with only the `kept` ids, renumbered in order, to `folder` and load it from there."""
    renumbered = {old: new for new, old in enumerate(kept)}
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    if backend["model"]["type"] != "Unigram":
        raise CheckpointError(f"only a unigram tokenizer can be trimmed, not {backend['model']['type']}")
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
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(backend, ensure_ascii=False), encoding="utf-8")
    return load_tokenizer(folder)


def trim_model(model: Any, kept: Sequence[int]) -> Any:
    """A new mBART with only the rows `kept` of embeddings, output layer and output bias; the old one stays.

    Logits over kept ids equal the old model's. Token ids in its configuration are renumbered; raises
    CheckpointError if one of them was not kept.
    """
    renumbered = {old: new for new, old in enumerate(kept)}
    rows = torch.tensor(kept)
    size = model.config.vocab_size
    if kept[-1] >= size:
        raise CheckpointError(f"the tokenizer has ids up to {kept[-1]}, but the model only {size} embeddings")
    config = copy.deepcopy(model.config)
    config.vocab_size = len(kept)
    generation = copy.deepcopy(model.generation_config)
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
    with torch.device("meta"):
        trimmed = type(model)(config)
    trimmed.load_state_dict(state, assign=True)
    trimmed.tie_weights()
    trimmed.generation_config = generation
    return trimmed.train(model.training)


def trim_vocabulary(
    source: str | Path,
    target: str | Path,
    sentences: Sequence[str],
    lemmas: Iterable[str] = (),
    language: str = "de",
    check: Mapping[str, Sequence[str]] | None = None,
) -> TrimReport:
    """Trim the mBART in `source` (folder or hub name) to a corpus and write it to the folder `target`.

    `sentences` and `lemmas` are the training split's; `check` maps split names to sentences whose loss is
    reported. `target` then opens with from_pretrained; `vocabulary.json` in it holds the report and the kept ids.
    """
    place = model_place(source)
    tokenizer = load_tokenizer(place, language)
    with loading(place):
        model = AutoModelForSeq2SeqLM.from_pretrained(str(place))
    kept = kept_pieces(tokenizer, [*sentences, *lemmas])
    target = Path(target)
    smaller = trim_model(model, kept)
    trimmed = trim_tokenizer(tokenizer, kept, target)
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
    smaller.save_pretrained(target)
    share(target)
    document = {"report": asdict(report), "kept_ids": kept}
    (target / "vocabulary.json").write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


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
