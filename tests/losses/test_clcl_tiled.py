"""The tiled similarities and the streamed loss against the reference: values, gradients, precision, operations."""

from __future__ import annotations

import pytest
import torch
from made_tokens import (
    CountedProducts,
    Options,
    aligned_tokens,
    error,
    random_lengths,
    random_tokens,
    reference_loss,
)

from sage_scale.losses import (
    clcl_loss,
    clcl_similarity,
    objective_of,
    reference_similarity,
    tiled_clcl_similarity,
)
from sage_scale.losses import clcl_tiled as tiled_module

TAUS = (0.0, 0.01, 0.03, 0.07, 1.0)
EPSILON = 2.0**-23


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """So that a few clips make many tiles, and a clip longer than a tile is met."""
    monkeypatch.setattr(tiled_module, "CPU_TILE", (96, 80))


def computed(similarity, visual, text, n, m, dtype, loss=None, **options):
    """(Zv and Zt, or the loss; gradients of both sides) in `dtype`."""
    v, t = visual.to(dtype, copy=True).requires_grad_(), text.to(dtype, copy=True).requires_grad_()
    Z = torch.stack(similarity(v, t, n, m, **options))
    if loss is None:
        generator = torch.Generator().manual_seed(3)
        (Z * torch.randn(Z.shape, dtype=torch.float64, generator=generator).to(dtype)).sum().backward()
    else:
        loss(Z).backward()
    return Z.detach(), v.grad, t.grad


def sides(seed: int, clips: int = 6, texts: int = 5, longest: tuple[int, int] = (128, 128), width: int = 24):
    n, m = random_lengths(clips, longest[0], seed), random_lengths(texts, longest[1], seed + 50)
    visual, text = aligned_tokens(n, m, width, seed)
    return visual, text, torch.tensor(n), torch.tensor(m)


@pytest.mark.parametrize("tau", TAUS)
def test_float64_equals_the_reference(tau):
    visual, text, n, m = sides(0)
    options = dict(tau=tau)
    wanted = computed(reference_similarity, visual, text, n, m, torch.float64, **options)
    found = computed(tiled_clcl_similarity, visual, text, n, m, torch.float64, **options)
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tau", [tau for tau in TAUS if tau])
def test_float32_errs_at_most_four_times_as_the_naive_reference(tau):
    for seed in (4, 5):
        visual, text, n, m = sides(seed, longest=(64, 32))
        visual, text = visual.float().double(), text.float().double()
        exact, naive, found = (
            computed(way, visual, text, n, m, dtype, tau=tau)
            for way, dtype in (
                (reference_similarity, torch.float64),
                (reference_similarity, torch.float32),
                (tiled_clcl_similarity, torch.float32),
            )
        )
        for value, own, whole in zip(found, naive, exact):
            assert value.dtype == torch.float32
            assert error(value, whole) < max(4 * error(own, whole), EPSILON)


@pytest.mark.parametrize("tau", [0.01, 0.03, 0.07, 1.0])
def test_bfloat16_products_and_inputs_are_right_to_a_hundredth(tau):
    visual, text, n, m = sides(6, longest=(64, 32), width=64)
    visual, text = visual.bfloat16().double(), text.bfloat16().double()
    wanted = computed(reference_similarity, visual, text, n, m, torch.float64, tau=tau)
    products = computed(
        tiled_clcl_similarity, visual, text, n, m, torch.float32, tau=tau, products="bfloat16"
    )
    inputs = computed(tiled_clcl_similarity, visual, text, n, m, torch.bfloat16, tau=tau, products="bfloat16")
    assert [value.dtype for value in inputs] == [torch.float32, torch.bfloat16, torch.bfloat16]
    for one, other, whole in zip(products, inputs, wanted):
        assert error(one, whole) < 1e-2 and error(other, whole) < 1e-2


def test_the_loss_at_scale_100_and_tau_1_in_float32():
    visual, text, n, m = sides(7, clips=8, texts=8, longest=(40, 20))
    loss = lambda Z: clcl_loss(Z[0], Z[1], 100.0, 0.3)  # noqa: E731
    exact, naive, found = (
        computed(way, visual, text, n, m, dtype, loss, tau=1.0)
        for way, dtype in (
            (reference_similarity, torch.float64),
            (reference_similarity, torch.float32),
            (tiled_clcl_similarity, torch.float32),
        )
    )
    for value, own, whole in zip(found, naive, exact):
        assert error(value, whole) < max(4 * error(own, whole), EPSILON)


@pytest.mark.parametrize("tau", TAUS)
def test_equal_embeddings(tau):
    """All tokens equal: Z is 1 everywhere, and no gradient changes a length or a similarity of 1."""
    n, m = torch.tensor([1, 9, 128]), torch.tensor([2, 128, 1])
    visual, text = torch.ones(138, 5, dtype=torch.float64), torch.full((131, 5), 3.0, dtype=torch.float64)
    Z, dv, dt = computed(tiled_clcl_similarity, visual, text, n, m, torch.float64, tau=tau)
    torch.testing.assert_close(Z, torch.ones_like(Z), rtol=0, atol=1e-12)
    assert dv.abs().max() < 1e-12 and dt.abs().max() < 1e-12


