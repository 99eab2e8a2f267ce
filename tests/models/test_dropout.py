"""Keyed dropout: a clip's pattern is a function of its number and a token's place in it."""

from __future__ import annotations

import torch
from factories.models import SENTENCES, small_mbart, small_tokenizer

from sage_scale.models.sage.mbart import make_labels
from sage_scale.nn import dropout
from sage_scale.nn.dropout import LanguageModelDropout, keyed_dropout, token_seeds


def pattern(
    seeds: list[int], lengths: list[int], salt: int = 0, p: float = 0.3, width: int = 64
) -> torch.Tensor:
    keys = token_seeds(torch.tensor(seeds), torch.tensor(lengths))
    return keyed_dropout(torch.ones(sum(lengths), width), keys, p, salt)


def test_a_clip_keeps_its_pattern_in_any_batch():
    together = pattern([7, 9, 11], [2, 3, 4]).split([2, 3, 4])
    torch.testing.assert_close(pattern([9], [3]), together[1])
    torch.testing.assert_close(pattern([11, 7], [4, 2]).split([4, 2])[0], together[2])


def test_patterns_differ_between_clips_places_and_layers():
    rows = torch.cat([pattern([7, 8], [3, 3], width=256), pattern([7], [3], salt=1, width=256)]) > 0
    agree = (rows[:, None] == rows[None]).double().mean(2)
    off_diagonal = agree[~torch.eye(9, dtype=torch.bool)]
    chance = 0.7**2 + 0.3**2
    assert (off_diagonal - chance).abs().max() < 5 * (chance * (1 - chance) / 256) ** 0.5


def test_rate_and_mean_are_those_of_dropout():
    x = pattern(list(range(50)), [20] * 50)
    dropped = (x == 0).double().mean().item()
    assert abs(dropped - 0.3) < 5 * (0.21 / x.numel()) ** 0.5
    torch.testing.assert_close(x[x > 0].unique(), torch.tensor([1 / 0.7]))
    torch.testing.assert_close((x == 0).double().mean(0), torch.full((64,), 0.3).double(), rtol=0, atol=0.07)


def test_evaluation_and_p_0_are_the_identity():
    x = torch.randn(3, 4)
    assert keyed_dropout(x, None, 0.5, 0, training=False) is x
    assert keyed_dropout(x, None, 0.0, 0) is x


def test_mbart_drops_where_transformers_does(monkeypatch):
    """With every dropout replaced by a ReLU, our hooks and transformers' own calls give the same logits."""
    _, inputs = make_labels(small_tokenizer(), SENTENCES, ["de"] * 5)
    given = {"inputs_embeds": torch.randn(5, 6, 12), "decoder_input_ids": inputs}
    plain = small_mbart(dropout=0.3).eval()(**given).logits
    ours = small_mbart(dropout=0.3).train()
    keyed = LanguageModelDropout.of(ours)
    assert LanguageModelDropout.of(ours) is keyed
    keyed.set_keys(torch.arange(5), 6, inputs.shape[1])
    rates = []

    def cut(x, seeds, p, salt, training):
        rates.append((p, salt))
        return x.relu()

    with monkeypatch.context() as patched:
        patched.setattr(dropout, "keyed_dropout", cut)
        found = ours(**given).logits
    with monkeypatch.context() as patched:
        own = lambda x, p=0.5, training=True, inplace=False: x.relu() if p else x  # noqa: E731
        patched.setattr(torch.nn.functional, "dropout", own)
        wanted = small_mbart(dropout=0.3).train()(**given).logits
    torch.testing.assert_close(found, wanted)
    assert (found - plain).abs().max() > 0.1
    assert {p for p, _ in rates} == {0.3} and len({salt for _, salt in rates}) == len(
        rates
    ) == 2 + 2 * 2 + 2 * 3
    torch.testing.assert_close(ours.eval()(**given).logits, plain)
    assert ours.config.dropout == 0.3
