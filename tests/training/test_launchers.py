"""Launchers of others: torchrun's own argument parser, what `srun` and `mpirun` set, and two starts in one folder."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from factories.ranks import free_port
from factories.training import make_language_folder, make_shards, tiny_recipe

from sage_scale.config import LAUNCH_FOLDER, to_yaml
from sage_scale.errors import UsageError
from sage_scale.training import entry
from sage_scale.training.environment import join_launcher
from sage_scale.training.run_lock import lock_run

SCRIPT = str(LAUNCH_FOLDER / "pretrain.py")
PARTS = (
    ["--run-dir", "R"],
    ["--data", "D"],
    ["--data", "E"],
    ["--recipe", "demo"],
    ["--profile"],
    ["pretrain.lr=1"],
)


@pytest.mark.parametrize("order", list(itertools.permutations(PARTS))[::37])
def test_torchrun_leaves_our_options_to_the_script_in_any_order(order):
    from torch.distributed.run import get_args_parser

    words = [word for part in order for word in part]
    read = get_args_parser().parse_args(["--nproc_per_node", "2", SCRIPT, *words])
    assert read.training_script_args == words
    ours = entry._parser("pretrain").parse_intermixed_args(read.training_script_args)
    assert (ours.run, sorted(ours.data), ours.recipe) == ("R", ["D", "E"], "demo")
    assert ours.profile and ours.overrides == ["pretrain.lr=1"]


def test_no_option_of_ours_is_the_prefix_of_several_of_deepspeeds():
    from deepspeed.launcher.runner import parse_args

    words = ["--run", "R", "--run-dir", "R", "--data", "D", "--recipe", "demo", "--profile", "pretrain.lr=1"]
    assert parse_args(["--num_gpus", "2", SCRIPT, *words]).user_args == words


def joined(monkeypatch, **variables: object) -> dict[str, str]:
    """What torch reads after `join_launcher` with these variables alone."""
    environment = {name: str(value) for name, value in variables.items()}
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", environment)
        world = join_launcher("runs/r", "pretrain")
    assert world == int(environment.get("WORLD_SIZE", 1))
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
    return {name: environment[name] for name in names if name in environment}


SRUN = {"SLURM_PROCID": 5, "SLURM_LOCALID": 1, "SLURM_NTASKS": 8, "SLURM_STEP_ID": 0, "SLURM_JOB_ID": 77}


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({"SLURM_STEP_NODELIST": "gpu[07-09,12]", "SLURM_STEP_NUM_NODES": 4}, "gpu07"),
        ({"SLURM_JOB_NODELIST": "a-1,b[2-3]", "SLURM_NNODES": 3}, "a-1"),
        ({"SLURM_STEP_NODELIST": "rack[1-2]n[03,05]-ib", "SLURM_STEP_NUM_NODES": 4}, "rack1n03-ib"),
        ({"SLURM_STEP_NODELIST": "gpu7", "SLURM_STEP_NUM_NODES": 1}, "127.0.0.1"),
        ({}, "127.0.0.1"),
        ({"MASTER_ADDR": "head", "WORLD_SIZE": 8, "SLURM_STEP_NODELIST": "gpu[1-2]"}, "head"),
        # The job has 16 tasks, this step of it has 8.
        ({"SLURM_NTASKS": 16, "SLURM_STEP_NUM_TASKS": 8, "SLURM_STEP_NODELIST": "gpu[1-2]"}, "gpu1"),
    ],
)
def test_a_task_of_srun_is_a_rank(monkeypatch, variables, address):
    found = joined(monkeypatch, **{**SRUN, **variables})
    assert found == {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": address}


@pytest.mark.parametrize(
    "variables",
    [
        {"OMPI_COMM_WORLD_RANK": 1, "OMPI_COMM_WORLD_SIZE": 2, "OMPI_COMM_WORLD_LOCAL_RANK": 1,
         "OMPI_COMM_WORLD_LOCAL_SIZE": 2},
        {"PMI_RANK": 1, "PMI_SIZE": 2, "MPI_LOCALRANKID": 1, "MPI_LOCALNRANKS": 2},
        {"MV2_COMM_WORLD_RANK": 1, "MV2_COMM_WORLD_SIZE": 2, "MV2_COMM_WORLD_LOCAL_RANK": 1,
         "MV2_COMM_WORLD_LOCAL_SIZE": 2},
        {"PMI_RANK": 1, "PMI_SIZE": 2, "SLURM_PROCID": 1, "SLURM_NTASKS": 2, "SLURM_LOCALID": 1},
        # In a batch script of Slurm: its own variables are those of the script.
        {"OMPI_COMM_WORLD_RANK": 1, "OMPI_COMM_WORLD_SIZE": 2, "OMPI_COMM_WORLD_LOCAL_RANK": 1,
         "OMPI_COMM_WORLD_LOCAL_SIZE": 2, "SLURM_PROCID": 0, "SLURM_NTASKS": 2, "SLURM_LOCALID": 0},
    ],
)  # fmt: skip
def test_a_process_of_mpirun_is_a_rank(monkeypatch, variables):
    found = joined(monkeypatch, **variables)
    assert found == {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}


def test_ranks_of_one_job_meet_on_one_port_and_jobs_on_several(monkeypatch):
    ports = {}
    for job, run, rank in itertools.product((77, 78), ("runs/a", "runs/b"), range(3)):
        environment = {
            name: str(value) for name, value in {**SRUN, "SLURM_JOB_ID": job, "SLURM_PROCID": rank}.items()
        }
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", environment)
            join_launcher(run, "pretrain")
        ports.setdefault((job, run), set()).add(int(environment["MASTER_PORT"]))
    assert all(len(of_a_job) == 1 for of_a_job in ports.values())
    first = sorted(port for of_a_job in ports.values() for port in of_a_job)
    assert all(after - before > 12 for before, after in itertools.pairwise(first)), (
        "the rank monitors' ports overlap"
    )


def test_one_process_and_ranks_of_torch_stay_as_they_are(monkeypatch):
    assert joined(monkeypatch) == {}
    assert joined(monkeypatch, SLURM_PROCID=0, SLURM_NTASKS=1, SLURM_LOCALID=0) == {}
    torch = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "h"}
    assert joined(monkeypatch, **torch, SLURM_PROCID=1, SLURM_NTASKS=2) == torch
    # A batch script that wants no rank beside itself.
    script = {"SLURM_PROCID": 0, "SLURM_LOCALID": 0, "SLURM_NTASKS": 8}
    assert joined(monkeypatch, WORLD_SIZE=1, **script) == {"WORLD_SIZE": "1"}


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": 1}, "WORLD_SIZE is not"),
        ({"WORLD_SIZE": 2}, "RANK is not set"),
        ({"RANK": 2, "WORLD_SIZE": 2}, "not below"),
        ({"RANK": "x", "WORLD_SIZE": 2}, "not a number"),
        ({"RANK": "0", "WORLD_SIZE": "9" * 5000}, "not a number"),
        ({"PMI_RANK": 1, "PMI_SIZE": 4}, "MASTER_ADDR"),
        (
            {"OMPI_COMM_WORLD_RANK": 1, "OMPI_COMM_WORLD_SIZE": 4, "OMPI_COMM_WORLD_LOCAL_SIZE": 2},
            "MASTER_ADDR",
        ),
        ({"SLURM_PROCID": 1}, "SLURM_STEP_NUM_TASKS"),
        ({**SRUN, "WORLD_SIZE": 4}, "has started 8"),
        ({**SRUN, "SLURM_PROCID": "-1"}, "not a number"),
        ({**SRUN, "SLURM_STEP_NUM_NODES": 2}, "MASTER_ADDR"),
    ],
)
def test_variables_that_make_no_job_are_refused_in_one_line(monkeypatch, variables, said):
    with pytest.raises(UsageError, match=said) as refused:
        joined(monkeypatch, **variables)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 200


def test_a_folder_is_made_and_held_and_goes_again_where_nothing_was_written(tmp_path):
    run = tmp_path / "not" / "yet"
    with lock_run(run):
        with pytest.raises(UsageError, match="in use"), lock_run(run, wait_s=30):
            pass
        assert run.is_dir()
    with pytest.raises(ZeroDivisionError), lock_run(tmp_path / "other" / "run"):
        raise ZeroDivisionError
    assert not (tmp_path / "other").exists() and run.is_dir(), "what was there stays"
    with pytest.raises(ZeroDivisionError), lock_run(run):
        (run / "log").touch()
        raise ZeroDivisionError
    assert (run / "log").exists()


@pytest.mark.parametrize("run", ["/proc/run", "/dev/null/run", "/sys/a/b"])
def test_a_run_folder_that_cannot_be_made_is_wrong_usage(run):
    with pytest.raises(UsageError, match="cannot be made or written to"), lock_run(run):
        pass


def test_a_run_of_before_is_waited_for(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").touch()
    os.utime(run / "recipe.yaml", (0, 0))
    held, free = threading.Event(), threading.Event()

    def train():
        with lock_run(run):
            held.set()
            free.wait(20)

    before = threading.Thread(target=train)
    before.start()
    held.wait(20)
    begun = time.monotonic()
    with pytest.raises(UsageError, match="in use"), lock_run(run, wait_s=0.5):
        pass
    assert time.monotonic() - begun >= 0.5
    threading.Timer(0.5, free.set).start()
    with lock_run(run, wait_s=20):
        pass
    before.join()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("launchers")
    language = make_language_folder(root / "language")
    recipe = tiny_recipe("features", f"model.language_model={language}", "pretrain.max_steps=2")
    (root / "tiny.yaml").write_text(to_yaml(recipe))
    make_shards(root / "shards", recipe, [("train", 20), ("dev", 6)])
    return root


LAUNCHERS_VARIABLES = ("SLURM_", "PMI_", "OMPI_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_")
"""Beginnings of their names. Tests that train in this process leave torch's behind."""


