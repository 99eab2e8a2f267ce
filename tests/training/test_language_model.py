"""The denoising language model: its noise, and that a small one learns to make sentences of lemmas."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer, MBart50Tokenizer, MBartForConditionalGeneration

from sage_scale.config import Denoise
from sage_scale.errors import RecipeError
from sage_scale.evaluation import prior_sentence, score
from sage_scale.models.sage import denoising as language_model
from sage_scale.models.sage.denoising import make_language_model, sentences_from_glosses
from sage_scale.text.tokenizer import load_tokenizer, set_language, train_sentencepiece
from sage_scale.training.language.noise import Noise, infill, shuffle_lightly, units

DAYS = ["montag", "dienstag", "mittwoch", "freitag", "sonntag"]
PLACES = ["norden", "süden", "westen", "osten", "allgäu"]
WEATHER = {"regnen": "regnet es", "schneien": "schneit es", "stürmen": "stürmt es"}
CORPUS = [
    (f"am {day} {words} im {place}", [day, lemma, place])
    for day in DAYS
    for place in PLACES
    for lemma, words in WEATHER.items()
]
TINY = Denoise(
    enabled=True,
    glosses=0.6,
    recombined=0.6,
    vocabulary=90,
    width=64,
    layers=1,
    heads=2,
    steps=160,
    batch_size=32,
    lr=6e-3,
    dropout=0.0,
    max_minutes=5,
)


@pytest.fixture(scope="module")
def corpus():
    pairs = list(CORPUS)
    random.Random(0).shuffle(pairs)
    return pairs[:60], pairs[60:]


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    train, unseen = corpus
    lines: list[str] = []
    folder = make_language_model(
        *zip(*train),
        TINY,
        tmp_path_factory.mktemp("lm"),
        "de",
        seed=1,
        progress=lines.append,
        dev=tuple(zip(*unseen)),
    )
    return folder, lines


def test_it_makes_unseen_sentences_of_their_lemmas(made, corpus):
    folder, lines = made
    train, unseen = corpus
    model = MBartForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    german = tokenizer.convert_tokens_to_ids("de_DE")
    references = [sentence for sentence, _ in unseen]
    made_of = sentences_from_glosses(model, tokenizer, [glosses for _, glosses in unseen], german)
    found = score(made_of, references, "de")["bleu4"]
    blind = score([prior_sentence([s for s, _ in train])] * len(unseen), references, "de")["bleu4"]
    assert found > 80 > 2 * blind
    report = json.loads((folder / "denoise.json").read_text())
    assert report["dev_gloss_to_text_bleu4"] == pytest.approx(found, abs=0.01)
    assert report["steps"] == TINY.steps and not report["cut_short"]
    assert any("160 steps" in line for line in lines)


def test_the_folder_is_mbart50s_form(made):
    folder, _ = made
    model = MBartForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = load_tokenizer(folder, "de")
    assert type(tokenizer) is MBart50Tokenizer and len(tokenizer) == model.config.vocab_size
    assert model.config.decoder_start_token_id == tokenizer.eos_token_id == 2
    assert model.lm_head.weight is model.model.shared.weight
    assert (folder / "model.safetensors").is_file() and not list(folder.glob("*.bin"))
    german = tokenizer.convert_tokens_to_ids("de_DE")
    ids = torch.tensor([tokenizer("montag regnen norden", add_special_tokens=False).input_ids])
    embeds = model.get_input_embeddings()(
        ids
    )  # with mBART's sqrt(d): the same as token ids, so the same sentence
    common = {"num_beams": 4, "max_new_tokens": 30, "forced_bos_token_id": german}
    from_embeds = model.generate(inputs_embeds=embeds, attention_mask=torch.ones_like(ids), **common)
    from_ids = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **common)
    assert torch.equal(from_embeds, from_ids)
    assert from_ids[0, :2].tolist() == [2, german] and from_ids[0, -1] == 2


def test_the_same_seed_gives_the_same_bytes(corpus, tmp_path):
    train, _ = corpus
    few = replace(TINY, steps=4)

    def weights(name, seed):
        folder = make_language_model(*zip(*train), few, tmp_path / name, "de", seed=seed)
        return (folder / "model.safetensors").read_bytes()

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = weights("a", 3)
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's random numbers move
    torch.manual_seed(6)
    assert weights("b", 3) == first
    assert weights("c", 4) != first


def test_the_budget_ends_training_and_is_reported(corpus, tmp_path):
    train, _ = corpus
    folder = make_language_model(*zip(*train), replace(TINY, steps=10**6, max_minutes=0.02), tmp_path, "de")
    report = json.loads((folder / "denoise.json").read_text())
    assert 30 <= report["steps"] < 10**5
    assert report["cut_short"] == f"{report['steps']:,} of 1,000,000 steps: max_minutes=0.02 ended it"


def test_nothing_to_train_on_is_said(tmp_path):
    with pytest.raises(RecipeError, match="needs training sentences"):
        make_language_model([" "], [[]], TINY, tmp_path)


def test_infilling_masks_at_most_its_share_and_keeps_the_order():
    rng = random.Random(0)
    masked = []
    for _ in range(300):
        length = rng.randint(1, 25)
        sentence = [[10 + i] for i in range(length)]
        noisy = infill(sentence, 0.35, 1, rng)
        kept = [unit for unit in noisy if unit != [1]]
        assert kept == [unit for unit in sentence if unit in kept]
        assert length - len(kept) <= round(0.35 * length)
        masked.append((length - len(kept)) / length)
    assert 0.25 < sum(masked) / len(masked) <= 0.36
    assert infill([[5], [6]], 0.0, 1, rng) == [[5], [6]]


def test_a_light_shuffle_moves_nothing_far():
    rng = random.Random(1)
    for reach in (1.0, 2.5, 4.0):
        for _ in range(50):
            order = shuffle_lightly(list(range(12)), reach, rng)
            assert sorted(order) == list(range(12))
            for i, early in enumerate(order):
                assert all(early - later < reach for later in order[i + 1 :])


def test_units_are_words_and_rebuild_the_text():
    tokenizer = train_sentencepiece([sentence for sentence, _ in CORPUS], 60)
    for text in ("am montag regnet es im norden", "sommerregen"):
        found = units(tokenizer, text)
        flat = [number for unit in found for number in unit]
        assert tokenizer.decode(flat) == text
        assert len(found) == (len(text.split()) if " " in text else len(flat))


def test_each_language_is_denoised_under_its_own_code(corpus, tmp_path, monkeypatch):
    train, unseen = corpus
    languages = ["de" if number % 2 else "zh-CN" for number in range(len(train))]
    made: list[Noise] = []
    monkeypatch.setattr(language_model, "Noise", lambda *given: made.append(Noise(*given)) or made[0])
    folder = make_language_model(
        *zip(*train),
        replace(TINY, steps=4, recombined=0.0),
        tmp_path,
        languages,
        dev=tuple(zip(*unseen[:2])),
        dev_language=["zh", "de"],
    )
    tokenizer = load_tokenizer(folder)
    codes = dict(zip(("de", "zh-CN"), tokenizer.convert_tokens_to_ids(["de_DE", "zh_CN"])))
    of = {sentence: codes[tag] for (sentence, _), tag in zip(train, languages)}
    for step in range(3):
        for labels in made[0].batch(step)["labels_BL"].tolist():
            row = [number for number in labels if number != -100]
            sentence = tokenizer.decode(row, skip_special_tokens=True)
            assert row[0] == of[sentence], sentence
    assert "dev_gloss_to_text_bleu4" in json.loads((folder / "denoise.json").read_text())


def test_batches_are_mbart50s_and_every_sentence_comes_once_an_epoch(corpus):
    train, _ = corpus
    tokenizer = train_sentencepiece([s for s, _ in train] + [g for _, gs in train for g in gs], 90)
    german = set_language(tokenizer, "de")
    examples = [(units(tokenizer, s), [units(tokenizer, g) for g in gs]) for s, gs in train]
    noise = Noise(examples, [], german, tokenizer, replace(TINY, batch_size=20), 0, 320)
    seen: Counter[str] = Counter()
    for step in range(3):  # 60 sentences in batches of 20
        batch = noise.batch(step)
        again = noise.batch(step)
        assert all(torch.equal(batch[key], again[key]) for key in batch)
        for labels, inputs in zip(batch["labels_BL"].tolist(), batch["decoder_input_ids_BL"].tolist()):
            row = [number for number in labels if number != -100]
            assert row[0] == german and row[-1] == tokenizer.eos_token_id
            assert inputs[: len(row)] == [tokenizer.eos_token_id, *row[:-1]]
            seen[tokenizer.decode(row, skip_special_tokens=True)] += 1
        assert (batch["mask_BM"] == (batch["input_ids_BM"] != tokenizer.pad_token_id)).all()
    assert seen == Counter(sentence for sentence, _ in train)
