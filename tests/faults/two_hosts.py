"""Hosts on one machine: network, process, name and mount namespaces on one switch, whose cables can be pulled.

Linux, root, iproute2 and util-linux. A host has its own name, address, process table and /dev/shm. It shares the file
system with the others, as hosts of a cluster may do, or has a disk of its own beside what all hosts can only read.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from servers.moto import S3Server

TESTS = Path(__file__).resolve().parents[1]


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
        self,
        name: str,
        command: Sequence[object],
        environment: dict[str, str],
        output: Path,
        disk: Path | None = None,
    ) -> subprocess.Popen:
        """Run a command on a host; stdout and stderr go to the file `output`. Killing it ends all that it started.

        With `disk` the host shares no place to write with others: `/mnt` is that folder, `/tmp` its own `tmp`, and the
        root file system is read-only.
        """
        own = ""
        if disk is not None:
            (disk / "tmp").mkdir(parents=True, exist_ok=True)
            # The shell of an ssh reads its user's settings, which may want to write.
            shells = [path for path in (Path.home() / ".bashrc", Path.home() / ".profile") if path.exists()]
            mounts = [
                f"mount --bind {disk} /mnt",
                f"mount --bind {disk}/tmp /tmp",
                *(f"mount --bind /dev/null {path}" for path in shells),
                "mount -o remount,bind,ro /",
            ]
            own = f"{' && '.join(mounts)} && cd /mnt || exit 99; "
        inside = f'hostname "$0"; mount -t tmpfs tmpfs /dev/shm; {own}exec "$@"'
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


_MOTO = "from moto.server import main; main(['-H', '0.0.0.0', '-p', '5000'])"
_CEPH = (
    "import time\nfrom servers.ceph import ceph_gateway\n"
    "with ceph_gateway('0.0.0.0', 5000):\n    time.sleep(10**6)\n"
)


def start_s3(switch: Switch, folder: Path, ceph: bool = False) -> tuple[subprocess.Popen, dict[str, str]]:
    """Starts an S3 server on host-s3, makes `bucket` from host-a, and returns server and environment of its clients.

    The server is moto, or Ceph's gateway.
    """
    server = [sys.executable, "-c", _CEPH if ceph else _MOTO]
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS)))}
    process = switch.start("host-s3", server, paths, folder / "s3.txt")
    keys = {"AWS_ENDPOINT_URL": f"http://{switch.addresses['host-s3']}:5000", "AWS_ACCESS_KEY_ID": S3Server.access_key,
            "AWS_SECRET_ACCESS_KEY": S3Server.secret_key, "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip
    make = (
        "import boto3, time\n"
        "end = time.monotonic() + 50\n"
        "while True:\n"
        "    try:\n"
        "        boto3.client('s3').create_bucket(Bucket='bucket')\n"
        "        break\n"
        "    except Exception:\n"  # the server starts, or makes its user
        "        assert time.monotonic() < end\n"
        "        time.sleep(0.2)\n"
    )
    made = switch.start("host-a", [sys.executable, "-c", make], keys, folder / "bucket.txt")
    assert made.wait(90) == 0, (folder / "bucket.txt").read_text()
    return process, keys


def why_no_ssh() -> str:
    """Why hosts cannot be reached by ssh; '' where they can."""
    missing = [name for name in ("pdsh", "ssh", "sshd", "ssh-keygen") if shutil.which(name) is None]
    return (
        f"{', '.join(missing)} not installed (Debian: pdsh openssh-server openssh-client)" if missing else ""
    )


@contextlib.contextmanager
def start_sshd(
    switch: Switch, folder: Path, disk: Callable[[str], Path] | None = None
) -> Iterator[dict[str, str]]:
    """Starts sshd on host-a and host-b; yields the environment with which pdsh gets in.

    `disk` gives the disk of a host, if hosts share none.
    """
    Path("/run/sshd").mkdir(exist_ok=True)
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    servers = []
    seen = Path("/mnt/key") if disk else key
    settings = {"HostKey": seen, "AuthorizedKeysFile": f"{seen}.pub", "PermitRootLogin": "yes", "StrictModes": "no",
                "UsePAM": "no", "PidFile": "none"}  # fmt: skip
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    command = [shutil.which("sshd"), "-D", "-e", "-f", "/dev/null", *options]
    for host in ("host-a", "host-b"):
        own = disk(host) if disk else None
        for name in ("key", "key.pub") if own else ():
            shutil.copy(folder / name, own / name)
        servers.append(switch.start(host, command, {}, folder / f"sshd-{host}.log", own))
    ssh = f"-i {seen} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    try:
        yield {"PDSH_SSH_ARGS_APPEND": ssh, "PDSH_RCMD_TYPE": "ssh"}
    finally:
        for server in servers:
            server.kill()
            server.wait()
