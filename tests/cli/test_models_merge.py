"""`sage-scale models merge`: an export in, plain models out, which may be moved and translate as before."""

from __future__ import annotations

import shutil

import pytest
import torch
from factories.models import SENTENCES
from factories.sign2gpt import language_model, moved, recipe, video, xglm_tokenizer
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from sage_scale.cli.models import app
from sage_scale.errors import CheckpointError, UsageError
from sage_scale.models.sign2gpt.decoder import load_causal_model, make_texts
from sage_scale.models.sign2gpt.export import save_translator
from sage_scale.models.sign2gpt.model import Sign2GptTranslator
from sage_scale.training.export import load_translator


@torch.no_grad()
def test_merged_folder_may_be_moved_and_translates_as_before(tmp_path):
    base, run = tmp_path / "run" / "language_model", tmp_path / "run"
    language_model("xglm").save_pretrained(base)
    xglm_tokenizer().save_pretrained(base)
    torch.manual_seed(0)
    model = moved(Sign2GptTranslator(recipe(), load_causal_model(base)[0])).eval()
    save_translator(model, xglm_tokenizer(), recipe(), run / "model", base)
    out = tmp_path / "merged"
    said = CliRunner().invoke(app, ["merge", str(run), "--out", str(out)])
    assert said.exit_code == 0, said.exception
    assert "a plain XGLMForCausalLM" in said.stdout and "Dinov2Model" in said.stdout
    again = CliRunner().invoke(app, ["merge", str(run), "--out", str(out)])
    assert isinstance(again.exception, UsageError)
    shutil.rmtree(run)
    shutil.move(out, tmp_path / "elsewhere")
    opened, tokenizer, _ = load_translator(tmp_path / "elsewhere")
    texts = make_texts(tokenizer, SENTENCES[:3])
    torch.testing.assert_close(opened(video(), *texts)[0], model(video(), *texts)[0], atol=1e-3, rtol=1e-5)
    _, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "elsewhere" / "language_model", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]


def test_a_sage_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "recipe.yaml").write_text("name: a-sage\n")
    (tmp_path / "model" / "visual.safetensors").write_bytes(b"would fail if it were opened")
    said = CliRunner().invoke(app, ["merge", str(tmp_path), "--out", str(tmp_path / "out")])
    assert isinstance(said.exception, UsageError) and "is a SAGE" in str(said.exception)


def test_nothing_to_merge_is_said_in_one_line(tmp_path):
    said = CliRunner().invoke(app, ["merge", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    assert isinstance(said.exception, CheckpointError) and "\n" not in str(said.exception)
    with pytest.raises(FileNotFoundError):
        (tmp_path / "out").iterdir().__next__()
