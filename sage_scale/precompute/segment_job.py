"""Segments of videos on Ray: `sage-scale segment predict`.

Each clip has `NAME.npz`, what the tagger found in each frame, `NAME.json`, its signs and sentences in seconds of the
video (`segmentation/intervals.py`), and the files of further formats. `segmentation.tagger=precomputed
segmentation.labels=OUT` gives the same labels as the tagger itself.

`NAME.npz`: `labels` int8 (T,) of O = 0, I = 1, B = 2 and `fps`; of a tagger with a model also `sign` float32 (S, 3),
P(O), P(I), P(B) of each frame at `model_fps`, and `sentence`, the same of sentences.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from sage_scale.config import Recipe
from sage_scale.corpora.manifest import Clip, Manifest
from sage_scale.corpora.registry import read_corpus
from sage_scale.corpora.videos import whole_videos
from sage_scale.errors import UsageError
from sage_scale.precompute.environment import environment_here
from sage_scale.precompute.file_job import SETTINGS, ClipFiles, FileJob, FileSummary
from sage_scale.precompute.schedule import RejectLimit
from sage_scale.segmentation.choice import check_segmenter, decide, with_tagger
from sage_scale.segmentation.decoding import runs
from sage_scale.segmentation.exports import FORMATS, SegmentedVideo, exported
from sage_scale.segmentation.intervals import SignIntervals, intervals_of_segments
from sage_scale.segmentation.precomputed import check_labels
from sage_scale.segmentation.rules import label_segments
from sage_scale.segmentation.sources import decode_for_tagger
from sage_scale.segmentation.tagger import Tagging, has_model, segmenter_fingerprint, tag_clip
from sage_scale.storage import NotFound, open_store
from sage_scale.untrusted.files import expanded
from sage_scale.untrusted.json_values import InvalidJSON, parse_json_object
from sage_scale.untrusted.printer import tell
from sage_scale.vision.decode import local_path
from sage_scale.vision.keypoints import is_keypoint_file
from sage_scale.vision.video_frames import DecodeStats

PROBABILITIES = ".npz"
_PATHS = ("labels", "weights", "features")
"""Keys that name a place on a machine; a model's hash stands for its weights."""
_OF_RULES = ("rule", "trim_rests", "min_frames", "max_frames")
"""Keys of what follows after labelling."""


@dataclass
class SegmentFiles:
    """Makes the files of a clip's segments."""

    recipe: Recipe
    formats: tuple[str, ...]
    """Names in exports.FORMATS; json among them."""
    folder: str
    """The output, where it is a folder: ELAN's link to the video is relative to it."""
    stage: str = "segment"

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Returns the suffixes of every clip's files."""
        return (PROBABILITIES, *(FORMATS[name][0] for name in self.formats))

    def load(self) -> Mapping[str, str]:
        """Opens the tagger's model. Returns versions and hashes that decide the files' bytes."""
        if has_model(self.recipe.segmentation):
            import torch

            torch.set_num_threads(1)  # results must not depend on the machine's cores
        environment = environment_here(self.recipe, "")
        figures = {"matplotlib": version("matplotlib")} if "figure" in self.formats else {}
        return {**environment.versions, **figures, "device": environment.device}

    def make(self, clip: Clip, stats: DecodeStats) -> ClipFiles:
        """Returns the files of a clip. Raises ClipRejected for its faults."""
        segmentation = self.recipe.segmentation
        decoded = decode_for_tagger(clip, self.recipe.vision, segmentation, stats)
        tagging = tag_clip(decoded, segmentation, decoded.fps)
        stats.notes += tagging.notes
        signs_N2 = label_segments(tagging.labels_T)
        duration_s = decoded.total_frames / decoded.fps
        by_model = tagging.probabilities
        video = "" if is_keypoint_file(local_path(clip.video)) else clip.video
        segmented = SegmentedVideo(
            intervals=SignIntervals(
                signs=intervals_of_segments(signs_N2, decoded.fps, clip.start_s),
                sentences=_sentences(tagging, clip),
            ),
            start_s=clip.start_s,
            duration_s=clip.start_s + duration_s,
            fps=decoded.fps if by_model is None else by_model.fps,
            video=video,
            probabilities_T3=None if by_model is None else by_model.sign_T3,
            title=clip.id,
            about=segmentation.tagger,
        )
        files = dict(exported(self.formats, "", segmented, self.folder))
        return ClipFiles(
            files={PROBABILITIES: probability_bytes(tagging, decoded.fps), **files},
            frames=decoded.total_frames,
            seconds=duration_s,
            segments=len(signs_N2),
        )


