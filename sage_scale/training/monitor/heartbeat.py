"""Heartbeats between the monitors of a run: JSON lines over one TCP connection from each monitor to rank 0's.

Rank 0's monitor listens on the first free port after MASTER_PORT; the others try those ports in turn, and
only the monitor of their own run answers, so no port is configured. Every monitor sends its rank's state once a second
and receives an answer as often: silence in either direction means a lost host. Like MASTER_PORT, the port must only be
reachable inside the cluster's network. It is independent of gloo and NCCL, whose collectives cannot be interrupted
and whose own time-outs name no cause.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
from typing import Any

from sage_scale.errors import UsageError
from sage_scale.untrusted.json_values import parse_json_object

PORTS = 12
"""Ports after MASTER_PORT that are tried."""
INTERVAL_S = 1.0
"""Seconds between two heartbeats."""
OTHER_DESCRIPTORS = 64
"""Descriptors of a monitor besides its connections; fewer than twenty are open."""
RANK_DESCRIPTORS = 1024
"""Descriptors of a rank besides its connections: shards, blocks, libraries."""
_LONGEST = 1 << 16
_GREETING_S = 5.0
_CONNECT_S = 3.0

Message = dict[str, Any]


def run_token(address: str, port: int, world: int) -> str:
    """Returns the token that identifies a run's monitors to each other; it is not a secret."""
    return hashlib.sha256(f"sage-scale {address}:{port} {world}".encode()).hexdigest()[:16]


def ports(master_port: int) -> list[int]:
    """Returns the ports that rank 0's monitor may use."""
    after = range(master_port + 1, min(master_port + 1 + PORTS, 65536))
    return list(after) or [master_port - 1]


def allow_descriptors(world: int) -> None:
    """Raise this process's soft limit of open files, where needed, for connections between `world` ranks.

    Rank 0's monitor has one to each other rank, and so has every rank in each process group of gloo: the default soft
    limit of 1,024 would end a job of 1,000 ranks. Raises UsageError where the hard limit is below the monitor's need.
    """
    if os.name != "posix":
        return
    import resource

    soft, hard = (
        float("inf") if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    needed = world - 1 + OTHER_DESCRIPTORS
    if hard < needed:
        raise UsageError(
            f"{world} ranks need {needed} open files in each process, and the hard limit of {socket.gethostname()} is "
            f"{hard}: raise it (`ulimit -Hn`; LimitNOFILE= of the service, --ulimit nofile= of the container), or use "
            f"at most {max(1, int(hard) - OTHER_DESCRIPTORS + 1)} ranks"
        )
    wanted = min(hard, 3 * world + RANK_DESCRIPTORS)  # gloo opens a second group for saves
    if world > 1 and soft < wanted:
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (int(wanted), allowed))


