"""`bench calibrate` writes constants that a plan reads, and the rate of steps is what short runs differ by."""

from __future__ import annotations

import json
import subprocess

import pytest

from sage_scale.cli.main import run
from sage_scale.errors import SageError, UsageError
from sage_scale.experiments import calibration, calibration_clips, calibration_pieces, calibration_steps
from sage_scale.experiments.calibration import Calibration, cpu_rate, videos_of
from sage_scale.planning.constants import load_constants, parse_constants

QUICK = ("writing and loading", "matrix products", "disk")


def test_what_is_measured_takes_the_place_of_the_packages_constants(tmp_path, monkeypatch, capsys):
    pieces = calibration_pieces.pieces

    def some(settings):
        return [piece for piece in pieces(settings) if piece[0] in QUICK]

    monkeypatch.setattr(calibration_pieces, "pieces", some)
    out = tmp_path / "machine.yaml"
    store = tmp_path / "store"
    words = ["bench", "calibrate", "--out", str(out), "--seconds", "0.01", "--store", str(store)]
    assert run(words) == 0
    said = capsys.readouterr()
    assert "write.bytes_per_cpu_s" in said.out and "2 of 3" in said.err
    assert [path for path in store.rglob("*") if path.is_file()] == []
    found = parse_constants(out.read_bytes(), "file")
    packaged = load_constants()
    assert len(found) >= 6
    for name, constant in found.items():
        assert packaged.knows(name) and constant.command.startswith("sage-scale") and not constant.assumed
        assert "load" in constant.device and constant.date[:2] == "20"
    used = load_constants(str(out))
    assert used.number("write.bytes_per_cpu_s") == found["write.bytes_per_cpu_s"].value
    assert used.number("start_gpu_s") == packaged.number("start_gpu_s")


def test_names_of_all_pieces_are_constants_of_the_package():
    """Each `found.add("NAME"`, but for the steps of a recipe, which the package has none of."""
    import inspect
    import re

    text = inspect.getsource(calibration_clips) + inspect.getsource(calibration_pieces)
    names = re.findall(r'found\.add\(\s*"([\w.]+)"', text)
    assert len(names) > 12
    of_gpus = {"backbone.frames_per_gpu_s", "gpu.matrix_flops_per_s"}  # none has been measured
    assert {name for name in names if not load_constants().knows(name)} == of_gpus


def test_a_rate_is_by_processor_time():
    assert cpu_rate(lambda: sum(1.0 for _ in range(1000)), 0.03) > 1e5


def test_wrong_options_end_before_anything_is_measured(tmp_path, capsys):
    for words, reason in (
        (["--videos", str(tmp_path / "none")], "is no folder"),
        (["--videos", str(tmp_path)], "no video in"),
        (["--recipe", "moon"], "moon"),
    ):
        assert run(["bench", "calibrate", "--out", str(tmp_path / "m.yaml"), *words]) == 2
        said = capsys.readouterr().err
        assert reason in said and len(said.splitlines()) == 1
    assert run(["bench", "calibrate", "--out", str(tmp_path / "no" / "m.yaml")]) == 2
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError):
        videos_of(tmp_path)


def test_videos_are_spread_over_a_folder(tmp_path):
    for number in range(20):
        (tmp_path / f"{number:02d}.mp4").touch()
    assert [path.stem for path in videos_of(tmp_path, 4)] == ["00", "05", "10", "15"]
    assert len(videos_of(tmp_path)) == 8


def test_the_rate_of_steps_is_the_difference_of_two_runs(monkeypatch):
    """Runs that take 20 CPU seconds to start (stage 2: 5) and 2 (stage 2: 1) for a step of 3e10 operations."""

    def a_run(name, overrides, data, folder, stage, steps):
        log = folder / stage / "log.jsonl"
        log.parent.mkdir(parents=True)
        rows = [
            {"event": "step", "step": n + 1, "tflops": 0.01, "clips": 30.0, "samples_per_s": 10.0}
            for n in range(steps)
        ]
        log.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{half a li")
        return 20 + steps * 2.0 if stage == "pretrain" else 5 + steps * 1.0

    monkeypatch.setattr(calibration_steps, "_run", a_run)
    found = Calibration("sage-scale bench calibrate")
    calibration_steps.calibrate_steps(found, "demo", (), ["data"])
    starts = found.constants["train.start_cpu_s"].value
    assert starts == {"demo pretrain": pytest.approx(20), "demo finetune": pytest.approx(5)}
    rates = found.constants["train.flops_per_cpu_s"].value
    assert rates == {"demo pretrain": pytest.approx(1.5e10), "demo finetune": pytest.approx(3e10)}
    assert parse_constants(found.to_yaml().encode(), "t").keys() == found.constants.keys()


def test_runs_that_other_work_disturbed_are_refused(monkeypatch):
    monkeypatch.setattr(calibration_steps, "_run", lambda *given: 100.0 - given[-1])
    with pytest.raises(SageError, match="run it again on an idle machine"):
        calibration_steps.calibrate_steps(Calibration("c"), "demo", (), ["data"])


def test_a_run_that_fails_is_named(tmp_path, monkeypatch):
    ended = subprocess.CompletedProcess([], 2, "", "some line\nsage-scale: there is no dataset\n")
    monkeypatch.setattr(calibration.subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(
        SageError, match="pretrain of recipe demo ended with 2: sage-scale: there is no dataset"
    ):
        calibration_steps._run("demo", (), [str(tmp_path / "none")], tmp_path / "run", "pretrain", 1)


def test_the_machine_is_described():
    assert "CPUs" in calibration.machine() and "load" in calibration.machine()
