"""The small XGLM that a run makes of its own sentences: it opens as one, has learnt, and is the same each time."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from sage_scale.config import Denoise
from sage_scale.errors import RecipeError
from sage_scale.models.sign2gpt.causal_model import make_causal_model
from sage_scale.models.sign2gpt.decoder import load_causal_model, make_texts

SMALL = Denoise(enabled=True, vocabulary=60, width=32, layers=1, heads=2, steps=60, max_minutes=0, batch_size=16,
                lr=0.01, dropout=0.0)  # fmt: skip
ROWS = [
    f"{day} {weather} es im {place}"
    for day, weather, place in itertools.product(
        ("heute", "morgen"), ("regnet", "schneit"), ("norden", "süden")
    )
]
GLOSSES = [[row.split()[0], row.split()[1], row.split()[3]] for row in ROWS]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_causal_model(ROWS, GLOSSES, SMALL, tmp_path_factory.mktemp("causal") / "model", dev=ROWS[:3])


def sentence_loss(folder, sentence: str) -> float:
    model, tokenizer = load_causal_model(folder)
    labels, inputs = make_texts(tokenizer, [sentence])
    with torch.no_grad():
        logits = model.eval()(input_ids=inputs).logits
    return float(torch.nn.functional.cross_entropy(logits[0], labels[0]))


def test_it_tells_its_sentences_from_their_words_in_another_order(made):
    for sentence in ROWS[:3]:
        backwards = " ".join(reversed(sentence.split()))
        assert sentence_loss(made, sentence) < 0.6 < 2 < sentence_loss(made, backwards)
    said = json.loads((made / "language.json").read_text())
    assert said["steps"] == 60 and 1 < said["dev_perplexity"] < 2


def test_the_same_text_and_seed_give_the_same_bytes(made, tmp_path):
    again = make_causal_model(ROWS, GLOSSES, SMALL, tmp_path / "model")
    assert (again / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()


def test_nothing_to_learn_from_is_said(tmp_path):
    with pytest.raises(RecipeError, match="training sentences"):
        make_causal_model(["  "], [[]], SMALL, tmp_path)
