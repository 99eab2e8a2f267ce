"""Adapter checkpoints: small, onto their own base models only, and merged into plain ones that transformers opens."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from factories.models import SENTENCES
from factories.sign2gpt import language_model, moved, recipe, video, xglm_tokenizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Dinov2Model

from sage_scale.config import load_recipe, override
from sage_scale.errors import CheckpointError
from sage_scale.models.sign2gpt.checkpoint import load_adapters, save_adapters
from sage_scale.models.sign2gpt.decoder import load_causal_model, make_texts
from sage_scale.models.sign2gpt.export import load_translator, save_translator
from sage_scale.models.sign2gpt.merge import save_merged
from sage_scale.models.sign2gpt.model import Sign2GptTranslator


def translator(kind: str = "xglm", seed: int = 5, **changed) -> Sign2GptTranslator:
    torch.manual_seed(0)
    return Sign2GptTranslator(recipe(**changed), language_model(kind, seed)).eval()


def trained(kind: str = "xglm", **changed) -> Sign2GptTranslator:
    model = moved(translator(kind, **changed))
    model.spatial.norm.running_mean.add_(0.3)
    return model


def loss(model: Sign2GptTranslator) -> torch.Tensor:
    with torch.no_grad():
        return model(video(), *make_texts(xglm_tokenizer(), SENTENCES[:3]))[0]


def test_stored_is_what_trains_and_its_statistics_and_it_loads_onto_the_base(tmp_path):
    model = trained()
    save_adapters(model, recipe(), tmp_path)
    stored = load_file(tmp_path / "adapters.safetensors")
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert stored.keys() == wanted | {"spatial.norm.running_mean", "spatial.norm.running_var"}
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert json.loads((tmp_path / "adapters.json").read_text())["parameters"] == count + 2 * 16
    fresh = translator()
    assert not torch.equal(loss(fresh), loss(model))
    load_adapters(fresh, tmp_path)
    assert torch.equal(loss(fresh), loss(model))


def test_an_export_holds_the_run_s_language_model_also_where_runs_share_one_by_a_link(tmp_path):
    made, language = recipe(), tmp_path / "shared"
    language_model("xglm").save_pretrained(language)
    xglm_tokenizer().save_pretrained(language)
    (tmp_path / "run").mkdir()
    link = tmp_path / "run" / "language_model"
    link.symlink_to(language, target_is_directory=True)
    model = Sign2GptTranslator(made, load_causal_model(link)[0])
    save_translator(model, xglm_tokenizer(), made, tmp_path / "run" / "model", link)
    held = tmp_path / "run" / "model" / "language_model"
    assert not held.is_symlink() and (held / "model.safetensors").is_file()
    load_translator(tmp_path / "run" / "model", made)
    held.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"model/language_model is missing.*copy the whole export"):
        load_translator(tmp_path / "run" / "model", override(made, ["model.language_model="]))


def test_the_same_base_in_bfloat16_is_the_same_base(tmp_path):
    save_adapters(trained(), recipe(), tmp_path)
    load_adapters(translator(language_dtype="bfloat16"), tmp_path)


def test_another_base_another_recipe_and_damage_are_named_in_one_line(tmp_path):
    save_adapters(trained(), recipe(), tmp_path)
    with pytest.raises(CheckpointError, match="another language_model"):
        load_adapters(translator(seed=6), tmp_path)
    other = translator()
    other.spatial.backbone.dino.layernorm.bias.data.add_(1)
    with pytest.raises(CheckpointError, match="another vit_weights"):
        load_adapters(other, tmp_path)
    for changed in ({"lora_rank": 4}, {"layers": 5}, {"positions": "learned_zero"}):
        with pytest.raises(CheckpointError, match="recipe"):
            load_adapters(translator(**changed), tmp_path)
    for name, reason in (("adapters.safetensors", "cannot be read"), ("adapters.json", "damaged")):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:50])
        with pytest.raises(CheckpointError, match=reason) as caught:
            load_adapters(translator(), tmp_path)
        assert "\n" not in str(caught.value)
        (tmp_path / name).write_bytes(whole)
    (tmp_path / "adapters.json").unlink()
    with pytest.raises(CheckpointError, match="no adapters"):
        load_adapters(translator(), tmp_path)


@pytest.mark.parametrize("kind", ["xglm", "gpt_neox", "qwen2"])
@torch.no_grad()
def test_merged_models_open_plainly_and_with_what_lies_beside_translate_the_same(tmp_path, kind):
    model = trained(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merged = save_merged(model, xglm_tokenizer(), recipe(), tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    _, inputs_BL = make_texts(xglm_tokenizer(), SENTENCES[:3])
    plain, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "language_model", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    model.decoder.memory.clear()
    wanted = model.decoder.language_model(input_ids=inputs_BL).logits  # shown no signs
    torch.testing.assert_close(plain(input_ids=inputs_BL).logits, wanted, atol=1e-4, rtol=1e-4)
    assert (language_model(kind)(input_ids=inputs_BL).logits - wanted).abs().max() > 0.01
    _, vit = Dinov2Model.from_pretrained(tmp_path / "vit", output_loading_info=True)
    assert not vit["missing_keys"] and not vit["unexpected_keys"]
    opened = load_recipe(tmp_path / "recipe.yaml")
    assert replace(opened, name=merged.name) == merged
    again = Sign2GptTranslator(opened, load_causal_model(tmp_path / "language_model")[0]).eval()
    load_adapters(again, tmp_path)
    torch.testing.assert_close(loss(again), loss(model), atol=1e-3, rtol=1e-5)
    tokens_ND, lengths_B = model.encode(video())
    torch.testing.assert_close(again.encode(video())[0], tokens_ND, atol=1e-4, rtol=1e-4)
    given = [m.decoder.generate(tokens_ND, lengths_B, xglm_tokenizer(), 4, 8) for m in (model, again)]
    assert given[0] == given[1]
