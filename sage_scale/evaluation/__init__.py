"""Evaluation: scores of translations, and the controls that a translator must beat."""

from sage_scale.evaluation.baselines import nearest_in_length, prior_sentence, text_controls
from sage_scale.evaluation.metrics import content_f1, rouge_l, score, score_as
from sage_scale.evaluation.presets import PRESETS, Preset

__all__ = [
    "PRESETS",
    "Preset",
    "content_f1",
    "nearest_in_length",
    "prior_sentence",
    "rouge_l",
    "score",
    "score_as",
    "text_controls",
]
