"""Similarity of captions and sign segments by a trained stage 1: the token embeddings that CLCL aligned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from sage_scale.config import Recipe
from sage_scale.errors import NoModel
from sage_scale.models.sage.mbart import TextEncoder, load_language_model
from sage_scale.models.sage.model import SageAligner, load_visual
from sage_scale.shards import Sample
from sage_scale.streaming import SampleShape, pack_sample
from sage_scale.text.pseudogloss import cached_glosser
from sage_scale.training.export import load_tensors
from sage_scale.training.stage import STAGE1
from sage_scale.untrusted.files import expanded


class CaptionSimilarity:
    """Stage 1 of a run, in evaluation mode."""

    def __init__(self, run: Path, recipe: Recipe, device: torch.device) -> None:
        """Raises NoModel where the run has no stage 1, CheckpointError for damaged weights."""
        if not (run / STAGE1).is_file():
            raise NoModel(f"{run} has no trained stage 1 ({STAGE1}): run `sage-scale pretrain`")
        own = run / "language_model"
        folder = own if (own / "config.json").is_file() else expanded(recipe.model.language_model)
        language_model, tokenizer = load_language_model(folder)
        self.recipe, self.device, self.shape = recipe, device, SampleShape.of(recipe)
        self.model = SageAligner(recipe, language_model)
        load_visual(self.model, load_tensors(run / STAGE1))
        self.model.to(device).eval()
        self.text = TextEncoder(language_model, tokenizer).to(device)

    @torch.no_grad()
    def visual(self, sample: Sample) -> np.ndarray:
        """Returns the visual tokens of a sample's segments, float16 (N, D), of length one."""
        video = pack_sample(sample, self.shape).video.to(self.device)
        tokens_ND = self.model.mapper(self.model.visual(video))
        return F.normalize(tokens_ND.float(), dim=-1).half().cpu().numpy()

    def texts(self, sentences: Sequence[str], languages: Sequence[str]) -> list[np.ndarray]:
        """Returns the text tokens of each caption, float32 (M, D), of length one; M >= 1."""
        glosses = self.recipe.text.target == "pseudo_gloss"
        targets = [
            " ".join(cached_glosser(language, self.recipe.text)(sentence)) if glosses else sentence
            for sentence, language in zip(sentences, languages, strict=True)
        ]
        wanted = [target or sentence for target, sentence in zip(targets, sentences)]
        found = self.text.encode(wanted, list(languages), self.device)
        parts = F.normalize(found.embeddings_MD.float(), dim=-1).cpu().split(found.lengths_B.tolist())
        return [part.numpy() for part in parts]
