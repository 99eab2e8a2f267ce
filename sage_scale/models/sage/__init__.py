"""SAGE (Low et al. 2025): visual tokens of sign segments, aligned with pseudo-glosses, translated by mBART.

Shape letters: B clips, N segments (visual tokens) of all clips, F stored frames, M text tokens of all clips, L padded
length, C channels, D width, K kernel, V vocabulary, H and W image sides.
"""

from sage_scale.registry import ModelSpec

_HERE = "sage_scale.models.sage"

SPEC = ModelSpec(
    name="sage",
    title="SAGE",
    pretrain=f"{_HERE}.alignment:AlignmentTask",
    finetune=f"{_HERE}.translation:SageTranslation",
    load=f"{_HERE}.export:load_translator",
    export_file="visual.safetensors",
    describe=f"{_HERE}.describe:describe",
    language=f"{_HERE}.denoising:MBART",
)
