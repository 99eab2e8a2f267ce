"""The decoder: at the start the frozen model, byte for byte; then equation 1; a cache that changes nothing."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from factories.models import SENTENCES
from factories.sign2gpt import language_model, moved, settings, xglm_tokenizer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from sage_scale.config import Stage
from sage_scale.errors import CheckpointError
from sage_scale.models.sign2gpt.decoder import SignDecoder, load_causal_model, make_texts
from sage_scale.training.optimizer import parameter_groups

KINDS = ("xglm", "gpt_neox", "qwen2")
LENGTHS = torch.tensor([5, 1, 3])


def decoder(kind: str = "xglm", **changed) -> SignDecoder:
    torch.manual_seed(2)
    return SignDecoder(settings(**changed), language_model(kind)).eval()


def tokens() -> Tensor:
    return torch.randn(9, 16, generator=torch.Generator().manual_seed(0))


def texts() -> tuple[Tensor, Tensor]:
    return make_texts(xglm_tokenizer(), SENTENCES[:3])


@pytest.mark.parametrize(
    "kind, dtype",
    [(kind, dtype) for kind in KINDS for dtype in ("float32", "bfloat16", "float16")]
    + [("llama", "float32"), ("mistral", "float32")],
)
@torch.no_grad()
def test_at_step_0_logits_are_the_frozen_models(kind, dtype):
    plain = language_model(kind).to(getattr(torch, dtype))
    _, inputs_BL = texts()
    wanted = plain(input_ids=inputs_BL).logits
    adapted = decoder(kind, language_dtype=dtype)
    hidden = adapted.hidden(tokens(), LENGTHS, inputs_BL)
    got = adapted.language_model.get_output_embeddings()(hidden)
    assert got.dtype == wanted.dtype and torch.equal(got, wanted)
    shown = moved(adapted).hidden(tokens(), LENGTHS, inputs_BL)
    assert not torch.equal(shown, hidden), "the test would not see an adapter that does nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_gates_get_gradient_from_the_first_step_and_frozen_weights_never_change(kind):
    model = decoder(kind).train()
    labels_BL, inputs_BL = texts()
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert set(frozen) and not any("lora" in n or ".cross." in n for n in frozen)
    optimizer = torch.optim.AdamW(trained.values(), lr=0.01, weight_decay=0.1)
    losses = []
    for step in range(8):
        clip_seeds_B = torch.tensor([1, 2, 3]) + step
        loss, count = model(tokens(), LENGTHS, labels_BL, inputs_BL, 0.1, clip_seeds_B)
        optimizer.zero_grad()
        (loss / count).backward()
        if step == 0:
            gates = [p.grad for n, p in trained.items() if n.endswith("gate")]
            assert len(gates) == 3 and all(gate.abs().min() > 0 for gate in gates)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert (name in frozen) == torch.equal(parameter, frozen.get(name, parameter + 1)), name


def cross_by_hand(model: SignDecoder, attention, norm, x_LD: Tensor, signs_SD: Tensor) -> Tensor:
    """Equation 1 for one text and one clip, with merged weights, loops over heads: what is added before the output."""
    out = attention.out_proj
    s = norm(signs_SD)

    def project(name: str, pair, given: Tensor) -> Tensor:
        base = getattr(attention, name).base
        return given @ (base.weight + pair.product()).T + base.bias

    q = project("q_proj", out.cross.query, x_LD)
    k, v = project("k_proj", out.cross.key, s), project("v_proj", out.cross.value, s)
    heads = []
    for head, gate in enumerate(out.cross.gate):
        columns = slice(4 * head, 4 * head + 4)
        weights = (q[:, columns] @ k[:, columns].T / math.sqrt(4)).softmax(-1)
        heads.append(gate.clamp(0, 1) * weights @ v[:, columns])
    return torch.cat(heads, dim=1)


@torch.no_grad()
def test_gated_attention_is_equation_1_and_shares_projections_norm_and_output():
    model = moved(decoder())
    layer = model.language_model.model.layers[1]
    seen = {}
    layer.self_attn.register_forward_pre_hook(lambda _, args, kw: seen.update(x=args[0]), with_kwargs=True)
    layer.self_attn.out_proj.register_forward_hook(lambda _, args, out: seen.update(given=args[0], out=out))
    _, inputs_BL = texts()
    model.hidden(tokens()[:5], LENGTHS[:1], inputs_BL[:1])
    signs_SD = model.memory.features_BSD[0]
    added = cross_by_hand(model, layer.self_attn, layer.self_attn_layer_norm, seen["x"][0], signs_SD)
    out = layer.self_attn.out_proj
    weight = out.base.weight + out.lora.product()
    wanted = (seen["given"][0] + added) @ weight.T + out.base.bias
    torch.testing.assert_close(seen["out"][0], wanted, atol=1e-5, rtol=0)
    assert added.abs().max() > 0.01


def test_gate_is_clamped_and_its_gradient_passes():
    model = moved(decoder())
    labels_BL, inputs_BL = texts()
    gates = [p for n, p in model.named_parameters() if n.endswith("gate")]
    losses = []
    for value in (-0.5, 0.0, 1.0, 1.5):
        for gate in gates:
            gate.data.fill_(value)
            gate.grad = None
        loss, _ = model(tokens(), LENGTHS, labels_BL, inputs_BL)
        loss.backward()
        losses.append(loss.item())
        assert all(gate.grad.abs().min() > 0 for gate in gates), value
    assert losses[0] == losses[1] and losses[2] == losses[3] and losses[1] != losses[2]


@pytest.mark.parametrize("kind", [*KINDS, "llama", "mistral"])
def test_a_clip_does_not_see_the_others_nor_padding(kind):
    model = moved(decoder(kind))
    labels_BL, inputs_BL = texts()
    together, count = model(tokens(), LENGTHS, labels_BL, inputs_BL, 0.1)
    parts = [
        model(part, LENGTHS[[b]], labels_BL[[b]], inputs_BL[[b]], 0.1)[0]
        for b, part in enumerate(tokens().split(LENGTHS.tolist()))
    ]
    torch.testing.assert_close(together, sum(parts), atol=1e-3, rtol=1e-5)
    assert count == sum((row != -100).sum() for row in labels_BL)


def test_loss_is_smoothed_cross_entropy_of_all_logits():
    model = moved(decoder())
    labels_BL, inputs_BL = texts()
    loss, count = model(tokens(), LENGTHS, labels_BL, inputs_BL, 0.1)
    logits = model.language_model.get_output_embeddings()(model.hidden(tokens(), LENGTHS, inputs_BL))
    log = logits.log_softmax(-1)
    smoothed = -(0.9 * log.gather(-1, labels_BL.clamp(min=0)[..., None])[..., 0] + 0.1 * log.mean(-1))
    torch.testing.assert_close(loss, smoothed[labels_BL != -100].sum(), atol=1e-3, rtol=1e-5)
    wanted = F.cross_entropy(logits.flatten(0, 1), labels_BL.flatten(), label_smoothing=0.1)
    torch.testing.assert_close(loss / count, wanted)


def test_text_stands_between_end_marks_and_is_cut_with_its_end_kept():
    tokenizer = xglm_tokenizer()
    labels_BL, inputs_BL = make_texts(tokenizer, SENTENCES)
    for sentence, labels, inputs in zip(SENTENCES, labels_BL, inputs_BL):
        ids = tokenizer(sentence)["input_ids"]  # XGLM's own form: </s> X
        count = int((labels != -100).sum())
        assert inputs[:count].tolist() == ids and labels[:count].tolist() == [*ids[1:], 2]
        assert (inputs[count:] == tokenizer.pad_token_id).all()
    labels_BL, inputs_BL = make_texts(tokenizer, SENTENCES, max_tokens=6)
    assert labels_BL.shape == (5, 5) and (labels_BL[:, -1] == 2).all()


def taught(kind: str) -> SignDecoder:
    """A decoder that has seen the three clips often enough to say something else of each."""
    model = moved(decoder(kind, lora_rank=8, lora_dropout=0.0))
    labels_BL, inputs_BL = texts()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.03)
    with torch.enable_grad():
        for _ in range(40):
            loss, count = model(tokens(), LENGTHS, labels_BL, inputs_BL)
            optimizer.zero_grad()
            (loss / count).backward()
            optimizer.step()
    return model


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_beam_search_with_its_caches_equals_one_without(kind):
    model = taught(kind)
    sentences = model.generate(tokens(), LENGTHS, xglm_tokenizer(), beams=4, max_tokens=12)
    assert model.memory.features_BSD is None
    again, scores = [], []
    for b, part in enumerate(tokens().split(LENGTHS.tolist())):
        # A row for each beam, nothing kept.
        model._set_features(part.repeat(4, 1), LENGTHS[[b]].repeat(4), None, 1)
        ids = model.language_model.generate(
            input_ids=torch.tensor([[2]]), attention_mask=torch.tensor([[1]]), num_beams=4, max_new_tokens=11,
            do_sample=False, use_cache=False, eos_token_id=2, pad_token_id=1, return_dict_in_generate=True,
            output_scores=True,
        )  # fmt: skip
        again += xglm_tokenizer().batch_decode(ids.sequences[:, 1:], skip_special_tokens=True)
        scores += ids.sequences_scores.tolist()
    found = model.search(tokens(), LENGTHS, xglm_tokenizer(), beams=4, max_tokens=12, count=3)
    assert [candidates[0].sentence for candidates in found] == sentences
    assert [candidates[0].score for candidates in found] == pytest.approx(scores, abs=1e-4)
    assert all(len(candidates) > 1 for candidates in found)
    assert sentences == [text.strip() for text in again]
    assert len(set(sentences)) == 3, "each clip has a sentence of its own"


@torch.no_grad()
def test_keys_of_signs_are_made_once_for_all_steps_and_beams():
    model = moved(decoder())
    made = []
    for layer in model.language_model.model.layers:
        layer.self_attn.out_proj.cross.key.register_forward_hook(lambda _, args, out: made.append(out.shape))
    model.generate(tokens(), LENGTHS, xglm_tokenizer(), beams=4, max_tokens=10)
    assert made == [(3, 5, 16)] * 3


def test_recomputed_layers_give_the_same_gradients():
    plain = moved(decoder()).train()
    again = copy.deepcopy(plain)
    again.language_model.activation_checkpointing_enable({"use_reentrant": False})
    labels_BL, inputs_BL = texts()
    for model in (plain, again):
        model(tokens(), LENGTHS, labels_BL, inputs_BL, 0.1, torch.tensor([1, 2, 3]))[0].backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), again.named_parameters()):
        if a.requires_grad:
            torch.testing.assert_close(b.grad, a.grad, msg=name)


def test_draws_decide_loras_dropout_and_nothing_else_is_dropped():
    model = moved(decoder()).train()
    labels_BL, inputs_BL = texts()

    def loss(seeds) -> float:
        return model(tokens(), LENGTHS, labels_BL, inputs_BL, 0.0, seeds)[0].item()

    clip_seeds_B = torch.tensor([1, 2, 3])
    assert loss(clip_seeds_B) == loss(clip_seeds_B) != loss(clip_seeds_B + 1)
    still = moved(decoder(lora_dropout=0.0)).train()
    assert still(tokens(), LENGTHS, labels_BL, inputs_BL)[0].item() == pytest.approx(
        still.eval()(tokens(), LENGTHS, labels_BL, inputs_BL)[0].item()
    )


@pytest.mark.parametrize("along", [0.0, 0.1])
def test_no_clips_give_no_loss_and_reach_every_trained_parameter(along):
    model = decoder(language_lr_scale=along).train()
    empty = torch.zeros(0, 3, dtype=torch.int64)
    none = torch.zeros(0, dtype=torch.int64)
    loss, count = model(torch.zeros(0, 16, requires_grad=True), none, empty, empty, 0.1, none)
    loss.backward()
    assert loss.item() == 0 and count == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", KINDS)
def test_a_language_model_trained_along_has_a_rate_of_its_own(kind):
    plain = sum(p.numel() for p in language_model(kind).parameters())
    frozen, along = (decoder(kind, language_lr_scale=scale) for scale in (0.0, 0.1))
    trained = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (frozen, along)]
    assert trained[1] - trained[0] == plain
    counts = {
        scale: sum(p.numel() for group in parameter_groups(along, Stage()) for p in group["params"]
                   if group["lr_scale"] == scale)
        for scale in (0.1, 1.0)
    }  # fmt: skip
    assert counts == {0.1: plain, 1.0: trained[0]}


@pytest.mark.parametrize("positions", ["none", "sine", "learned_zero", "learned_random"])
def test_positions_before_the_linear_layer(positions):
    model = moved(decoder(positions=positions))
    x = tokens()[:1].expand(4, 16)
    model._set_features(x, torch.tensor([4]), None, 1)
    rows = model.memory.features_BSD[0]
    assert torch.allclose(rows[0], rows[3]) == (positions == "none")


def test_other_families_and_missing_folders_are_refused_in_one_line(tmp_path):
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=50))
    with pytest.raises(CheckpointError, match=r"'gpt2'.*xglm"):
        SignDecoder(settings(), gpt2)
    with pytest.raises(CheckpointError, match="no language model"):
        load_causal_model(tmp_path)
    gpt2.save_pretrained(tmp_path / "gpt2")
    xglm_tokenizer().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(CheckpointError, match="no adapters"):
        load_causal_model(tmp_path / "gpt2")
    model = language_model("xglm")
    model.save_pretrained(tmp_path / "xglm")
    xglm_tokenizer().save_pretrained(tmp_path / "xglm")
    loaded, tokenizer = load_causal_model(tmp_path / "xglm", "bfloat16")
    assert loaded.dtype == torch.bfloat16 and len(tokenizer) == len(xglm_tokenizer())
