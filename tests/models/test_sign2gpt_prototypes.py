"""Prototype scores and loss against equations 2 to 5 of Sign2GPT, evaluated in float64 by loops over scalars."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sage_scale.models.sign2gpt.prototypes import prototype_loss, prototype_scores

LENGTHS = [5, 1, 8]
WANTED = [[0, 2, 2], [3], []]


def by_scalars(
    features: list[list[list[float]]], prototypes: list[list[float]], tau_time: float, tau_class: float
) -> tuple[list[list[list[float]]], list[list[float]], float]:
    """E, its sums over time, and the mean binary cross-entropy for WANTED."""

    def cosine(a: list[float], b: list[float]) -> float:
        norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
        return sum(x * y for x, y in zip(a, b)) / norms if norms else 0.0

    with_zero = [*prototypes, [0.0] * len(prototypes[0])]
    E_all, presence_all, losses = [], [], []
    for clip, wanted in zip(features, WANTED):
        s = [[cosine(z, p) for p in with_zero] for z in clip]  # equation 2
        E = []
        for i in range(len(clip)):
            row = []
            for j in range(len(prototypes)):
                time = math.exp(s[i][j] / tau_time) / sum(
                    math.exp(s[t][j] / tau_time) for t in range(len(clip))
                )  # 3
                kind = math.exp(s[i][j] / tau_class) / sum(math.exp(x / tau_class) for x in s[i])  # 4
                row.append(time * kind)
            E.append(row)
        presence = [sum(E[i][j] for i in range(len(clip))) for j in range(len(prototypes))]  # 5
        for j, p in enumerate(presence):
            p = min(max(p, 1e-8), 1 - 1e-8)
            losses.append(-math.log(p) if j in wanted else -math.log(1 - p))
        E_all.append(E)
        presence_all.append(presence)
    return E_all, presence_all, sum(losses) / len(losses)


def made(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(sum(LENGTHS), 6, generator=generator, dtype=torch.float64)
    prototypes = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    features[3] = 4 * prototypes[2]  # one that fits
    return features.to(dtype), prototypes.to(dtype)


def targets() -> tuple[Tensor, Tensor]:
    return torch.tensor([j for row in WANTED for j in row]), torch.tensor([len(row) for row in WANTED])


@pytest.mark.parametrize("tau_time, tau_class", [(0.1, 0.1), (0.01, 1.0), (1.0, 0.05)])
@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_equations(dtype, atol, tau_time, tau_class):
    features_ND, prototypes_UD = made(dtype)
    split = [part.tolist() for part in made(torch.float64)[0].split(LENGTHS)]
    E, presence, loss = by_scalars(split, made(torch.float64)[1].tolist(), tau_time, tau_class)
    scores = prototype_scores(features_ND, torch.tensor(LENGTHS), prototypes_UD, tau_time, tau_class)
    wanted_NU = torch.tensor([row for clip in E for row in clip], dtype=dtype)
    torch.testing.assert_close(scores.localisation_NU, wanted_NU, atol=atol, rtol=0)
    torch.testing.assert_close(scores.presence_BU, torch.tensor(presence, dtype=dtype), atol=atol, rtol=0)
    summed, count = prototype_loss(scores.presence_BU, *targets())
    assert count == len(LENGTHS) * 4
    assert float(summed / count) == pytest.approx(loss, abs=100 * atol)


def test_gradients_of_features_and_temperatures():
    features_ND, prototypes_UD = made(torch.float64)
    taus = [torch.tensor([0.3], dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def loss(x: Tensor, tau_time: Tensor, tau_class: Tensor) -> Tensor:
        scores = prototype_scores(x, torch.tensor(LENGTHS), prototypes_UD, tau_time, tau_class)
        return prototype_loss(scores.presence_BU, *targets())[0]

    assert torch.autograd.gradcheck(loss, (features_ND.requires_grad_(), *taus))


def test_clips_do_not_see_each_other():
    """Packed with others or alone, a clip's scores are the same: no padding and no neighbour is in any softmax."""
    features_ND, prototypes_UD = made(torch.float32)
    together = prototype_scores(features_ND, torch.tensor(LENGTHS), prototypes_UD, 0.1, 0.1)
    for clip, part in enumerate(features_ND.split(LENGTHS)):
        alone = prototype_scores(part, torch.tensor([len(part)]), prototypes_UD, 0.1, 0.1)
        torch.testing.assert_close(alone.presence_BU[0], together.presence_BU[clip])


def test_features_between_signs_fall_to_the_zero_class():
    """What points away from every prototype is nearer to the zero class than to any of them."""
    prototypes = torch.eye(3, 4)
    away, near = -torch.ones(6, 4), torch.ones(6, 4) * torch.tensor([1.0, 0, 0, 0])
    scores = prototype_scores(torch.cat([away, near]), torch.tensor([6, 6]), prototypes, 0.1, 0.1)
    assert scores.presence_BU[0].max() < 0.01 and scores.presence_BU[1, 0] > 0.99


def test_presence_is_a_probability_over_random_inputs():
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, 30, (4,), generator=generator)
        features = torch.randn(int(lengths.sum()), 5, generator=generator) * 10
        scores = prototype_scores(features, lengths, torch.randn(7, 5, generator=generator), 0.01, 0.01)
        assert scores.presence_BU.min() >= 0 and scores.presence_BU.max() <= 1 + 1e-6
        loss, _ = prototype_loss(scores.presence_BU, torch.tensor([0, 3]), torch.tensor([1, 0, 1, 0]))
        assert torch.isfinite(loss)


def test_no_clips_give_no_loss():
    features = torch.zeros(0, 6, requires_grad=True)
    empty = torch.zeros(0, dtype=torch.int64)
    scores = prototype_scores(features, empty, made(torch.float32)[1], 0.1, 0.1)
    loss, count = prototype_loss(scores.presence_BU, empty, empty)
    loss.backward()
    assert loss.item() == 0 and count == 0 and features.grad is not None
