"""Sign2GPT's ablation tables: each cell changes what its row says, by parameter counts and receptive fields."""

from __future__ import annotations

import pytest
import torch

from sage_scale.config import Recipe, load_recipe
from sage_scale.config.reading import changed
from sage_scale.experiments.ablation_table import Cell, load_table
from sage_scale.models.sign2gpt.describe import sign2gpt_modules
from sage_scale.models.sign2gpt.positions import TokenPositions
from sage_scale.models.sign2gpt.sign_encoder import SignEncoder

FRAMES = 40


def recipe_of(table: str, cell: str) -> Recipe:
    found = load_table(table)
    return found.recipe_of(next(one for one in found.cells if one.name == cell))


def seen_by_middle_token(recipe: Recipe) -> tuple[int, list[int]]:
    """Returns the number of tokens of 40 frames, and the frames that reach the middle one."""
    torch.manual_seed(0)
    encoder = SignEncoder(recipe.model.sign2gpt).eval()
    x_FD = torch.randn(FRAMES, recipe.model.sign2gpt.width, requires_grad=True)
    tokens_ND, lengths_B = encoder(x_FD, torch.tensor([FRAMES]))
    tokens_ND[len(tokens_ND) // 2].square().sum().backward()
    reached = x_FD.grad.abs().sum(1).nonzero().flatten().tolist()
    return int(lengths_B[0]), reached


@pytest.mark.parametrize(
    ("cell", "tokens", "reach"),
    [
        # Two layers of 3 frames on either side, the mean of 3 frames, two layers of 3 tokens: 6 + 1 + 12.
        ("local attention, downsampling", 20, 19),
        ("global attention", 20, FRAMES),
        ("no downsampling", 40, 12),
    ],
)
def test_table_4_changes_what_a_token_sees(cell, tokens, reach):
    found, frames = seen_by_middle_token(recipe_of("sign2gpt-4", cell))
    middle = FRAMES // 2
    assert found == tokens
    assert frames == list(range(max(0, middle - reach), min(FRAMES, middle + reach + 1)))


def test_without_a_sign_encoder_tokens_are_frames():
    recipe = recipe_of("sign2gpt-10", "no sign encoder")
    assert not list(SignEncoder(recipe.model.sign2gpt).parameters())
    assert seen_by_middle_token(recipe) == (FRAMES, [FRAMES // 2])


def trained(recipe: Recipe) -> dict[str, int]:
    return {
        name: sum(p.numel() for p in module.parameters() if p.requires_grad)
        for name, module in sign2gpt_modules(recipe).items()
    }


def paper_with(cell: Cell) -> Recipe:
    """Returns the paper's recipe with the changes of a cell."""
    return changed(load_recipe("sign2gpt-phoenix14t"), cell.changes)


def test_spatial_adapters_and_positions_by_their_trained_parameters():
    """At the paper's sizes: 271,872 in the spatial model (Table 1b); without pairs a linear layer and a norm stay."""
    cells = {cell.name: cell for cell in load_table("sign2gpt-4").cells}
    full = trained(paper_with(cells["spatial adapters, local attention, downsampling"]))
    assert full == {"spatial": 271_872, "sign encoder": 12_613_632, "decoder": 3_803_520}
    assert trained(paper_with(cells["no spatial adapters"]))["spatial"] == 384 * 512 + 512 + 2 * 512
    for name, rows in (("no positions", 0), ("learned positions from zero", 2048)):
        found = trained(paper_with(cells[f"pretrained, {name}"]))
        assert found["decoder"] - full["decoder"] == rows * 512
    tables = [
        TokenPositions(cells[f"pretrained, {name}"].changes["model.sign2gpt.positions"], 8).table
        for name in ("learned positions from zero", "learned positions from random")
    ]
    assert not tables[0].any() and tables[1].std() > 0
