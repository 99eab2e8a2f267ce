"""The published sign segmenter of 2023 (Moryossef et al., "Linguistically Motivated Sign Language Segmentation"): one
bidirectional LSTM layer over keypoints at 25 frames a second, with heads for signs and sentences.

Weights: the tensors of `dist/2023/model.pth` of sign-language-processing/segmentation (MIT), as `model.safetensors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sage_scale.keypoints.cleaning import resampled
from sage_scale.keypoints.names import BODY_33
from sage_scale.keypoints.track import KeypointTrack
from sage_scale.segmentation.models.holistic import by_shoulders
from sage_scale.segmentation.tagger import Probabilities, fingerprint
from sage_scale.vision.pretrained_weights import load_exactly

FPS = 25.0
"""Frame rate that the model was trained at."""
_ORDER = [0, 2, 1]
"""Its classes are O, B, I; ours O, I, B."""
_UNUSED = [BODY_33.index(name) for name in BODY_33 if name.split("_")[-1] in ("knee", "ankle", "heel")]
_UNUSED += [BODY_33.index(f"body.{side}_foot_index") for side in ("left", "right")]


class Published2023(nn.Module):
    """The network and its input; a KeypointTagger."""

    name = "published-2023"
    decoding = "peaks"

    def __init__(self, weights: Mapping[str, Tensor], path: Path) -> None:
        """Raises CheckpointError where the weights (from `path`) do not fit."""
        super().__init__()
        self.pose_projection = nn.Linear(225, 256)
        self.encoder = nn.LSTM(256, 128, batch_first=True, bidirectional=True)
        self.sign_bio_head = nn.Linear(256, 3)
        self.sentence_bio_head = nn.Linear(256, 3)
        load_exactly(self, {k: v.float() for k, v in weights.items() if "loss_function" not in k}, path)
        self.eval()
        self.fingerprint = fingerprint(self.state_dict(), self.name)

    @torch.no_grad()
    def forward(self, x_TKC: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log-probabilities of O, B, I for signs and for sentences, (T, 3), from points (T, 75, 3)."""
        hidden, _ = self.encoder(self.pose_projection(x_TKC.flatten(1))[None])
        heads = (self.sign_bio_head, self.sentence_bio_head)
        signs, sentences = (head(hidden[0]).log_softmax(-1) for head in heads)
        return signs, sentences

    def __call__(self, track: KeypointTrack) -> Probabilities:  # type: ignore[override]
        """Returns the probabilities of a track, at 25 frames a second."""
        signs, sentences = self.forward(torch.from_numpy(network_input(resampled(track, FPS))))
        p_sign, p_sentence = (values.exp().numpy()[:, _ORDER] for values in (signs, sentences))
        return Probabilities(sign_T3=p_sign, sentence_T3=p_sentence, fps=FPS)


def network_input(track: KeypointTrack) -> np.ndarray:
    """Returns float32 (T, 75, 3): points by the shoulders; 0 where not seen, and for legs and feet."""
    points, seen_TK = by_shoulders(track)
    seen_TK[:, _UNUSED] = False
    return np.where(seen_TK[..., None], points, 0).astype(np.float32)
