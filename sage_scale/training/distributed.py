"""The ranks of a run, and the collectives of the training loop.

Without a launcher there is one rank. CPU runs use gloo, CUDA runs NCCL.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import transformers

from sage_scale.errors import SageError
from sage_scale.training.launcher import free_port
from sage_scale.training.monitor import rank_status


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, the number of ranks and the device."""

    rank: int
    world: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Returns whether this is rank 0, which writes logs and messages."""
        return self.rank == 0


MONITORED_S = 24 * 3600.0
"""Time-out of a collective under a rank monitor, which knows more and ends the run sooner, seconds."""


def initialise(timeout_s: float = 0.0) -> Ranks:
    """Initialise the process group and choose the device; a second call does nothing.

    `timeout_s` is the time-out of a collective (0: ten minutes, or the longest limit of the rank monitor).
    """
    timeout_s = timeout_s or (MONITORED_S if rank_status.monitored() else 600.0)
    _silence_libraries()
    cuda = torch.cuda.is_available()
    if not cuda:
        _keep_freed_memory()
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    if int(os.environ["WORLD_SIZE"]) == 1:
        # Two runs on one machine must not meet on a fixed port.
        os.environ["MASTER_PORT"] = str(free_port())
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    # The shared-memory op is compiled at first use (55 s, needs a C++ compiler); gloo does without it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        deepspeed.init_distributed(
            dist_backend="nccl" if cuda else "gloo",
            auto_mpi_discovery=False,
            timeout=timedelta(seconds=timeout_s),
            verbose=False,
        )
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cpu")
    if cuda:
        # srun with --gpus-per-task shows each rank its own GPU alone, as device 0.
        device = torch.device("cuda", local_rank if torch.cuda.device_count() > 1 else 0)
        torch.cuda.set_device(device)
    elif dist.get_world_size() > 1 and "OMP_NUM_THREADS" not in os.environ:
        # Ranks that share the cores of one machine with all threads each are slower than with one each.
        local_world = int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_world))
    rank_status.begin_phase(
        "loading the data and the model"
    )  # until the first step is done, which may compile
    return Ranks(dist.get_rank(), dist.get_world_size(), local_rank, device)


def close() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """Returns the element-wise sum of a few numbers over all ranks, in float64."""
    if _alone():
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def gather_objects(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Returns every rank's value, in rank order, on every rank."""
    if _alone():
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value, group=group)
    return gathered


def broadcast_object(value: Any, group: dist.ProcessGroup | None = None, src: int = 0) -> Any:
    """Returns the value of rank `src`, on every rank."""
    if _alone():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=src, group=group)
    return box[0]


def run_on_rank0(work: Callable[[], Any]) -> Any:
    """Run `work` on rank 0 and return its result on every rank; its error is raised on all (a collective)."""
    value, failure = _tried(work) if _alone() or dist.get_rank() == 0 else (None, None)
    value, failure = broadcast_object((value, failure))
    if failure is not None:
        raise failure
    return value


def run_on_all_ranks(work: Callable[[], str | None]) -> str | None:
    """Run `work` on every rank and return the first non-empty line; an error is raised on all (a collective)."""
    gathered = gather_objects(_tried(work))
    for _, failure in gathered:
        if failure is not None:
            raise failure
    return next((line for line, _ in gathered if line is not None), None)


def run_on_each_host(work: Callable[[], Any]) -> None:
    """Run `work` on the first rank of each host; an error is raised on all ranks (a collective)."""

    def first_of_host() -> None:
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            work()

    run_on_all_ranks(first_of_host)


def _tried(work: Callable[[], Any]) -> tuple[Any, SageError | None]:
    try:
        return work(), None
    except SageError as error:
        return None, error


def long_timeout_group(hours: float = 24) -> dist.ProcessGroup | None:
    """Returns a process group with a time-out of hours, for ranks that wait while one rank prepares files.

    Every rank must call this before that work begins. An ordinary collective would fail after the run's time-out.
    """
    return None if _alone() else dist.new_group(backend="gloo", timeout=timedelta(hours=hours))


def barrier() -> None:
    """Wait for every rank."""
    if not _alone():
        dist.barrier()


def return_freed_memory(device: torch.device) -> None:
    """Return glibc's free memory to the system: batches of different sizes leave gigabytes of it."""
    if device.type == "cpu":
        _glibc("malloc_trim", 0)


def _keep_freed_memory() -> None:
    """Make glibc keep large blocks (300 MB): page faults on new tensors cost a quarter of a CPU step."""
    # Every number of frames is a new shape to oneDNN, which keeps 1,024 compiled kernels: 2 GB after 100 steps.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    _glibc("mallopt", -4, 0)  # M_MMAP_MAX: no block from mmap
    _glibc("mallopt", -1, 2**31 - 1)  # M_TRIM_THRESHOLD: nothing back to the system


def _glibc(function: str, *arguments: int) -> None:
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            getattr(ctypes.CDLL("libc.so.6"), function)(*arguments)


def _silence_libraries() -> None:
    """Raise the log level of libraries to errors."""
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="deepspeed|torch.distributed")
    for name in ("DeepSpeed", "deepspeed", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
