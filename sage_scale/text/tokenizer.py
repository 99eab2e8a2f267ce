"""mBART tokenizers: loads their published forms, and trains small ones in the forms of mBART-50 and XGLM.

Two traps of transformers 5 are dealt with here and nowhere else: `MBart50Tokenizer(vocab_file=...)` ignores the
file, so the pieces are handed over; and `MBartTokenizer` (mbart-large-cc25) drops the normaliser of whatever
file it reads, so that ligatures and full-width digits become `<unk>`.
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
from sage_scale.text.languages import language_code
from sage_scale.untrusted.files import read_bytes
from sage_scale.untrusted.json_values import parse_json_object

MODEL_FILE = "sentencepiece.bpe.model"
FAST_FILE = "tokenizer.json"
_CC25_LANGUAGES = 25


def load_tokenizer(folder: str | Path, language: str = "") -> Any:
    """Returns the tokenizer of a Hugging Face folder (or hub name), set to `language` (BCP 47) on both sides.

    A folder with nothing but `sentencepiece.bpe.model` is read as mBART-50's, or as cc25's where `config.json`
    has that size. Raises CheckpointError where there is no tokenizer or it has not the language.
    """
    path = Path(folder)
    name = str(folder)
    on_the_hub = not name.startswith(("/", ".", "~")) and name.count("/") <= 1
    if not path.exists() and not on_the_hub:
        raise CheckpointError(f"there is no folder {name}: give a Hugging Face folder, or a name of the hub")
    if path.is_dir() and not any((path / name).is_file() for name in (FAST_FILE, MODEL_FILE)):
        raise CheckpointError(f"{path} holds no tokenizer: {FAST_FILE} or {MODEL_FILE} is needed")
    described = any((path / name).is_file() for name in (FAST_FILE, "tokenizer_config.json"))
    if path.is_dir() and not described:
        model = _read_model(path / MODEL_FILE)
        tokenizer = _from_model(model, _form(path, len(model.pieces)))
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
    """Sets source and target language (BCP 47); returns the id of its code. Raises CheckpointError without one."""
    code = language_code(language)
    number = tokenizer.convert_tokens_to_ids(code)
    if number is None or number == tokenizer.unk_token_id:
        raise CheckpointError(f"the tokenizer has no code {code} for language '{language}'")
    tokenizer.src_lang = code
    tokenizer.tgt_lang = code
    return int(number)


def encode_texts(tokenizer: Any, texts: Iterable[str]) -> list[list[int]]:
    """Returns the ids of the subwords of each text, without special tokens.

    "</s>", "<mask>" and "de_DE" in a sentence become subwords of their letters, never the special token.
    `split_special_tokens` alone does not do this, since the special tokens are pieces of mBART's and XGLM's unigram
    vocabulary as well.
    """
    texts = [composed(tokenizer, text) for text in texts]
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
    special = {number: str(t.content) for number, t in tokenizer.added_tokens_decoder.items() if t.special}
    rows = []
    for number, ids in enumerate(encoded["input_ids"]):
        if not special.keys().isdisjoint(ids):
            pieces = encoded.encodings[number].tokens
            ids = [part for pair in zip(ids, pieces) for part in _spelled(tokenizer, *pair, special)]
        rows.append(list(ids))
    return rows


def subwords(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Returns the subword ids of each text (`encode_texts`), cut; a text without any gives the unknown token."""
    return [ids[:max_tokens] or [tokenizer.unk_token_id] for ids in encode_texts(tokenizer, texts)]


def _spelled(tokenizer: Any, number: int, piece: str, special: Mapping[int, str]) -> list[int]:
    """Returns a subword's id; for a special token, the ids of the pieces that spell it."""
    if number not in special:
        return [number]
    name = next((name for name in special.values() if name in piece), None)
    if name is None:  # an unknown character
        return [number]
    # Cut behind its first letter, no part of it is the token any more.
    cut = piece.index(name) + 1
    found = []
    for part in (piece[: cut - 1], piece[cut - 1 : cut], piece[cut:]):
        for token in tokenizer.backend_tokenizer.model.tokenize(part) if part else ():
            found += _spelled(tokenizer, token.id, token.value, special)
    return found


def composed(tokenizer: Any, text: str) -> str:
    """Returns the text in NFKC where the tokenizer's normaliser is NFKC.

    The one of `tokenizers` normalises single characters where letter and marks together have six bytes or more, and
    loses composed kana and Hangul.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer
    if text.isascii() or normalizer is None or normalizer.normalize_str("ﬁ") != "fi":
        return text
    return _nfkc(text)


def _nfkc(text: str) -> str:
    # The full-width tilde is what SentencePiece's rules leave alone.
    return "～".join(unicodedata.normalize("NFKC", part) for part in text.split("～"))


def unknown_share(tokenizer: Any, texts: Iterable[str]) -> float:
    """Returns the share of a text's subwords that are the unknown token, 0 to 1; spaces alone are no subwords."""
    space = tokenizer.convert_tokens_to_ids("\u2581")
    counts = Counter(number for row in encode_texts(tokenizer, texts) for number in row)
    if space != tokenizer.unk_token_id:
        counts.pop(space, None)
    return counts[tokenizer.unk_token_id] / counts.total() if counts else 0.0


def train_sentencepiece(sentences: Iterable[str], vocabulary: int, language: str = "de") -> MBart50Tokenizer:
    """Returns a tokenizer in mBART-50's form over a unigram model of at most `vocabulary` pieces.

    Same sentences, same tokenizer. Ids as in mBART-50: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, the pieces, the
    52 language codes, `<mask>`. Raises RecipeError where the vocabulary is too small for the characters or there
    is no text.
    """
    tokenizer = _from_model(_train_unigram(sentences, vocabulary), MBart50Tokenizer)
    set_language(tokenizer, language)
    return tokenizer


def train_xglm_tokenizer(sentences: Iterable[str], vocabulary: int) -> XGLMTokenizer:
    """Returns a tokenizer in XGLM's form over a unigram model of at most `vocabulary` pieces.

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
    except Exception as error:  # protobuf's own DecodeError, which it does not export from a stable place
        raise CheckpointError(f"{path} is not a SentencePiece model: {error}") from None
    return model


def _form(folder: Path, pieces: int) -> type:
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
    """Returns the normaliser of the folder's own files; mBART's usual one where there is none."""
    if (folder / FAST_FILE).is_file():
        stored = Tokenizer.from_file(str(folder / FAST_FILE)).normalizer
        if stored is not None:
            return stored
    if (folder / MODEL_FILE).is_file():
        return _normalizer(_read_model(folder / MODEL_FILE))
    return normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])


def _normalizer(model: Any) -> Any:
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    charsmap = model.normalizer_spec.precompiled_charsmap
    return normalizers.Sequence([normalizers.Precompiled(charsmap), spaces] if charsmap else [spaces])
