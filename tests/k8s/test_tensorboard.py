"""The component `tensorboard`: its command, as rendered, serves the events of a run that lies in an object store."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from k8s.objects import find, objects_of, rendered_file

from sage_scale.storage import open_store


@pytest.mark.extras
def test_tensorboard_shows_a_run_in_the_object_store(s3, tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("loss", 1.5, 3)
    for file in tmp_path.iterdir():
        open_store(f"{s3.url}/runs/demo/pretrain/tensorboard").put(file.name, file.read_bytes())
    deployment = find(objects_of(rendered_file("queued").read_text()), "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    words = [word.replace("s3://BUCKET", s3.url) for word in container["args"]]
    assert words[:2] == ["tensorboard", f"--logdir={s3.url}/runs/demo"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [f"--port={port}" if word.startswith("--port") else word for word in words]
    served = subprocess.Popen([Path(sys.executable).with_name(words[0]), *words[1:]], env=dict(os.environ))
    try:
        assert "loss" in str(_scalars(port))
    finally:
        served.terminate()
        served.wait()


def _scalars(port: int) -> dict:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/plugin/scalars/tags") as answer:
                if tags := json.load(answer):
                    return tags
        except urllib.error.URLError:
            pass
        time.sleep(0.5)
    return {}
