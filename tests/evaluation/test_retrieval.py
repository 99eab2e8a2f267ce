"""Retrieval by tiles and over ranks: the figures of the whole matrix, to the last digit, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from factories.properties import many
from hypothesis import strategies as some
from losses.made_tokens import Options
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sage_scale.evaluation import stage1_scores
from sage_scale.evaluation.stage1_scores import retrieval, tiled_retrieval
from sage_scale.losses import objective_of, reference_similarity


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that an operation returns, in numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return found


def made_clips(clips: int, seed: int, same: int = 0, width: int = 6):
    """Packed tokens of both sides and their lengths; the first `same` texts are one text."""
    rng = np.random.default_rng(seed)
    n, m = (rng.integers(1, top, clips).tolist() for top in (7, 5))
    texts = [rng.standard_normal((length, width)) for length in m]
    for clip in range(1, same):
        texts[clip], m[clip] = texts[0], m[0]
    noise = rng.uniform(0.3, 3)
    videos = [
        text[rng.integers(0, len(text), length)] + noise * rng.standard_normal((length, width))
        for text, length in zip(texts, n)
    ]
    visual, text = (torch.tensor(np.concatenate(side), dtype=torch.float32) for side in (videos, texts))
    return visual, text, n, m


def whole(visual, text, n, m, kind=torch.float64):
    Z = reference_similarity(visual.to(kind), text.to(kind), torch.tensor(n), torch.tensor(m))
    return retrieval(((Z[0] + Z[1]) / 2).float().numpy())


def test_ranks_by_hand():
    Z = np.array([[0.9, 0.2, 0.9], [0.1, 0.3, 0.4], [0.5, 0.5, 0.5]], np.float32)
    figures = retrieval(Z)  # ranks of texts 2, 2, 3; of videos 1, 2, 2
    assert figures["r1_v2t"] == 0 and figures["r1_t2v"] == pytest.approx(100 / 3)
    assert figures["median_rank_v2t"] == 2 and figures["median_rank_t2v"] == 2
    assert retrieval(np.zeros((0, 0))) == {}


@pytest.fixture(scope="module", autouse=True)
def small_tiles():
    before = stage1_scores.TILE_TOKENS, stage1_scores.TILE_CLIPS
    stage1_scores.TILE_TOKENS, stage1_scores.TILE_CLIPS = 40, 12
    yield
    stage1_scores.TILE_TOKENS, stage1_scores.TILE_CLIPS = before


@many(some.integers(1, 30), some.integers(0, 10**6), some.integers(0, 12))
def test_tiles_give_the_figures_of_the_whole_matrix(clips, seed, same):
    """Also where texts are equal: those are ties, and count against us in any tile."""
    made = made_clips(clips, seed, min(same, clips))
    assert tiled_retrieval(objective_of(Options()), *made) == whole(*made)


@pytest.mark.parametrize("loss", ["clcl", "maxsim", "clip"])
def test_they_are_those_of_one_matrix_in_float32(loss):
    """The figures as releases up to 0.1.0 computed them, of clips without a tie."""
    visual, text, n, m = made_clips(120, 5)
    objective = objective_of(Options(loss=loss))
    Zv, Zt = objective.similarity(visual, text, torch.tensor(n), torch.tensor(m))
    assert tiled_retrieval(objective, visual, text, n, m) == retrieval(((Zv + Zt) / 2).numpy())


def test_no_clips_are_no_figures():
    none = torch.zeros(0, 6)
    assert tiled_retrieval(objective_of(Options()), none, none, [], []) == {}


def test_a_similarity_that_is_no_number_is_no_match():
    visual, text, n, m = made_clips(5, 0)
    figures = tiled_retrieval(objective_of(Options()), visual * torch.nan, text, n, m)
    assert figures["r1_v2t"] == figures["r1_t2v"] == 0 and figures["median_rank_v2t"] == 5
    assert retrieval(np.full((5, 5), np.nan)) == figures


def test_memory_does_not_grow_with_the_pairs():
    """The largest tensor is a side's tokens, although there are three times as many pairs of clips."""
    visual, text, n, m = made_clips(100, 1)
    with LargestTensor() as largest:
        tiled_retrieval(objective_of(Options()), visual, text, n, m)
    assert largest.numbers <= max(visual.numel(), text.numel()) < 100 * 100 / 3


RANKS = {
    1: [list(range(30))],
    2: [[3, 29, 0], [*range(1, 3), *range(4, 29)]],
    4: [list(range(0, 30, 2)), [], [1], list(range(3, 30, 2))],
}


@pytest.mark.system
def test_any_number_of_ranks_gives_the_same_figures_and_none_gathers_all_tokens(tmp_path: Path) -> None:
    made = made_clips(30, 7, same=5, width=64)
    torch.save({"made": made, "parts": RANKS}, tmp_path / "case.pt")
    script = Path(__file__).with_name("retrieval_of_ranks.py")
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, timeout=120)
    for size, parts in RANKS.items():
        for rank in range(len(parts)):
            found = json.loads((tmp_path / f"{size}-{rank}.json").read_text())
            assert found["figures"] == whole(*made), (size, rank)
            assert found["loss"] == pytest.approx(
                json.loads((tmp_path / "1-0.json").read_text())["loss"], 1e-12
            )
            if size == 4:  # the longest side of any rank, and less than all of either side
                longest = max(sum(made[2][clip] for clip in part) for part in parts) * 64
                assert found["largest"] <= longest < made[0].numel()
