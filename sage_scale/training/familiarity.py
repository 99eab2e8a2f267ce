"""Whether signing looks like that of training: statistics that go along with an exported model.

model/familiarity.safetensors   mean and whitening of training clips, distances and sentence scores of dev clips

A clip is the mean of its visual tokens, each scaled to length one (D,). Its distance is Mahalanobis' from training
clips, with the covariance shrunk as Ledoit and Wolf (2004) derive it. Scaled tokens say how signing looks and not how
strong its contrast is: unscaled ones take a bright picture for unfamiliar signing. A training clip counts as it is and
under other recording conditions (vision/perturbation.py). The limit is the quantile of dev clips, both ways.
docs/results/honest.md has false alarms and alarms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sage_scale.config import Recipe
from sage_scale.errors import CheckpointError, SageError
from sage_scale.nn.weights import read_weights, write_weights
from sage_scale.shards import Dataset
from sage_scale.streaming import open_evaluation
from sage_scale.training import distributed
from sage_scale.training.decode import has_split
from sage_scale.training.distributed import Ranks
from sage_scale.training.export import SearchingModel
from sage_scale.training.monitor import rank_status
from sage_scale.untrusted.hashes import add_hash
from sage_scale.vision.perturbation import perturbed

FILE = "familiarity.safetensors"
CLIPS = 600
"""Most clips of train and of dev that are measured, chosen by a hash of their keys."""
TRAIN_VIEWS, DEV_VIEWS = 2, 4
"""Views of a clip: view 0 as it is, the others under other recording conditions."""
QUANTILE = 0.99
"""Share of dev's views within the limit."""
MARGIN = 1.25
"""The limit is at least this multiple of the quantile of dev clips as they are: features have no other conditions."""
TOKEN_MARGIN = 1.25
"""Numbers of tokens up to this factor beyond those of training clips are familiar."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Familiarity:
    """Statistics of the signing that a model was trained on."""

    mean_D: Tensor
    """Mean training clip, float64."""
    whitening_DD: Tensor
    """Inverse Cholesky factor of the shrunk covariance, float64."""
    token_limits: tuple[int, int]
    """Fewest and most visual tokens of a training clip."""
    limit: float
    """Largest familiar distance."""
    dev_distances: Tensor
    """(V,): of dev clips as they are."""
    dev_tokens: Tensor
    """int64 (V,): visual tokens of each."""
    dev_scores: Tensor
    """(V,): scores of their sentences (`nn.beam_search.Candidate`), ascending."""

    def distance(self, tokens_ND: Tensor) -> float:
        """Returns the distance of a clip's visual tokens from training clips. Raises CheckpointError for tokens of
        another width."""
        if tokens_ND.shape[1] != len(self.mean_D):
            raise CheckpointError(
                f"{FILE} belongs to another model (tokens of width {len(self.mean_D)}, here {tokens_ND.shape[1]}): "
                "delete it and evaluate the run again"
            )
        return float((self.whitening_DD @ (clip_vector(tokens_ND) - self.mean_D)).norm())

    @property
    def false_alarms(self) -> float:
        """The share of dev clips that would be warned of, 0 to 1."""
        few_V = self.dev_tokens * TOKEN_MARGIN < self.token_limits[0]
        many_V = self.dev_tokens > self.token_limits[1] * TOKEN_MARGIN
        return float((few_V | many_V | (self.dev_distances > self.limit)).double().mean())

    def percentile(self, score: float | None) -> float | None:
        """Returns the share of dev sentences, in percent, whose score is at most this one; None without scores."""
        if score is None or not len(self.dev_scores):
            return None
        return 100 * float((self.dev_scores <= score).double().mean())

    def warnings(self, tokens_ND: Tensor) -> list[str]:
        """Returns a line for each way in which a clip is unlike training: its look, and its number of tokens."""
        lines, distance = [], self.distance(tokens_ND)
        dev = len(self.dev_distances)
        alarms = f"false alarms: {round(dev * self.false_alarms):,} of {dev:,} dev clips"
        if distance > self.limit:
            lines.append(
                f"this signing looks unlike the training data (distance {distance:.1f}, limit {self.limit:.1f}; "
                f"{alarms}): do not rely on the sentence"
            )
        (least, most), count = self.token_limits, len(tokens_ND)
        if count * TOKEN_MARGIN < least or count > most * TOKEN_MARGIN:
            lines.append(
                f"{count:,} visual tokens, training clips have {least:,} to {most:,} ({alarms}): "
                + ("cut the video at pauses" if count > most else "it may be no whole sentence")
            )
        return lines


def clip_vector(tokens_ND: Tensor) -> Tensor:
    """Returns the mean (D,), float64, of tokens (N, D) scaled to length one."""
    return F.normalize(tokens_ND.double().cpu(), dim=-1).mean(0)


def shrunk_covariance(clips_BD: Tensor) -> Tensor:
    """Returns the covariance (D, D) of rows, shrunk towards a multiple of the identity (Ledoit and Wolf 2004,
    equation 14); positive definite, also of fewer rows than columns."""
    clips, width = clips_BD.shape
    centred = clips_BD - clips_BD.mean(0)
    sample = centred.T @ centred / clips
    scale = max(float(sample.trace()) / width, 1e-12)
    target = scale * torch.eye(width, dtype=sample.dtype)
    apart = float((sample - target).square().sum())
    spread = float(centred.square().sum(1).square().mean() - sample.square().sum()) / clips
    share = min(spread / apart, 1.0) if apart > 0 else 1.0
    return (1 - max(share, 1e-3)) * sample + max(share, 1e-3) * target


def add_familiarity(
    export: Path,
    recipe: Recipe,
    model: Any,
    tokenizer: Any,
    data: Sequence[Dataset],
    ranks: Ranks,
    precision: Callable[[], AbstractContextManager[Any]],
    say: Callable[[str], None],
) -> None:
    """Measure and write the statistics of an export (a collective); a damaged sample ends this with a line, not with
    an error, since the model is trained and whole without them."""
    try:
        familiarity = measure_familiarity(recipe, model, tokenizer, data, ranks, precision)
    except SageError as error:
        say(f"familiar signing is not measured, translate will not warn of other signing: {error}")
        return
    if ranks.is_main and familiarity is not None:
        write_familiarity(export, familiarity)


@torch.no_grad()
def measure_familiarity(
    recipe: Recipe,
    model: Any,
    tokenizer: Any,
    data: Sequence[Dataset],
    ranks: Ranks,
    precision: Callable[[], AbstractContextManager[Any]],
) -> Familiarity | None:
    """Returns the statistics of a trained model on its datasets (a collective); None where there are none: a model
    that gives no tokens or reads glosses, whose tokens are no numbers, datasets without train or dev.

    Raises the first rank's SageError on every rank, such as DatasetError for a damaged sample.
    """
    there = all(has_split(data, split) for split in ("train", "dev"))
    if not there or recipe.finetune.glosses or not isinstance(model, SearchingModel):
        return None
    model.eval()
    with rank_status.phase("measuring what is familiar"):
        train = _gathered(_clips(recipe, model, None, data, "train", ranks, precision))
        dev = _gathered(_clips(recipe, model, tokenizer, data, "dev", ranks, precision))
    if not train or not dev or not all(row.vector_D.isfinite().all() for row in (*train, *dev)):
        return None
    train_BD = torch.stack([row.vector_D for row in train])
    own = [row for row in dev if row.view == 0]
    counts = [row.tokens for row in train if row.view == 0]
    whitening_DD = torch.linalg.inv(torch.linalg.cholesky(shrunk_covariance(train_BD)))
    mean_D = train_BD.mean(0)

    def distances(rows: Sequence[_Row]) -> Tensor:
        return ((torch.stack([row.vector_D for row in rows]) - mean_D) @ whitening_DD.T).norm(dim=1)

    limit = max(float(distances(dev).quantile(QUANTILE)), MARGIN * float(distances(own).quantile(QUANTILE)))
    return Familiarity(
        mean_D=mean_D,
        whitening_DD=whitening_DD,
        token_limits=(min(counts), max(counts)),
        limit=limit,
        dev_distances=distances(own),
        dev_tokens=torch.tensor([row.tokens for row in own]),
        dev_scores=torch.tensor([row.score for row in own if row.score is not None], dtype=torch.float64)
        .sort()
        .values,
    )


def write_familiarity(export: Path, familiarity: Familiarity) -> None:
    """Write the statistics into an export folder, with their hash."""
    tensors = {
        name: value.contiguous() for name, value in vars(familiarity).items() if isinstance(value, Tensor)
    }
    tensors["token_limits"] = torch.tensor(familiarity.token_limits)
    tensors["limit"] = torch.tensor(familiarity.limit, dtype=torch.float64)
    write_weights(tensors, export / FILE)
    add_hash(export, FILE)


def read_familiarity(export: Path) -> Familiarity | None:
    """Returns the statistics of an export folder; None where it has none. Raises CheckpointError for a damaged file."""
    try:
        tensors = read_weights(export / FILE)
    except FileNotFoundError:
        return None
    try:
        least, most = tensors.pop("token_limits").tolist()
        limit = float(tensors.pop("limit"))
        found = Familiarity(**tensors, token_limits=(least, most), limit=limit)
        width = len(found.mean_D)
        if found.whitening_DD.shape != (width, width) or not math.isfinite(limit):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{export / FILE} is damaged: evaluate the run again") from None
    return found


@dataclass(frozen=True)
class _Row:
    position: int
    view: int
    vector_D: Tensor
    tokens: int
    score: float | None


def _clips(
    recipe: Recipe,
    model: SearchingModel,
    tokenizer: Any,
    data: Sequence[Dataset],
    split: str,
    ranks: Ranks,
    precision: Callable[[], AbstractContextManager[Any]],
) -> Iterator[_Row]:
    """Yields this rank's clips of a split in each view; with a tokenizer, of view 0 with their sentences' scores."""
    evaluation, size = recipe.evaluation, recipe.evaluation.batch_size
    batches = open_evaluation(
        data, recipe, split, rank=ranks.rank, world=ranks.world, batch_size=size, most=CLIPS
    )
    views = DEV_VIEWS if tokenizer is not None else TRAIN_VIEWS
    for batch in batches:
        video = batch.video.to(ranks.device)
        for view in range(views if batch.keys and video.frames_FCHW is not None else min(1, len(batch.keys))):
            with precision():
                seen = perturbed(video, batch.keys, view) if view else video
                tokens_ND, lengths_B = model.visual_tokens(seen)
                scores: list[float | None] = [None] * len(batch.keys)
                if tokenizer is not None and view == 0:
                    languages = [meta["language"] or recipe.corpus.language for meta in batch.metas]
                    found = model.search(
                        tokens_ND, lengths_B, tokenizer, languages, evaluation.beams, evaluation.max_tokens,
                        evaluation.length_penalty, count=1,
                    )  # fmt: skip
                    scores = [candidates[0].score for candidates in found]
            parts = tokens_ND.split(lengths_B.tolist())
            for position, part, score in zip(batch.positions_B.tolist(), parts, scores, strict=True):
                yield _Row(position, view, clip_vector(part), len(part), score)


def _gathered(rows: Iterator[_Row]) -> list[_Row]:
    """Returns the rows of all ranks in dataset order (a collective)."""
    own: list[_Row] | SageError
    try:
        own = list(rows)
    except SageError as error:
        own = error
    every: list[_Row] = []
    for part in distributed.gather_objects(own):
        if isinstance(part, SageError):
            raise part
        every += part
    return sorted(every, key=lambda row: (row.position, row.view))