def _check_apart(root: str | Path, out: str | Path) -> None:
    """Raises UsageError where the files would be taken for keypoint files (.npz) of the videos."""
    place, inside = (os.path.realpath(expanded(str(p).removeprefix("file://"))) for p in (out, root))
    if "://" in str(out).removeprefix("file://"):
        return
    folder = inside if os.path.isdir(inside) else os.path.dirname(inside)
    if place == folder or (folder == inside and place.startswith(os.path.join(folder, ""))):
        raise UsageError(
            f"--out {out} lies in the folder of the videos, where its .npz files would be taken for keypoints: name a "
            "folder beside it"
        )


def predict_segments(
    recipe: Recipe,
    root: str | Path,
    out: str | Path,
    *,
    corpus: str = "",
    formats: tuple[str, ...] = (),
    give_up: frozenset[str] = frozenset(),
    events: Path | None = None,
    quiet: bool = False,
) -> FileSummary:
    """Writes the segments of each video below `root`, or of each clip of a corpus, into `out`, a folder or
    s3://bucket/prefix.

    Raises UsageError, NoModel, CheckpointError, TooManyRejects, UnitsOpen.
    """
    _check_apart(root, out)
    place = os.path.abspath(expanded(root))
    recipe = replace(recipe, corpus=replace(recipe.corpus, name=corpus or recipe.corpus.name, root=place))
    found = read_corpus(recipe.corpus) if corpus else whole_videos(root)
    clips = [replace(clip, video=_absolute(clip.video)) for clip in found.clips]
    manifest = Manifest(tuple(clips), found.rejected)
    limit = RejectLimit(recipe.shards.max_reject_rate, len(clips) + len(found.rejected)).exceeded
    if recipe.segmentation.tagger == "auto":
        tagger, reason = _begun_with(out) or decide(recipe, manifest, limit)
        recipe = with_tagger(recipe, tagger)
        if not quiet:
            tell(f"segmentation.tagger=auto is {tagger}: {reason}")
    check_labels(recipe, manifest, limit)
    check_segmenter(recipe, manifest.clips, limit)
    if not recipe.precompute.address:
        segmenter_fingerprint(
            recipe.segmentation
        )  # says before Ray starts that weights are missing or damaged
    vision, segmentation = recipe.vision, asdict(recipe.segmentation)
    of_keypoints = {key: getattr(vision, key) for key in ("fps", "source_fps", "source_aspect")}
    settings = {
        "vision": of_keypoints,
        "segmentation": {key: segmentation[key] for key in segmentation if key not in (*_PATHS, *_OF_RULES)},
    }
    given = recipe.segmentation
    recipe = replace(
        recipe,
        # Neither memory nor a GPU for a backbone; the tagger's model is small.
        vision=replace(vision, kind="frames"),
        precompute=replace(recipe.precompute, gpus_per_actor=0.0),
        segmentation=replace(
            given,
            labels=_absolute(given.labels),
            weights=_absolute(given.weights),
            features=_absolute(given.features),
        ),
    )
    return FileJob(
        recipe=recipe,
        manifest=manifest,
        url=str(out),
        files=SegmentFiles(
            recipe,
            tuple(dict.fromkeys(("json", *formats))),
            "" if "://" in str(out) else os.path.abspath(expanded(out)),
        ),
        settings=settings,
        give_up=give_up,
        events=events,
        quiet=quiet,
    ).execute()


def _begun_with(out: str | Path) -> tuple[str, str] | None:
    """Returns the tagger that an output was begun with, and the reason to take it; None for a new output."""
    store = open_store(out)
    with contextlib.suppress(NotFound, InvalidJSON, KeyError, TypeError):
        document: Any = parse_json_object(store.get(SETTINGS))
        return str(document["settings"]["segmentation"]["tagger"]), f"as {store.url} was begun"
    return None


def probability_bytes(tagging: Tagging, fps: float) -> bytes:
    """Returns `NAME.npz`; equal results give equal bytes for one version of NumPy and zlib."""
    arrays: dict[str, np.ndarray] = {"labels": tagging.labels_T, "fps": np.array(fps)}
    if tagging.probabilities is not None:
        arrays |= {"sign": tagging.probabilities.sign_T3, "model_fps": np.array(tagging.probabilities.fps)}
        if tagging.probabilities.sentence_T3 is not None:
            arrays["sentence"] = tagging.probabilities.sentence_T3
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def _sentences(tagging: Tagging, clip: Clip) -> tuple:
    found = tagging.probabilities
    if found is None or found.sentence_T3 is None:
        return ()
    return intervals_of_segments(label_segments(runs(found.sentence_T3)), found.fps, clip.start_s)


def _absolute(path: str) -> str:
    """Returns a path that actors in other folders can open."""
    return path if not path or "://" in path else os.path.abspath(expanded(path))
