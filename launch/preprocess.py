"""Precompute on a Ray cluster: what `ray submit` and `ray job submit` are given.

ray up launch/ray/hosts.yaml
ray submit launch/ray/hosts.yaml launch/preprocess.py -- --corpus phoenix14t --root /data/phoenix --out s3://bucket/p14t

ray job submit --working-dir . -- python launch/preprocess.py --corpus ... --root ... --out ...
python launch/preprocess.py ...          (joins a cluster of `ray start` on this machine, else uses this machine)

Options are those of `sage-scale precompute`; with `--check` no cluster is needed. The corpus must be mounted at the
same path on every node.
"""

import os
import sys

from sage_scale.cli.main import main
from sage_scale.errors import UsageError
from sage_scale.untrusted.printer import tell


def name_cluster() -> None:
    """Set RAY_ADDRESS, which a submitted job has, to the cluster of this node; without one precompute starts Ray."""
    from sage_scale.precompute.ray_session import running_cluster

    if os.environ.get("RAY_ADDRESS"):
        return
    try:
        if address := running_cluster():
            os.environ["RAY_ADDRESS"] = address
    except UsageError as error:
        tell(f"sage-scale: {error}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    if not {"--help", "--check"} & set(sys.argv):
        name_cluster()
    main(["precompute", *(argument for argument in sys.argv[1:] if argument != "--")])
