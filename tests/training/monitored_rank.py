"""A rank without torch: it makes steps of 50 ms under a monitor, until its fault (FAULT, on rank FAULTY) comes.

`python monitored_rank.py RUN STEPS`; limits come from LIMITS (JSON).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from sage_scale.errors import DatasetError
from sage_scale.training.monitor import rank_status
from sage_scale.training.monitor.rank_monitor import start_rank_monitor
from sage_scale.training.monitor.stop_requests import StopRequest

run, steps = Path(sys.argv[1]), int(sys.argv[2])
start_rank_monitor("pretrain")
rank = int(os.environ["RANK"])
fault = os.environ.get("FAULT", "") if rank == int(os.environ.get("FAULTY", 1)) else ""
(run / f"pid-{rank}").write_text(str(os.getpid()))
(run / f"monitor-{rank}").write_text(str(os.getppid()))
limits = {"contact_timeout_s": 10.0, "start_timeout_s": 30.0, "hang_timeout_s": 30.0, "long_timeout_s": 30.0,
          "stop_notice": "none", "stop_notice_every_s": 0.2, "http_port": 0,
          **json.loads(os.environ.get("LIMITS", "{}"))}  # fmt: skip
rank_status.set_limits(run=str(run), url="", **limits)


def fail(error: Exception, code: int, permanent: bool) -> None:
    rank_status.failed(error, code, permanent)
    os._exit(code)


def sleep_for_ever() -> None:
    time.sleep(1000)


if fault == "import":
    fail(ImportError("no module named x"), 1, False)
if fault == "exit":
    os._exit(7)
rank_status.begin_phase("loading the data and the model")
if fault == "slow":
    time.sleep(3)
with StopRequest() as stop:
    for step in range(1, steps + 1):
        time.sleep(0.05)
        rank_status.step_done(step)
        if step == 5:
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            if fault == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            if fault == "hang":
                sleep_for_ever()
            if fault == "save":
                with rank_status.phase("saving a checkpoint"):
                    time.sleep(3)
            if fault == "damaged":
                fail(DatasetError("shard 000042.tar is damaged"), 1, True)
            if os.environ.get("FAULT") in ("hang", "save", "damaged", "kill", "gloo"):  # as in a collective
                if os.environ["FAULT"] == "kill":
                    fail(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), 1, False)
                time.sleep(3 if os.environ["FAULT"] == "save" else 1000)
        if stop.asked:
            (run / f"saved-{rank}").write_text(str(step))
            rank_status.done(130)
            sys.exit(130)
rank_status.done()
