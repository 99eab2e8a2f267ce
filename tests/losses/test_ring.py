"""The loss over a ring of real ranks against the whole batch in one process, by the reference."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from made_tokens import Options, aligned_tokens, error, random_lengths, reference_loss

from sage_scale.losses import clcl_loss, reference_similarity
from sage_scale.losses.clcl import diagonal_losses
from sage_scale.losses.ring import LogSum

CLIPS, WIDTH = 13, 10
IDS = [1, 2, 1, 3, 4, 5, 4, 4, 6, 7, 8, 9, 2]
UNEQUAL = {
    1: [list(range(CLIPS))],
    2: [[0, 5, 2], [1, 3, 4, 6, 7, 8, 9, 10, 11, 12]],
    3: [[12, 1, 2, 3, 4, 5, 6, 7], [], [8, 9, 10, 11, 0]],
    4: [[3], [0, 1, 2, 4, 5, 6], [7, 8, 9, 10, 11], [12]],
}
EVEN = {size: [list(range(rank, 12, size)) for rank in range(size)] for size in range(1, 5)}


def made_case(options: Options, **changes) -> dict:
    n, m = random_lengths(CLIPS, 30, 0), random_lengths(CLIPS, 12, 1)
    if changes.get("texts_longer"):
        n, m = m, n
    visual, text = aligned_tokens(n, m, WIDTH, 2)
    return {
        "options": asdict(options), "n": n, "m": m, "visual": visual, "text": text, "ids": IDS, "scale": 14.0,
        "bias": -3.0, "dtype": "float64", "text_trained": True, "asked": [1.0] * 4, "parts": UNEQUAL, "counted": False,
        "plain": False,
    } | changes  # fmt: skip


CASES = {
    "paper": made_case(Options()),
    "text-frozen": made_case(Options(), text_trained=False),
    "texts-longer": made_case(Options(alpha=0.2), texts_longer=True),
    "texts-longer-frozen": made_case(Options(), texts_longer=True, text_trained=False),
    "one-direction": made_case(Options(variant="one-direction")),
    "one-direction-texts-longer": made_case(Options(variant="one_direction"), texts_longer=True),
    "masked": made_case(Options(same_text="masked")),
    "scale-100": made_case(Options(), scale=100.0),
    "scale-1000": made_case(Options(), scale=1000.0),
    "tau-small": made_case(Options(tau=0.01)),
    "maxsim": made_case(Options(loss="maxsim")),
    "clip": made_case(Options(loss="clip")),
    "plain": made_case(Options(), plain=True),
    "plain-text-frozen": made_case(Options(variant="one_direction"), plain=True, text_trained=False),
    "plain-masked": made_case(Options(same_text="masked"), plain=True),
    "plain-maxsim": made_case(Options(loss="maxsim"), plain=True),
    "plain-clip": made_case(Options(loss="clip"), plain=True),
    "cico": made_case(Options(loss="cico")),
    "siglip": made_case(Options(loss="siglip")),
    "siglip-tokens": made_case(Options(loss="siglip_tokens")),
    "siglip-tokens-longer-masked": made_case(
        Options(loss="siglip_tokens", same_text="masked"), texts_longer=True
    ),
    "plain-siglip-tokens": made_case(Options(loss="siglip_tokens", same_text="masked"), plain=True),
    "siglip-float32": made_case(Options(loss="siglip_tokens"), dtype="float32", text_trained=False),
    "float32": made_case(Options(), dtype="float32"),
    "asked-unequally": made_case(Options(), asked=[1.0, -2.0, 0.5, 3.0]),
}
COUNTED = made_case(Options(), parts=EVEN, counted=True)
COUNTED |= {"n": [6] * CLIPS, "m": [3] * CLIPS}
COUNTED |= {"visual": torch.randn(6 * CLIPS, WIDTH), "text": torch.randn(3 * CLIPS, WIDTH)}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Path:
    """The folder of what the ranks found, for every case and number of ranks."""
    folder = tmp_path_factory.mktemp("ring")
    torch.save(CASES | {"counted": COUNTED}, folder / "cases.pt")
    script = Path(__file__).with_name("ring_of_ranks.py")
    command = [sys.executable, str(script), str(folder / "cases.pt"), str(folder)]
    subprocess.run(command, check=True, timeout=280)
    return folder


def whole(case: dict, dtype: torch.dtype, size: int) -> tuple[torch.Tensor, ...]:
    """Loss and gradients of the whole batch in one process, in `dtype`."""
    visual = case["visual"].to(dtype, copy=True).requires_grad_()
    text = case["text"].to(dtype, copy=True).requires_grad_()
    scale = torch.tensor([case["scale"]], dtype=dtype, requires_grad=True)
    n, m, ids, options = *(torch.tensor(case[key]) for key in ("n", "m", "ids")), Options(**case["options"])
    bias = torch.tensor([case["bias"]], dtype=dtype, requires_grad=True)
    loss = reference_loss(visual, text, scale, n, m, options, ids, bias)
    asked = torch.ones(CLIPS, dtype=dtype)
    for rank, own in enumerate(case["parts"][size]):
        asked[own] = case["asked"][rank]
    if (asked == 1).all():
        loss.backward()
    else:  # each clip's row and column count as its rank asks
        Z = reference_similarity(visual, text, n, m)
        place = torch.arange(CLIPS)
        parts = [diagonal_losses(scale * side, place) for Zk in Z for side in (Zk, Zk.T)]
        weights = [options.alpha / 2] * 2 + [(1 - options.alpha) / 2] * 2
        sum(w * (asked * part).sum() for w, part in zip(weights, parts)).div(CLIPS).backward()
    return loss.detach(), visual.grad, text.grad, scale.grad, bias.grad


@pytest.mark.system
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("name", CASES)
def test_ranks_together_give_the_whole_loss_and_its_gradients(name, size, found):
    case = CASES[name]
    ranks = [torch.load(found / f"{size}-{rank}.pt")[name] for rank in range(size)]
    exact = whole(case, torch.float64, size)
    naive = whole(case, torch.float32, size) if case["dtype"] == "float32" else exact
    bound = lambda own, value: max(4 * error(own, value), 1e-6) if own is not value else 1e-9  # noqa: E731
    assert error(sum(rank["share"] for rank in ranks), exact[0]) < bound(naive[0], exact[0])
    assert error(sum(rank["scale"] for rank in ranks), exact[3]) < bound(naive[3], exact[3])
    if exact[4] is not None:
        assert error(sum(rank["bias"] for rank in ranks), exact[4]) < bound(naive[4], exact[4])
    sides = [("visual", "n", exact[1], naive[1])]
    if case["text_trained"]:
        sides.append(("text", "m", exact[2], naive[2]))
    for side, lengths, value, own_naive in sides:
        gathered = torch.zeros_like(value)
        parts = gathered.split(case[lengths])
        for rank, own in zip(ranks, case["parts"][size]):
            for clip, grad in zip(own, rank[side].split([case[lengths][clip] for clip in own])):
                parts[clip].copy_(grad)
        assert error(gathered, value) < bound(own_naive, value)


@pytest.mark.system
def test_each_rank_does_its_share_of_the_operations(found):
    """8 E D in all, E pairs of tokens of the whole batch, and 1/W of it on each of W ranks with as many clips."""
    whole_count = 8 * (12 * 6) * (12 * 3) * WIDTH
    for size in range(1, 5):
        counts = [
            int(torch.load(found / f"{size}-{rank}.pt")["counted"]["operations"]) for rank in range(size)
        ]
        assert counts == [whole_count // size] * size


def test_log_sums_in_pieces_are_those_of_the_whole():
    """At any size of the terms, and where a piece has none but -inf."""
    terms = torch.randn(2, 4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1000
    terms[0, :, 3] = -torch.inf
    terms[0, 1:, 5] = -torch.inf
    columns = LogSum((2, 9), terms)
    for row in range(0, 4, 2):
        columns.add(slice(0, 5), terms[:, row : row + 2, :5], 1)
        columns.add(slice(5, 9), terms[:, row : row + 2, 5:], 1)
    torch.testing.assert_close(columns.value(), terms.logsumexp(1))


def test_the_weights_of_swapped_sides_are_those_of_transposed_matrices():
    """clcl_loss(Zv, Zt, alpha) = clcl_loss(Zt^T, Zv^T, 1 - alpha): what ring_loss relies on when texts are longer."""
    Zv, Zt = torch.randn(2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(clcl_loss(Zv, Zt, 3.0, 0.2), clcl_loss(Zt.T, Zv.T, 3.0, 0.8))
    torch.testing.assert_close(
        clcl_loss(Zv, Zt, 3.0, variant="one_direction"), clcl_loss(Zt.T, Zv.T, 3.0, variant="one_direction")
    )
