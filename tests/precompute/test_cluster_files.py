"""The cluster files hold before a cluster does: Ray's own schema, and no actor without what the product needs."""

from pathlib import Path

import pytest
import yaml

from sage_scale.config import from_mapping
from sage_scale.precompute.autoscaling import ResourceRequests

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


@pytest.mark.parametrize("name", ["hosts", "aws"])
def test_ray_accepts_the_cluster_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster = yaml.safe_load((LAUNCH / "ray" / f"{name}.yaml").read_text(encoding="utf-8"))
    validate_config(prepare_config(cluster))
    assert any("pip install" in command for command in cluster["setup_commands"])
    starts = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    # Nobody else may start work on the cluster: all nodes check the token, and the dashboard stays on loopback.
    assert all("RAY_AUTH_MODE=token" in command for command in starts if "ray start" in command)
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]
    assert "~/.ray/auth_token" in cluster["file_mounts"]
    if "available_node_types" in cluster:
        head, worker = (cluster["available_node_types"][kind] for kind in ("head", "worker"))
        # The job itself asks for workers; the head runs no actor, and each CPU of a worker has the memory of one.
        assert head["resources"]["CPU"] == 0 == worker["min_workers"] < worker["max_workers"]
        assert worker["resources"]["memory"] / worker["resources"]["CPU"] >= 1.6e9
    text = (LAUNCH / "ray" / f"{name}.yaml").read_text(encoding="utf-8")
    assert "AKIA" not in text and "aws_secret" not in text.lower()


def test_the_autoscaler_counts_an_actor_for_each_cpu_of_a_worker() -> None:
    cluster = yaml.safe_load((LAUNCH / "ray" / "aws.yaml").read_text(encoding="utf-8"))
    there = cluster["available_node_types"]["worker"]["resources"]
    bundle = ResourceRequests(from_mapping({"vision": {"kind": "features"}})).bundle
    assert min(there[name] // amount for name, amount in bundle.items()) == there["CPU"]
    # Ray counts what is free of the machine's 32 GiB, less the object store.
    assert there["memory"] < 0.96 * 32 * 2**30 - 10**9
