"""The models: visual encoder, mapper, context encoder, language model, and SAGE made of them.

Shape letters: B clips, N segments (visual tokens) of all clips, F stored frames, M text tokens of all clips, L padded
length, C channels, D width, K kernel, V vocabulary, H and W image sides.
"""

from sage_scale.models.describe import Part, describe
from sage_scale.models.language import TextEncoder, TextTargets, load_language_model, make_labels
from sage_scale.models.sage import SageAligner, SageTranslator, load_visual
from sage_scale.models.visual import VisualEncoder

__all__ = [
    "Part",
    "SageAligner",
    "SageTranslator",
    "TextEncoder",
    "TextTargets",
    "VisualEncoder",
    "describe",
    "load_language_model",
    "load_visual",
    "make_labels",
]
