"""Hosts on one machine: network, process, name and mount namespaces on one switch, whose cables can be pulled.

Linux, root, iproute2 and util-linux. A host has its own name, address, process table and /dev/shm, and shares the
file system with the others, as hosts of a cluster do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path


def why_not() -> str:
    """Why hosts cannot be made here; '' where they can."""
    missing = [name for name in ("ip", "unshare", "mount") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: iproute2, util-linux, mount)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"try-{uuid.uuid4().hex[:6]}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"no network namespaces: {tried.stderr.strip()}"
    _ip("netns", "del", name)
    return ""


class Switch:
    """A switch and its hosts, 10.77.0.1 and on, by name."""

    def __init__(self, names: Sequence[str]) -> None:
        mark = uuid.uuid4().hex[:5]
        self.space = f"sw-{mark}"
        self.spaces = {name: f"{name}-{mark}" for name in names}
        self.addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, 1)}
        self._ports = {name: f"port{number}" for number, name in enumerate(names)}

    def build(self) -> None:
        """Make the namespaces and plug the cables."""
        _ip("netns", "add", self.space)
        _ip("-n", self.space, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self.space, "link", "set", "bridge", "up")
        for name, space in self.spaces.items():
            port = self._ports[name]
            _ip("netns", "add", space)
            _ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", self.space)
            _ip("-n", space, "addr", "add", f"{self.addresses[name]}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")
            _ip("-n", self.space, "link", "set", port, "master", "bridge", "up")

    def pull(self, name: str) -> None:
        """Packets to and from a host vanish from now on, without a word to anyone."""
        _ip("-n", self.space, "link", "set", self._ports[name], "nomaster")

    def plug(self, name: str) -> None:
        """Packets arrive again."""
        _ip("-n", self.space, "link", "set", self._ports[name], "master", "bridge")

    def start(
        self, name: str, command: Sequence[object], environment: dict[str, str], output: Path
    ) -> subprocess.Popen:
        """Run a command on a host; stdout and stderr go to the file `output`. Killing it ends all that it started."""
        inside = 'hostname "$0"; mount -t tmpfs tmpfs /dev/shm; exec "$@"'
        space = ["ip", "netns", "exec", self.spaces[name]]
        unshare = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with output.open("ab") as written:
            return subprocess.Popen(
                [*space, *unshare, "sh", "-c", inside, name, *map(str, command)],
                env={**os.environ, **environment},
                stdout=written,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def remove(self) -> None:
        """Take all away."""
        for space in (*self.spaces.values(), self.space):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", space)


@contextlib.contextmanager
def hosts(*names: str) -> Iterator[Switch]:
    """Hosts on a switch; they go with the context."""
    switch = Switch(names)
    try:
        switch.build()
        yield switch
    finally:
        switch.remove()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


def start_s3(switch: Switch, folder: Path) -> tuple[subprocess.Popen, dict[str, str]]:
    """Starts an S3 server on host-s3, makes `bucket` from host-a, and returns server and environment of its clients."""
    server = [sys.executable, "-c", "from moto.server import main; main(['-H', '0.0.0.0', '-p', '5000'])"]
    process = switch.start("host-s3", server, {}, folder / "s3.txt")
    keys = {"AWS_ENDPOINT_URL": f"http://{switch.addresses['host-s3']}:5000", "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip
    make = (
        "import boto3, botocore.config\n"
        "patient = botocore.config.Config(retries={'max_attempts': 10})\n"
        "boto3.client('s3', config=patient).create_bucket(Bucket='bucket')\n"
    )
    made = switch.start("host-a", [sys.executable, "-c", make], keys, folder / "bucket.txt")
    assert made.wait(60) == 0, (folder / "bucket.txt").read_text()
    return process, keys
