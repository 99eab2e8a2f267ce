"""`tag_clip`: labels O/I/B of a decoded clip by the recipe's tagger; `open_tagger`: a segmentation model from a folder.

A model turns a clip's keypoints into probabilities, a decoder (decoding.py) these into labels. The taggers without a
model, `precomputed`, `motion` and `uniform`, give labels at once.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sage_scale.config import Segmentation
from sage_scale.config.extension import import_plugins, register_choice
from sage_scale.errors import CheckpointError, ClipRejected, NoModel, StorageError, UsageError
from sage_scale.keypoints.track import KeypointTrack
from sage_scale.segmentation.decoding import DECODERS
from sage_scale.segmentation.label_files import Labels
from sage_scale.segmentation.motion import Movement, grey_movement, keypoint_movement, motion_labels
from sage_scale.segmentation.precomputed import file_of, find_labels, fitted
from sage_scale.segmentation.rules import RULE_FPS, B, I, resample_labels
from sage_scale.untrusted.display import printable
from sage_scale.untrusted.files import expanded, open_regular, read_bytes
from sage_scale.untrusted.json_values import InvalidJSON, parse_json_object
from sage_scale.vision.decode import DecodedClip, Source

if TYPE_CHECKING:
    from torch import Tensor

    from sage_scale.segmentation.models.hands_on import HandsOn

PACKAGE = "sign_language_segmentation"
"""Package of the published segmenters; it brings the weights of 2026 as data."""
SHIPPED = Path(__file__).with_name("models") / "synthetic_signing"
"""A model of ours, trained on random synthetic signing alone."""
CONFIG, WEIGHTS = "config.json", "model.safetensors"
HANDS_ON = "hands-on"
"""The tagger with a model on features instead of keypoints."""
FEATURES_SUFFIXES = (".npz", ".npy")
"""Endings of its features files."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Probabilities:
    """Probabilities of the labels in each frame of one clip."""

    sign_T3: np.ndarray
    """float32 (T, 3): P(O), P(I), P(B) of signs, rows of sum 1."""
    sentence_T3: np.ndarray | None
    """The same of sentences, where the model has them."""
    fps: float
    """Frame rate: the model's own, or the track's."""


class KeypointTagger(Protocol):
    """A segmentation model on keypoints; one instance a process, on the CPU."""

    name: str
    """For people: published-2023."""
    fingerprint: str
    """Hash of its weights and configuration."""
    decoding: str
    """Its own decoder, a name in decoding.DECODERS. `limits`, where it has them: threshold and gap (s) of `peaks`."""

    def __call__(self, track: KeypointTrack) -> Probabilities: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Tagging:
    """Result of a tagger on a decoded clip."""

    labels_T: np.ndarray
    """int8 (T,): O = 0, I = 1, B = 2."""
    probabilities: Probabilities | None = None
    """Of a model; at the model's rate."""
    notes: tuple[str, ...] = ()
    """Lines for people on the labels' file."""


def tag_clip(decoded: DecodedClip, segmentation: Segmentation, fps: float) -> Tagging:
    """Returns the labels of a clip at `fps`, by the recipe's tagger.

    Raises ClipRejected for a clip without labels or keypoints, NoModel or CheckpointError for missing or wrong weights.
    """
    total = decoded.total_frames
    if wants_keypoints(segmentation):
        tagger = cached_tagger(segmentation.tagger, segmentation.weights)
        probabilities = tagger(_track(decoded, segmentation.tagger))
        labels_S = decode(probabilities, segmentation, tagger.decoding, own_limits(tagger))
        labels_T = resample_labels(labels_S, probabilities.fps, total, fps)
        return Tagging(labels_T=labels_T, probabilities=probabilities)
    if segmentation.tagger == HANDS_ON:
        model = cached_hands_on(segmentation.weights)
        probabilities = model(_features(decoded, segmentation.features))
        labels = Labels(decode(probabilities, segmentation, model.decoding), probabilities.fps)
        labels_T = fitted(labels, decoded.clip.start_s, total, fps)
        return Tagging(labels_T=labels_T, probabilities=probabilities)
    if segmentation.tagger == "auto":
        raise UsageError("segmentation.tagger=auto is decided when a dataset is begun: name a tagger here")
    if segmentation.tagger == "precomputed":
        known = find_labels(segmentation.labels, decoded.clip, segmentation.sign_tier)
        return Tagging(labels_T=fitted(known, decoded.clip.start_s, total, fps), notes=known.notes)
    if segmentation.tagger == "uniform":
        return Tagging(labels_T=uniform_labels(total, segmentation.uniform_frames * fps / RULE_FPS))
    if segmentation.tagger != "motion":
        raise UsageError(
            f"segmentation.tagger={printable(segmentation.tagger)} is not here: {', '.join(MODELS)}"
        )
    return Tagging(labels_T=motion_labels(movement_of(decoded, fps), fps))


