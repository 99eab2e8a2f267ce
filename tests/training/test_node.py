"""The node of `sage-scale pretrain --nodes`: its place in the job, and the ranks it starts, signals and reaps."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sage_scale.cli.main import run
from sage_scale.errors import UsageError
from sage_scale.training import launcher
from sage_scale.training.node import Node, NodeOptions, this_node


def placed(monkeypatch, restarts: int = 0, variables: dict[str, object] | None = None, **options: object):
    """`this_node` with these variables alone."""
    environment = {name: str(value) for name, value in (variables or {}).items()}
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", environment)
        return this_node(NodeOptions(**options), "runs/r", "pretrain", restarts)


JOB_PORT = -1
"""Stands for the port that a job's number or run folder gives."""
PET = {"PET_NNODES": 4, "PET_NODE_RANK": 2, "PET_NPROC_PER_NODE": 8, "PET_MASTER_ADDR": "job-0.job",
       "PET_MASTER_PORT": 29400}  # fmt: skip
SRUN = {"SLURM_PROCID": 1, "SLURM_LOCALID": 0, "SLURM_NTASKS": 2, "SLURM_STEP_NUM_NODES": 2, "SLURM_STEP_ID": 0,
        "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_JOB_ID": 77}  # fmt: skip
MPIRUN = {"OMPI_COMM_WORLD_RANK": 3, "OMPI_COMM_WORLD_SIZE": 4, "OMPI_COMM_WORLD_LOCAL_RANK": 0,
          "OMPI_COMM_WORLD_LOCAL_SIZE": 1}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "variables", "node"),
    [
        ({}, {}, None),
        ({"ranks": 1}, {}, None),
        ({"nodes": 1}, {}, None),
        ({"ranks": 2}, {}, Node(1, 0, 2, "127.0.0.1", 0)),
        ({"nodes": 3, "node_rank": 2, "ranks": 8, "master_addr": "a"}, {}, Node(3, 2, 8, "a", 29500)),
        ({"nodes": 2, "node_rank": 0, "master_addr": "a", "master_port": 7}, {}, Node(2, 0, 1, "a", 7)),
        ({}, PET, Node(4, 2, 8, "job-0.job", 29400)),
        ({}, {**PET, "PET_NNODES": "4:4"}, Node(4, 2, 8, "job-0.job", 29400)),
        ({}, {**PET, "PET_NPROC_PER_NODE": "cpu"}, Node(4, 2, 1, "job-0.job", 29400)),
        ({"ranks": 2}, PET, Node(4, 2, 2, "job-0.job", 29400)),
        ({}, {"PET_NNODES": 1, "PET_NPROC_PER_NODE": 1}, None),
        # Variables of Kubeflow's PyTorchJob: those of torch are the pod's, not a rank's.
        ({}, {**PET, "RANK": 2, "WORLD_SIZE": 32}, Node(4, 2, 8, "job-0.job", 29400)),
        # In a rank that torchrun has started.
        ({}, {**PET, "RANK": 17, "LOCAL_RANK": 1, "WORLD_SIZE": 32}, None),
        ({"nodes": 2, "ranks": 4}, {"JOB_COMPLETION_INDEX": 1, "MASTER_ADDR": "job-0", "MASTER_PORT": 9},
         Node(2, 1, 4, "job-0", 9)),
        # Tasks of srun are ranks, or, one on each node, start them.
        ({}, SRUN, None),
        ({"ranks": 8}, SRUN, Node(2, 1, 8, "gpu07", JOB_PORT)),
        ({"nodes": 2}, SRUN, Node(2, 1, 1, "gpu07", JOB_PORT)),
        ({"ranks": 8}, {**MPIRUN, "MASTER_ADDR": "head"}, Node(4, 3, 8, "head", JOB_PORT)),
        # A batch script without srun starts ranks on its own machine.
        ({"ranks": 2}, {"SLURM_PROCID": 0, "SLURM_LOCALID": 0, "SLURM_NTASKS": 8}, Node(1, 0, 2, "127.0.0.1", 0)),
    ],
)  # fmt: skip
def test_options_and_variables_give_the_place_of_a_node(monkeypatch, options, variables, node):
    found = placed(monkeypatch, variables=variables, **options)
    if node is not None and node.port == JOB_PORT:
        assert 20000 <= found.port < 29900, "below the ephemeral ports, as of join_launcher"
        found = dataclasses.replace(found, port=JOB_PORT)
    assert found == node


