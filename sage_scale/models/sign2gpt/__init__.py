"""Sign2GPT (Wong, Camgoz, Bowden 2024): spatial model, sign encoder, prototypes, and a language model with adapters.

Shape letters: B clips, F frames of all clips, P patches with the class token, N tokens of all clips, S tokens of a
padded clip, L subwords of a padded text, D width, H heads, Q and K queries and keys of a block, U prototypes,
V vocabulary.
"""

from sage_scale.models.sign2gpt.adapters import FORMS, adapt
from sage_scale.models.sign2gpt.checkpoint import load_adapters, save_adapters
from sage_scale.models.sign2gpt.decoder import SignDecoder, load_causal_model, make_texts
from sage_scale.models.sign2gpt.frames import clip_frames, drawn_frames
from sage_scale.models.sign2gpt.merge import save_merged
from sage_scale.models.sign2gpt.model import Sign2GptPretrainer, Sign2GptTranslator, load_signs
from sage_scale.models.sign2gpt.prototype_head import PrototypeHead
from sage_scale.models.sign2gpt.sign_encoder import SignEncoder
from sage_scale.models.sign2gpt.spatial import SpatialModel

__all__ = [
    "FORMS",
    "PrototypeHead",
    "Sign2GptPretrainer",
    "Sign2GptTranslator",
    "SignDecoder",
    "SignEncoder",
    "SpatialModel",
    "adapt",
    "clip_frames",
    "drawn_frames",
    "load_adapters",
    "load_causal_model",
    "load_signs",
    "make_texts",
    "save_adapters",
    "save_merged",
]