def movement_of(decoded: DecodedClip, fps: float) -> Movement:
    """Returns the movement of a clip's hands, from its keypoints where it has them, else from its pictures."""
    if decoded.keypoints_TKC is not None:
        return keypoint_movement(decoded.keypoints_TKC, fps)
    assert decoded.grey_THW is not None, "a decoded clip has grey frames or keypoints"
    return grey_movement(decoded.grey_THW, fps)


def decode(
    probabilities: Probabilities,
    segmentation: Segmentation,
    own: str,
    limits: tuple[float, float] | None = None,
) -> np.ndarray:
    """Returns labels int8 (T,) at the probabilities' rate, by `segmentation.decoding`; `own` is the tagger's, `limits`
    its threshold and gap (s), taken where the recipe asks for its own decoding and gives no others."""
    given = segmentation.decoding_threshold, segmentation.decoding_gap_s
    if segmentation.decoding != "own":
        return DECODERS[segmentation.decoding](probabilities.sign_T3, probabilities.fps, *given)
    if limits is None or given != (Segmentation.decoding_threshold, Segmentation.decoding_gap_s):
        limits = given
    return DECODERS[own](probabilities.sign_T3, probabilities.fps, *limits)


def own_limits(tagger: KeypointTagger) -> tuple[float, float] | None:
    """Returns threshold and gap of a model that has its own; one of a plug-in need not know of them."""
    found: tuple[float, float] | None = getattr(tagger, "limits", None)
    return found