def start(words: list[object], world: Path, **variables: object) -> subprocess.Popen[str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS_VARIABLES)}
    return subprocess.Popen(
        [*map(str, words)], cwd=world, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**known, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in variables.items()}},
    )  # fmt: skip


def ended(*processes: subprocess.Popen[str]) -> list[tuple[int, str]]:
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def ranks_of(run: Path) -> int:
    """The number of ranks that the run's log names."""
    from factories.training import log_rows

    starts = log_rows(run, event="start")
    assert len(starts) == 1, "one run, one start"
    return int(starts[0]["ranks"])


GIVEN = ["--data", "shards", "--recipe", "tiny.yaml"]


@pytest.mark.system
@pytest.mark.timeout(300)
def test_the_documented_commands_of_torchrun_and_deepspeed_start(world, tmp_path):
    here = Path(sys.executable).parent
    commands = {
        "torchrun": [here / "torchrun", "--nproc_per_node", 2, "--master_port", free_port(), SCRIPT, "--run-dir",
                     tmp_path / "torchrun", *GIVEN],
        "deepspeed": [here / "deepspeed", "--num_gpus", 2, "--master_port", free_port(), SCRIPT, *GIVEN, "--run",
                      tmp_path / "deepspeed"],
    }  # fmt: skip
    path = f"{here}{os.pathsep}{os.environ['PATH']}"
    for name, words in commands.items():
        [(code, output)] = ended(start(words, world, DS_ACCELERATOR="cpu", PATH=path))
        assert code == 0, output
        assert ranks_of(tmp_path / name) == 2
    # Again, without --recipe: the folder has one. The stage is done.
    words = [sys.executable, SCRIPT, "--run", tmp_path / "torchrun", "--data", "shards"]
    [(code, output)] = ended(start(words, world))
    assert code == 0, output


