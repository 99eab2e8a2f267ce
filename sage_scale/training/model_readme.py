"""README.md of a model folder: the model card with the front matter of the Hugging Face hub."""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from sage_scale.config import Recipe, Stage
from sage_scale.registry import model_spec
from sage_scale.training.familiarity import Familiarity
from sage_scale.training.model_card import ModelCard
from sage_scale.untrusted.display import markdown, printable

_TEMPLATE = "model_readme.md.j2"
_METRICS = {"bleu4": ("bleu", "BLEU-4"), "rouge_l": ("rouge", "ROUGE-L"), "chrf": ("chrf", "chrF")}

LICENCES = {
    "phoenix14t": "CC BY-NC-SA", "csl_daily": "academic research, by an agreement with its authors",
    "csl_news": "CC BY-NC 4.0",
    "how2sign": "CC BY-NC 4.0", "openasl": "CC BY-NC-ND 4.0", "synthetic": "free of rights",
}  # fmt: skip
"""Corpus reader -> licence, as its publisher states it (docs/corpora.md)."""


def render_readme(
    card: ModelCard,
    recipe: Recipe,
    name: str,
    licence: str = "",
    data_licence: str = "",
    place: str = "",
    familiarity: Familiarity | None = None,
    parameters: int = 0,
) -> str:
    """Returns the card as Markdown with YAML front matter.

    `licence` is the model's, an identifier of the hub such as cc-by-nc-4.0; `place` is where the model is opened from:
    a folder or a name of the hub. `data_licence` is by default the one that the corpora's publishers state.
    """
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="translation", dataset_type=" ".join(card.corpora) or "unknown",
            dataset_name=" ".join(card.corpora) or "unknown", dataset_split=split, metric_type=kind, metric_name=title,
            metric_value=round(float(entry[metric]), 2),
        )
        for split, entry in card.scores.items()
        for metric, (kind, title) in _METRICS.items()
        if metric in entry
    ]  # fmt: skip
    front = ModelCardData(
        language=[tag.partition("-")[0] for tag in card.languages], license=licence or None,
        library_name="sage-scale", tags=["sign-language-translation", card.model], model_name=name,
        eval_results=results or None, base_model=_published(recipe.model.language_model),
    )  # fmt: skip
    signatures = {str(entry.get("signature", "")) for entry in card.scores.values()} - {""}
    body = _environment().get_template(_TEMPLATE).render(
        card=card, recipe=recipe, familiarity=familiarity, parameters=parameters, name=name,
        spec=model_spec(card.model), place=printable(place or name), signature="; ".join(sorted(signatures)),
        data_licence=data_licence or _licences(card), figure=_figure, controls=_controls, steps=_steps,
    )  # fmt: skip
    return f"---\n{front.to_yaml().strip()}\n---\n\n{body}"


def _figure(entry: Mapping[str, Any], metric: str) -> str:
    if metric not in entry:
        return ""
    interval = entry.get("intervals", {}).get(metric)
    around = f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else ""
    return f"{entry[metric]:.1f}{around}"


def _controls(entry: Mapping[str, Any]) -> str:
    found = {name: control["bleu4"] for name, control in entry.get("controls", {}).items()}
    highest_first = sorted(found, key=lambda name: -found[name])
    return ", ".join(f"{name.replace('_', ' ')} {found[name]:.1f}" for name in highest_first)


def _published(name: str) -> str | None:
    """The language model that training began from, where it has a name on the hub."""
    return (
        name
        if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()
        else None
    )


def _steps(stage: Stage) -> str:
    return f"at most {stage.max_steps:,} steps" if stage.max_steps else f"{stage.epochs:g} epochs"


def _licences(card: ModelCard) -> str:
    return "; ".join(f"{corpus}: {LICENCES[corpus]}" for corpus in card.corpora if corpus in LICENCES)


@functools.cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown: the filter `plain`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"plain": markdown, "quote": shlex.quote, "json": json.dumps}
    return made