@pytest.mark.parametrize(
    ("options", "variables", "restarts", "said"),
    [
        ({"nodes": 2}, {}, 0, "--node-rank"),
        ({"nodes": 2, "node_rank": 0}, {}, 0, "--master-addr"),
        ({"nodes": 2, "node_rank": 2, "master_addr": "a"}, {}, 0, "not below 2"),
        ({"nodes": 2, "node_rank": 0, "master_addr": "a"}, {}, 3, "scheduler"),
        ({"ranks": 2}, {"RANK": 0, "WORLD_SIZE": 2}, 0, "already"),
        ({}, {"RANK": 0, "WORLD_SIZE": 2}, 1, "already"),
        ({"ranks": 2}, {**SRUN, "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_NTASKS": 8}, 0, "Slurm has started 8"),
        ({}, {**PET, "PET_NNODES": "1:4"}, 0, "must be one number"),
        ({}, {**PET, "PET_NODE_RANK": "x"}, 0, "PET_NODE_RANK is 'x', not a number"),
        ({}, {**PET, "PET_NPROC_PER_NODE": "all"}, 0, "PET_NPROC_PER_NODE is 'all'"),
        ({"ranks": 8}, MPIRUN, 0, "MASTER_ADDR"),
    ],
)  # fmt: skip
def test_a_node_without_a_place_is_refused_in_one_line(monkeypatch, options, variables, restarts, said):
    with pytest.raises(UsageError, match=said) as refused:
        placed(monkeypatch, restarts, variables, **options)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 200


def test_a_hostfile_leaves_no_place_to_ranks_and_nodes(capsys):
    words = ["pretrain", "--run", "r", "--data", "d", "--recipe", "demo", "--hostfile", "hosts"]
    for more in (["--ranks", "2"], ["--nodes", "2"], ["--node-rank", "0"], ["--master-port", "7"]):
        assert run([*words, *more]) == 2
        assert "--hostfile excludes" in capsys.readouterr().err


RANK = """
import json, os, signal, sys, time
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
row = {name: os.environ[name] for name in names} | {"argv": sys.argv[1:], "session": os.getsid(0) == os.getpid()}
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
rank = row["RANK"]
open(rank, "w").write(json.dumps(row))
mode = sys.argv[1]
if mode == "fail" and rank == "1":
    sys.exit(7)
if mode in ("stop", "fail"):
    time.sleep(60)
if mode == "killed" and rank == "0":
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    """A launch folder whose stage writes what it was given."""
    (tmp_path / "pretrain.py").write_text(RANK)
    monkeypatch.setattr(launcher, "LAUNCH_FOLDER", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


TWO_RANKS = Node(1, 0, 2, "127.0.0.1", 0)


def start(mode: str, node: Node = TWO_RANKS) -> launcher.AttemptResult:
    return launcher.start_node(node, "pretrain", [mode, "--run", "r"], Path("none"))


def test_ranks_of_a_node_have_torchs_variables_and_a_session_each(ranks):
    assert start("done", Node(3, 1, 2, "node-a", 29600)).code == 0
    rows = [json.loads((ranks / str(rank)).read_text()) for rank in (2, 3)]
    assert [row["LOCAL_RANK"] for row in rows] == ["0", "1"]
    for row in rows:
        assert (row["WORLD_SIZE"], row["LOCAL_WORLD_SIZE"]) == ("6", "2")
        assert (row["MASTER_ADDR"], row["MASTER_PORT"]) == ("node-a", "29600")
        assert row["argv"] == ["done", "--run", "r"] and row["session"]


def test_a_signal_reaches_each_rank_and_their_code_is_the_nodes(ranks):
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    ended = start("stop")
    assert (ended.code, ended.asked) == (130, True)


def test_a_signal_before_a_rank_can_take_it_waits_for_it(ranks):
    threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGTERM)).start()
    ended = start("stop")
    assert (ended.code, ended.asked) == (130, True)


def test_the_first_failure_is_the_nodes_code_and_ranks_that_hang_are_killed(ranks, monkeypatch):
    monkeypatch.setattr(launcher, "FAILED_S", 0.3)
    ended = start("fail")
    assert (ended.code, ended.asked) == (7, False) and "exit code 7" in ended.line
    assert start("killed").code == 1
    assert "output of node 0" in dataclasses.replace(ended, node=1).line


ORPHAN = """
import os, sys, time
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        time.sleep(0.2)
        os._exit(0)
    os._exit(0)
os.wait()
time.sleep(0.8)
states = [open(f"/proc/{pid}/stat").read().split()[2] for pid in os.listdir("/proc") if pid.isdigit()]
sys.exit(1 if "Z" in states else 0)
"""


def test_process_1_of_a_container_reaps_what_its_ranks_leave_behind(tmp_path):
    unshare = [shutil.which("unshare") or "", "--pid", "--fork", "--kill-child", "--mount-proc", "--mount"]
    if not unshare[0] or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no PID namespaces (root and util-linux)")
    (tmp_path / "pretrain.py").write_text(ORPHAN)
    code = (
        "from pathlib import Path\nfrom sage_scale.training import launcher\n"
        "from sage_scale.training.node import Node\n"
        f"launcher.LAUNCH_FOLDER = Path({str(tmp_path)!r})\n"
        "import os, sys; assert os.getpid() == 1\n"
        "sys.exit(launcher.start_node(Node(1, 0, 1, '127.0.0.1', 0), 'pretrain', [], Path('none')).code)\n"
    )
    # exec: the interpreter itself is process 1.
    assert subprocess.run([*unshare, sys.executable, "-c", code], check=False, timeout=60).returncode == 0
