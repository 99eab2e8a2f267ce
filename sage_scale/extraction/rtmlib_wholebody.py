"""RTMPose and RTMW through rtmlib (the extra `rtmlib`, Apache-2.0), with weights given as local ONNX files.

The folder holds two files: a detector, `yolox*.onnx`, and a model of COCO-WholeBody's 133 points. rtmlib itself would
download weights; a missing file is an error here. Not run with real weights by our tests.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from sage_scale.errors import UsageError
from sage_scale.keypoints.arrays import WHOLEBODY_133
from sage_scale.untrusted.files import expanded, read_bytes

LEAST_SCORE = 0.3
"""Points with a lower score count as not seen, as in rtmlib's `Wholebody.format_result`."""


class RtmlibWholebody:
    """133 points of the person with the largest box, picture by picture."""

    names = WHOLEBODY_133
    has_z = False

    def __init__(self, weights: str) -> None:
        """Raises UsageError where rtmlib is not installed or the folder `weights` lacks one of the two files."""
        detector, pose = rtmlib_files(weights)
        try:
            with contextlib.redirect_stdout(sys.stderr):  # rtmlib prints what it loads
                from rtmlib import Wholebody

                self._model = Wholebody(det=str(detector), pose=str(pose), backend="onnxruntime")
        except ImportError:
            raise UsageError(
                "vision.extractor=rtmlib needs the extra: pip install 'sage-scale[rtmlib]'"
            ) from None
        for model in (self._model.det_model, self._model.pose_model):
            height, width = model.session.get_inputs()[0].shape[2:]
            model.model_input_size = (width, height)
        facts = {name: importlib.metadata.version(name) for name in ("rtmlib", "onnxruntime")}
        for path in (detector, pose):
            facts[path.name] = hashlib.sha256(read_bytes(path)).hexdigest()
        self.facts: Mapping[str, str] = facts

    def __call__(self, pictures: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields points (133, 2) and confidence (133,) of each picture."""
        for picture in pictures:
            bgr = np.ascontiguousarray(picture[..., ::-1])
            boxes = np.asarray(self._model.det_model(bgr), float).reshape(-1, 4)
            if not len(boxes):  # rtmlib would take the whole picture for a person
                yield np.zeros((133, 2), np.float32), np.zeros(133, np.float32)
                continue
            largest = boxes[np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).argmax()]
            points, scores = self._model.pose_model(bgr, bboxes=[largest.tolist()])
            yield points[0], np.where(scores[0] >= LEAST_SCORE, scores[0], 0)


def rtmlib_files(weights: str) -> tuple[Path, Path]:
    """Returns detector and whole-body model of `vision.extractor_weights`. Raises UsageError without them."""
    if not weights:
        raise UsageError(
            "vision.extractor=rtmlib needs vision.extractor_weights=FOLDER with yolox*.onnx and a whole-body model"
        )
    files = sorted(expanded(weights).glob("*.onnx"))
    detectors = [path for path in files if path.name.startswith("yolox")]
    poses = [path for path in files if path not in detectors]
    if len(detectors) != 1 or len(poses) != 1:
        raise UsageError(
            f"vision.extractor_weights={weights}: {len(detectors)} files yolox*.onnx and {len(poses)} other .onnx "
            "files; expected one detector and one model of 133 points (COCO-WholeBody)"
        )
    return detectors[0], poses[0]
