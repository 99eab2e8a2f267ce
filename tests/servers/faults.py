"""An HTTP proxy in front of an S3 server that breaks chosen requests.

Heads pass unchanged, so signatures stay valid. A rule names a method, a pattern of the path and what happens:

status         answer `status`/`code` without asking the server
refuse         close the connection before the request is passed on
lost_response  the server does what it is asked, the client never hears of it
truncate       close the body after `at` bytes
reset          reset the connection after `at` bytes of the body
corrupt        flip the bits of the byte at `at` of the body
stall          wait `seconds` after `at` bytes of the body
latency        wait `seconds` before passing the request on

Body faults hit the request's body for PUT and the answer's for GET.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass

_PIECE = 1 << 18


@dataclass
class Rule:
    """Break the next `times` matching requests, after letting `skip` of them pass."""

    action: str
    method: str = "GET"
    path: str = ".*"
    times: int = 1
    skip: int = 0
    status: int = 503
    code: str = "SlowDown"
    at: int = 0
    seconds: float = 0.0
    hits: int = 0


class _HangUp(Exception):
    """The rule says to close the connection here."""


class FaultProxy:
    """The proxy, on a thread of its own with an event loop."""

    def __init__(self, host: str, port: int) -> None:
        self.upstream = (host, port)
        self.rules: list[Rule] = []
        self.seen: list[tuple[str, str]] = []
        """Method and path of every request that arrived."""
        self.endpoint = ""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def add(self, action: str, **settings: object) -> Rule:
        """Add a rule and return it; its `hits` counts how often it struck."""
        rule = Rule(action, **settings)  # type: ignore[arg-type]
        self.rules.append(rule)
        return rule

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._connection, "127.0.0.1", 0, limit=1 << 20)
        )
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))

    def _rule_for(self, method: str, path: str) -> Rule | None:
        for rule in self.rules:
            if rule.method in (method, "*") and re.search(rule.path, path) and rule.times > 0:
                if rule.skip > 0:
                    rule.skip -= 1
                    continue
                rule.times -= 1
                rule.hits += 1
                return rule
        return None

    async def _connection(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        rule: Rule | None = None
        to_server: asyncio.StreamWriter | None = None
        try:
            server, to_server = await asyncio.open_connection(*self.upstream, limit=1 << 20)
            while True:
                head, line, fields = await _head(client)
                method, path, _ = line.split(" ", 2)
                self.seen.append((method, path))
                rule = self._rule_for(method, path)
                await self._exchange(rule, method, head, fields, client, answer, server, to_server)
        except _HangUp:
            if rule and rule.action == "reset":
                linger = struct.pack("ii", 1, 0)
                answer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            for writer in (answer, to_server):
                if writer is not None:
                    with contextlib.suppress(ConnectionError, RuntimeError):
                        writer.close()

    async def _exchange(
        self,
        rule: Rule | None,
        method: str,
        head: bytes,
        fields: dict[str, str],
        client: asyncio.StreamReader,
        answer: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        action = rule.action if rule else ""
        length = int(fields.get("content-length", 0))
        if rule and action == "latency":
            await asyncio.sleep(rule.seconds)
        if action == "refuse":
            raise _HangUp
        if rule and action == "status":
            if fields.get("expect", "").lower() != "100-continue":
                await client.readexactly(length)
            answer.write(_error(rule))
            await answer.drain()
            raise _HangUp
        to_server.write(head)
        await to_server.drain()
        if fields.get("expect", "").lower() == "100-continue":
            try:
                head, line, _ = await asyncio.wait_for(_head(server), 0.1)
            except TimeoutError:  # moto waits for the body instead
                head, line = b"HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 100 Continue "
            answer.write(head)
            await answer.drain()
            if " 100 " not in line:
                raise _HangUp
        await _pass_body(client, to_server, length, rule if method == "PUT" else None)
        head, line, fields = await _head(server)
        while " 100 " in line:  # the interim answer came late
            head, line, fields = await _head(server)
        if action == "lost_response":
            raise _HangUp
        answer.write(head)
        if method != "HEAD" and " 204 " not in line and " 304 " not in line:
            if fields.get("transfer-encoding") == "chunked":
                await _pass_chunks(server, answer)
            else:
                length = int(fields.get("content-length", 0))
                await _pass_body(server, answer, length, rule if method == "GET" else None)
        await answer.drain()


@contextlib.contextmanager
def fault_proxy(host: str, port: int) -> Iterator[FaultProxy]:
    """A running proxy in front of the server; it ends with the context."""
    proxy = FaultProxy(host, port)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()


async def _head(reader: asyncio.StreamReader) -> tuple[bytes, str, dict[str, str]]:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *rest = head.decode("latin1").split("\r\n")
    pairs = (line.split(":", 1) for line in rest if ":" in line)
    return head, first + " ", {name.strip().lower(): value.strip() for name, value in pairs}


async def _pass_body(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, length: int, rule: Rule | None
) -> None:
    breaks = rule is not None and rule.action in ("truncate", "reset", "corrupt", "stall")
    sent = 0
    while sent < length:
        want = min(_PIECE, length - sent)
        if rule and breaks and sent < rule.at:
            want = min(want, rule.at - sent)
        piece = await source.read(want)
        if not piece:
            raise ConnectionError
        if rule and breaks and sent >= rule.at:
            if rule.action == "corrupt":
                piece = bytes([piece[0] ^ 0xFF]) + piece[1:]
            elif rule.action == "stall":
                await asyncio.sleep(rule.seconds)
            else:
                raise _HangUp
            breaks = False
        target.write(piece)
        sent += len(piece)
        await target.drain()


async def _pass_chunks(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while True:
        line = await source.readline()
        target.write(line)
        length = int(line.split(b";")[0], 16)
        await _pass_body(source, target, length + 2, None)
        if length == 0:
            return


def _error(rule: Rule) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{rule.code}</Code><Message>injected</Message></Error>".encode()
    head = (
        f"HTTP/1.1 {rule.status} injected\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    )
    return head.encode() + b"Connection: close\r\n\r\n" + body
