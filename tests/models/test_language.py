"""The frozen text side and the labels, against transformers' own tokenizers and encoder."""

from __future__ import annotations

import pytest
import torch
from factories.models import SENTENCES, small_mbart, small_tokenizer

from sage_scale.errors import CheckpointError
from sage_scale.models.sage.mbart import TextEncoder, language_id, load_language_model, make_labels


@pytest.mark.parametrize("form", ["mbart50", "cc25"])
def test_labels_are_those_of_the_tokenizer_and_inputs_their_shift(form):
    """mBART-50: "lang X </s>", the decoder starts with </s>; cc25: "X </s> lang", it starts with lang."""
    tokenizer = small_tokenizer(form)
    labels, inputs = make_labels(tokenizer, SENTENCES, ["de"] * 5)
    tokenizer.tgt_lang = "de_DE"
    for row, (sentence, label, given) in enumerate(zip(SENTENCES, labels, inputs)):
        wanted = tokenizer(text_target=sentence)["input_ids"]
        assert label[label != -100].tolist() == wanted, row
        start = tokenizer.eos_token_id if form == "mbart50" else tokenizer.convert_tokens_to_ids("de_DE")
        assert given[: len(wanted)].tolist() == [start, *wanted[:-1]]
        assert (label[len(wanted) :] == -100).all() and (given[len(wanted) :] == tokenizer.pad_token_id).all()


def test_labels_of_mixed_languages_no_sentences_and_strange_ones():
    tokenizer = small_tokenizer()
    labels, _ = make_labels(tokenizer, ["am tag", "am tag", ""], ["de", "en", "de_DE"])
    codes = [tokenizer.convert_tokens_to_ids(code) for code in ("de_DE", "en_XX", "de_DE")]
    assert labels[:, 0].tolist() == codes
    assert labels[2].tolist()[:3] == [codes[2], tokenizer.unk_token_id, tokenizer.eos_token_id]
    labels, inputs = make_labels(tokenizer, [], [])
    assert labels.shape == inputs.shape == (0, 0)
    assert make_labels(tokenizer, ["am tag"], ["de"], max_tokens=2)[0].shape == (1, 4)


def test_a_language_is_never_taken_for_a_subword():
    """A tag such as "de" may be a piece of the vocabulary as well."""
    tokenizer = small_tokenizer()
    code = tokenizer.convert_tokens_to_ids("de_DE")
    assert (
        language_id(tokenizer, "de")
        == language_id(tokenizer, "de-AT")
        == language_id(tokenizer, "de_DE")
        == code
    )
    with pytest.raises(CheckpointError, match="no language code for 'zh'"):
        language_id(small_tokenizer_without("zh_CN"), "zh")


def small_tokenizer_without(code: str):
    class Trimmed:
        unk_token_id = 3

        def convert_tokens_to_ids(self, token):
            return 3 if token == code else 7

    return Trimmed()


@pytest.mark.parametrize("form", ["mbart50", "cc25"])
def test_text_targets_are_the_encoders_own(form):
    """Each text alone through transformers, special tokens stripped: any batch, order and repetition gives the same."""
    tokenizer, model = small_tokenizer(form), small_mbart()
    text = TextEncoder(model, tokenizer, batch=2)
    texts = [SENTENCES[i] for i in (4, 1, 4, 0)]
    targets = text.encode(texts, ["de"] * 4)
    tokenizer.src_lang = "de_DE"
    for sentence, embeddings, hidden in zip(
        texts,
        targets.embeddings_MD.split(targets.lengths_B.tolist()),
        targets.hidden_MD.split(targets.lengths_B.tolist()),
    ):
        ids = torch.tensor(tokenizer(sentence)["input_ids"])
        own = slice(1, -1) if form == "mbart50" else slice(0, -2)
        states = model.model.encoder(input_ids=ids[None]).last_hidden_state[0]
        torch.testing.assert_close(hidden, states[own], rtol=1e-4, atol=1e-5)
        assert torch.equal(embeddings, model.get_input_embeddings().weight[ids[own]])
    assert not targets.hidden_MD.requires_grad
    empty = text.encode([], [])
    assert empty.embeddings_MD.shape == (0, 12) and empty.lengths_B.shape == (0,)


def test_texts_are_computed_once_and_frozen():
    model = small_mbart()
    text = TextEncoder(model, small_tokenizer())
    first = text.encode(SENTENCES, ["de"] * 5)
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    assert torch.equal(text.encode(SENTENCES, ["de"] * 5).hidden_MD, first.hidden_MD)
    other = text.encode(SENTENCES[:1], ["en"])  # another language is another text
    assert not torch.equal(other.hidden_MD, first.hidden_MD[: len(other.hidden_MD)])


def test_texts_are_kept_in_bounded_memory_and_come_back_the_same():
    model = small_mbart()
    whole = TextEncoder(model, small_tokenizer())
    wanted = whole.encode(SENTENCES, ["de"] * 5)
    least = whole.encode(SENTENCES[:1], ["de"]).hidden_MD.nbytes
    for limit in (0, 2 * least, whole.kept_bytes):
        text = TextEncoder(model, small_tokenizer(), cache_bytes=limit)
        for order in ([0, 1, 2, 3, 4], [4, 0], [3, 3, 1], [0, 1, 2, 3, 4]):
            found = text.encode([SENTENCES[place] for place in order], ["de"] * len(order))
            assert text.kept_bytes == sum(hidden.nbytes for _, hidden in text._kept.values()) <= limit
        torch.testing.assert_close(found.hidden_MD, wanted.hidden_MD)
        assert torch.equal(found.embeddings_MD, wanted.embeddings_MD)


def test_a_model_in_training_mode_gives_the_same_targets():
    quiet = TextEncoder(small_mbart(), small_tokenizer()).encode(SENTENCES, ["de"] * 5)
    noisy = TextEncoder(small_mbart(dropout=0.5).train(), small_tokenizer()).encode(SENTENCES, ["de"] * 5)
    assert torch.equal(quiet.hidden_MD, noisy.hidden_MD)


def test_a_folder_is_loaded_in_float32_and_a_broken_one_refused(tmp_path):
    model, tokenizer = small_mbart().bfloat16(), small_tokenizer()
    folder = tmp_path / "language_model"
    with pytest.raises(CheckpointError, match="no language model at"):
        load_language_model(folder)
    folder.mkdir()
    with pytest.raises(CheckpointError, match="is no Hugging Face model folder"):
        load_language_model(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    loaded, again = load_language_model(folder)
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(loaded.lm_head.weight, model.lm_head.weight.float())
    assert again(SENTENCES[0])["input_ids"] == tokenizer(SENTENCES[0])["input_ids"]
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        load_language_model(folder)
    assert "\n" not in str(caught.value)
