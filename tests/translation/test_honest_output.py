"""What a translation says of itself: score, candidates, warnings, rests, the model and its training data."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from factories.datasets import write_dataset
from factories.training import make_language_folder, tiny_recipe
from factories.videos import write_signing, write_video

from sage_scale.cli import main as command_line
from sage_scale.config import override
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import UsageError
from sage_scale.models.sage.export import save_translator
from sage_scale.models.sage.mbart import load_language_model
from sage_scale.models.sage.model import SageTranslator
from sage_scale.precompute.sample_maker import SampleMaker
from sage_scale.segmentation.rules import B, I, O
from sage_scale.streaming import open_datasets
from sage_scale.training.distributed import Ranks
from sage_scale.training.export import load_translator
from sage_scale.training.familiarity import measure_familiarity, read_familiarity, write_familiarity
from sage_scale.training.model_card import write_card
from sage_scale.translation.result import rests_of
from sage_scale.translation.timeline import write_timeline
from sage_scale.translation.translate import Translator

RECIPE = override(
    tiny_recipe(), ["vision.size=24", "vision.crop=16", "vision.background=median", "evaluation.beams=3"]
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [write_signing(folder / f"clip-{n}.mp4", seed=n, frames=48 + 4 * (n % 3)) for n in range(12)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, videos) -> Path:
    """A run with an untrained model, its card, and what its training clips look like."""
    root = tmp_path_factory.mktemp("runs")
    language_model, tokenizer = load_language_model(make_language_folder(root / "tiny" / "language_model"))
    torch.manual_seed(3)
    model = SageTranslator(RECIPE, language_model)
    export = root / "tiny" / "model"
    save_translator(model, tokenizer, RECIPE, export)
    maker, units = SampleMaker(RECIPE), {"train": videos[:8], "dev": videos[8:]}
    write_dataset(
        root / "shards",
        [
            (split, [maker.make(Clip(id=v.stem, video=str(v), sentence="rot blau", language="de", split=split))
                     for v in paths])
            for split, paths in units.items()
        ],
        RECIPE,
    )  # fmt: skip
    data = open_datasets(str(root / "shards"))
    write_card(export, RECIPE, data)
    model, tokenizer, recipe = load_translator(export)
    alone = Ranks(rank=0, world=1, local_rank=0, device=torch.device("cpu"))
    familiarity = measure_familiarity(recipe, model, tokenizer, data, alone, contextlib.nullcontext)
    assert familiarity is not None
    write_familiarity(export, familiarity)
    return root / "tiny"


@pytest.fixture(scope="module")
def translator(run) -> Translator:
    return Translator(run, device="cpu")


@pytest.fixture(scope="module")
def strict(run, tmp_path_factory) -> Path:
    """The same run, to whose model no signing is familiar."""
    folder = tmp_path_factory.mktemp("strict") / "run"
    shutil.copytree(run / "model", folder / "model")
    familiarity = read_familiarity(folder / "model")
    assert familiarity is not None
    write_familiarity(folder / "model", dataclasses.replace(familiarity, limit=0.1))
    return folder


def call(capsys, *arguments: object) -> tuple[int, str, list[str]]:
    code = command_line.run([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err.splitlines()


def test_familiar_signing_has_a_score_and_its_rank_and_no_warning(translator, videos):
    translation = translator.translate(videos[0])
    assert translation.warnings == () and translation.score <= 0
    assert 0 <= translation.percentile <= 100
    assert translation.model == translator.card.id and "trained on" in translation.trained_on


def test_unfamiliar_signing_is_warned_of_in_terminal_json_and_figure(capsys, strict, videos, tmp_path):
    figure, video = tmp_path / "figure.svg", videos[1]
    arguments = ("translate", video, "--model", strict, "--device", "cpu", "--json", "--figure", figure)
    code, out, err = call(capsys, *arguments)
    (row,) = map(json.loads, out.splitlines())
    (warning,) = row["warnings"]
    assert code == 0 and "looks unlike the training data" in warning
    assert [line for line in err if "warning" in line] == [f"sage-scale: warning: {video}: {warning}"]
    assert "false alarms: 4 of 4 dev clips" in warning
    assert figure.read_text().count("<!-- Warning: this signing looks unlike") == 1


def test_one_line_says_what_the_model_was_trained_on(capsys, run, videos, translator):
    code, out, err = call(capsys, "translate", *videos[:2], "--model", run, "--device", "cpu")
    assert code == 0 and len(out.splitlines()) == 2
    assert err[0] == f"sage-scale: {translator.card.line()}"
    assert sum("trained on" in line for line in err) == 1


def test_json_has_all_of_it(capsys, run, videos, translator):
    arguments = ("translate", videos[1], "--model", run, "--device", "cpu", "--json", "--candidates", 3)
    _, out, _ = call(capsys, *arguments)
    row = json.loads(out)
    assert row["model"] == translator.model_id and re.fullmatch("[0-9a-f]{16}", row["model"])
    assert row["trained_on"] == translator.trained_on and row["warnings"] == []
    scores = [other["score"] for other in row["candidates"]]
    assert 1 <= len(scores) <= 3 and scores == sorted(scores, reverse=True)
    assert row["candidates"][0] == {"sentence": row["sentence"], "score": row["score"]}
    assert {"percentile", "rests_s", "segments_s", "tagger", "language"} <= row.keys()


def test_candidates_are_lines_below_the_sentence(capsys, run, videos, translator):
    code, out, _ = call(capsys, "translate", videos[2], "--model", run, "--device", "cpu", "--candidates", 3)
    first, *others = out.splitlines()
    found = translator.translate(videos[2], candidates=3).candidates
    assert code == 0 and first == found[0].sentence and len(others) == len(found) - 1
    for number, (line, candidate) in enumerate(zip(others, found[1:], strict=True), start=2):
        assert line == f"  {number}. {candidate.sentence} (score {candidate.score:.2f})"


@pytest.mark.parametrize("given", [["--language", "fr"], ["--candidates", "9"], ["--candidates", "0"]])
def test_a_language_not_trained_and_too_many_candidates_are_refused_in_one_line(capsys, run, videos, given):
    code, out, err = call(capsys, "translate", videos[0], "--model", run, "--device", "cpu", *given)
    assert code == 2 and out == "" and len(err) == 1
    assert ("trained on de alone" in err[0]) if "fr" in given else ("evaluation.beams=3" in err[0])


@pytest.mark.parametrize("language", ["", "de", "de_DE", "de-AT", "deu"])
def test_a_trained_language_may_be_written_in_any_form(translator, language):
    assert translator.check(language) == (language or "de")
    with pytest.raises(UsageError, match="trained on de alone"):
        translator.check("en" if language else "no language at all")


def test_a_model_of_0_1_0_says_that_its_data_are_unknown(capsys, run, videos, tmp_path):
    shutil.copytree(run / "model", tmp_path / "model")
    for name in ("card.json", "familiarity.safetensors", "hashes.json"):
        (tmp_path / "model" / name).unlink()
    code, out, err = call(capsys, "translate", videos[0], "--model", tmp_path, "--device", "cpu", "--json")
    row = json.loads(out)
    assert code == 0 and "exported before 0.2.0" in err[0] and "exported before 0.2.0" in row["trained_on"]
    assert row["percentile"] is None and row["score"] <= 0
    code, out, err = call(capsys, "translate", videos[0], "--model", tmp_path, "--language", "tlh")
    assert code in (1, 2) and out == "" and "tlh" in err[-1] and "fault in sage-scale" not in err[-1]


def test_rests_are_the_ends_without_a_sign():
    labels_T = np.array([O] * 10 + [B] + [I] * 20 + [O] * 3 + [B] + [I] * 5 + [O] * 6, np.int8)
    assert rests_of(labels_T, 25.0) == ((0, 10), (40, 46))
    assert rests_of(labels_T[6:-2], 25.0) == ()
    assert rests_of(np.full(30, O, np.int8), 25.0) == ((0, 30),)
    assert rests_of(np.array([B, I, I], np.int8), 25.0) == ()


def test_rests_at_both_ends_are_drawn_and_written(translator, tmp_path):
    """A square that stands still for 20 frames, moves for 40 and stands for 30."""
    pictures = []
    for frame in range(90):
        x = 10 + 8 * (np.clip(frame - 20, 0, 40) % 5)
        picture = np.full((64, 64, 3), 40, np.uint8)
        picture[20:34, x : x + 12] = 220
        pictures.append(picture)
    video = write_video(tmp_path / "rests.mp4", pictures, options={"crf": "18"})
    translation = translator.translate(video)
    (first, last) = translation.rests
    assert first[0] == 0 and first[1] == pytest.approx(20, abs=3)
    assert last[0] == pytest.approx(61, abs=3) and last[1] == 90
    mapping = translation.as_mapping()
    assert mapping["rests_s"] == [[0.0, first[1] / 25], [last[0] / 25, 3.6]]
    write_timeline(translation, tmp_path / "rests.svg")
    assert (tmp_path / "rests.svg").read_text().count('id="rest"') == 2


def test_a_still_video_is_said_to_show_no_sign(translator, tmp_path):
    still = write_video(tmp_path / "still.mp4", [np.full((64, 64, 3), 90, np.uint8)] * 50)
    translation = translator.translate(still)
    assert translation.rests == ((0, 50),)
    assert any("no sign was found" in line for line in translation.warnings)


def test_prepared_clips_together_say_what_each_says_alone(translator, videos):
    clips = [Clip(id=path.stem, video=str(path)) for path in videos[:3]]
    together = translator.translate_prepared([(clip, *translator.prepare(clip)) for clip in clips])
    for path, translation in zip(videos, together, strict=False):
        alone = translator.translate(path)
        assert translation.sentence == alone.sentence and translation.warnings == alone.warnings
        assert translation.video == str(path) and translation.score == pytest.approx(alone.score, abs=1e-3)
