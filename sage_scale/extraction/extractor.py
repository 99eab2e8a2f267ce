"""Extractors of keypoints from pictures, by the name that `vision.extractor` gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, Protocol

import numpy as np

from sage_scale.config import Vision
from sage_scale.config.extension import import_plugins, register_choice
from sage_scale.errors import SageError, UsageError

FailureKind = Literal["died", "hung", "nonsense", "failed"]


class ExtractorFailed(SageError):
    """An extractor gave no answer for a picture, for a reason that need not lie in the picture."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple:
        return ExtractorFailed, (self.kind, str(self))


class Extractor(Protocol):
    """Finds the points of one person in the pictures of a video. One instance a process, for any number of videos."""

    @property
    def names(self) -> tuple[str, ...]:
        """K names of points, as in `keypoints.track`."""
        ...

    @property
    def has_z(self) -> bool:
        """Whether z is given."""
        ...

    @property
    def facts(self) -> Mapping[str, str]:
        """Versions, and hashes of weights: what decides the result beside the settings."""
        ...

    def __call__(self, pictures: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields, for each picture (uint8 (H, W, 3), RGB) of one video in order, points (K, 3) or (K, 2): x and y in
        pixels; and confidence (K,), 0 for a point that was not found. Raises ExtractorFailed."""
        ...


Factory = Callable[[Vision], Extractor]
_factories: dict[str, Factory] = {}


def register_extractor(name: str, factory: Factory) -> None:
    """Make `vision.extractor=NAME` a choice; `factory` takes the recipe's section `vision`."""
    register_choice("vision.extractor", name)
    _factories[name] = factory


def open_extractor(vision: Vision) -> Extractor:
    """Returns the extractor of a recipe. Raises UsageError where it cannot run here, in one line with the remedy."""
    if vision.extractor == "mediapipe":
        from sage_scale.extraction.mediapipe import MediapipeHolistic

        return MediapipeHolistic(vision.extractor_complexity)
    if vision.extractor == "rtmlib":
        from sage_scale.extraction.rtmlib_wholebody import RtmlibWholebody

        return RtmlibWholebody(vision.extractor_weights)
    import_plugins()
    if vision.extractor not in _factories:
        raise UsageError(f"vision.extractor={vision.extractor}: no such extractor is registered here")
    return _factories[vision.extractor](vision)
