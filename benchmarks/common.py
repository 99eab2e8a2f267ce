"""What benchmarks share: `--small` and `--device`, commands of `sage-scale`, the peers' environment.

`--small` is a toy size that runs in seconds on any machine, without a GPU, and shows that the script works. Its figures
mean nothing, which its first line says. tests/experiments/test_scripts.py runs each script so.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MEANINGLESS = "--small: a toy size, which shows that all of it runs; its figures mean nothing"
PEERS = Path(__file__).with_name("peers.txt")
"""What pip installs into the peers' environment."""


def parse(parser: argparse.ArgumentParser, *, device: bool = False, **small: Any) -> argparse.Namespace:
    """Returns the options of the command line; with --small those named in `small` have toy values by default.

    `device` adds --device: CUDA, with --small the CPU where there is no GPU. Ends the program where CUDA is missing.
    """
    parser.add_argument("--small", action="store_true", help="toy size: only shows that it runs")
    if device:
        parser.add_argument("--device", choices=("cuda", "cpu"))
    if "--small" in sys.argv[1:]:
        parser.set_defaults(**small)
    options = parser.parse_args()
    if device:
        import torch

        if options.device == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # DeepSpeed would take the GPU
        found = torch.cuda.is_available()
        options.device = options.device or ("cpu" if options.small and not found else "cuda")
        if options.device == "cuda" and not found:
            raise SystemExit("no CUDA device: --small shows that the script runs")
    if options.small:
        print(MEANINGLESS, flush=True)
    return options


def sage(*arguments: object) -> list[str]:
    """The command line of a verb, with this interpreter."""
    return [sys.executable, "-m", "sage_scale.cli.main", *map(str, arguments)]


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and standard deviation of the sample; the value alone of a single one, a dash of none."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else "–"
    return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def ratios(others: list[float], ours: list[float]) -> str:
    """How much faster each round of ours was."""
    return " ".join(f"{other / own:.2f}" for other, own in zip(others, ours))


class Asked:
    """A process that answers each line of its standard input by a line."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.name, pipe = Path(command[-1]).name, subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)

    def say(self, line: str) -> None:
        """Send a line."""
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)

    def answer(self) -> str:
        """The next line. Raises SystemExit where the process has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.name} ended with code {self.process.wait()}")
        return line.rstrip("\n")

    def close(self) -> None:
        """Close its input, on which it ends."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait() == 0


def peers_python(folder: Path, *packages: str) -> str:
    """The interpreter of an environment of `packages` (default: PEERS) in `folder`, made where it is missing.

    It is an environment of its own: the peers want an older transformers than ours. Raises SystemExit with pip's last
    line where they cannot be installed.
    """
    python = folder / "bin" / "python"
    unfinished = folder / "unfinished"
    if python.exists() and not unfinished.exists():
        return str(python)
    wanted = packages or ("-r", str(PEERS))
    print(f"installing {wanted[-1]} into {folder}, once", flush=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    folder.mkdir(parents=True, exist_ok=True)
    unfinished.touch()
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, env=environment)
    quiet = ["--quiet", "--disable-pip-version-check"]
    command = [str(python), "-m", "pip", "install", *quiet, *wanted]
    run = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    if run.returncode:
        raise SystemExit(f"pip cannot install the peers: {(run.stderr.strip().splitlines() or ['?'])[-1]}")
    unfinished.unlink()
    return str(python)