@pytest.mark.system
@pytest.mark.timeout(300)
@pytest.mark.parametrize("entry", ["script", "sage-scale"])
def test_two_tasks_of_srun_are_one_run(world, tmp_path, entry):
    program = [SCRIPT] if entry == "script" else ["-m", "sage_scale.cli.main", "pretrain"]
    words = [sys.executable, *program, "--run", tmp_path / "run", *GIVEN]
    slurm = {"SLURM_NTASKS": 2, "SLURM_STEP_ID": 0, "SLURM_JOB_ID": os.getpid()}
    tasks = [start(words, world, SLURM_PROCID=rank, SLURM_LOCALID=rank, **slurm) for rank in range(2)]
    results = ended(*tasks)
    assert [code for code, _ in results] == [0, 0], results
    assert ranks_of(tmp_path / "run") == 2


@pytest.mark.system
@pytest.mark.timeout(300)
def test_of_two_starts_in_a_new_folder_one_trains_and_the_other_says_one_line(world, tmp_path):
    words = ["-m", "sage_scale.cli.main", "pretrain", "--run", tmp_path / "new" / "run", *GIVEN]
    longer = [*words, "pretrain.max_steps=300"]
    results = sorted(ended(*(start([sys.executable, *longer], world) for _ in range(2))))
    assert [code for code, _ in results] == [0, 2], results
    [line] = results[1][1].splitlines()
    assert "is in use" in line
    assert ranks_of(tmp_path / "new" / "run") == 1
