"""Sign2GPT (Wong, Camgoz, Bowden 2024): spatial model, sign encoder, prototypes, and a language model with adapters.

Shape letters: B clips, F frames of all clips, P patches with the class token, N tokens of all clips, S tokens of a
padded clip, L subwords of a padded text, D width, H heads, Q and K queries and keys of a block, U prototypes,
V vocabulary.
"""

from sage_scale.deprecated import moved_names
from sage_scale.registry import ModelSpec

_HERE = "sage_scale.models.sign2gpt"

SPEC = ModelSpec(
    name="sign2gpt",
    title="Sign2GPT",
    pretrain=f"{_HERE}.pretraining:PrototypeTask",
    finetune=f"{_HERE}.translation:Sign2GptTranslation",
    load=f"{_HERE}.export:load_translator",
    export_file="adapters.safetensors",
    describe=f"{_HERE}.describe:describe",
    describe_note=f"{_HERE}.describe:note",
    language=f"{_HERE}.causal_model:XGLM",
)

__getattr__ = moved_names(__name__)