@pytest.mark.parametrize("tau", [0.02, 0.3])
def test_gradcheck(tau):
    n, m = torch.tensor([3, 1, 2]), torch.tensor([2, 4])
    v, t = random_tokens(6, 3, 0).requires_grad_(), random_tokens(6, 3, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, t: tiled_clcl_similarity(v, t, n, m, tau), (v, t), atol=1e-6)


def test_maxsim_is_the_limit_of_small_temperatures():
    visual, text, n, m = sides(8, longest=(12, 9))
    limit = tiled_clcl_similarity(visual, text, n, m, 0)
    torch.testing.assert_close(tiled_clcl_similarity(visual, text, n, m, 1e-5), limit, rtol=0, atol=1e-4)


def test_no_padding_is_computed_and_no_product_more_than_eight():
    """8 E D operations forward and backward, 6 E D where the text is frozen, with E the pairs of real tokens."""
    visual, text, n, m = sides(9)
    E, D = int(n.sum()) * int(m.sum()), visual.shape[1]
    for trained, count in ((True, 8), (False, 6)):
        v, t = visual.float().requires_grad_(), text.float().requires_grad_(trained)
        with CountedProducts() as counter:
            sum(Z.sum() for Z in tiled_clcl_similarity(v, t, n, m)).backward()
        assert counter.operations == count * E * D


def test_auto_is_tiled_on_a_cpu_and_the_reference_can_be_asked_for():
    visual, text, n, m = sides(10, longest=(5, 5))
    found = [
        clcl_similarity(visual, text, n, m, implementation=way) for way in ("auto", "tiled", "reference")
    ]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    torch.testing.assert_close(found[0], found[2], rtol=1e-12, atol=1e-12)


def test_lengths_that_do_not_fit_are_refused():
    tokens = random_tokens(5, 2, 0)
    with pytest.raises(ValueError, match="lengths sum to 4, but there are 5 rows"):
        clcl_similarity(tokens, tokens, torch.tensor([4]), torch.tensor([5]))
    with pytest.raises(ValueError, match="clip 1 has no tokens"):
        clcl_similarity(tokens, tokens, torch.tensor([5]), torch.tensor([5, 0]))


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(variant="one_direction"),
        Options(same_text="masked", tau=0.02),
        Options(loss="maxsim"),
        Options(loss="clip", same_text="masked"),
        Options(implementation="reference"),
    ],
    ids=lambda options: f"{options.loss}-{options.variant}-{options.implementation}",
)
@pytest.mark.parametrize("longest", [(60, 20), (9, 70)], ids=["videos-longer", "texts-longer"])
def test_the_streamed_loss_equals_the_reference(options, longest):
    """No matrix of clips by clips is kept; loss and all gradients are those of the matrices, at scale 100 too."""
    visual, text, n, m = sides(11, clips=11, texts=11, longest=longest)
    ids = torch.tensor([1, 2, 1, 3, 4, 5, 4, 4, 6, 7, 8])
    for start in (14.0, 100.0):
        results = []
        for streamed in (False, True):
            v, t = visual.clone().requires_grad_(), text.clone().requires_grad_()
            scale = torch.tensor([start], dtype=torch.float64, requires_grad=True)
            if streamed:
                loss = objective_of(options).share(v, t, n, m, scale, text_ids_B=ids)
            else:
                loss = reference_loss(v, t, scale, n, m, options, ids)
            (3 * loss).backward()
            results.append((loss.detach(), v.grad, t.grad, scale.grad))
        for one, other in zip(results[1], results[0]):
            assert error(one, other) < 1e-9


def test_the_streamed_loss_leaves_frozen_sides_alone():
    visual, text, n, m = sides(12, clips=6, texts=6, longest=(9, 9))
    v, scale = visual.clone().requires_grad_(), torch.ones(1, dtype=torch.float64)
    objective_of(Options()).share(v, text, n, m, scale).backward()
    both = visual.clone().requires_grad_()
    reference_loss(both, text, scale, n, m, Options()).backward()
    assert text.grad is None and error(v.grad, both.grad) < 1e-9
    with torch.no_grad():
        assert not objective_of(Options()).share(v, text, n, m, scale).requires_grad


def test_tokens_that_change_between_the_passes_are_noticed():
    """The backward pass reads them again."""
    tokens = torch.randn(6, 4, requires_grad=True)
    visual = tokens * 2
    Zv, Zt = tiled_clcl_similarity(visual, torch.randn(4, 4), torch.tensor([4, 2]), torch.tensor([1, 3]))
    visual.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (Zv + Zt).sum().backward()
