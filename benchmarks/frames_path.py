"""Claim: stage 1 on frames is at least 1.8 times as fast as the released code's layout of the same clips, on this CPU.

    python benchmarks/frames_path.py [--clips 64] [--rounds 3] [--home FOLDER]

The released code repeats two edge frames on each side of every segment *before* the ResNet, so that a temporal
convolution of width 5 without padding gives as many outputs as the segment has frames. Here each frame passes the
ResNet once and features are repeated instead. Both layouts run in this process on the same batches of the synthetic
corpus, with the same weights, loss and optimizer. Before anything is timed, losses and gradients must agree with
BatchNorm's statistics frozen. Two models: the demo's small one on its own frames, and ResNet-34 on the same frames at
112 pixels.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from common import parse, sage
from torch import Tensor
from transformers import MBartForConditionalGeneration

from sage_scale.config import Augment, Recipe, load_recipe
from sage_scale.models.sage.describe import language_model_config
from sage_scale.models.sage.mbart import TextTargets
from sage_scale.models.sage.model import SageAligner
from sage_scale.models.sage.visual import VisualEncoder
from sage_scale.nn.frame_encoder import frame_pixels
from sage_scale.streaming import open_stream
from sage_scale.vision.packed import PackedVideo

EDGE = 2
"""Frames that the released code repeats on each side of a segment."""
WORDS = 12
MODELS = {
    "demo's model": (),
    "ResNet-34": (
        "model.backbone.depths=[3,4,6,3]",
        "model.backbone.widths=[64,128,256,512]",
        "model.backbone.pool=mean",
    ),
}


class ReleasedLayout(VisualEncoder):
    """The same encoder in the released layout: edges repeated before the ResNet, a convolution without padding."""

    def forward(self, video: PackedVideo) -> Tensor:
        """Tokens (N, token_dim)."""
        lengths_N = video.segment_frames_N
        padded_N = lengths_N + 2 * EDGE
        begin_N, end_N = padded_N.cumsum(0) - padded_N, lengths_N.cumsum(0)
        first_N = end_N - lengths_N
        # Each place of a repeated segment shows the frame nearest to it.
        place_G = torch.arange(int(padded_N.sum()), device=lengths_N.device)
        segment_G = torch.repeat_interleave(padded_N)
        frame_G = place_G - begin_N[segment_G] - EDGE + first_N[segment_G]
        frame_G = frame_G.clamp(min=first_N[segment_G], max=end_N[segment_G] - 1)
        clip_G = video.frame_clip_F()[frame_G]
        assert video.frames_FCHW is not None
        order = replace(video, frames_FCHW=video.frames_FCHW[frame_G])
        active = self.training and video.clip_seeds_B is not None and self.settings.active
        kind = self.norm.weight.dtype
        pixels_GCHW = frame_pixels(order, slice(None), clip_G, self.settings, self.crop, active, kind)
        features_GC = self._through_backbone(pixels_GCHW, centred=video.background_BCHW is not None)
        # Every place of a segment but its last four begins a window.
        inner_G = place_G - begin_N[segment_G] < lengths_N[segment_G]
        window_FK = place_G[inner_G][:, None] + torch.arange(2 * EDGE + 1, device=lengths_N.device)
        weight = self.temporal.weight.transpose(1, 2).flatten(1)
        x_FD = torch.nn.functional.linear(features_GC[window_FK].flatten(1), weight, self.temporal.bias)
        x_FD = torch.relu(self.norm(x_FD))
        return torch.segment_reduce(x_FD, "mean", lengths=lengths_N, axis=0, unsafe=True)


def released(model: SageAligner) -> SageAligner:
    """The model with the released layout; weights are shared."""
    model.visual.__class__ = ReleasedLayout
    return model


def random_targets(
    clips: int, width: int, device: torch.device | str = "cpu", words: int = WORDS
) -> TextTargets:
    """Text tokens of the true form: what they say does not matter to a step's cost."""
    generator = torch.Generator().manual_seed(0)
    shape = (clips * words, width)
    return TextTargets(
        embeddings_MD=torch.randn(shape, generator=generator),
        hidden_MD=torch.randn(shape, generator=generator),
        lengths_B=torch.full((clips,), words),
    ).to(device)


