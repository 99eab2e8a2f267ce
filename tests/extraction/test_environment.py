"""The environment of MediaPipe: its lock, the messages where it cannot be had, and rtmlib in its place."""

from __future__ import annotations

import re
import stat
import sys
import types
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from sage_scale.cli import main
from sage_scale.config import Vision, load_recipe
from sage_scale.errors import RecipeError, SageError, UsageError
from sage_scale.extraction import mediapipe_environment as environment
from sage_scale.extraction.extractor import open_extractor
from sage_scale.keypoints.arrays import WHOLEBODY_133


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv(environment.VARIABLE, raising=False)
    return tmp_path / "data"


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_lock_pins_each_package_by_hashes_and_names_no_host():
    lock = environment.LOCK.read_text()
    pins = re.findall(r"^([\w-]+)==([\w.]+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", lock, re.M)
    assert {name: version for name, version, _ in pins}.items() >= {
        "mediapipe": "0.10.21",
        "numpy": "1.26.4",
    }.items()
    lines = [line for line in lock.splitlines() if not line.startswith("#")]
    assert len(lines) == sum(1 + hashes.count("--hash") for *_, hashes in pins)
    assert "://" not in lock and "index" not in lock


def test_without_mediapipe_one_line_says_how_to_get_it(tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    arguments = ["keypoints", "--root", str(tmp_path / "videos"), "--out", str(tmp_path / "out")]
    assert main.run(arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "sage-scale keypoints --setup" in said and "SAGE_SCALE_MEDIAPIPE" in said
    assert not (tmp_path / "out" / "keypoints.json").exists()


def test_without_a_home_the_message_says_what_to_set(monkeypatch):
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda user: {}[user])
    with pytest.raises(UsageError, match=r"set HOME or XDG_DATA_HOME, or SAGE_SCALE_MEDIAPIPE=PATH"):
        environment.python()


def test_an_interpreter_of_another_version_is_refused_by_name(tmp_path):
    newer = program(tmp_path / "python", "echo 3.13")
    with pytest.raises(UsageError, match=r"3\.11 and 3\.12, and --python .* is Python 3\.13: name one"):
        environment.set_up(str(newer))
    for wrong in ("/nowhere/python", str(tmp_path), str(program(tmp_path / "silent", "exit 1"))):
        with pytest.raises(UsageError, match="--python"):
            environment.set_up(wrong)


def test_a_failed_installation_is_one_line_and_is_begun_again(tmp_path, own_data_folder):
    made = environment.folder()
    venv = f"mkdir -p {made}/bin; cp {tmp_path}/pip {made}/bin/python"
    fake = program(tmp_path / "python", f'if [ "$1" = -I ]; then echo 3.11; else {venv}; fi')
    program(tmp_path / "pip", "echo ERROR: no matching distribution >&2; exit 1")
    with pytest.raises(SageError, match="MediaPipe cannot be installed: no matching distribution"):
        environment.set_up(str(fake))
    with pytest.raises(UsageError, match="not set up"):
        environment.python()
    program(tmp_path / "pip", "exit 0")
    assert environment.set_up(str(fake)) == environment.python() == made / "bin" / "python"


def test_a_named_interpreter_goes_first_and_must_be_one(tmp_path, monkeypatch):
    monkeypatch.setenv(environment.VARIABLE, str(tmp_path / "none"))
    with pytest.raises(UsageError, match="no such interpreter"):
        environment.python()
    monkeypatch.setenv(environment.VARIABLE, str(program(tmp_path / "bin" / "python", "exit 0")))
    assert environment.python() == tmp_path / "bin" / "python"


def test_models_of_complexity_0_and_2_are_copied_and_missed_by_name(tmp_path, monkeypatch):
    base = tmp_path / "env"
    monkeypatch.setenv(environment.VARIABLE, str(program(base / "bin" / "python", "exit 0")))
    (base / "lib/python3.11/site-packages/mediapipe/modules/pose_landmark").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"complexity=2 needs pose_landmark_heavy\.tflite .*--models FOLDER"):
        open_extractor(Vision(extractor="mediapipe", extractor_complexity=2))
    with pytest.raises(UsageError, match=r"has neither pose_landmark_lite\.tflite nor"):
        environment.set_up(models=tmp_path)
    where = environment.folder()
    models = where / "lib/python3.11/site-packages/mediapipe/modules/pose_landmark"
    models.mkdir(parents=True)
    (where / "complete").touch()
    (tmp_path / "pose_landmark_lite.tflite").write_bytes(b"weights")
    environment.set_up(models=tmp_path)
    assert [path.name for path in models.iterdir()] == ["pose_landmark_lite.tflite"]


