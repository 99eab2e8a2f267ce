"""Pseudo-glosses: content lemmas in order, on real and made sentences."""

from __future__ import annotations

import dataclasses
import gzip
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from sage_scale.config import Text, extension, load_recipe
from sage_scale.errors import RecipeError
from sage_scale.registry import register_tagger
from sage_scale.text import PseudoGlosser, pseudo_glosses, pseudogloss

PHOENIX = Path(__file__).parents[3] / "shared" / "data" / "phoenix14t_text"
HANTA = Text(tagger="hanta")


@pytest.mark.parametrize(
    ("sentence", "glosses"),
    [
        ("am montag regnet es im norden", "montag regnen norden"),
        ("Am Montag regnet es im Norden.", "montag regnen norden"),
        ("AM MONTAG REGNET ES IM NORDEN", "montag regnen norden"),
        ("und nun die wettervorhersage für morgen donnerstag", "nun wettervorhersage morgen donnerstag"),
        ("regen und noch mehr regen", "regen noch regen"),  # repeats are kept (released SAGE)
        ("der wind dreht sich", "wind drehen"),  # and "sich" is not
    ],
)
def test_german_content_lemmas_in_order(sentence, glosses):
    found = pseudo_glosses(sentence, "de", HANTA)
    assert [g for g in found if g in glosses.split()] == glosses.split()
    assert not {"es", "sich", "im", "am", "und", "die", "der", "."} & set(found)


def test_case_of_the_sentence_does_not_change_the_glosses():
    upper = "Im Süden bleibt die Nacht klar und der Himmel voller Sterne"
    assert pseudo_glosses(upper, "de", HANTA) == pseudo_glosses(upper.lower(), "de", HANTA)


def test_english_dutch_and_chinese():
    assert pseudo_glosses("The children played in the garden.", "en-GB", HANTA) == ["child", "play", "garden"]
    assert pseudo_glosses("Morgen regent het in het noorden.", "nl", HANTA)[:2] == ["morgen", "regenen"]
    chinese = pseudo_glosses("明天北京的天气很好。", "zh-Hans", Text(tagger="jieba"))
    assert chinese == ["明天", "北京", "天气", "很", "好"]


def test_every_sentence_has_a_gloss_and_an_empty_one_has_none():
    assert pseudo_glosses("es", "de", HANTA) == ["es"]
    assert pseudo_glosses("in der", "de", HANTA)
    assert pseudo_glosses("  ", "de", HANTA) == []


def test_the_recipe_chooses_parts_of_speech_drops_and_case():
    nouns = dataclasses.replace(HANTA, keep_pos=("NOUN",))
    assert pseudo_glosses("am montag regnet es stark", "de", nouns) == ["montag"]
    dropped = dataclasses.replace(HANTA, drop_lemmas=("montag",))
    assert "montag" not in pseudo_glosses("am montag regnet es", "de", dropped)
    cased = dataclasses.replace(HANTA, lowercase=False)
    assert "Montag" in pseudo_glosses("am montag regnet es", "de", cased)


def test_the_tagger_says_its_name_and_version():
    assert PseudoGlosser("de", HANTA).name.startswith("HanTa 1.")
    assert PseudoGlosser("zh", Text(tagger="jieba")).name.startswith("jieba 0.")


def test_an_installed_spacy_pipeline_is_used_as_it_is(tmp_path, monkeypatch):
    import spacy

    nlp = spacy.blank("de")
    nlp.add_pipe("attribute_ruler").add([[{"LOWER": "regnet"}]], {"POS": "VERB", "LEMMA": "REGNEN!"})
    nlp.to_disk(tmp_path / "de_core_news_sm")
    monkeypatch.setattr(spacy.util, "get_installed_models", lambda: ["de_core_news_sm"])
    load = spacy.load
    monkeypatch.setattr(spacy, "load", lambda name, **options: load(tmp_path / name, **options))
    glosser = PseudoGlosser("de", Text())
    assert glosser("am montag regnet es") == ["regnen!"]
    assert glosser.name.startswith("spaCy de_core_news_sm")


def test_a_registered_tagger_tags(monkeypatch):
    def tag(sentence: str) -> list[SimpleNamespace]:
        words = sentence.split()
        return [SimpleNamespace(text=w, lemma_=w[:3], pos_="NOUN", is_space=False) for w in words]

    monkeypatch.setattr(pseudogloss, "TAGGERS", {})
    monkeypatch.setattr(extension, "_choices", dict(extension._choices))
    register_tagger("mine", lambda language: (tag, "mine 1") if language == "fr" else None)
    settings = load_recipe("demo", ["text.tagger=mine"]).text
    assert pseudogloss.PseudoGlosser("fr-CA", settings)("il pleut") == ["il", "ple"]
    assert pseudogloss.PseudoGlosser("fr", settings).name == "mine 1"
    with pytest.raises(RecipeError, match="no tagger for 'de'"):
        pseudogloss.PseudoGlosser("de", settings)
    pseudogloss.check_tagger("fr", settings)


def test_without_a_tagger_the_way_out_is_named():
    with pytest.raises(RecipeError, match=r"no tagger for 'fr'.*text.target=sentence"):
        PseudoGlosser("fr", Text())
    glosser = PseudoGlosser("fr", Text(target="sentence"))
    assert glosser("Il pleut à Paris.") == ["il", "pleut", "à", "paris"]
    assert "no tagger for 'fr'" in glosser.reason and "none" in glosser.name
    with pytest.raises(RecipeError, match="knows de, en and nl"):
        PseudoGlosser("fr", Text(tagger="hanta"))


def test_phoenix14t_counts():
    """docs/results/phoenix14t_text.md: words as published, lemma types near Sign2GPT's and its code's."""
    if not PHOENIX.is_dir():
        pytest.skip(f"{PHOENIX} is not here: PHOENIX14T's text cannot be counted")
    texts = {}
    for split in ("train", "dev", "test"):
        with gzip.open(PHOENIX / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
            texts[split] = [json.loads(line)["text"] for line in file]
    assert {split: len(rows) for split, rows in texts.items()} == {"train": 7096, "dev": 519, "test": 642}
    assert len({word for text in texts["train"] for word in text.split()}) == 2887
    glosser = PseudoGlosser("de", Text(tagger="hanta"))
    glosses = [glosser(text) for rows in texts.values() for text in rows]
    assert all(glosses)
    types = {gloss for sentence in glosses for gloss in sentence}
    mean = sum(map(len, glosses[:7096])) / 7096
    print(f"{len(types)} types, {mean:.2f} a training sentence ({glosser.name}); paper 2533, its code 2306")
    assert 2000 < len(types) < 2600


@pytest.mark.parametrize("word", ["x" * 200_000, "Donau" * 300, "a1" * 1000])
def test_a_word_that_no_one_writes_costs_no_hours(word) -> None:
    began = time.perf_counter()
    glosses = PseudoGlosser("de", HANTA)(f"Der Regen {word} kommt morgen.")
    assert "regen" in glosses and time.perf_counter() - began < 10
    assert all(gloss == word.lower() or len(gloss) < 20 for gloss in glosses)
