"""Trains the segmenter of models/trained.py: on clips with annotation, or on random synthetic signing alone.

Each of a few networks is trained without another part of the clips, on which it is scored every few passes and stopped
early; together they score all clips, each by a network that did not see it. The loss is cross-entropy plus dice (over
all frames of a row; squared denominators, Milletari et al. 2016), with an onset that is a bump of a few frames. The
weights kept are a moving average. On the CPU the same data and seed give the same weights.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from sage_scale.segmentation.decoding import peaks
from sage_scale.segmentation.evaluation import GAPS_S, THRESHOLDS
from sage_scale.segmentation.models.trained import FPS, Network, features
from sage_scale.segmentation.rules import B, I
from sage_scale.segmentation.scores import bootstrap_intervals, clip_counts, scores
from sage_scale.segmentation.training_data import Example, Row, drawn, packed
from sage_scale.storage.folder import FolderStore

ROW_FRAMES = 1536
EVERY = 5
"""Passes over the data between two scores on the held-out part."""
PATIENCE = 4
"""Scores far below the best one before a network is stopped."""
NEAR = 0.02
"""How far scores may be below the best one: the later weights are taken, since a small part's scores are noisy."""
NOTICED = 0.01
"""How far other limits of decoding must be above the usual ones, in a sum of two scores."""
REPORTED = ("frame_macro_f1", "segment_f1_50", "onset_f1_1", "ratio")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train; in config.json of the model."""

    networks: int = 5
    """Networks that are averaged, each with another part of the data held out."""
    passes: int = 40
    """Most passes over the data."""
    seed: int = 0
    width: int = 64
    dilations: tuple[int, ...] = (1, 2, 4, 8, 4, 2)
    dropout: float = 0.3
    input_dropout: float = 0.1
    learning_rate: float = 2e-3
    weight_decay: float = 0.02


@dataclass(frozen=True, eq=False)
class Trained:
    """Networks and the scores of their held-out parts."""

    networks: list[Network]
    counts_CK: np.ndarray
    """Counts (scores.py) of each example by the network that did not see it, decoded by `limits`."""
    limits: tuple[float, float] | None
    """Threshold and gap (s) of `peaks` that were chosen on the held-out parts."""
    passes: list[int]
    """Passes after which each network's weights were best."""
    settings: Settings = field(default_factory=Settings)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the weights by name, as TrainedTagger has them."""
        named = ((f"networks.{n}.{name}", value) for n, network in enumerate(self.networks)
                 for name, value in network.state_dict().items())  # fmt: skip
        return {name: value.contiguous() for name, value in named}


def train(
    examples: Sequence[Example],
    settings: Settings,
    start: Sequence[Mapping[str, Tensor]] = (),
    show: Callable[[int, int], None] = lambda done, total: None,
    choose: bool = True,
) -> Trained:
    """Returns networks trained on the examples, from the weights `start` in turn, if there are any, at half the
    learning rate; `show` is called with passes (done, at most); `choose` also chooses the decoding's limits."""
    parts = _parts(examples, settings)
    first = [start[number % len(start)] for number in range(len(parts))] if start else [None] * len(parts)
    networks: list[Network] = []
    passes: list[int] = []
    found: dict[int, np.ndarray] = {}
    for number, part in enumerate(parts):
        held_out = [examples[place] for place in part]
        rest = [example for place, example in enumerate(examples) if place not in set(part)] or held_out

        def step(done: int, before: int = number * settings.passes) -> None:
            show(before + done, len(parts) * settings.passes)

        network, best = _train_network(
            rest, held_out, settings, first[number], settings.seed * 1000 + number, step
        )
        networks.append(network)
        passes.append(best)
        found |= dict(zip(part, probabilities([network], held_out)))
    show(len(parts) * settings.passes, len(parts) * settings.passes)
    ordered = [found[place] for place in range(len(examples))]
    limits, counts_CK = chosen_limits(ordered, examples) if choose else (None, _counts(ordered, examples))
    return Trained(networks, counts_CK, limits, passes, settings)


