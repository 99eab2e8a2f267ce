"""The objective of docs/objectives.md, registered as a plug-in is."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from made_tokens import Options, random_tokens

from sage_scale.config import extension, from_mapping
from sage_scale.losses import objective_of
from sage_scale.losses.objectives import OBJECTIVES

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"


def test_the_objective_of_the_page_is_a_choice_and_trains(monkeypatch):
    monkeypatch.setattr(extension, "_choices", dict(extension._choices))
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    try:
        exec(code[1], {})
        assert from_mapping({"clcl": {"loss": "squared"}}).clcl.loss == "squared"
        objective = objective_of(Options(loss="squared"))
        visual = random_tokens(5, 4, 0).requires_grad_()
        share = objective.share(
            visual, random_tokens(4, 4, 1), torch.tensor([2, 3]), torch.tensor([1, 3]), torch.ones(1)
        )
        share.backward()
        assert 0 < share.item() < 4 and visual.grad.abs().sum() > 0
    finally:
        OBJECTIVES.pop("squared", None)


def test_every_shipped_name_is_on_the_page():
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in OBJECTIVES if not name.startswith("toy") and f"| `{name}` |" not in text] == []
