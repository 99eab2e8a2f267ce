"""Tokenizers: loads published mBART tokenizers, and trains small ones in the formats of mBART-50 and XGLM.

This module works around two defects of transformers 5. `MBart50Tokenizer(vocab_file=...)` ignores the file, so the
pieces are passed instead. `MBartTokenizer` (mbart-large-cc25) drops the normaliser of its file, so that ligatures and
full-width digits would become `<unk>`.
"""

from __future__ import annotations

import io
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, normalizers
from transformers import AutoTokenizer, MBart50Tokenizer, MBartTokenizer, XGLMTokenizer

from sage_scale.errors import CheckpointError, RecipeError
from sage_scale.text.hub import loading
from sage_scale.text.languages import mbart50_code
from sage_scale.untrusted.files import read_bytes
from sage_scale.untrusted.json_values import parse_json_object

MODEL_FILE = "sentencepiece.bpe.model"
TOKENIZER_FILE = "tokenizer.json"
_CC25_LANGUAGES = 25


def load_tokenizer(folder: str | Path, language: str = "") -> Any:
    """Returns the tokenizer of a Hugging Face folder (or hub name), with `language` (BCP 47) as source and target.

    A folder with `sentencepiece.bpe.model` alone is read as mBART-50, or as mBART-cc25 if `config.json` has that
    vocabulary size. Raises CheckpointError without a tokenizer, or if the tokenizer lacks the language.
    """
    path = Path(folder)
    name = str(folder)
    on_the_hub = not name.startswith(("/", ".", "~")) and name.count("/") <= 1
    if not path.exists() and not on_the_hub:
        raise CheckpointError(f"there is no folder {name}: give a Hugging Face folder, or a name of the hub")
    if path.is_dir() and not any((path / name).is_file() for name in (TOKENIZER_FILE, MODEL_FILE)):
        raise CheckpointError(f"{path} holds no tokenizer: {TOKENIZER_FILE} or {MODEL_FILE} is needed")
    described = any((path / name).is_file() for name in (TOKENIZER_FILE, "tokenizer_config.json"))
    if path.is_dir() and not described:
        model = _read_model(path / MODEL_FILE)
        tokenizer = _from_model(model, _tokenizer_class(path, len(model.pieces)))
    else:
        with loading(folder, "the tokenizer of"):
            tokenizer = AutoTokenizer.from_pretrained(str(folder))
    with loading(folder, "the tokenizer of"):
        if tokenizer.backend_tokenizer.normalizer is None:
            tokenizer.backend_tokenizer.normalizer = _stored_normalizer(path)
    if language:
        set_language(tokenizer, language)
    return tokenizer


def set_language(tokenizer: Any, language: str) -> int:
    """Set source and target language (BCP 47), and return the id of its code. Raises CheckpointError without a code."""
    code = mbart50_code(language)
    number = tokenizer.convert_tokens_to_ids(code)
    if number is None or number == tokenizer.unk_token_id:
        raise CheckpointError(f"the tokenizer has no code {code} for language '{language}'")
    tokenizer.src_lang = code
    tokenizer.tgt_lang = code
    return int(number)


def encode_texts(tokenizer: Any, texts: Iterable[str]) -> list[list[int]]:
    """Returns the subword ids of each text, without special tokens.

    "</s>", "<mask>" and "de_DE" in a sentence become subwords of their letters, never the special token.
    `split_special_tokens` alone is not sufficient: special tokens are also pieces of mBART's and XGLM's unigram
    vocabulary.
    """
    texts = [apply_nfkc(tokenizer, text) for text in texts]
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
    special = {number: str(t.content) for number, t in tokenizer.added_tokens_decoder.items() if t.special}
    rows = []
    for number, ids in enumerate(encoded["input_ids"]):
        if not special.keys().isdisjoint(ids):
            pieces = encoded.encodings[number].tokens
            ids = [
                part for pair in zip(ids, pieces) for part in _spell_special_token(tokenizer, *pair, special)
            ]
        rows.append(list(ids))
    return rows