def test_the_keys_are_checked():
    with pytest.raises(RecipeError, match="extractor_complexity"):
        load_recipe("demo", ["vision.extractor_complexity=3"])
    with pytest.raises(RecipeError, match=r"vision\.extractor"):
        load_recipe("demo", ["vision.extractor=os.system"])


@pytest.fixture
def rtmlib(monkeypatch):
    """A module in rtmlib's place, with its signatures (0.0.16): two people, of whom the second is larger."""

    class Session:
        def __init__(self, height, width):
            self.shape = ["batch", 3, height, width]

        def get_inputs(self):
            return [self]

    class Model:
        def __init__(self, height, width):
            self.session = Session(height, width)

    class Detector(Model):
        def __call__(self, image):
            return np.array([[0, 0, 10, 10], [5, 5, 50, 60]]) if image.max() > 100 else np.zeros((0, 4))

    class Pose(Model):
        def __call__(self, image, bboxes):
            assert bboxes == [[5, 5, 50, 60]] and self.model_input_size == (288, 384)
            assert image[0, 0].tolist() == [3, 2, 200]  # blue, green, red
            points = np.tile(np.arange(133.0)[:, None], (1, 2))[None]
            return points, np.where(np.arange(133) % 2, 0.29, 3.5)[None]

    class Wholebody:
        def __init__(self, det=None, pose=None, backend="", device="cpu"):
            assert det.endswith("yolox_m.onnx") and pose.endswith("rtmw.onnx") and backend == "onnxruntime"
            self.det_model, self.pose_model = Detector(640, 640), Pose(384, 288)

    module = types.ModuleType("rtmlib")
    module.Wholebody = Wholebody
    monkeypatch.setitem(sys.modules, "rtmlib", module)
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.16")


def test_rtmlib_takes_the_largest_person_and_drops_weak_points(tmp_path, rtmlib):
    for name in ("yolox_m.onnx", "rtmw.onnx"):
        (tmp_path / name).write_bytes(name.encode())
    extractor = open_extractor(Vision(extractor="rtmlib", extractor_weights=str(tmp_path)))
    picture = np.zeros((60, 80, 3), np.uint8)
    picture[:] = (200, 2, 3)
    (points, confidence), (_, nobody) = extractor(iter([picture, np.zeros_like(picture)]))
    assert extractor.names == WHOLEBODY_133 and points.shape == (133, 2)
    assert confidence[::2].tolist() == [3.5] * 67 and not confidence[1::2].any() and not nobody.any()
    assert set(extractor.facts) == {"rtmlib", "onnxruntime", "yolox_m.onnx", "rtmw.onnx"}


def test_rtmlib_without_its_files_or_itself(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"needs vision\.extractor_weights=FOLDER"):
        open_extractor(Vision(extractor="rtmlib"))
    with pytest.raises(UsageError, match=r"0 files yolox\*\.onnx and 0 other"):
        open_extractor(Vision(extractor="rtmlib", extractor_weights=str(tmp_path)))
    for name in ("yolox_m.onnx", "rtmw.onnx"):
        (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, "rtmlib", None)
    with pytest.raises(UsageError, match=r"sage-scale\[rtmlib\]"):
        open_extractor(Vision(extractor="rtmlib", extractor_weights=str(tmp_path)))
