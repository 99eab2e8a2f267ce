"""`finetune.glosses`: stage 2 reads the clips' glosses in place of visual tokens, the ceiling of translation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from factories.models import SENTENCES, recipe, small_mbart, small_tokenizer, video
from factories.training import (
    losses,
    make_causal_folder,
    make_language_folder,
    make_shards,
    sign2gpt_recipe,
    tiny_recipe,
)

from sage_scale.config import load_recipe
from sage_scale.errors import RecipeError, UsageError
from sage_scale.models.sage.model import SageTranslator
from sage_scale.shards import open_dataset, read_metadata
from sage_scale.training import evaluate_run
from sage_scale.training.stage import run_stage
from sage_scale.translation.translate import Translator

PLAN = [("train", 64), ("train", 64), ("dev", 4), ("test", 12)]
TRAIN = ("finetune.lr=0.005", "finetune.optimizer=adamw", "finetune.max_steps=180", "finetune.batch_size=24",
         "finetune.epochs=100", "finetune.label_smoothing=0")  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose features say nothing of the sentences, its glosses as gold files and as a table."""
    home = tmp_path_factory.mktemp("ceiling")
    make_shards(home / "shards", tiny_recipe("features"), PLAN)
    make_language_folder(home / "language", width=64)
    (home / "gold").mkdir()
    rows = []
    for meta in read_metadata(open_dataset(home / "shards")):
        glosses = [word.upper() for word in meta["sentence"].split()]
        gold = {"fps": 25, "signs": [{"gloss": gloss, "start": 0, "end": 2} for gloss in glosses]}
        (home / "gold" / f"{meta['id']}.json").write_text(json.dumps(gold))
        rows.append(json.dumps({"id": meta["id"], "glosses": glosses, "sentence": meta["sentence"]}))
    (home / "table.jsonl").write_text("\n".join(rows))
    return home


def train(home: Path, run: str, *changes: str) -> Path:
    chosen = tiny_recipe("features", f"model.language_model={home / 'language'}", *TRAIN, *changes)
    run_stage("finetune", chosen, home / run, str(home / "shards"))
    return home / run


def test_the_translation_is_read_from_the_glosses(home: Path) -> None:
    """Glosses are the sentences' words, so nearly all can be written; without reading there is nothing to know."""
    run = train(home, "gold-run", f"finetune.glosses={home / 'gold'}")
    assert losses(run, "finetune")[-1] < 0.5 * losses(run, "finetune")[0]
    scores = evaluate_run.run(run, str(home / "shards"))
    assert scores["input"] == "glosses" and "token_ratio" not in scores
    assert scores["bleu1"] > 80 and scores["bleu1"] > 30 + scores["controls"]["blank_videos"]["bleu1"]
    assert load_recipe(run / "recipe.yaml").finetune.glosses == str(home / "gold")
    with pytest.raises(UsageError, match="translates no video"):
        Translator(run)


def test_a_table_and_a_folder_of_gold_files_train_the_same(home: Path) -> None:
    few = "finetune.max_steps=3"
    names = (
        "gold",
        "table.jsonl",
        ".",
    )  # the last: a corpus, whose folder `gold` counts, as in `evaluate --gold`
    runs = [train(home, f"same-{name}", f"finetune.glosses={home / name}", few) for name in names]
    assert losses(runs[0], "finetune") == losses(runs[1], "finetune") == losses(runs[2], "finetune")


def test_clips_without_glosses_are_counted_and_none_at_all_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (home / "table.jsonl").read_text().splitlines()
    (tmp_path / "part.jsonl").write_text("\n".join([*rows[:140], "broken"]))
    train(home, "part", f"finetune.glosses={tmp_path / 'part.jsonl'}", "finetune.max_steps=1")
    assert "has none for 4 of 144 clips, the first: 'test-" in capsys.readouterr().err
    (tmp_path / "other.jsonl").write_text(json.dumps({"id": "other", "glosses": "A", "sentence": "a"}))
    for wrong in (tmp_path / "other.jsonl", tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match=r"finetune\.glosses"):
            train(home, "wrong", f"finetune.glosses={wrong}")
    assert not (home / "wrong" / "finetune").exists()


def test_stages_and_scores_do_without_pyav() -> None:
    code = "import sys, sage_scale.training.evaluate_run, sage_scale.models.sage.finetuning; print('av' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_a_language_model_without_glosses_is_refused(home: Path, tmp_path: Path) -> None:
    make_causal_folder(tmp_path / "xglm")
    chosen = sign2gpt_recipe(
        "frames", f"model.language_model={tmp_path / 'xglm'}", f"finetune.glosses={home / 'gold'}"
    )
    make_shards(tmp_path / "shards", chosen, [("train", 2)])
    with pytest.raises(RecipeError, match="reads none"):
        run_stage("finetune", chosen, tmp_path / "run", str(tmp_path / "shards"))


@pytest.mark.parametrize("form", ["mbart50", "cc25"])
def test_glosses_enter_as_text_enters_the_published_model(form: str) -> None:
    """The sentences equal those of `generate` of transformers from the token ids of the same texts."""
    tokenizer, mbart = small_tokenizer(form), small_mbart().eval()
    translator = SageTranslator(recipe(), mbart).eval()
    texts = SENTENCES[:3]
    found = translator.generate(video(), tokenizer, ["de"] * 3, beams=2, max_tokens=8, texts=texts)
    code = tokenizer.convert_tokens_to_ids("de_DE")
    tokenizer.src_lang = "de_DE"
    for text, sentence in zip(texts, found, strict=True):
        given = tokenizer(text, return_tensors="pt")
        start = {"decoder_start_token_id": tokenizer.eos_token_id, "forced_bos_token_id": code}
        if form == "cc25":
            start = {"decoder_start_token_id": code, "forced_bos_token_id": None}
        with torch.no_grad():
            ids = mbart.generate(**given, num_beams=2, max_new_tokens=8, do_sample=False, **start)
        assert sentence == tokenizer.batch_decode(ids, skip_special_tokens=True)[0].strip()
