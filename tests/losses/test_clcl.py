"""CLCL and InfoNCE against the equations, computed value by value with Python's own floats."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from sage_scale.config import Clcl
from sage_scale.losses import (
    clcl_loss,
    clcl_similarity,
    clip_loss,
    clip_similarity,
    info_nce,
    objective_of,
    reference_similarity,
    tiled_clcl_similarity,
)

TAU = 0.07


def packed(lengths: list[int], width: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(lengths), width, dtype=torch.float64, generator=generator)


def lists(tokens: torch.Tensor, lengths: list[int]) -> list[list[list[float]]]:
    """Tokens of each clip as lists of unit vectors."""
    clips, start = [], 0
    for length in lengths:
        rows = tokens[start : start + length].tolist()
        clips.append([[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows])
        start += length
    return clips


def weighted(values: list[float]) -> float:
    """sum of s softmax(s / tau)."""
    powers = [math.exp(value / TAU) for value in values]
    return sum(value * power for value, power in zip(values, powers)) / sum(powers)


def by_hand(v, t, of=weighted):
    Zv = [[0.0] * len(t) for _ in v]
    Zt = [[0.0] * len(t) for _ in v]
    for a, video in enumerate(v):
        for b, text in enumerate(t):
            s = [[sum(x * y for x, y in zip(vi, tj)) for tj in text] for vi in video]
            r = [of(row) for row in s]
            c = [of([row[j] for row in s]) for j in range(len(text))]
            Zv[a][b] = sum(r) / len(r)
            Zt[a][b] = sum(c) / len(c)
    return torch.tensor(Zv, dtype=torch.float64), torch.tensor(Zt, dtype=torch.float64)


@pytest.mark.parametrize("similarity", [reference_similarity, tiled_clcl_similarity])
@pytest.mark.parametrize("tau, of", [(TAU, weighted), (0, max)])
@pytest.mark.parametrize(
    "visual_lengths, text_lengths", [([3, 1, 4], [2, 5, 1]), ([1], [1]), ([2, 6], [3, 1, 1, 4])]
)
def test_similarity_follows_the_equations(similarity, tau, of, visual_lengths, text_lengths):
    v, t = packed(visual_lengths), packed(text_lengths, seed=1)
    found = similarity(v, t, torch.tensor(visual_lengths), torch.tensor(text_lengths), tau)
    wanted = by_hand(lists(v, visual_lengths), lists(t, text_lengths), of)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-12, atol=1e-13)


def test_similarity_equals_one_pair_at_a_time():
    """Nothing of another pair, and no padding, is in a value: each pair alone gives the same."""
    n, m = [4, 2, 7], [3, 6, 1]
    v, t = packed(n, 8), packed(m, 8, seed=3)
    Zv, Zt = clcl_similarity(v, t, torch.tensor(n), torch.tensor(m), TAU)
    for a, video in enumerate(v.split(n)):
        for b, text in enumerate(t.split(m)):
            s = F.normalize(video, dim=1) @ F.normalize(text, dim=1).T
            torch.testing.assert_close(Zv[a, b], (s * (s / TAU).softmax(1)).sum(1).mean())
            torch.testing.assert_close(Zt[a, b], (s * (s / TAU).softmax(0)).sum(0).mean())


def test_swapping_the_sides_swaps_the_matrices_and_order_moves_with_the_clips():
    n, m = [3, 1, 2], [2, 4, 3]
    v, t = packed(n), packed(m, seed=1)
    Zv, Zt = clcl_similarity(v, t, torch.tensor(n), torch.tensor(m), TAU)
    back = clcl_similarity(t, v, torch.tensor(m), torch.tensor(n), TAU)
    torch.testing.assert_close(back[0], Zt.T)
    torch.testing.assert_close(back[1], Zv.T)
    order = [2, 0, 1]
    moved = clcl_similarity(
        torch.cat([v.split(n)[i] for i in order]),
        t,
        torch.tensor([n[i] for i in order]),
        torch.tensor(m),
        TAU,
    )
    torch.testing.assert_close(moved[0], Zv[order])
    torch.testing.assert_close(clcl_similarity(17 * v, t / 3, torch.tensor(n), torch.tensor(m), TAU)[0], Zv)


def test_gradients_of_similarity_and_loss():
    n, m = torch.tensor([2, 1]), torch.tensor([1, 3])
    v, t = packed([2, 1], 3).requires_grad_(), packed([1, 3], 3, seed=1).requires_grad_()
    scale = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    for variant in ("paper", "one_direction"):

        def loss(v, t, scale, variant=variant):
            return clcl_loss(*clcl_similarity(v, t, n, m, 0.3), scale, 0.3, variant)

        assert torch.autograd.gradcheck(loss, (v, t, scale))


def nce_by_hand(Z, scale):
    """Equation 3."""
    B = len(Z)
    rows = sum(math.log(sum(math.exp(scale * z) for z in row)) - scale * row[i] for i, row in enumerate(Z))
    columns = sum(
        math.log(sum(math.exp(scale * Z[i][j]) for i in range(B))) - scale * Z[j][j] for j in range(B)
    )
    return rows / (2 * B), columns / (2 * B)


def test_loss_follows_equations_3_and_4():
    Zv, Zt = packed([4], 4, 5), packed([4], 4, 6)
    left, right = sum(nce_by_hand(Zv.tolist(), 2.5)), sum(nce_by_hand(Zt.tolist(), 2.5))
    assert clcl_loss(Zv, Zt, 2.5, alpha=0.3).item() == pytest.approx(0.3 * left + 0.7 * right, rel=1e-12)
    one = nce_by_hand(Zv.tolist(), 2.5)[0] + nce_by_hand(Zt.tolist(), 2.5)[1]
    assert clcl_loss(Zv, Zt, 2.5, variant="one_direction").item() == pytest.approx(one, rel=1e-12)
    targets = torch.arange(4)
    assert info_nce(Zv, direction="rows").item() == pytest.approx(
        F.cross_entropy(Zv, targets).item(), rel=1e-12
    )
    assert info_nce(Zv[:1, :1]).item() == pytest.approx(0, abs=1e-12)


def test_the_same_text_is_no_negative_when_masked():
    """With clips 0 and 2 of one text, row 0 is a softmax over columns 0, 1, 3 and so on."""
    Z = packed([4], 4, 7)
    ids = torch.tensor([11, 12, 11, 13])
    kept = {0: [0, 1, 3], 1: [0, 1, 2, 3], 2: [1, 2, 3], 3: [0, 1, 2, 3]}
    rows = sum((Z[i, kept[i]].logsumexp(0) - Z[i, i]) for i in range(4)) / 8
    columns = sum((Z[kept[i], i].logsumexp(0) - Z[i, i]) for i in range(4)) / 8
    found = clcl_loss(Z, Z, 1.0, text_ids=ids, same_text="masked")
    torch.testing.assert_close(found, rows + columns)
    plain = clcl_loss(Z, Z, 1.0, text_ids=ids)
    torch.testing.assert_close(plain, clcl_loss(Z, Z, 1.0))
    assert found < plain


@pytest.mark.parametrize("implementation", ["reference", "tiled"])
@pytest.mark.parametrize("same_text", ["negative", "masked"])
@pytest.mark.parametrize("variant", ["paper", "one_direction"])
@pytest.mark.parametrize("loss", ["clcl", "maxsim", "clip"])
def test_every_objective_is_what_loops_give(loss, variant, same_text, implementation):
    """Value by value, at the scale where training begins and at its bound."""
    n, m, ids = [3, 1, 4, 2], [2, 5, 1, 1], [7, 8, 7, 9]
    v, t = packed(n), packed(m, seed=1)
    if loss == "clip":
        v_a, t_b = (
            [
                [sum(x) / len(clip) for x in zip(*clip)]
                for clip in (part.tolist() for part in side.split(lengths))
            ]
            for side, lengths in ((v, n), (t, m))
        )
        Zv = Zt = by_hand(*(lists(torch.tensor(side, dtype=torch.float64), [1] * 4) for side in (v_a, t_b)))[
            0
        ]
    else:
        Zv, Zt = by_hand(lists(v, n), lists(t, m), max if loss == "maxsim" else weighted)
    counted = [
        [b for b in range(4) if same_text == "negative" or b == a or ids[b] != ids[a]] for a in range(4)
    ]
    both = variant == "paper" or loss == "clip"
    for scale in (1 / 0.07, 100.0):
        wanted = 0.0
        for Z, alpha, rows, columns in ((Zv, 0.3, 1, both), (Zt, 0.7, both, 1)):
            weight = alpha / 2 if both else 0.5
            for a in range(4):
                row = sum(math.exp(scale * float(Z[a, b] - Z[a, a])) for b in counted[a])
                column = sum(math.exp(scale * float(Z[b, a] - Z[a, a])) for b in counted[a])
                wanted += weight * (rows * math.log(row) + columns * math.log(column)) / 4
        clcl = Clcl(loss=loss, variant=variant, alpha=0.3, same_text=same_text, implementation=implementation)
        scales, ids_B = torch.tensor([scale], dtype=torch.float64), torch.tensor(ids)
        found = objective_of(clcl).share(v, t, torch.tensor(n), torch.tensor(m), scales, ids_B)
        assert found.item() == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_clip_is_the_cosine_of_means():
    n, m = [3, 1], [2, 4]
    v, t = packed(n), packed(m, seed=1)
    Z = clip_similarity(v, t, torch.tensor(n), torch.tensor(m))
    for a, video in enumerate(v.split(n)):
        for b, text in enumerate(t.split(m)):
            torch.testing.assert_close(Z[a, b], F.cosine_similarity(video.mean(0), text.mean(0), dim=0))
    assert clip_loss(Z, 4.0).item() == pytest.approx(sum(nce_by_hand(Z.tolist(), 4.0)), rel=1e-12)


def test_wrong_lengths_are_refused():
    with pytest.raises(ValueError, match="lengths sum to 4, but there are 5 rows"):
        clcl_similarity(packed([5]), packed([2]), torch.tensor([4]), torch.tensor([2]))
