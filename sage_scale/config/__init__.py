"""The recipe: the only configuration of sage_scale.

A recipe is a tree of frozen dataclasses, read from YAML (`launch/recipes/*.yaml`), changed on the command line
with `section.key=value`, printed whole by every run and stored with its outputs. An unknown key is refused with
the nearest known one. Each field's docstring says its unit and, where it comes from a paper, the section.
"""

from sage_scale.config.checks import check, check_lanes
from sage_scale.config.data import (
    Augment,
    Captions,
    Corpus,
    Precompute,
    Segmentation,
    Shards,
    Stream,
    Text,
    Vision,
)
from sage_scale.config.extension import choices, register_choice, register_model, since
from sage_scale.config.learning import Backbone, Clcl, Denoise, Evaluation, Model, Stage, Watch
from sage_scale.config.reading import (
    LAUNCH_FOLDER,
    RECIPE_FOLDER,
    from_mapping,
    load_recipe,
    override,
    recipe_names,
)
from sage_scale.config.recipe import Recipe, to_mapping, to_yaml
from sage_scale.config.sign2gpt import Prototypes, Sign2Gpt

__all__ = [
    "LAUNCH_FOLDER", "RECIPE_FOLDER", "Augment", "Backbone", "Captions", "Clcl", "Corpus", "Denoise", "Evaluation",
    "Model", "Precompute", "Prototypes", "Recipe", "Segmentation", "Shards", "Sign2Gpt", "Stage", "Stream", "Text",
    "Vision", "Watch", "check", "check_lanes", "choices", "from_mapping", "load_recipe", "override",
    "recipe_names", "register_choice", "register_model", "since", "to_mapping", "to_yaml",
]  # fmt: skip
