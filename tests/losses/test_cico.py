"""CiCo's objective: one matrix from each view of the texts, and the swapped words."""

from __future__ import annotations

import pytest
import torch
from made_tokens import Options, aligned_tokens, error, random_lengths, random_tokens

from sage_scale.losses import clcl_loss, info_nce, objective_of, reference_similarity
from sage_scale.losses.cico import swapped_words


@pytest.mark.parametrize("longest", [(12, 5), (4, 9)], ids=["videos-longer", "texts-longer"])
def test_text_to_video_reads_the_second_view_and_video_to_text_the_first(longest):
    n, m = random_lengths(7, longest[0], 0), random_lengths(7, longest[1], 1)
    m_view = random_lengths(7, longest[1], 2)
    visual, text = aligned_tokens(n, m, 8, 3)
    view = random_tokens(sum(m_view), 8, 4)
    lengths = [torch.tensor(row) for row in (n, m, m_view)]
    scale = torch.tensor([14.0], dtype=torch.float64)
    results = []
    for ours in (True, False):
        v = visual.clone().requires_grad_()
        if ours:
            loss = objective_of(Options(loss="cico", alpha=0.5)).share(
                v, text, *lengths[:2], scale, view=(view, lengths[2])
            )
        else:
            Zv, _ = reference_similarity(v, text, *lengths[:2])
            _, Zt = reference_similarity(v, view, lengths[0], lengths[2])
            loss = (info_nce(scale * Zv) + info_nce(scale * Zt)) / 2
        loss.backward()
        results.append((loss.detach(), v.grad))
    for one, other in zip(*results):
        assert error(one, other) < 1e-9
    same = objective_of(Options(loss="cico")).share(
        visual, text, *lengths[:2], scale, view=(text, lengths[1])
    )
    whole = clcl_loss(*reference_similarity(visual, text, *lengths[:2]), scale, Options().alpha)
    torch.testing.assert_close(same, whole)


def test_half_of_the_texts_have_two_words_swapped_and_the_seed_decides():
    texts = [f"a{i} b c d" for i in range(400)] + ["alone", ""]
    seeds = list(range(-200, 202))
    views = swapped_words(texts, seeds)
    assert views == swapped_words(texts, seeds) and views[400:] == ["alone", ""]
    changed = [(text.split(), view.split()) for text, view in zip(texts, views) if text != view]
    assert 160 < len(changed) < 240
    for text, view in changed:
        assert sorted(text) == sorted(view) and sum(a != b for a, b in zip(text, view)) == 2
