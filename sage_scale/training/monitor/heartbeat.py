"""How the sentinels of a run hear of each other: one TCP connection from each to rank 0's, lines of JSON.

Rank 0's sentinel listens on the first free port after MASTER_PORT; the others try those ports in turn and are
answered only by the sentinel of their own run, so nothing has to be configured. Every sentinel sends its rank's
state once a second and hears back as often: silence in either direction is a lost host. Like MASTER_PORT itself
the port belongs within the cluster's own network. It is independent of gloo and NCCL, whose collectives cannot be
interrupted and whose own time-outs name no cause.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import queue
import socket
import threading
import time
from typing import Any

from sage_scale.untrusted.json_values import parse_json, parse_json_object

PORTS = 12
"""How many ports after MASTER_PORT are tried."""
EVERY_S = 1.0
"""Seconds between two signs of life."""
_LONGEST = 1 << 16
_GREETING_S = 5.0
_CONNECT_S = 3.0

Message = dict[str, Any]


def run_token(address: str, port: int, world: int) -> str:
    """What the sentinels of one run know each other by; not a secret."""
    return hashlib.sha256(f"sage-scale {address}:{port} {world}".encode()).hexdigest()[:16]


def ports(master_port: int) -> list[int]:
    """Where rank 0's sentinel may listen."""
    return [port for port in range(master_port + 1, master_port + 1 + PORTS) if port < 65536] or [
        master_port - 1
    ]


class Connection:
    """A connection that carries lines of JSON, neither side ever waiting for the other."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.setblocking(False)
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self._unsent = b""
        self.open = True

    def send(self, message: Message) -> None:
        """Send, or keep for later what the network does not take now."""
        if not self.open:
            return
        self._unsent += json.dumps(message).encode() + b"\n"
        try:
            while self._unsent:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except (BlockingIOError, InterruptedError):
            self.open = len(self._unsent) < _LONGEST  # nobody reads
        except OSError:
            self.open = False

    def receive(self) -> list[Message]:
        """The whole lines that have come; `open` is False after the last."""
        try:
            data = self.socket.recv(_LONGEST)
            self.open = self.open and bool(data)
        except (BlockingIOError, InterruptedError):
            data = b""
        except OSError:
            data, self.open = b"", False
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > _LONGEST:
            self.open = False
        messages = []
        for line in lines:
            try:
                message = parse_json(line)
            except ValueError:
                message = None
            if not isinstance(message, dict):
                self.open = False  # not one of ours
                break
            messages.append(message)
        return messages

    def close(self, linger_s: float = 0.0) -> None:
        """Close; `linger_s` waits for the other side to close first, so that the last line surely arrives."""
        with contextlib.suppress(OSError):
            if linger_s and self.open:
                self.socket.settimeout(linger_s)
                self.socket.shutdown(socket.SHUT_WR)
                while self.socket.recv(_LONGEST):
                    pass
        with contextlib.suppress(OSError):
            self.socket.close()


class HeartbeatServer:
    """Rank 0's side: greets the sentinels of this run, and nobody else."""

    def __init__(self, token: str, master_port: int, everywhere: bool) -> None:
        self.token = token
        self.lines: dict[int, Connection] = {}
        self._strangers: dict[Connection, float] = {}
        self._server = self._bind(master_port, "" if everywhere else "127.0.0.1")

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.getsockname()[1])

    def poll(self) -> tuple[list[tuple[int, Message]], list[int], list[Message]]:
        """Messages by rank, ranks whose connection ended, and what passers-by of this run asked (a launcher)."""
        messages: list[tuple[int, Message]] = []
        gone: list[int] = []
        asked: list[Message] = []
        self._greet(asked, messages)
        for rank, line in list(self.lines.items()):
            messages += [(rank, message) for message in line.receive()]
            if not line.open:
                del self.lines[rank]
                line.close()
                gone.append(rank)
        return messages, gone, asked

    def send(self, message: Message) -> None:
        """To every sentinel."""
        for line in self.lines.values():
            line.send(message)

    def close(self) -> None:
        """Close, with the last lines delivered where the network allows."""
        self._server.close()
        end = time.monotonic() + 1.5
        for line in self.lines.values():
            line.close(linger_s=max(0.01, end - time.monotonic()))

    def _bind(self, master_port: int, address: str) -> socket.socket:
        error: OSError | None = None
        for port in ports(master_port):
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
        raise error or OSError("no port")

    def _greet(self, asked: list[Message], messages: list[tuple[int, Message]]) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._strangers[Connection(self._server.accept()[0])] = time.monotonic()
        for line, since in list(self._strangers.items()):
            for message in line.receive():
                if message.get("token") != self.token:
                    line.open = False
                elif isinstance(message.get("rank"), int):
                    line.send({"welcome": self.token})
                    self._strangers.pop(line, None)
                    self.lines[message["rank"]] = line
                    messages.append((message["rank"], message))
                elif "stop" in message:
                    asked.append(message)
                    line.send({"welcome": self.token})
            if line in self._strangers and (not line.open or time.monotonic() - since > _GREETING_S):
                self._strangers.pop(line)
                line.close()


class HeartbeatClient:
    """The other ranks' side: connects in the background, for as long as it takes."""

    def __init__(self, greeting: Message, address: str, master_port: int) -> None:
        self.line: Connection | None = None
        self._found: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self._given_up = threading.Event()

        def connect() -> None:
            with contextlib.suppress(OSError):
                self._found.put(_connect(greeting, address, master_port, self._given_up))

        threading.Thread(target=connect, daemon=True).start()

    def poll(self) -> list[Message]:
        """What rank 0's sentinel says."""
        if self.line is None:
            with contextlib.suppress(queue.Empty):
                self.line = Connection(self._found.get_nowait())
        return self.line.receive() if self.line is not None else []

    def send(self, message: Message) -> None:
        """Tell rank 0's sentinel, once there is a connection."""
        if self.line is not None:
            self.line.send(message)

    def close(self) -> None:
        """Leave, with what was said delivered where the network allows."""
        self._given_up.set()
        if self.line is not None:
            self.line.close(linger_s=1.0)


def request_stop(address: str, master_port: int, world: int, timeout_s: float = 5.0) -> bool:
    """Have every rank of a run save and stop, through rank 0's sentinel; whether it heard."""
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


def _connect(greeting: Message, address: str, master_port: int, stop: threading.Event) -> socket.socket:
    """A connection to the sentinel that knows the greeting's token; tries on until `stop` is set."""
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
    try:
        connection = socket.create_connection((address, port), timeout=_CONNECT_S)
        connection.sendall(json.dumps(greeting).encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n") and len(answer) < 1024:
            data = connection.recv(1)  # no byte more: what follows belongs to the reader after us
            if not data:
                break
            answer += data
        if parse_json_object(answer).get("welcome") == greeting["token"]:
            return connection
    except (OSError, ValueError, AttributeError):
        pass
    if connection is not None:
        connection.close()
    return None
