"""Latency of `sage-scale serve`: cold start, and a clip of five seconds by stage in a warm server.

    python benchmarks/serve_latency.py MODEL VIDEO [--requests 20]

Cold start is from the command to the first sentence of the video. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from common import parse, sage


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("video", type=Path)
    parser.add_argument("--requests", type=int, default=20, help="requests to the warm server")
    options = parse(parser, requests=2)
    begun = time.monotonic()
    command = sage("serve", "--model", options.model, "--port", 0)
    process = subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert process.stderr is not None
    try:
        address = ""
        while not address and (line := process.stderr.readline()):
            address = next(iter(re.findall(r"http://[\w.:]+", line)), "")
        body = options.video.read_bytes()

        def ask() -> tuple[float, dict[str, float], str]:
            started = time.monotonic()
            request = urllib.request.Request(f"{address}/api/translate", data=body, method="POST")
            with urllib.request.urlopen(request, timeout=120) as answer:
                found = json.load(answer)
            return time.monotonic() - started, found["stages_s"], found["sentence"]

        sentence = ask()[2]
        cold = time.monotonic() - begun
        asked = [ask() for _ in range(options.requests)]
        assert all(other[2] == sentence for other in asked), "sentences differ"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
    rows = {"cold start, to the first sentence": [cold], "warm, whole request": [one[0] for one in asked]}
    rows |= {f"warm, {stage}": [one[1][stage] for one in asked] for stage in asked[0][1]}
    print("| | median, s | most, s |\n|---|---|---|")
    for name, seconds in rows.items():
        print(f"| {name} | {statistics.median(seconds):.3f} | {max(seconds):.3f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
