"""Similarity of a clip's visual tokens and its pseudo-glosses by a trained stage 1, for `evaluation.sign_alignment`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from sage_scale.config import Recipe
from sage_scale.models.sage.caption_similarity import CaptionSimilarity
from sage_scale.streaming import Batch
from sage_scale.text.tokenizer import encode_texts


def gloss_similarity(run: Path, recipe: Recipe, device: torch.device) -> Callable[[Batch], list[np.ndarray]]:
    """Returns a function from a batch to the cosines (N, G) of each clip: visual tokens by pseudo-glosses.

    A pseudo-gloss has the similarity of its most similar subword, at the level of input embeddings (SAGE, equation 1).
    Raises NoModel where the run has no stage 1, CheckpointError for damaged weights.
    """
    stage1 = CaptionSimilarity(run, recipe, device)
    weight_VD = F.normalize(stage1.text.encoder.embed_tokens.weight.detach().float(), dim=-1)
    unknown = stage1.text.tokenizer.unk_token_id

    @torch.no_grad()
    def similarity(batch: Batch) -> list[np.ndarray]:
        video = batch.video.to(device)
        tokens_ND = F.normalize(stage1.model.encode(video)[0].float(), dim=-1)
        parts = tokens_ND.split(batch.video.clip_segments_B.tolist())
        found = []
        for meta, part_ND in zip(batch.metas, parts, strict=True):
            glosses = encode_texts(stage1.text.tokenizer, meta["pseudo_glosses"])
            columns = [(part_ND @ weight_VD[ids or [unknown]].T).amax(1) for ids in glosses]
            stacked = torch.stack(columns, 1) if columns else part_ND.new_zeros(len(part_ND), 0)
            found.append(stacked.cpu().numpy())
        return found

    return similarity
