"""A real S3 server for tests: Ceph's RADOS gateway over one monitor and one object store in memory, on loopback.

Debian: `apt-get install --no-install-recommends radosgw ceph-mon ceph-osd`. Everything lives in one temporary folder,
runs in the foreground as our children, and dies with us even when we are killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from factories.ranks import free_port
from servers.moto import S3Server

PROGRAMS = ("ceph-authtool", "ceph-mon", "ceph-osd", "ceph", "monmaptool", "radosgw", "radosgw-admin")
_CONFIG = """\
[global]
fsid = {fsid}
keyring = {folder}/keyring
mon_host = [v2:127.0.0.1:{monitor_port}]
mon_initial_members = a
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
paxos_propose_interval = 0.05
osd_client_watch_timeout = 2
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_data_avail_crit = 1
osd_crush_chooseleaf_type = 0
log_file = {folder}/log/$name.log
admin_socket = {folder}/run/$name.asok
pid_file =
run_dir = {folder}/run
mon_data = {folder}/mon
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 4294967296
[client.rgw.a]
rgw_frontends = beast endpoint={bind}:{gateway_port}
rgw_data = {folder}/rgw
rgw_enable_ops_log = false
"""
_CAPABILITIES = {
    "mon.": ("mon", "allow *"),
    "client.admin": ("mon", "allow *", "osd", "allow *"),
    "osd.0": ("mon", "allow profile osd", "osd", "allow *"),
    "client.rgw.a": ("mon", "allow rwx", "osd", "allow *"),
}


def missing_programs() -> list[str]:
    """Ceph's programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


class Gateway(S3Server):
    """A running gateway whose processes a test may stop, kill or start again."""

    def __init__(self, folder: Path, bind: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__("127.0.0.1", port or free_port())
        self.folder, self.bind = folder, bind
        self.processes: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        """Make the cluster's files, start its three servers and the test user."""
        for name in ("mon", "osd", "rgw", "run", "log"):
            (self.folder / name).mkdir()
        fsid, monitor_port = str(uuid.uuid4()), free_port()
        config, keyring, monmap = (str(self.folder / name) for name in ("ceph.conf", "keyring", "monmap"))
        Path(config).write_text(
            _CONFIG.format(
                fsid=fsid,
                folder=self.folder,
                monitor_port=monitor_port,
                bind=self.bind,
                gateway_port=self.port,
            )
        )
        for number, (name, pairs) in enumerate(_CAPABILITIES.items()):
            capabilities = [
                part for who, what in zip(pairs[::2], pairs[1::2]) for part in ("--cap", who, what)
            ]
            create = ["-C"] if number == 0 else []
            self._run("ceph-authtool", keyring, *create, "--gen-key", "-n", name, *capabilities)
        self._run(
            "monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{monitor_port}]", monmap
        )
        with_config = ("-c", config)
        self._run("ceph-mon", *with_config, "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)
        self._spawn("mon", "ceph-mon", *with_config, "-f", "-i", "a")
        store_id = str(uuid.uuid4())
        self._run("ceph", *with_config, "osd", "new", store_id)
        self._run("ceph-osd", *with_config, "-i", "0", "--mkfs", "--osd-uuid", store_id)
        self._spawn("osd", "ceph-osd", *with_config, "-f", "-i", "0")
        self.start_gateway()
        keys = ("--access-key", self.access_key, "--secret-key", self.secret_key)
        self._run("radosgw-admin", *with_config, "user", "create", "--uid", "t", "--display-name", "t", *keys)

    def start_gateway(self) -> None:
        """Start the gateway's process, and wait until it listens."""
        keyring, config = str(self.folder / "keyring"), str(self.folder / "ceph.conf")
        self._spawn("rgw", "radosgw", "-c", config, "-f", "-n", "client.rgw.a", "--keyring", keyring)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 0.2):
                return
            time.sleep(0.02)
        raise TimeoutError(f"the gateway does not listen; see {self.folder}/log")

    def stop(self) -> None:
        """Kill whatever still runs."""
        for process in reversed(self.processes.values()):
            process.kill()
            process.wait()

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def _spawn(self, name: str, *command: str) -> None:
        with open(self.folder / "log" / f"{name}.out", "ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent,
            )


@contextlib.contextmanager
def ceph_gateway(bind: str = "127.0.0.1", port: int = 0) -> Iterator[Gateway]:
    """A running gateway on an address (port 0: a free one); it ends with the context."""
    folder = Path(tempfile.mkdtemp(prefix="rgw-"))
    gateway = Gateway(folder, bind, port)
    try:
        gateway.start()
        yield gateway
    finally:
        gateway.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