class Connection:
    """A non-blocking socket that carries JSON lines."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.setblocking(False)
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = self._unsent = b""
        self.open = True

    def send(self, message: Message) -> None:
        """Send a message; bytes that the socket does not accept now are buffered."""
        if not self.open:
            return
        self._unsent += json.dumps(message).encode() + b"\n"
        try:
            while self._unsent:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except (BlockingIOError, InterruptedError):
            self.open = len(self._unsent) < _LONGEST  # the other side does not read
        except OSError:
            self.open = False

    def receive(self) -> list[Message]:
        """Returns the complete lines received; `open` becomes False at the end or after an invalid line."""
        data = b""
        try:
            data = self.socket.recv(_LONGEST)
            self.open = self.open and bool(data)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.open = False
        *lines, self._received = (self._received + data).split(b"\n")
        self.open = self.open and len(self._received) <= _LONGEST
        messages: list[Message] = []
        for line in lines:
            try:
                messages.append(parse_json_object(line))
            except ValueError:
                self.open = False
                break
        return messages

    def close(self, linger_s: float = 0.0) -> None:
        """Close; wait up to `linger_s` for the other side to close first, so that the last line arrives."""
        with contextlib.suppress(OSError):
            if linger_s and self.open:
                self.socket.settimeout(linger_s)
                self.socket.shutdown(socket.SHUT_WR)
                while self.socket.recv(_LONGEST):
                    pass
        with contextlib.suppress(OSError):
            self.socket.close()


class HeartbeatServer:
    """Rank 0's side: accepts only monitors of this run."""

    def __init__(self, token: str, master_port: int, everywhere: bool) -> None:
        """Listen on all interfaces (`everywhere`) or on the loopback address. Raises OSError without a free port."""
        self.token = token
        self.connections: dict[int, Connection] = {}
        self._greeted: dict[Connection, float] = {}
        self._server = _listen(ports(master_port), "" if everywhere else "127.0.0.1")

    @property
    def port(self) -> int:
        """Returns the port of the server."""
        return int(self._server.getsockname()[1])

    def poll(self) -> tuple[list[tuple[int, Message]], list[int], bool]:
        """Returns (messages by rank, ranks whose connection ended, whether a launcher requested a stop)."""
        messages: list[tuple[int, Message]] = []
        gone: list[int] = []
        stop = self._greet(messages)
        for rank, connection in list(self.connections.items()):
            messages += [(rank, message) for message in connection.receive()]
            if not connection.open:
                del self.connections[rank]
                connection.close()
                gone.append(rank)
        return messages, gone, stop

    def send(self, message: Message) -> None:
        """Send a message to every monitor."""
        for connection in self.connections.values():
            connection.send(message)

    def close(self) -> None:
        """Close, with the last lines delivered where the network allows."""
        self._server.close()
        end = time.monotonic() + 1.5
        for connection in self.connections.values():
            connection.close(linger_s=max(0.01, end - time.monotonic()))

    def _greet(self, messages: list[tuple[int, Message]]) -> bool:
        """Accept new connections and read their first lines; returns whether one requests a stop."""
        stop = False
        with contextlib.suppress(OSError):
            while True:
                self._greeted[Connection(self._server.accept()[0])] = time.monotonic()
        for connection, since in list(self._greeted.items()):
            for message in connection.receive():
                if message.get("token") != self.token:
                    connection.open = False
                elif isinstance(message.get("rank"), int):
                    connection.send({"welcome": self.token})
                    self._greeted.pop(connection, None)
                    self.connections[message["rank"]] = connection
                    messages.append((message["rank"], message))
                elif "stop" in message:
                    stop = True
                    connection.send({"welcome": self.token})
            late = time.monotonic() - since > _GREETING_S
            if connection in self._greeted and (late or not connection.open):
                self._greeted.pop(connection)
                connection.close()
        return stop


class HeartbeatClient:
    """The other ranks' side: connects in the background, without time-out."""

    def __init__(self, greeting: Message, address: str, master_port: int) -> None:
        self.connection: Connection | None = None
        """None until rank 0's monitor has answered."""
        self._given_up = threading.Event()

        def connect() -> None:
            with contextlib.suppress(OSError):
                self.connection = Connection(_connect(greeting, address, master_port, self._given_up))

        threading.Thread(target=connect, daemon=True).start()

    def poll(self) -> list[Message]:
        """Returns the messages of rank 0's monitor."""
        return self.connection.receive() if self.connection is not None else []

    def send(self, message: Message) -> None:
        """Send a message to rank 0's monitor, once there is a connection."""
        if self.connection is not None:
            self.connection.send(message)

    def close(self) -> None:
        """Close, with the last lines delivered where the network allows."""
        self._given_up.set()
        if self.connection is not None:
            self.connection.close(linger_s=1.0)


def request_stop(address: str, master_port: int, world: int, timeout_s: float = 5.0) -> bool:
    """Ask rank 0's monitor to have every rank of a run save and stop; returns whether it answered."""
    stop = threading.Event()
    timer = threading.Timer(timeout_s, stop.set)
    timer.daemon = True
    timer.start()
    greeting = {"token": run_token(address, master_port, world), "stop": True}
    try:
        _connect(greeting, address, master_port, stop).close()
    except OSError:
        return False
    return True


def _listen(candidates: list[int], address: str) -> socket.socket:
    error = OSError("no port")
    for port in candidates:
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((address, port))
            server.listen(1024)
        except OSError as wrong:
            error = wrong
            server.close()
            continue
        server.setblocking(False)
        return server
    raise error


def _connect(greeting: Message, address: str, master_port: int, stop: threading.Event) -> socket.socket:
    """Returns a connection to the monitor with the greeting's token. Raises OSError once `stop` is set."""
    while True:
        for port in ports(master_port):
            if stop.is_set():
                raise OSError("given up")
            connection = _try(greeting, address, port)
            if connection is not None:
                return connection
        stop.wait(0.2)


def _try(greeting: Message, address: str, port: int) -> socket.socket | None:
    connection = None
    with contextlib.suppress(OSError, ValueError):
        connection = socket.create_connection((address, port), timeout=_CONNECT_S)
        connection.sendall(json.dumps(greeting).encode() + b"\n")
        answer = connection.makefile("rb", buffering=0).readline(1024)  # no byte of the lines after it
        if parse_json_object(answer).get("welcome") == greeting["token"]:
            return connection
    if connection is not None:
        connection.close()
    return None
