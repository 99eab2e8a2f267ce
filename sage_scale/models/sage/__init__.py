"""SAGE (Low et al. 2025): visual tokens of sign segments, aligned with pseudo-glosses, translated by mBART.

Shape letters: B clips, N segments (visual tokens) of all clips, F stored frames, M text tokens of all clips, L padded
length, C channels, D width, K kernel, V vocabulary, H and W image sides.
"""

from sage_scale.registry import ModelSpec, ReportSection

_HERE = "sage_scale.models.sage"

SPEC = ModelSpec(
    name="sage",
    title="SAGE",
    pretrain=f"{_HERE}.pretraining:AlignmentTask",
    finetune=f"{_HERE}.finetuning:SageTranslation",
    language=f"{_HERE}.denoising:MBART",
    language_codes=True,
    breaking_keys=tuple(
        f"model.{key}"
        for key in (
            "conv_kernel", "pooling", "window_margin", "token_dim", "mapper_blocks", "mapper_last", "mapper_norm",
            "context_layers",
        )
    ),
    load=f"{_HERE}.export:load_translator",
    export_file="visual.safetensors",
    frame_encoder="visual.backbone.",
    captions=f"{_HERE}.caption_similarity:CaptionSimilarity",
    gloss_similarity=f"{_HERE}.sign_similarity:gloss_similarity",
    describe=f"{_HERE}.describe:describe",
    plan=f"{_HERE}.plan:SagePlans",
    stage_titles=("alignment", "translation"),
    stage_summaries=("visual tokens aligned with pseudo-glosses by CLCL", "mBART learns to translate"),
    tokens_are_segments=True,
    control_steps=0.738,
    report=(
        ReportSection(
            "alignment", "Token similarity", "alignment.json", list, "token similarity",
            f"{_HERE}.report:alignments",
        ),
    ),
)  # fmt: skip