@dataclass
class Side:
    """A model with its optimizer."""

    model: SageAligner
    optimizer: torch.optim.Optimizer

    def step(self, video: PackedVideo, text: TextTargets) -> float:
        """Forward, backward and update; the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, _ = self.model(video, text)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def sides_of(recipe: Recipe) -> dict[str, Side]:
    """Both layouts, with equal weights."""
    torch.manual_seed(0)
    language_model = MBartForConditionalGeneration(language_model_config(recipe))
    first, second = SageAligner(recipe, language_model), SageAligner(recipe, language_model)
    second.load_state_dict(first.state_dict())
    models = {"sage_scale": first, "released layout": released(second)}
    return {
        name: Side(model.train(), torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9))
        for name, model in models.items()
    }


def assert_equal(sides: dict[str, Side], video: PackedVideo, text: TextTargets) -> float:
    """Loss and gradients of both; the largest relative difference of a gradient."""
    losses, gradients = [], []
    for side in sides.values():
        side.optimizer.zero_grad(set_to_none=True)
        loss, _ = side.model(video, text)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append({name: p.grad for name, p in side.model.named_parameters() if p.grad is not None})
        side.optimizer.zero_grad(set_to_none=True)
    assert abs(losses[0] - losses[1]) <= 1e-5 * abs(losses[1]), losses
    worst = 0.0
    whole = max(float(gradient.norm()) for gradient in gradients[1].values())
    for name, wanted in gradients[1].items():
        difference = float((gradients[0][name] - wanted).norm())
        worst = max(worst, difference / max(float(wanted.norm()), 1e-3 * whole))
    assert worst < 1e-3, worst
    return worst


def made_dataset(home: Path, clips: int) -> Path:
    """The synthetic corpus as shards of frames, by the product's own commands."""
    shards = home / "shards"
    if not (shards / "index.json").is_file():
        sizes = [
            f"corpus.train_clips={clips}",
            "corpus.dev_clips=2",
            "corpus.test_clips=2",
            "corpus.heldout_clips=2",
        ]
        made = ["--root", home / "corpus", "--recipe", "demo", *sizes]
        for arguments in (
            ["corpus", "make", *made],
            ["precompute", "--corpus", "synthetic", "--out", shards, *made],
        ):
            subprocess.run(sage(*arguments), check=True, stdout=subprocess.DEVNULL)
    return shards


def measure(name: str, changes: tuple[str, ...], shards: Path, clips: int, rounds: int, side: int) -> None:
    """One line of the table."""
    recipe = load_recipe("demo", ["model.batchnorm=frozen", "pretrain.precision=fp32", "stream.cache_decoded_mb=0",
                                  *changes])  # fmt: skip
    batch_size = 8
    stream = open_stream(shards, recipe, batch_size=batch_size, epochs=1)
    videos = [_sized(batch.video, side) for batch in stream if len(batch.keys) == batch_size][
        : clips // batch_size
    ]
    # Augmentation costs both sides the same and is left out.
    recipe = replace(
        recipe,
        vision=replace(recipe.vision, size=side, crop=side),
        pretrain=replace(recipe.pretrain, augment=Augment()),
    )
    sides = sides_of(recipe)
    text = random_targets(batch_size, language_model_config(recipe).d_model)
    difference = max(assert_equal(sides, video, text) for video in videos[:2])
    frames = sum(int(video.segment_frames_N.sum()) for video in videos)
    segments = sum(len(video.segment_frames_N) for video in videos)
    best = {key: float("inf") for key in sides}
    cpu = dict(best)
    for _ in range(rounds):
        for key, each in sides.items():
            seconds, used = _timed(lambda each=each: [each.step(video, text) for video in videos])
            best[key], cpu[key] = min(best[key], seconds), min(cpu[key], used)
    work = (frames + 2 * EDGE * segments) / frames
    ours, theirs = best["sage_scale"], best["released layout"]
    print(
        f"{name:14s}{side:6d}{frames / segments:10.2f}{work:10.2f}{len(videos) * batch_size / theirs:10.1f}"
        f"{len(videos) * batch_size / ours:12.1f}{theirs / ours:9.2f}"
        f"{cpu['released layout'] / cpu['sage_scale']:9.2f}{difference:12.1e}",
        flush=True,
    )


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    wall, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - used


def _sized(video: PackedVideo, side: int) -> PackedVideo:
    def resize(pictures: Tensor | None) -> Tensor | None:
        if pictures is None or pictures.shape[-1] == side:
            return pictures
        return torch.nn.functional.interpolate(pictures.float(), (side, side), mode="bilinear").to(
            torch.uint8
        )

    return replace(
        video, frames_FCHW=resize(video.frames_FCHW), background_BCHW=resize(video.background_BCHW)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--home", type=Path, help="keep corpus and shards in this folder")
    parser.add_argument("--threads", type=int, default=1)
    options = parse(parser, clips=8, rounds=1)
    torch.set_num_threads(options.threads)
    print(
        f"{options.threads} threads, load {os.getloadavg()[0]:.1f}; clips a second, best of {options.rounds} rounds\n"
    )
    print(f"{'model':14s}{'side':>6s}{'frames':>10s}{'ResNet':>10s}{'released':>10s}{'sage_scale':>12s}"
          f"{'faster':>9s}{'by CPU':>9s}{'gradients':>12s}")  # fmt: skip
    print(
        f"{'':14s}{'':>6s}{'a segment':>10s}{'work':>10s}{'':>10s}{'':>12s}{'':>9s}{'time':>9s}{'differ by':>12s}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        home = options.home or Path(temporary)
        shards = made_dataset(home, options.clips)
        for name, changes in MODELS.items():
            side, clips = (64, options.clips) if not changes else (32 if options.small else 112, 8)
            measure(name, changes, shards, clips, options.rounds, side)


if __name__ == "__main__":
    main()
