"""The page in a real Chromium: videos, camera, keyboard, warnings, and nothing from elsewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from factories.trained import trained_run
from factories.videos import write_signing

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "videos" / "bsl_demo_video.mp4"
PLAYWRIGHT = "playwright==1.65.2"


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """An interpreter with playwright, which brings no browser."""
    folder = tmp_path_factory.mktemp("playwright")
    venv.create(folder, with_pip=True)
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", PLAYWRIGHT]
    if subprocess.run(install, capture_output=True).returncode:
        pytest.skip(f"{PLAYWRIGHT} cannot be installed")
    return folder / "bin" / "python"


@pytest.fixture
def server(tmp_path) -> Iterator[str]:
    run = trained_run(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, "-m", "sage_scale.cli.main", "serve", "--model", str(run), "--port", "0"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        address = ""
        while not address and (line := process.stderr.readline()):
            address = next(iter(re.findall(r"http://\S+", line)), "")
        assert address, "the server ended"
        yield address
        process.send_signal(signal.SIGINT)
        process.wait(30)
        left = [path for path in (tmp_path / "temporary").rglob("serve-*")]
        assert process.returncode in (0, 130) and not left, (process.returncode, left)
    finally:
        process.kill()


@pytest.mark.extras
def test_a_person_translates_videos_and_the_cameras_picture(server, python, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium (Debian: apt-get install chromium)")
    clip = write_signing(tmp_path / "<img src=x onerror=alert(1)>.mp4", seed=1, frames=60)
    text = tmp_path / "a text.mp4"
    text.write_text("no video\n" * 100)
    videos = [clip, text, *([REAL] if REAL.is_file() else [])]
    command = [python, Path(__file__).with_name("browse.py"), server, chromium, tmp_path, *videos]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["dialogs"] == [] and "invented signs" in found["trained"]
    assert all(url.startswith((server, "data:", "blob:")) for url in found["requests"])
    signing, no_video, *real = found["uploads"]
    assert signing["shown"] and signing["sentence"] and signing["segments"] >= 2 and signing["pictures"] >= 1
    assert signing["error"] == "" and signing["focus"] == "sentence" and signing["words"]
    assert not no_video["shown"] and "no video that is taken" in no_video["error"]
    for other in real:
        assert other["shown"] and other["segments"] >= 5
        assert any("unlike the training data" in line for line in other["warnings"])
    # Refused requests are errors on the browser's console; nothing else is.
    assert all("415" in line for line in found["errors"]), found["errors"]
    assert found["first focus"] == "file" and found["pressed"] == "true"
    assert re.fullmatch(r"Segment 1, \d\.\d\d to \d\.\d\d seconds", found["label"])
    assert "depends" in found["note"] and found["nameless"] == [] and found["vtt"].startswith("WEBVTT")
    assert found["camera"]["shown"] and found["camera"]["segments"] >= 1
    assert found["colours"][0] != found["colours"][1] and not found["overflow"]
