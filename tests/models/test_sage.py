"""SAGE's two models: their losses against the equations, generation against transformers' own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from factories.models import (
    CLIPS,
    SENTENCES,
    features_recipe,
    moved_norms,
    recipe,
    small_mbart,
    small_mbart_config,
    small_tokenizer,
    video,
)
from torch.utils.flop_counter import FlopCounterMode

from sage_scale.config import Clcl
from sage_scale.errors import CheckpointError
from sage_scale.losses import clcl_loss, clcl_similarity
from sage_scale.losses.neighbours import neighbour_loss
from sage_scale.losses.tokens import pad_packed
from sage_scale.models.sage.describe import describe
from sage_scale.models.sage.mbart import TextEncoder, language_id, make_labels
from sage_scale.models.sage.model import SageAligner, SageTranslator, load_visual
from sage_scale.vision.packed import PackedVideo

TOKENS = [len(clip) for clip in CLIPS]


def aligner(**clcl: object) -> SageAligner:
    torch.manual_seed(0)
    made = replace(recipe(context_layers=1, dropout=0.0), clcl=Clcl(**clcl))
    return moved_norms(SageAligner(made, small_mbart()))


def targets(clips: list[int] | None = None):
    texts = [SENTENCES[clip] for clip in (range(3) if clips is None else clips)]
    return TextEncoder(small_mbart(), small_tokenizer()).encode(texts, ["de"] * len(texts))


@pytest.mark.parametrize("beta", [0.0, 0.6, 1.0])
def test_the_stage_1_loss_is_equation_5(beta):
    model = aligner(beta=beta, alpha=0.3, scale_init=200.0).eval()
    total, parts = model(video(), targets())
    L, hidden = model.encode(video())
    n, text = video().clip_segments_B, targets()
    scale = 100.0  # clamped
    CE = clcl_loss(*clcl_similarity(L, text.embeddings_MD, n, text.lengths_B), scale, 0.3)
    HS = torch.zeros(())
    if beta < 1:
        HS = clcl_loss(*clcl_similarity(hidden, text.hidden_MD, n, text.lengths_B), scale, 0.3)
    torch.testing.assert_close(total, beta * CE + (1 - beta) * HS)
    assert parts["scale_embedding"].item() == pytest.approx(100) and not parts["scale_hidden"].requires_grad
    assert ("loss_embedding" in parts) == (beta > 0) and ("loss_hidden" in parts) == (beta < 1)


def test_a_level_without_weight_costs_no_work():
    """At beta=1 the context encoder sees no clip, and no text is encoded; at beta=0 one level's products are left."""

    def operations(times: int, context: int, beta: float) -> int:
        torch.manual_seed(0)
        made = with_context(context, Clcl(beta=beta))
        model = SageAligner(made, small_mbart()).train()
        lengths = CLIPS * times
        packed = video(lengths=lengths)
        text = TextEncoder(small_mbart(), small_tokenizer(), hidden=beta < 1).encode(
            SENTENCES[:3] * times, ["de"] * len(lengths)
        )
        assert (text.hidden_MD.shape[1] == 0) == (beta == 1)
        with FlopCounterMode(display=False) as counter:
            model(packed, text)[0].backward()
        return counter.get_total_flops()

    one = [operations(times, 1, 1.0) - operations(times, 0, 1.0) for times in (1, 4)]
    assert one[0] == one[1]  # of one token of zeros, whatever the batch
    assert operations(4, 1, 0.0) < operations(4, 1, 0.5)


def test_added_terms_are_added_by_their_weights():
    """SignCL's over the frames before pooling, and the sentence's cross-entropy; neither changes equation 5."""
    made = replace(recipe(context_layers=1, dropout=0.0), clcl=Clcl(neighbours=0.25, sentence=0.5))
    torch.manual_seed(0)
    model = moved_norms(SageAligner(made, small_mbart())).eval()
    text = with_sentences(targets())
    total, parts = model(video(), text)
    frames_FD, frames_B, _ = model.visual.with_frames(video())
    near = neighbour_loss(frames_FD, frames_B, text.lengths_B) / 3
    assert frames_B.tolist() == [sum(clip) for clip in CLIPS]
    torch.testing.assert_close(parts["loss_neighbours"], near)
    eq5 = 0.6 * parts["loss_embedding"] + 0.4 * parts["loss_hidden"]
    torch.testing.assert_close(total, eq5 + 0.25 * near + 0.5 * parts["loss_sentence"])