def uniform_labels(total: int, frames: float) -> np.ndarray:
    """Returns labels int8 (total,) of signs of equal length, as near to `frames` as possible."""
    count = max(1, round(total / frames))
    labels_T = np.full(total, I, np.int8)
    labels_T[np.arange(count) * total // count] = B
    return labels_T


def register_segmenter(name: str, opener: Callable[[Path], KeypointTagger]) -> None:
    """Makes `segmentation.tagger=NAME` a choice: a model on keypoints that `opener` opens from `segmentation.weights`;
    called by a plug-in (config/extension.py). `open_tagger` knows its folders by `"tagger": NAME` in config.json."""
    MODELS[name] = opener
    register_choice("segmentation.tagger", name)


def wants_keypoints(segmentation: Segmentation) -> bool:
    """Returns whether the recipe's tagger is a model on keypoints."""
    import_plugins()
    return segmentation.tagger in MODELS


def has_model(segmentation: Segmentation) -> bool:
    """Returns whether the recipe's tagger is a model, which needs torch and weights."""
    return segmentation.tagger == HANDS_ON or wants_keypoints(segmentation)


@functools.lru_cache(maxsize=2)
def cached_tagger(name: str, weights: str) -> KeypointTagger:
    """Returns the model of `segmentation.tagger` and `segmentation.weights`, opened once a process."""
    if name == "published" and not weights:
        return _open_published(package_folder())
    if name == "trained" and not weights:
        return _open_trained(SHIPPED)
    return MODELS[name](_given(name, weights))


@functools.lru_cache(maxsize=2)
def cached_hands_on(weights: str) -> HandsOn:
    """Returns the model of `segmentation.tagger=hands-on`, opened once a process."""
    from sage_scale.segmentation.models.hands_on import open_hands_on

    return open_hands_on(_given(HANDS_ON, weights))


def segmenter_fingerprint(segmentation: Segmentation) -> str:
    """Returns the hash of the model of the recipe's tagger, which it opens; empty for a tagger without one.

    Raises NoModel or CheckpointError.
    """
    if segmentation.tagger == HANDS_ON:
        return cached_hands_on(segmentation.weights).fingerprint
    if wants_keypoints(segmentation):
        return cached_tagger(segmentation.tagger, segmentation.weights).fingerprint
    return ""


def _given(name: str, weights: str) -> Path:
    if not weights:
        raise NoModel(f"segmentation.tagger={name} needs segmentation.weights=FOLDER")
    path = expanded(weights)
    if not path.exists():
        raise NoModel(f"segmentation.weights: there is no {printable(weights)}")
    return path


def open_tagger(path_or_name: str | Path) -> KeypointTagger:
    """Returns the segmentation model in a folder, told by its config.json or tensors; `published`: the one of the
    installed package, `trained`: the one that comes with sage-scale.

    Raises NoModel where there is none, CheckpointError for wrong or damaged weights.
    """
    if path_or_name == "published":
        return _open_published(package_folder())
    if path_or_name == "trained":
        return _open_trained(SHIPPED)
    path = expanded(str(path_or_name))
    if not path.exists():
        raise NoModel(f"there is no segmentation model {printable(str(path))}")
    return MODELS[model_kind(path)](path)


def model_kind(path: str | Path) -> str:
    """Returns the tagger, a name in MODELS, of the model in a folder, by its config.json; `published` where that names
    none. An empty path is the installed package.

    Raises NoModel where there is none, CheckpointError for an unknown name.
    """
    if not path:
        package_folder()
        return "published"
    kind = str(read_config(_given("auto", str(path))).get("tagger", "published"))
    import_plugins()
    if kind not in MODELS:
        raise CheckpointError(f"{Path(path) / CONFIG}: no tagger {printable(kind)}: {', '.join(MODELS)}")
    return kind


def package_folder() -> Path:
    """Returns the folder of the 2026 weights in the installed package, which is not imported. Raises NoModel."""
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(place) / "dist" / "2026"
        if (folder / WEIGHTS).is_file():
            return folder
    raise NoModel(
        f"segmentation.tagger=published: the package {PACKAGE} with its weights is not installed; give "
        f"segmentation.weights=FOLDER with {WEIGHTS} (docs/segmentation.md)"
    )


def read_config(path: Path) -> dict[str, object]:
    """Returns config.json of a model's folder, empty where there is none. Raises CheckpointError."""
    file = path / CONFIG
    if not file.is_file():
        return {}
    try:
        return dict(parse_json_object(read_bytes(file)))
    except (OSError, InvalidJSON) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None


def fingerprint(tensors: Mapping[str, Tensor], configuration: str) -> str:
    """Returns a hash of tensors and of the configuration that decides what a model makes of them."""
    digest = hashlib.sha256(configuration.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {tuple(value.shape)}".encode() + value.numpy().tobytes())
    return digest.hexdigest()


def _open_published(path: Path) -> KeypointTagger:
    from sage_scale.vision.pretrained_weights import read_state_dict

    folder = path if path.is_dir() else path.parent
    if path.is_dir() and not (path / WEIGHTS).is_file():
        others = sorted(folder.glob("*.pth"))
        if not others:
            raise NoModel(f"{printable(str(path))} holds no segmentation model: {WEIGHTS} is missing")
        path = others[0]
    if _is_script(path):
        raise CheckpointError(
            f"{printable(str(path))} is TorchScript, which is code and is not opened: give a folder with its tensors "
            f"as {WEIGHTS} (docs/segmentation.md)"
        )
    values = read_state_dict(path)
    if "pose_projection.weight" in values:
        from sage_scale.segmentation.models.published_2023 import Published2023

        return Published2023(values, path)
    if "frame_cnn.0.fc.weight" in values:
        from sage_scale.segmentation.models.published_2026 import Published2026

        return Published2026(read_config(folder), values, path)
    raise CheckpointError(f"{printable(str(path))} holds no published segmenter: it has other tensors")


def _open_trained(path: Path) -> KeypointTagger:
    from sage_scale.segmentation.models.trained import TrainedTagger
    from sage_scale.vision.pretrained_weights import read_state_dict

    return TrainedTagger(read_config(path), read_state_dict(path), path)


MODELS: dict[str, Callable[[Path], KeypointTagger]] = {"published": _open_published, "trained": _open_trained}
"""Taggers with a model on keypoints: `segmentation.tagger` -> function that opens a folder."""


def _is_script(path: Path) -> bool:
    """Returns whether a file is TorchScript: an archive with source code."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


def _track(decoded: DecodedClip, name: str) -> KeypointTrack:
    track = decoded.track
    if track is None:
        raise ClipRejected(
            "no-keypoints", f"segmentation.tagger={name} needs a keypoint file beside the video"
        )
    if not len(track):
        raise ClipRejected("bad-keypoints", "the keypoint file has no frame in the clip")
    return track


def _features(decoded: DecodedClip, features: str) -> np.ndarray:
    from sage_scale.segmentation.models.hands_on import read_features

    folder = features_folder(features)
    file = features_file(folder, decoded.clip)
    if file is None:
        raise ClipRejected("no-features", f"{folder.name} has none for this clip")
    try:
        return read_features(file)
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error.strerror}") from None


def features_file(folder: Path, clip: Source) -> Path | None:
    """Returns the features file of a clip in a folder, named as label files are, None where there is none."""
    return file_of(folder, clip, FEATURES_SUFFIXES)


def features_folder(features: str) -> Path:
    """Returns the folder of `segmentation.features`. Raises UsageError where there is none."""
    folder = expanded(features)
    if not features or not folder.is_dir():
        told = f"there is no folder {printable(features)}" if features else "it is not given"
        raise UsageError(f"segmentation.tagger={HANDS_ON} needs segmentation.features=FOLDER: {told}")
    return folder
