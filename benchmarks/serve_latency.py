"""Latency of `sage-scale serve`: cold start, and a clip by stage in a warm server.

    python benchmarks/serve_latency.py MODEL VIDEO [--requests 20]
    python benchmarks/serve_latency.py --small                   # a model that has learnt nothing, a synthetic clip

Cold start is from the command to the first sentence of the video. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from common import parse, sage
from factories.training import make_translator
from factories.videos import write_signing


def measure(model: Path, video: Path, requests: int) -> dict[str, list[float]]:
    """Returns seconds of each stage. Fails where two answers have other sentences."""
    begun = time.monotonic()
    command = list(map(str, sage("serve", "--model", model, "--port", 0)))
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        address = ""
        while not address and (line := process.stderr.readline()):
            address = next(iter(re.findall(r"http://[\w.:]+", line)), "")
        body = video.read_bytes()

        def ask() -> tuple[float, dict[str, float], str]:
            started = time.monotonic()
            request = urllib.request.Request(f"{address}/api/translate", data=body, method="POST")
            with urllib.request.urlopen(request, timeout=120) as answer:
                found = json.load(answer)
            return time.monotonic() - started, found["stages_s"], found["sentence"]

        sentence = ask()[2]
        cold = time.monotonic() - begun
        asked = [ask() for _ in range(requests)]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert all(other[2] == sentence for other in asked), "sentences differ"
    rows = {"cold start, to the first sentence": [cold], "warm, whole request": [one[0] for one in asked]}
    return rows | {f"warm, {stage}": [one[1][stage] for one in asked] for stage in asked[0][1]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("video", type=Path, nargs="?")
    parser.add_argument("--requests", type=int, default=20, help="requests to the warm server")
    options = parse(parser, requests=2)
    with tempfile.TemporaryDirectory() as folder:
        if options.small:
            options.model = make_translator(Path(folder))
            options.video = write_signing(Path(folder) / "clip.mp4", seed=1, frames=60)
        elif options.video is None:
            parser.error("give MODEL and VIDEO, or --small")
        rows = measure(options.model, options.video, options.requests)
    print("| | median, s | most, s |\n|---|---|---|")
    for name, seconds in rows.items():
        print(f"| {name} | {statistics.median(seconds):.3f} | {max(seconds):.3f} |")


if __name__ == "__main__":
    main()
