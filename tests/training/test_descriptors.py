"""Open files of a large job: the soft limit is raised for its connections, a world above the hard limit is refused."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys

import pytest

from sage_scale.config import check_lanes
from sage_scale.errors import UsageError
from sage_scale.training.monitor.heartbeat import allow_descriptors, run_token

LISTENER = """
import json, resource, sys, time
from sage_scale.training.monitor.heartbeat import HeartbeatServer, allow_descriptors, run_token
world, port = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
if sys.argv[3] == "raised":
    allow_descriptors(world)
server = HeartbeatServer(run_token("127.0.0.1", port, world), port, everywhere=False)
print(server.port, flush=True)
end, heard = time.monotonic() + float(sys.argv[4]), set()
while len(heard) < world - 1 and time.monotonic() < end:
    heard |= {rank for rank, _ in server.poll()[0]}
    time.sleep(0.01)
print(json.dumps(sorted(heard)), flush=True)
"""


@pytest.mark.parametrize("raised", [True, False])
def test_1023_monitors_connect_where_the_soft_limit_was_1024(raised):
    world, (soft, hard) = 1024, resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * world:
        pytest.skip(f"the hard limit of open files is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * world, hard))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [world, port, "raised" if raised else "as it is", 30 if raised else 1]
    child = subprocess.Popen(
        [sys.executable, "-c", LISTENER, *map(str, words)], stdout=subprocess.PIPE, text=True
    )
    greetings = []
    try:
        assert child.stdout is not None
        at = ("127.0.0.1", int(child.stdout.readline()))
        token = run_token("127.0.0.1", port, world)
        for rank in range(1, world):
            greetings.append(socket.create_connection(at, timeout=10))
            greetings[-1].sendall(json.dumps({"token": token, "rank": rank, "host": "h"}).encode() + b"\n")
        heard = json.loads(child.stdout.readline())
        assert heard == list(range(1, world)) if raised else len(heard) < world - 1
    finally:
        for connection in greetings:
            connection.close()
        child.kill()
        child.communicate()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_world_above_the_hard_limit_is_refused_and_the_line_says_how_many_ranks_it_allows():
    hard = 4096
    lines = subprocess.run(
        [
            sys.executable,
            "-c",
            "import resource\n"
            "from sage_scale.training.monitor.heartbeat import allow_descriptors\n"
            f"resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}))\n"
            "allow_descriptors(4033)\n"
            "print(resource.getrlimit(resource.RLIMIT_NOFILE))\n"
            "allow_descriptors(1)\n"
            "try:\n    allow_descriptors(4034)\nexcept Exception as error:\n    print(error.exit_code, error)\n",
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ},
    ).stdout.splitlines()
    assert lines[0] == f"({hard}, {hard})"
    assert lines[1].startswith("2 4034 ranks need 4097 open files in each process") and "4096" in lines[1]
    assert "use at most 4033 ranks" in lines[1] and "ulimit -Hn" in lines[1]


def test_one_rank_alone_changes_no_limit():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow_descriptors(1)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def test_more_ranks_than_lanes_are_refused_by_the_number_to_set():
    check_lanes(1024, 1024)
    with pytest.raises(UsageError, match=r"1025 ranks cannot share 1024 lanes: set stream.lanes=1025 or a"):
        check_lanes(1025, 1024)
