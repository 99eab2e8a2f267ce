"""Both stages of the tiny Sign2GPT on the ranks that run this, as `sage-scale` runs them; losses, and what was frozen.

`python sign2gpt_layout.py RECIPE DATA FOLDER ZERO...`, on each rank: a run for each ZeRO stage. `train` is also called
by the test, in one process.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from torch import nn

from sage_scale import registry
from sage_scale.config import Recipe, load_recipe, override
from sage_scale.models.sign2gpt.translation import Sign2GptTranslation
from sage_scale.registry import model_spec
from sage_scale.training import finetune, pretrain


def frozen_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(parameter.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Watched(Sign2GptTranslation):
    """Hashes its frozen weights when it is made, and what the engine holds of them at the end."""

    def __init__(self, place: Any) -> None:
        super().__init__(place)
        self.before = frozen_hash(self.model)

    def finish(self, whole: Any, progress: Any) -> dict[str, Any]:
        if self.engine.ranks.first:
            said = json.dumps({"before": self.before, "after": frozen_hash(whole)})
            (self.context.folder / "frozen.json").write_text(said)
        return super().finish(whole, progress)


def train(recipe: Recipe, run: Path, data: str) -> None:
    """Both stages, or what is left of them."""
    watched = replace(model_spec("sign2gpt"), finetune=Watched)
    with mock.patch.dict(registry._MODELS.registered, {"sign2gpt": watched}):
        pretrain.run(recipe, run, data)
        finetune.run(recipe, run, data)


if __name__ == "__main__":
    from factories.ranks import leave

    name, shards, folder, *zeros = sys.argv[1:]
    for zero in zeros:
        stages = [f"pretrain.zero_stage={zero}", f"finetune.zero_stage={zero}"]
        train(override(load_recipe(name), stages), Path(folder) / f"zero-{zero}", shards)
    leave()