@pytest.mark.parametrize("layers", [0, 1])
def test_the_sentence_decoder_is_transformers_own(layers):
    """With its weights, a model of as many decoder layers has the same loss a label on the same hidden states."""
    made = with_context(layers, Clcl(beta=1.0, sentence=0.5))
    made = replace(made, pretrain=replace(made.pretrain, label_smoothing=0.0))
    torch.manual_seed(0)
    model = moved_norms(SageAligner(made, small_mbart())).eval()
    text = with_sentences(targets())
    _, parts = model(video(), text)
    tokens_ND, hidden_ND = model.encode(video())
    states, mask = pad_packed(tokens_ND if hidden_ND is None else hidden_ND, video().clip_segments_B)
    expected = small_mbart()(
        encoder_outputs=(states,), attention_mask=mask.long(), decoder_input_ids=text.inputs_BL, labels=text.labels_BL
    )  # fmt: skip
    torch.testing.assert_close(parts["loss_sentence"], expected.loss)


def with_context(layers: int, clcl: Clcl):
    made = replace(recipe(context_layers=1, dropout=0.0), clcl=clcl)
    return replace(made, model=replace(made.model, context_layers=layers))


def with_sentences(text):
    labels, inputs = make_labels(small_tokenizer(), SENTENCES[:3], ["de"] * 3)
    return replace(text, labels_BL=labels, inputs_BL=inputs)


@pytest.mark.parametrize("loss", ["clcl", "clip", "maxsim", "siglip"])
@pytest.mark.parametrize("implementation", ["reference", "tiled"])
@pytest.mark.parametrize("start", [1 / 0.07, 100.0])
def test_the_logarithm_of_each_scale_is_trained(loss, implementation, start):
    """d loss / d log(scale) by differences of the loss itself, at the bound as well as below it."""
    model = aligner(loss=loss, implementation=implementation, scale_init=start).eval().double()
    given = targets()
    text = replace(given, embeddings_MD=given.embeddings_MD.double(), hidden_MD=given.hidden_MD.double())

    def share(**logarithms: float) -> torch.Tensor:
        for name, value in logarithms.items():
            model.get_parameter(name).data.fill_(value)
        return model(video(), text)[0]

    share().backward()
    for name in ("log_scale_embedding", "log_scale_hidden"):
        at = model.get_parameter(name).item()
        first = 10.0 if loss == "siglip" and start < 100 else start
        assert at == pytest.approx(math.log(first), rel=1e-6)
        step = 1e-4
        slope = (share(**{name: at + step}) - share(**{name: at - step})).item() / (2 * step)
        assert model.get_parameter(name).grad.item() == pytest.approx(slope, rel=1e-5) and abs(slope) > 1e-3
        share(**{name: at})


@pytest.mark.parametrize("beta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(
    "added", [{}, {"loss": "siglip", "neighbours": 0.1, "sentence": 0.1}], ids=["", "terms"]
)
def test_every_parameter_gets_a_gradient_with_clips_or_without(beta, added):
    """ZeRO reduces gradients in buckets: a rank without clips, or a level without weight, must not skip any."""
    for clips in ([0, 1, 2], []):
        model = aligner(beta=beta, **added)
        labels, inputs = make_labels(
            small_tokenizer(), [SENTENCES[clip] for clip in clips], ["de"] * len(clips)
        )
        share, _ = model(video(clips), replace(targets(clips), labels_BL=labels, inputs_BL=inputs))
        share.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
        if not clips:
            assert share.item() == 0 and all(p.grad.abs().sum() == 0 for p in model.parameters())
    assert all(p.dim() > 0 for p in model.parameters())


def test_no_batch_changes_a_clips_tokens_in_training():
    """Dropout in mapper and context encoder follows the clip's number (statistics frozen)."""
    torch.manual_seed(0)
    made = recipe(context_layers=2, dropout=0.4, batchnorm="frozen")
    model = moved_norms(SageAligner(made, small_mbart())).train()
    together = [part.split(TOKENS) for part in model.encode(video())]
    for order in ([1], [2, 0]):
        found = [part.split([TOKENS[clip] for clip in order]) for part in model.encode(video(order))]
        for level in (0, 1):
            for place, clip in enumerate(order):
                torch.testing.assert_close(found[level][place], together[level][clip], rtol=1e-4, atol=1e-5)
    still = model.eval().encode(video())[1]
    assert (still - torch.cat(together[1])).abs().max() > 0.01


def test_the_context_encoder_starts_as_the_language_models():
    model, language_model = aligner(), small_mbart()
    own, theirs = model.context.state_dict(), language_model.model.encoder.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in own.items())
    with pytest.raises(CheckpointError, match="has 2 layers to copy"):
        SageAligner(recipe(context_layers=3), language_model)
    without = replace(recipe(), clcl=Clcl(beta=1.0), model=replace(recipe().model, context_layers=0))
    assert SageAligner(without, language_model).encode(video())[1] is None


