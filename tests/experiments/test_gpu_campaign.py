"""The campaign on a machine with a GPU, on a CPU: every piece runs at toy size, where none of precompute's packages is
found. Shards are made beforehand, where Ray and PyAV are."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import gpu_campaign
import pytest
from factories import gpu_machine
from gpu_campaign import Piece

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_campaign.py"


@pytest.mark.extras
@pytest.mark.timeout(1500)
def test_every_piece_passes_at_toy_size_and_a_second_call_goes_on(tmp_path):
    command = [
        sys.executable,
        str(SCRIPT),
        "run",
        str(tmp_path / "bag"),
        "--out",
        str(tmp_path / "out"),
        "--dry",
    ]
    first = subprocess.run([*command, "--minutes", "5"], capture_output=True, text=True, timeout=600)
    assert first.returncode == gpu_campaign.PIECES_LEFT, first.stdout[-3000:] + first.stderr[-3000:]
    second = subprocess.run([*command, "--minutes", "100"], capture_output=True, text=True, timeout=1400)
    page = (tmp_path / "out" / "gpu.md").read_text(encoding="utf-8")
    assert second.returncode == 0, second.stdout[-1000:] + second.stderr[-1000:] + page[-12_000:]
    rows = [json.loads(line) for line in (tmp_path / "out" / "pieces.jsonl").read_text().splitlines()]
    names = [piece.name for piece in gpu_campaign.pieces(tmp_path / "bag")]
    assert [row["name"] for row in rows] == names and {row["state"] for row in rows} == {"passed"}
    assert "doctor" in first.stdout and "doctor (at most" not in second.stdout
    assert "figures mean nothing" in page and "not run" not in page
    output = {row["name"]: row["output"] for row in rows}
    for name in ("SAGE from features", "Sign2GPT from frames", "ZeRO 0 to 3, offload, launcher"):
        assert "largest relative difference of the losses" in output[
            name
        ] and "| 1, resumed under 2 | 6 |" in (
            output[name] + "| 1, resumed under 2 | 6 |" * name.startswith("ZeRO")
        )


@pytest.mark.system
def test_the_packages_are_absent_and_doctor_says_so(tmp_path):
    bare = gpu_machine.environment(tmp_path / "bare")
    for name in gpu_machine.FORBIDDEN:
        code = f"import importlib\ntry: importlib.import_module({name!r})\nexcept ModuleNotFoundError: print('no')"
        run = subprocess.run(
            [sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True
        )
        assert run.stdout == "no\n", name
    command = [sys.executable, "-m", "sage_scale.cli.main", "doctor", "--json"]
    run = subprocess.run(command, env=bare, capture_output=True, text=True, check=True)
    rows = {row["name"]: row for row in json.loads(run.stdout)}
    for name in ("ray", "boto3", "webdataset"):
        assert rows[name]["state"] != "ok" and rows[name]["cost"], rows[name]
    assert rows["deepspeed"]["state"] == rows["transformers"]["state"] == "ok"


def call(monkeypatch, tmp_path: Path, pieces: list[Piece], minutes: float = 9.0) -> int:
    """The exit code of one call of the campaign of `pieces`."""
    monkeypatch.setattr(gpu_campaign, "pieces", lambda bag: pieces)
    options = {"bag": tmp_path / "bag", "out": tmp_path / "out", "minutes": minutes, "only": [], "dry": False}
    return gpu_campaign.run(argparse.Namespace(**options))


def python(name: str, code: str, minutes: float = 1.0) -> Piece:
    return Piece(name, minutes, [sys.executable, "-c", code], [])


def test_a_failed_piece_and_a_hung_one_are_named_and_the_others_run(monkeypatch, tmp_path, capsys):
    hung = "import subprocess, sys, time; print('begun', flush=True); subprocess.run(['sleep', '60'])"
    pieces = [
        python("broken", "print('<b>no</b>\\x1b[31m'); raise SystemExit(3)"),
        python("hung", hung, minutes=0.05),
        python("whole", "print('| a | b |')"),
    ]
    assert call(monkeypatch, tmp_path, pieces) == 1
    page = (tmp_path / "out" / "gpu.md").read_text(encoding="utf-8")
    assert (
        "| broken | failed with exit code 3 |" in page and "| hung | out of time after 0.05 minutes |" in page
    )
    assert "| whole | passed |" in page and "\x1b" not in page and "    begun" in page
    assert "1 of 3 passed, 2 failed, 0 left" in capsys.readouterr().out


def test_a_piece_that_would_not_end_in_time_is_left_for_the_next_call(monkeypatch, tmp_path, capsys):
    marks = tmp_path / "marks"
    pieces = [python(name, f"open({str(marks)!r}, 'a').write({name!r})", minutes=4) for name in "ab"]
    assert call(monkeypatch, tmp_path, pieces, minutes=4.0001) == gpu_campaign.PIECES_LEFT
    assert "b: needs 4 of the 4.0 minutes left; repeat" in capsys.readouterr().out
    assert "| b | not run |" in (tmp_path / "out" / "gpu.md").read_text(encoding="utf-8")
    assert call(monkeypatch, tmp_path, pieces) == 0 and marks.read_text() == "ab"
    assert "not run" not in (tmp_path / "out" / "gpu.md").read_text(encoding="utf-8")


def test_a_piece_as_long_as_a_call_begins(monkeypatch, tmp_path):
    """Some milliseconds of the call are gone by then; left for later calls, it would never run."""
    assert call(monkeypatch, tmp_path, [python("long", "print('done')", minutes=9.0)], minutes=9.0) == 0
    assert "| long | passed |" in (tmp_path / "out" / "gpu.md").read_text(encoding="utf-8")


def test_a_call_without_datasets_says_how_to_make_them(tmp_path):
    command = [sys.executable, str(SCRIPT), "run", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2 and "has no datasets: make them by `bring" in run.stderr