def truncated_ids(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Returns the subword ids of each text, cut to `max_tokens`; a text without subwords gives [unk]."""
    return [ids[:max_tokens] or [tokenizer.unk_token_id] for ids in encode_texts(tokenizer, texts)]


def _spell_special_token(tokenizer: Any, number: int, piece: str, special: Mapping[int, str]) -> list[int]:
    """Returns a subword's id; for a special token, the ids of the pieces that spell it."""
    if number not in special:
        return [number]
    name = next((name for name in special.values() if name in piece), None)
    if name is None:  # an unknown character
        return [number]
    # Split after its first letter: then no part is the token.
    cut = piece.index(name) + 1
    found = []
    for part in (piece[: cut - 1], piece[cut - 1 : cut], piece[cut:]):
        for token in tokenizer.backend_tokenizer.model.tokenize(part) if part else ():
            found += _spell_special_token(tokenizer, token.id, token.value, special)
    return found


def apply_nfkc(tokenizer: Any, text: str) -> str:
    """Returns the text in NFKC if the tokenizer's normaliser is NFKC.

    The normaliser of `tokenizers` fails to compose kana and Hangul: it normalises character by character if a letter
    with its marks has six bytes or more.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer
    if text.isascii() or normalizer is None or normalizer.normalize_str("ﬁ") != "fi":
        return text
    return _nfkc(text)


def _nfkc(text: str) -> str:
    # SentencePiece's rules do not change the full-width tilde.
    return "～".join(unicodedata.normalize("NFKC", part) for part in text.split("～"))


def unknown_share(tokenizer: Any, texts: Iterable[str]) -> float:
    """Returns the share of unknown tokens among the subwords of the texts, 0 to 1, without separate spaces."""
    space = tokenizer.convert_tokens_to_ids("\u2581")
    counts = Counter(number for row in encode_texts(tokenizer, texts) for number in row)
    if space != tokenizer.unk_token_id:
        counts.pop(space, None)
    return counts[tokenizer.unk_token_id] / counts.total() if counts else 0.0


def train_sentencepiece(sentences: Iterable[str], vocabulary: int, language: str = "de") -> MBart50Tokenizer:
    """Train a unigram model of at most `vocabulary` pieces and return it as an mBART-50 tokenizer.

    Deterministic. Ids as in mBART-50: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, the pieces, the
    52 language codes, `<mask>`. Raises RecipeError if the vocabulary is too small for the characters, or without
    text.
    """
    tokenizer = _from_model(_train_unigram(sentences, vocabulary), MBart50Tokenizer)
    set_language(tokenizer, language)
    return tokenizer


def train_xglm_tokenizer(sentences: Iterable[str], vocabulary: int) -> XGLMTokenizer:
    """Train a unigram model of at most `vocabulary` pieces and return it as an XGLM tokenizer.

    Ids: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, the pieces. Raises RecipeError as `train_sentencepiece` does.
    """
    model = _train_unigram(sentences, vocabulary)
    specials = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    charsmap = model.normalizer_spec.precompiled_charsmap or None
    pieces = [(piece.piece, piece.score) for piece in model.pieces[3:]]
    return XGLMTokenizer(vocab=[*specials, *pieces], _spm_precompiled_charsmap=charsmap)


def _train_unigram(sentences: Iterable[str], vocabulary: int) -> Any:
    lines = [line for sentence in sentences if (line := " ".join(_nfkc(sentence).split()))]
    if not lines:
        raise RecipeError("a vocabulary needs sentences: there is no text to train it on")
    buffer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=buffer,
            model_type="unigram",
            vocab_size=vocabulary,
            hard_vocab_limit=False,  # a small corpus may have fewer pieces
            character_coverage=1.0,
            num_threads=1,  # sums of several threads depend on their order
            minloglevel=2,
        )
    except RuntimeError as error:
        raise RecipeError(
            f"no vocabulary of {vocabulary} pieces: {str(error).split('] ')[-1].strip()}"
        ) from None
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(buffer.getvalue())
    return model


def _read_model(path: Path) -> Any:
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's own DecodeError, which has no stable import path
        raise CheckpointError(f"{path} is not a SentencePiece model: {error}") from None
    return model


def _tokenizer_class(folder: Path, pieces: int) -> type:
    try:
        size = parse_json_object(read_bytes(folder / "config.json")).get("vocab_size", 0)
    except (OSError, ValueError):
        return MBart50Tokenizer
    return MBartTokenizer if size == pieces + 1 + _CC25_LANGUAGES + 1 else MBart50Tokenizer


def _from_model(model: Any, form: type) -> Any:
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    if form is MBart50Tokenizer:
        charsmap = model.normalizer_spec.precompiled_charsmap or None
        return MBart50Tokenizer(vocab=pieces, _spm_precompiled_charsmap=charsmap)
    from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES

    specials = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    codes = [(code, 0.0) for code in FAIRSEQ_LANGUAGE_CODES]
    tokenizer = MBartTokenizer(vocab=[*specials, *pieces[3:], *codes, ("<mask>", 0.0)])
    tokenizer.backend_tokenizer.normalizer = _normalizer(model)
    return tokenizer


def _stored_normalizer(folder: Path) -> Any:
    """Returns the normaliser stored in the folder; by default mBART's."""
    if (folder / TOKENIZER_FILE).is_file():
        stored = Tokenizer.from_file(str(folder / TOKENIZER_FILE)).normalizer
        if stored is not None:
            return stored
    if (folder / MODEL_FILE).is_file():
        return _normalizer(_read_model(folder / MODEL_FILE))
    return normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])


def _normalizer(model: Any) -> Any:
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    charsmap = model.normalizer_spec.precompiled_charsmap
    return normalizers.Sequence([normalizers.Precompiled(charsmap), spaces] if charsmap else [spaces])
