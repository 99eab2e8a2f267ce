"""Sign2GPT (Wong, Camgoz, Bowden 2024): spatial model, sign encoder, prototypes, and a language model with adapters.

Shape letters: B clips, F frames of all clips, P patches with the class token, N tokens of all clips, S tokens of a
padded clip, L subwords of a padded text, D width, H heads, Q and K queries and keys of a block, U prototypes,
V vocabulary.
"""

from sage_scale.deprecated import moved_names
from sage_scale.registry import ModelSpec, ReportSection

_HERE = "sage_scale.models.sign2gpt"

SPEC = ModelSpec(
    name="sign2gpt",
    title="Sign2GPT",
    pretrain=f"{_HERE}.pretraining:PrototypeTask",
    finetune=f"{_HERE}.finetuning:Sign2GptTranslation",
    language=f"{_HERE}.causal_model:XGLM",
    language_in_pretrain=False,
    breaking_keys=(
        *(
            f"model.sign2gpt.{key}"
            for key in (
                "spatial", "vit_patch", "vit_adapted", "window", "downsample_after", "padding", "positions",
                "lora_alpha", "language_lr_scale",
            )
        ),
        *(f"prototypes.{key}" for key in ("vectors", "fasttext", "dim", "max_frequency", "splits")),
    ),
    load=f"{_HERE}.export:load_translator",
    export_file="adapters.safetensors",
    merge=f"{_HERE}.merge:merge_export",
    write_features=f"{_HERE}.sign_features:write_features",
    describe=f"{_HERE}.describe:describe",
    describe_note=f"{_HERE}.describe:note",
    plan=f"{_HERE}.plan:Sign2GptPlans",
    stage_titles=("prototypes", "translation"),
    stage_summaries=("pseudo-glosses found by prototypes", "a frozen XGLM learns to translate through adapters"),
    language_model="frozen, with adapters",
    control_steps=0.615,
    report=(
        ReportSection(
            "prototypes", "Pseudo-glosses", "prototypes.json", dict, "pseudo-glosses found",
            f"{_HERE}.report:prototype_scores",
        ),
        ReportSection(
            "localisation", "Localisation", "localisation.json", list, "localisation",
            f"{_HERE}.report:localisation_maps",
        ),
    ),
)  # fmt: skip

__getattr__ = moved_names(__name__)
