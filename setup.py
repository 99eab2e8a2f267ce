"""The wheel holds `launch/` too, as `sage_scale/launch`: the recipes, and the scripts that launchers are given."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithLaunch(build_py):
    """An editable installation finds the folder in its checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            place = Path(self.build_lib) / "sage_scale" / "launch"
            shutil.copytree("launch", place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithLaunch})
