"""Models by name. Everything that the program knows of a model is its `ModelSpec`, found by the recipe's `model.kind`.

The built-in models are imported when their names are first asked for. Others come from modules that call
`register_model` when they are imported (`config.extension.import_plugins` says which are).
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sage_scale.config import extension
from sage_scale.errors import RecipeError, UsageError
from sage_scale.untrusted.display import shortened

if TYPE_CHECKING:
    from sage_scale.losses.objectives import Objective

Lazy = str | Callable[..., Any]
"""A function, class or object, or "module:name", which is imported when it is first used."""


@dataclass(frozen=True)
class Part:
    """One part of a model: its parameters, and how many of them each stage trains."""

    name: str
    parameters: int
    stage1: int
    stage2: int


@dataclass(frozen=True)
class ReportSection:
    """A section of a run's report that is drawn from one file of the run."""

    anchor: str
    title: str
    file: str
    """Name of the JSON file in the run's folder that stage 1 writes; `RunRecord.own` has its content."""
    content: type
    """list (of objects) or dict."""
    missing: str
    """Name of the content among the parts that a report lacks."""
    make: Lazy
    """RunRecord -> HTML; empty where there is nothing to show."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything that the program knows of a model; where an optional field is empty, the program does without."""

    name: str
    """The value of `model.kind`."""
    title: str
    """The model's name in reports and messages."""
    # Training
    pretrain: Lazy
    """Stage 1: a `training.stage.Task`."""
    finetune: Lazy
    """Stage 2: a `training.stage.Task`, usually a `training.translation_task.TranslationTask`."""
    language: Lazy | None = None
    """How its language model is prepared: a `training.language.prepare.LanguageModelKind`."""
    language_in_pretrain: bool = True
    """Whether stage 1 reads the language model."""
    language_codes: bool = False
    """Whether the language model needs a code for the language of each sentence."""
    breaking_keys: tuple[str, ...] = ()
    """Keys of the recipe that only this model reads, and whose change makes a checkpoint non-resumable."""
    # The recipe
    section: type | None = None
    """Frozen dataclass of the recipe's section `model.NAME`, with a default for each field."""
    check: Callable[[Any, Callable[[bool, str], None]], None] | None = None
    """Checks a recipe: called with it and `need(condition, message)`."""
    # Exports
    load: Lazy
    """(export folder, recipe, device) -> (translator in evaluation mode, tokenizer, recipe)."""
    export_file: str
    """A file that every export of this model has."""
    frame_encoder: str = ""
    """Prefix of the frame encoder's weights in stage 1's file, for `vision.backbone=RUN`."""
    merge: Lazy | None = None
    """(translator, tokenizer, recipe, folder) -> lines: writes a trained model as plain models of transformers."""
    write_features: Lazy | None = None
    """(run, dataset, output, device, progress) -> (Dataset, overrides that train on it): writes stage 1's features."""
    captions: Lazy | None = None
    """(run, recipe, device) -> similarity of captions and segments by stage 1, for `corpus align --model`: `visual` and
    `texts` as in `models.sage.caption_similarity`."""
    gloss_similarity: Lazy | None = None
    """(run, recipe, device) -> a function from a batch to the similarity (N, G) of each clip's visual tokens and
    pseudo-glosses by stage 1, for `evaluate --gold`."""
    # Before a run
    describe: Lazy | None = None
    """Recipe -> the model's `Part`s in the order of the data, without weights or a download."""
    describe_note: Lazy | None = None
    """Recipe -> a line on parameters that the parts leave out."""
    plan: Lazy | None = None
    """`planning.PlanRequest` -> `planning.StagePlans`: memory and operations of both stages' steps."""
    # Reports
    stage_titles: tuple[str, str] = ("pretraining", "translation")
    """The work of each stage, in a word."""
    stage_summaries: tuple[str, str] = ("the visual side is trained", "the translator is trained")
    """The work of each stage, in a line."""
    language_model: str = "trained"
    """Treatment of the language model in stage 2."""
    tokens_are_segments: bool = False
    """Whether each sign segment is one visual token."""
    control_steps: float = 1.0
    """Steps of a control without stage 1 that take the time of one step of both stages of the demo (docs/results)."""
    report: tuple[ReportSection, ...] = ()
    """The model's own sections of a report."""

    def part(self, name: str) -> Any:
        """Returns the field `name`, imported where it is given as "module:name"."""
        return resolve(getattr(self, name))


def register_objective(kind: type[Objective]) -> None:
    """Makes an objective of stage 1 known under its `name`, a value of `clcl.loss`.

    Raises UsageError where another one has the name.
    """
    from sage_scale.losses.objectives import OBJECTIVES  # with torch, which a report does without

    if OBJECTIVES.get(kind.name, kind) is not kind:
        raise UsageError(
            f"clcl.loss={kind.name} is registered already: give the other objective another name"
        )
    OBJECTIVES[kind.name] = kind
    extension.register_choice("clcl.loss", kind.name)


def register_tagger(name: str, load: Callable[[str], Any]) -> None:
    """Makes `text.tagger=NAME` tag sentences by the tagger that `load` returns (`text.pseudogloss.TAGGERS`)."""
    from sage_scale.text.pseudogloss import TAGGERS

    TAGGERS[name] = load
    extension.register_choice("text.tagger", name)


def resolve(value: Any) -> Any:
    """Returns a Lazy's object."""
    return pkgutil.resolve_name(value) if isinstance(value, str) else value


_BUILT_IN = {"sage": "sage_scale.models.sage:SPEC", "sign2gpt": "sage_scale.models.sign2gpt:SPEC"}
_registered: dict[str, ModelSpec] = {}


def model_spec(kind: str) -> ModelSpec:
    """Returns the model that `model.kind` names. Raises RecipeError, which lists the names, where there is none."""
    if kind not in _registered and kind in _BUILT_IN:
        _registered[kind] = resolve(_BUILT_IN[kind])
    if kind not in _registered:
        extension.import_plugins()
    if kind not in _registered:
        raise RecipeError(f"model.kind={shortened(kind)}: must be one of {', '.join(model_names())}")
    return _registered[kind]


def model_names() -> list[str]:
    """Returns the names of all models, sorted."""
    extension.import_plugins()
    return sorted({*_BUILT_IN, *_registered})


def register_model(spec: ModelSpec) -> None:
    """Makes a model known under its name, with its section of the recipe.

    Raises UsageError where another model has the name.
    """
    if spec.name in _BUILT_IN or _registered.get(spec.name, spec) != spec:
        raise UsageError(f"model.kind={spec.name} is registered already: give the other model another name")
    if spec.name not in _registered:
        extension.register_model(spec.name, spec.section, spec.check)
    _registered[spec.name] = spec
