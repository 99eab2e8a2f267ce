"""What `pip install` of the package alone gives: every verb's recipes, and the scripts that launchers are given."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sage_scale.config import LAUNCH_FOLDER, recipe_names

ROOT = Path(__file__).parents[2]
PARTS = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "sage_scale", "launch")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
        copy(ROOT / part, folder / part)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", folder / "dist", folder], check=True, timeout=240)
    return next((folder / "dist").glob("*.whl"))


def test_the_package_alone_has_recipes_and_scripts(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    own = {path.relative_to(LAUNCH_FOLDER) for path in LAUNCH_FOLDER.rglob("*.*") if path.suffix != ".pyc"}
    there = site / "sage_scale" / "launch"
    assert {path.relative_to(there) for path in there.rglob("*.*")} == own

    def python(code: str, *words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(site)}  # before the checkout, which is installed too
        command = [sys.executable, "-c", code, *words]
        run = subprocess.run(
            command, env=environment, cwd=tmp_path, timeout=120, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        return run.stdout

    python(
        "from sage_scale.reporting.page import html; html('localisation', [('', '')], 'models/sign2gpt/report.html')"
    )
    assert Path(python("import sage_scale.config as c; print(c.LAUNCH_FOLDER)").strip()) == there
    verb = "from sage_scale.cli.main import main; main()"
    assert [line.split()[0] for line in python(verb, "recipe", "list").splitlines()] == recipe_names()
    assert "batch_size" in python(verb, "recipe", "show", "demo")
    python("from sage_scale.corpora.synthetic import make_corpus")  # with its data files
