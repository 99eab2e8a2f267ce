"""docs/python.ipynb from docs/python.md: the page's text and blocks as cells, run in an environment of its own.

`python tests/factories/notebook.py` writes it again (`make notebook`). Lightning, accelerate and the notebook's client
go into a virtual environment that sees the packages of the present one.
"""

from __future__ import annotations

import json
import os
import re
import site
import subprocess
import sys
import tempfile
import textwrap
import venv
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGE, NOTEBOOK = ROOT / "docs" / "python.md", ROOT / "docs" / "python.ipynb"
LEFT_OUT = "## A trained model"
"""The section that needs a run of the reader's own."""
PACKAGES = ("lightning>=2.5", "accelerate>=1.2", "nbclient>=0.10", "ipykernel>=6.29")
BEGIN = """\
import os
import tempfile

repository = os.path.abspath("..")  # of a clone: this notebook lies in docs/
os.chdir(tempfile.mkdtemp())
os.symlink(os.path.join(repository, "shards"), "shards")"""
CLIENT = """\
import sys, nbformat
from nbclient import NotebookClient
book = nbformat.read(sys.argv[1], 4)
place = {"metadata": {"path": sys.argv[3]}}
NotebookClient(book, timeout=300, kernel_name="python3", coalesce_streams=True, resources=place).execute()
nbformat.write(book, sys.argv[2])
"""


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    language: str
    text: str
    before: str
    """The text between the block before and this one."""

    @property
    def file(self) -> str:
        """The file that its first line names, `# NAME.py`; "" without one."""
        named = re.match(r"# (\w+\.py)\n", self.text)
        return named[1] if named else ""


def blocks_of(page: Path) -> list[Block]:
    """Returns the fenced blocks of a page, without the indentation that a list gives them."""
    text = page.read_text(encoding="utf-8")
    found, end = [], 0
    for fence in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```\n", text, re.MULTILINE | re.DOTALL):
        body = textwrap.dedent(fence[3]).rstrip("\n")
        found.append(Block(str(page.relative_to(ROOT)), fence[2], body, text[end : fence.start()]))
        end = fence.end()
    return found


def notebook_of(page: Path) -> dict[str, Any]:
    """Returns the notebook of a page, in nbformat 4.5, without outputs."""
    sources: list[tuple[str, str]] = [("code", BEGIN)]
    for block in blocks_of(page):
        text, _, left_out = block.before.partition(LEFT_OUT)
        if text.strip():
            sources.append(("markdown", re.sub(r"\[python.ipynb\].*\n", "", text).strip()))
        if left_out:
            break
        command = "".join(f"!{line}\n" for line in block.text.splitlines()).rstrip()
        written = f"%%writefile {block.file}\n{block.text}" if block.file else block.text
        sources.append(("code", command if block.language == "sh" else written))
    sources.insert(0, sources.pop(1))  # the title first
    cells = []
    for number, (kind, source) in enumerate(sources):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source.splitlines(True)}
        cells.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": python}, "nbformat": 4, "nbformat_minor": 5}


def make_environment(folder: Path) -> Path:
    """Returns the Python of a new virtual environment with PACKAGES, which sees this one's packages too.

    Raises CalledProcessError where pip cannot install them.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    asked = [python, "-c", "import site; print(site.getsitepackages()[0])"]
    own = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    (Path(own) / "project.pth").write_text("\n".join([*site.getsitepackages(), str(ROOT)]))
    pip = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-c",
        ROOT / "constraints.txt",
    ]
    subprocess.run([*pip, *PACKAGES], check=True, capture_output=True, text=True)
    return python


def run_notebook(python: Path, source: Path, target: Path) -> None:
    """Run a notebook with the Python of `make_environment`. Raises CalledProcessError where a cell fails."""
    others = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    environment |= {
        "PATH": os.pathsep.join([str(python.parent), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "DS_ACCELERATOR": "cpu",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "client.py"
        program.write_text(CLIENT)
        subprocess.run(
            [python, program, source, target, ROOT / "docs"],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )


def write_notebook(place: Path) -> None:
    """Write docs/python.ipynb with outputs; `place` is a folder for the environment."""
    python = make_environment(place / "environment")
    (place / "bare.ipynb").write_text(json.dumps(notebook_of(PAGE)), encoding="utf-8")
    run_notebook(python, place / "bare.ipynb", place / "run.ipynb")
    book = json.loads((place / "run.ipynb").read_text(encoding="utf-8"))
    book["metadata"] = notebook_of(PAGE)["metadata"]
    for cell in book["cells"]:
        cell["metadata"] = {}  # times of the run
        # Warnings of libraries name paths of this machine.
        cell["outputs"] = [out for out in cell.get("outputs", []) if out.get("name") != "stderr"]
        for output in cell["outputs"]:
            text = re.sub(r"/tmp/tmp\w+", "/tmp/example", "".join(output["text"]))
            lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text).splitlines(True)
            output["text"] = [line for line in lines if "\u2501" not in line]  # a bar of progress
        if cell["cell_type"] != "code":
            del cell["outputs"]
    NOTEBOOK.write_text(json.dumps(book, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        try:
            write_notebook(Path(made))
        except subprocess.CalledProcessError as failed:
            sys.exit(f"{failed}\n{failed.stderr[-4000:]}")