def chosen_limits(
    found: Sequence[np.ndarray], examples: Sequence[Example]
) -> tuple[tuple[float, float], np.ndarray]:
    """Returns threshold and gap (s) of `peaks` with the largest sum of segment F1 at .5 and onset F1 within a frame,
    and the counts (C, K) they give; the usual ones where that is no more than NOTICED above theirs. `found` are
    probabilities (T, 3) of each example."""
    results = []
    for limits in ((0.4, 0.16), *itertools.product(THRESHOLDS, GAPS_S)):
        counts_CK = _counts(found, examples, limits)
        values = scores(counts_CK.sum(0), FPS)
        results.append((float(values["segment_f1_50"] + values["onset_f1_1"]), limits, counts_CK))
    usual, best = results[0], max(results, key=lambda result: result[0])
    _, limits, counts_CK = best if best[0] > usual[0] + NOTICED else usual
    return limits, counts_CK


def _parts(examples: Sequence[Example], settings: Settings) -> list[list[int]]:
    order = np.random.default_rng(settings.seed).permutation(len(examples)).tolist()
    parts = [sorted(order[number :: settings.networks]) for number in range(settings.networks)]
    return [part for part in parts if part]


def _train_network(
    examples: Sequence[Example],
    held_out: Sequence[Example],
    settings: Settings,
    start: Mapping[str, Tensor] | None,
    seed: int,
    show: Callable[[int], None],
) -> tuple[Network, int]:
    """Returns a network with its best weights, in evaluation mode, and the pass after which they were best."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = Network(settings.width, settings.dilations, settings.dropout, settings.input_dropout)
    if start is not None:
        network.load_state_dict(start)
    most = settings.learning_rate * (1 if start is None else 0.5)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=settings.weight_decay)
    average = {name: value.clone() for name, value in network.state_dict().items()}
    best, best_weights, best_pass, steps = -1.0, average, 0, 0
    for number in range(1, settings.passes + 1):
        network.train()
        order = rng.permutation(len(examples))
        rows = packed([drawn(examples[place], rng) for place in order], ROW_FRAMES)
        for place, row in enumerate(rows):
            share = (number - 1 + (place + 1) / len(rows)) / settings.passes
            rate = share / 0.1 if share < 0.1 else 0.5 * (1 + np.cos(np.pi * (share - 0.1) / 0.9)) + 1e-3
            optimizer.param_groups[0]["lr"] = most * rate
            optimizer.zero_grad()
            row_loss(network, row).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            steps += 1
            kept = min(0.98, steps / (steps + 10))
            torch._foreach_lerp_(list(average.values()), list(network.state_dict().values()), 1 - kept)
        show(number)
        if number % EVERY == 0 or number == settings.passes:
            judged = Network(settings.width, settings.dilations)
            judged.load_state_dict(average)
            found = scores(score_examples([judged.eval()], held_out).sum(0), FPS)
            quality = float(found["frame_macro_f1"] + found["segment_f1_50"])
            if quality >= best - NEAR:
                best, best_pass = max(best, quality), number
                best_weights = {name: value.clone() for name, value in average.items()}
            elif number - best_pass >= PATIENCE * EVERY:
                break
    network.load_state_dict(best_weights)
    return network.eval(), best_pass


def row_loss(network: Network, row: Row) -> Tensor:
    """Returns cross-entropy plus dice of one row; padding counts in neither."""
    x_BTF, wanted_L3, real_L = (
        torch.from_numpy(values) for values in (row.x_LF[None], row.targets_L3, row.real_L)
    )
    log_p_L3 = F.log_softmax(network(x_BTF, real_L[None])[0], -1)
    cross_entropy = -((wanted_L3 * log_p_L3).sum(-1) * real_L).sum() / real_L.sum()
    p_L3, wanted_L3 = log_p_L3.exp() * real_L[:, None], wanted_L3 * real_L[:, None]
    common_3 = 2 * (p_L3 * wanted_L3).sum(0) + 1
    return cross_entropy + 1 - (common_3 / ((p_L3**2).sum(0) + (wanted_L3**2).sum(0) + 1)).mean()


@torch.no_grad()
def probabilities(networks: Sequence[Network], examples: Sequence[Example]) -> list[np.ndarray]:
    """Returns P(O), P(I), P(B) of each example, float32 (T, 3) at 25 frames a second: means over networks and mirror
    image."""
    results = [np.zeros((example.frames, 3), np.float32) for example in examples]
    for mirrored in (False, True):
        clips = []
        for example in examples:
            points = example.points.at(np.arange(example.frames) / FPS)
            x_TF = features(points.mirrored() if mirrored else points)
            clips.append((x_TF, np.zeros((len(x_TF), 3), np.float32)))
        number = 0
        for row in packed(clips, ROW_FRAMES):
            x_BTF, real_BT = torch.from_numpy(row.x_LF[None]), torch.from_numpy(row.real_L[None])
            p_L3 = (
                torch.stack([network(x_BTF, real_BT)[0].softmax(-1) for network in networks]).mean(0).numpy()
            )
            for start in row.starts:
                results[number] += p_L3[start : start + len(results[number])] / 2
                number += 1
    return results


def score_examples(
    networks: Sequence[Network], examples: Sequence[Example], limits: tuple[float, float] | None = None
) -> np.ndarray:
    """Returns the counts of each example, float64 (C, K), decoded by `peaks` with threshold and gap (s), the usual ones
    by default, as the tagger decodes."""
    return _counts(probabilities(networks, examples), examples, limits)


def _counts(
    found: Sequence[np.ndarray], examples: Sequence[Example], limits: tuple[float, float] | None = None
) -> np.ndarray:
    counts = []
    for p_T3, example in zip(found, examples):
        counts.append(
            clip_counts(_segments(peaks(p_T3, FPS, *(limits or ()))), example.signs_N2 * FPS, len(p_T3))
        )
    return np.stack(counts)


def _segments(labels_T: np.ndarray) -> np.ndarray:
    """Returns the signs of labels, (N, 2): from each B to the next B or O."""
    starts = np.flatnonzero(labels_T == B)
    stops = np.append(np.flatnonzero(labels_T != I), len(labels_T))
    return np.stack([starts, stops[np.searchsorted(stops, starts, side="right")]], 1)


def described_scores(counts_CK: np.ndarray) -> dict[str, Any]:
    """Returns the scores of counts (C, K) with their 95% bootstrap intervals over clips, for config.json."""
    intervals = bootstrap_intervals(counts_CK, FPS)
    found = scores(counts_CK.sum(0), FPS)
    return {
        name: {
            "value": round(float(found[name]), 4),
            "interval": [round(bound, 4) for bound in intervals[name]],
        }
        for name in REPORTED
    }


def write_tagger(trained: Trained, out: Path, about: dict[str, Any]) -> None:
    """Writes `model.safetensors` and `config.json` into `out`, which is made; the configuration is written last."""
    settings = trained.settings
    config = {
        "tagger": "trained",
        "width": settings.width,
        "dilations": list(settings.dilations),
        "networks": len(trained.networks),
        "fps": FPS,
        **(dict(zip(("decoding_threshold", "decoding_gap_s"), trained.limits)) if trained.limits else {}),
        **about,
        "training": {"passes": trained.passes, "most_passes": settings.passes, "seed": settings.seed},
        "held_out_scores": described_scores(trained.counts_CK),
    }
    store = FolderStore(out)
    store.put("model.safetensors", save(trained.tensors()))
    store.put("config.json", (json.dumps(config, ensure_ascii=False, indent=1) + "\n").encode())