def translator(made=None) -> SageTranslator:
    torch.manual_seed(0)
    return moved_norms(SageTranslator(made or recipe(dropout=0.0), small_mbart())).eval()


def test_the_stage_2_loss_is_label_smoothed_and_leaves_padding_out():
    """(1 - e) times the label's and e times the mean of all subwords' -log p, clip by clip, no padding anywhere."""
    model = translator()
    labels, inputs = make_labels(small_tokenizer(), SENTENCES[:3], ["de"] * 3)
    loss, count = model(video(), labels, inputs, label_smoothing=0.2)
    tokens = model.encode_tokens(video()).split(TOKENS)
    total = 0.0
    for clip in range(3):
        length = int((labels[clip] != -100).sum())
        given = inputs[clip : clip + 1, :length]
        logits = model.language_model(inputs_embeds=tokens[clip][None], decoder_input_ids=given)
        surprise = -logits.logits[0].log_softmax(-1)
        for place in range(length):
            total += 0.8 * surprise[place, labels[clip, place]] + 0.2 * surprise[place].mean()
    torch.testing.assert_close(loss, total, rtol=1e-4, atol=1e-4)
    assert count.item() == int((labels != -100).sum())


def test_parts_of_a_batch_sum_to_the_batch_and_kept_tokens_are_the_same():
    model = translator()
    labels, inputs = make_labels(small_tokenizer(), SENTENCES[:3], ["de"] * 3)
    whole = model(video(), labels, inputs, 0.1)
    parts = [model(video([clip]), labels[clip : clip + 1], inputs[clip : clip + 1], 0.1) for clip in range(3)]
    torch.testing.assert_close(sum(part[0] for part in parts), whole[0], rtol=1e-4, atol=1e-4)
    assert sum(part[1] for part in parts) == whole[1]
    kept = model.forward_tokens(model.encode_tokens(video()), video().clip_segments_B, labels, inputs, 0.1)
    assert torch.equal(kept[0], whole[0])


def test_no_micro_batch_changes_the_loss_in_training():
    """Dropout in mapper and mBART follows the clip's number: parts of a batch sum to the batch, drop for drop."""
    made = recipe(dropout=0.3, batchnorm="frozen")
    torch.manual_seed(0)
    model = moved_norms(SageTranslator(made, small_mbart(dropout=0.2))).train()
    labels, inputs = make_labels(small_tokenizer(), SENTENCES[:3], ["de"] * 3)
    whole = model(video(), labels, inputs, 0.1)[0]
    parts = [
        model(video([clip]), labels[clip : clip + 1], inputs[clip : clip + 1], 0.1)[0] for clip in (2, 0, 1)
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-4, atol=1e-4)
    other = model(replace(video(), clip_seeds_B=torch.tensor([5, 6, 7])), labels, inputs, 0.1)[0]
    assert (other - whole).abs() > 0.01


def test_no_clips_cost_nothing_and_leave_zero_gradients():
    model = translator().train()
    labels, inputs = make_labels(small_tokenizer(), [], [])
    loss, count = model(video([]), labels, inputs, 0.1)
    loss.backward()
    assert loss.item() == 0 and count.item() == 0
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in model.parameters())
    assert model.generate(video([]), small_tokenizer(), []) == []


@pytest.mark.parametrize("form", ["mbart50", "cc25"])
def test_generation_is_transformers_own(form, monkeypatch):
    """Visual tokens that equal a text's scaled embeddings give what `generate` gives for the text's ids."""
    tokenizer, model = small_tokenizer(form), translator()
    mbart = model.language_model
    tokenizer.src_lang = "de_DE"
    ids = [torch.tensor(tokenizer(sentence)["input_ids"]) for sentence in SENTENCES]
    lengths = torch.tensor([len(row) for row in ids])
    tokens = torch.cat(
        [mbart.get_input_embeddings()(row) for row in ids]
    )  # with mBART's own scale, sqrt(d_model)
    monkeypatch.setattr(model, "encode_tokens", lambda _: tokens)
    clips = PackedVideo(segment_frames_N=torch.ones(len(tokens), dtype=torch.int64), clip_segments_B=lengths)
    found = model.generate(clips, tokenizer, ["de"] * 5, beams=4, max_tokens=12, length_penalty=0.7)
    code = tokenizer.convert_tokens_to_ids("de_DE")
    start = (
        {"decoder_start_token_id": tokenizer.eos_token_id, "forced_bos_token_id": code}
        if form == "mbart50"
        else {"decoder_start_token_id": code}
    )
    padded, mask = pad_packed(torch.cat(ids), lengths)
    padded = padded.masked_fill(~mask, tokenizer.pad_token_id)
    wanted = mbart.generate(
        input_ids=padded,
        attention_mask=mask.long(),
        num_beams=4,
        max_new_tokens=12,
        length_penalty=0.7,
        **start,
    )
    wanted = [sentence.strip() for sentence in tokenizer.batch_decode(wanted, skip_special_tokens=True)]
    assert found == wanted and any(wanted)


