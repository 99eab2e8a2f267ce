"""Precompute on a Ray cluster: what `ray submit` and `ray job submit` are given.

ray up launch/ray/hosts.yaml
ray submit launch/ray/hosts.yaml launch/preprocess.py -- --corpus phoenix14t --root /data/phoenix --out s3://bucket/p14t

ray job submit --working-dir . -- python launch/preprocess.py --corpus ... --root ... --out ...
python launch/preprocess.py ...          (joins a running cluster, else uses this machine)

Options are those of `sage-scale precompute`. The corpus must be mounted at the same path on every node.
"""

import logging
import os
import sys

from sage_scale.cli.main import main


def join_running_cluster() -> None:
    """Connect to the cluster this script was submitted to, if there is one; otherwise precompute starts Ray here."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    try:
        ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError:
        return


if __name__ == "__main__":
    if "--help" not in sys.argv:
        join_running_cluster()
    main(["precompute", *(argument for argument in sys.argv[1:] if argument != "--")])
