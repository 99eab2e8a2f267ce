"""What the tests of the models share: a few clips, small recipes, a small mBART with its tokenizer."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import sentencepiece
import torch
from torch import nn
from transformers import MBart50Tokenizer, MBartConfig, MBartForConditionalGeneration, MBartTokenizer

from sage_scale.config import Recipe, from_mapping
from sage_scale.vision.packed import PackedVideo

CLIPS = [[3, 1, 6], [2], [5, 4]]  # stored frames of each segment of each clip


def recipe(**model: object) -> Recipe:
    backbone = {"depths": [1, 1], "widths": [4, 6]}
    values = {"backbone": backbone, "token_dim": 8, "feature_dim": 5, "conv_kernel": 5, **model}
    return from_mapping({"vision": {"size": 20, "crop": 16, "kind": "frames"}, "model": values})


def features_recipe(**model: object) -> Recipe:
    base = recipe(**model)
    return replace(base, vision=replace(base.vision, kind="features"))


def video(
    clips: Sequence[int] | None = None,
    kind: str = "frames",
    background: bool = False,
    lengths: Sequence[Sequence[int]] = CLIPS,
) -> PackedVideo:
    """Some clips, by default of CLIPS, each with pictures or features, background and draw of its own."""
    clips = list(range(len(lengths))) if clips is None else list(clips)
    frames = [torch.zeros(0, 3, 20, 20, dtype=torch.uint8)]
    features, backgrounds = [torch.zeros(0, 5)], list(frames)
    for clip in clips:
        generator = torch.Generator().manual_seed(clip)
        count = sum(lengths[clip])
        frames.append(torch.randint(0, 256, (count, 3, 20, 20), dtype=torch.uint8, generator=generator))
        features.append(torch.randn(count, 5, generator=generator))
        backgrounds.append(torch.randint(0, 256, (1, 3, 20, 20), dtype=torch.uint8, generator=generator))
    return PackedVideo(
        segment_frames_N=torch.tensor([n for clip in clips for n in lengths[clip]], dtype=torch.int64),
        clip_segments_B=torch.tensor([len(lengths[clip]) for clip in clips], dtype=torch.int64),
        frames_FCHW=torch.cat(frames) if kind == "frames" else None,
        features_FC=torch.cat(features) if kind == "features" else None,
        background_BCHW=torch.cat(backgrounds) if background else None,
        clip_seeds_B=torch.tensor([1000 + clip for clip in clips], dtype=torch.int64),
    )


def moved_norms(module: nn.Module) -> nn.Module:
    """Running statistics that are not the identity."""
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer, std=0.3)
        if name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 2)
    return module


SENTENCES = [
    "morgen regnet es im norden",
    "am tag scheint die sonne",
    "im süden wird es kalt",
    "der wind weht schwach",
    "heute nacht schneit es in den bergen",
]


def unigram(sentences: Sequence[str], size: int = 40, **options: Any) -> list[tuple[str, float]]:
    """Pieces and scores of a unigram model of the sentences, after <s>, <pad>, </s> and <unk>."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*sentences] * 3), model_writer=model, vocab_size=size, model_type="unigram",
        minloglevel=2, **options,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    scored = [
        (processor.id_to_piece(i), processor.get_score(i)) for i in range(3, processor.get_piece_size())
    ]
    return [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *scored]


@cache
def small_tokenizer(form: str = "mbart50") -> Any:
    """A tokenizer over SENTENCES in mBART-50's form or in cc25's."""
    return (MBart50Tokenizer if form == "mbart50" else MBartTokenizer)(vocab=unigram(SENTENCES))


def small_mbart_config(**values: Any) -> MBartConfig:
    """Weights large enough that every part of it shows in the output."""
    settings = {
        "d_model": 12,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "max_position_embeddings": 40,
        **values,
    }
    return MBartConfig(
        vocab_size=len(small_tokenizer()),
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        scale_embedding=True,
        init_std=0.3,
        **settings,
    )


def small_mbart(**values: Any) -> MBartForConditionalGeneration:
    torch.manual_seed(3)
    return MBartForConditionalGeneration(small_mbart_config(**values)).eval()