def test_generation_in_several_languages_keeps_the_order():
    tokenizer, model = small_tokenizer(), translator()
    one_by_one = [
        model.generate(video([clip]), tokenizer, [language], max_tokens=10)[0]
        for clip, language in zip(range(3), ("de", "en", "de"))
    ]
    assert model.generate(video(), tokenizer, ["de", "en", "de"], max_tokens=10) == one_by_one


def test_stage_1_hands_over_visual_encoder_and_mapper():
    first, second = aligner(), translator()
    nothing = {name: value.clone() for name, value in second.language_model.state_dict().items()}
    load_visual(second, first.state_dict())
    torch.testing.assert_close(second.encode_tokens(video()), first.eval().encode(video())[0])
    assert all(
        torch.equal(value, nothing[name]) for name, value in second.language_model.state_dict().items()
    )
    with pytest.raises(CheckpointError, match=r"lacks 1 weights, such as mapper\.linears\.0\.weight"):
        load_visual(second, {k: v for k, v in first.state_dict().items() if k != "mapper.linears.0.weight"})
    with pytest.raises(
        CheckpointError, match=r"visual\.temporal\.weight is \(8, 6, 5\), the recipe's \(8, 6, 3\)"
    ):
        load_visual(translator(recipe(conv_kernel=3)), first.state_dict())


def test_full_size_has_the_published_counts():
    """ResNet-34 without its classifier and mBART-large-50 with its whole vocabulary, from the meta device."""
    from sage_scale.config import load_recipe

    parts = {part.name: part for part in describe(load_recipe("sage-phoenix14t"))}
    assert parts["frame encoder"].parameters == 21_284_672
    assert parts["language model"].parameters == 610_879_488
    assert parts["temporal convolution"].parameters == 5 * 512 * 1024 + 1024 + 2 * 1024
    assert parts["vision-to-language mapper"].parameters == 3 * (2 * 1024 + 1024 * 1024 + 1024)
    layer = 4 * (1024 * 1024 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 2 * 2 * 1024
    assert parts["context encoder (stage 1)"].parameters == 3 * layer + 1026 * 1024 + 2 * 2 * 1024
    assert parts["language model"].stage1 == 0 and parts["context encoder (stage 1)"].stage2 == 0


def test_the_description_counts_what_is_built(tmp_path):
    made = features_recipe(context_layers=1)
    small_mbart_config().save_pretrained(tmp_path)
    made = replace(made, model=replace(made.model, language_model=str(tmp_path)))
    parts = describe(made)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert sum(part.stage1 for part in parts) == count(SageAligner(made, small_mbart()))
    assert sum(part.stage2 for part in parts) == count(SageTranslator(made, small_mbart()))
    with pytest.raises(CheckpointError, match="is no folder with"):
        describe(replace(made, model=replace(made.model, language_model="nowhere")))


@pytest.mark.parametrize("beams", [2, 4])
def test_scores_of_candidates_are_those_by_which_beam_search_ranks(beams):
    """With a length penalty of 1 they equal `sequences_scores` of transformers, and fall from first to last."""
    model, tokenizer = translator(), small_tokenizer()
    model.language_model.final_logits_bias[0, tokenizer.eos_token_id] += 1.5  # else none of them ends
    tokens, lengths = model.visual_tokens(video())
    found = model.search(tokens, lengths, tokenizer, ["de"] * 3, beams, 40, count=beams)
    for clip, given in enumerate(model.encode_tokens(video()).split(TOKENS)):
        wanted = model.language_model.generate(
            inputs_embeds=given[None],
            attention_mask=torch.ones(1, len(given), dtype=torch.int64),
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=40,
            do_sample=False,
            decoder_start_token_id=tokenizer.eos_token_id,
            forced_bos_token_id=language_id(tokenizer, "de"),
            return_dict_in_generate=True,
            output_scores=True,
        )
        texts = [text.strip() for text in tokenizer.batch_decode(wanted.sequences, skip_special_tokens=True)]
        scores: dict[str, float] = {}
        for text, score in zip(texts, wanted.sequences_scores.tolist(), strict=True):
            scores.setdefault(text, score)
        assert [candidate.sentence for candidate in found[clip]] == list(scores)
        assert [candidate.score for candidate in found[clip]] == pytest.approx(
            list(scores.values()), abs=1e-4
        )
    best = model.generate(video(), tokenizer, ["de"] * 3, beams=beams, max_tokens=40)
    assert [candidates[0].sentence for candidates in found] == best
