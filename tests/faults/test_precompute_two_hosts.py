"""A Ray cluster of two hosts writes one dataset to an S3 server on a third, each with a network of its own."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "precompute"))
from small_corpus import hashes, recipe_for, run_here, write_corpus
from two_hosts import hosts, why_not

from sage_scale.config import to_yaml

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "possible"),
]
REPOSITORY = Path(__file__).resolve().parents[2]
OWN_RAY = "mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && "
START = "ray start --num-cpus=1 --object-store-memory=80000000 --disable-usage-stats"
WAIT = """
import logging, ray, time
ray.init(address="auto", logging_level=logging.ERROR)
while sum(node["Alive"] for node in ray.nodes()) < 2:
    time.sleep(0.2)
"""
LOOK = """
import boto3, hashlib
s3 = boto3.client("s3")
for entry in s3.list_objects_v2(Bucket="bucket", Prefix="set/")["Contents"]:
    data = s3.get_object(Bucket="bucket", Key=entry["Key"])["Body"].read()
    print("OBJECT", entry["Key"].removeprefix("set/"), hashlib.sha256(data).hexdigest())
"""


def test_two_hosts_write_one_dataset_to_one_s3_server(tmp_path) -> None:
    corpus = write_corpus(tmp_path / "corpus", clips=20)
    run_here(recipe_for(corpus), tmp_path / "undisturbed").execute()
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe_for(corpus)))
    with hosts("host-a", "host-b", "host-s3") as switch:
        address = switch.addresses
        environment = {
            "AWS_ENDPOINT_URL": f"http://{address['host-s3']}:5000", "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
            "PYTHONPATH": str(REPOSITORY), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "disabled",
        }  # fmt: skip
        out = {name: tmp_path / f"{name}.txt" for name in ("s3", "bucket", "a", "b", "look")}
        server = [sys.executable, "-c", "from moto.server import main; main(['-H', '0.0.0.0', '-p', '5000'])"]
        s3 = switch.start("host-s3", server, {}, out["s3"])
        make = (
            "import boto3, botocore.config\n"
            "patient = botocore.config.Config(retries={'max_attempts': 10})\n"
            "boto3.client('s3', config=patient).create_bucket(Bucket='bucket')\n"
        )
        made = switch.start("host-a", [sys.executable, "-c", make], environment, out["bucket"])
        assert made.wait(60) == 0, out["bucket"].read_text()
        # The credentials are the driver's alone: actors elsewhere get them from it.
        bare = {name: value for name, value in environment.items() if not name.startswith("AWS_")}
        there = f"--address={address['host-a']}:6379 --node-ip-address={address['host-b']}"
        join = f"until {START} {there}; do sleep 0.5; done"
        worker = switch.start("host-b", ["sh", "-c", f"{OWN_RAY}{join}; sleep 600"], bare, out["b"])
        head = f"{START} --head --port=6379 --node-ip-address={address['host-a']} --include-dashboard=false"
        driver = (
            f"{OWN_RAY}{head} && python -c '{WAIT}' && python {REPOSITORY}/launch/preprocess.py --corpus videos "
            f"--root {corpus} --out s3://bucket/set --recipe {tmp_path}/recipe.yaml"
        )
        run = switch.start("host-a", ["sh", "-c", driver], environment, out["a"])
        try:
            assert run.wait(200) == 0, out["a"].read_text() + out["b"].read_text()
            assert "22 clips, 0 rejects" in out["a"].read_text()
            looked = switch.start("host-a", [sys.executable, "-c", LOOK], environment, out["look"])
            assert looked.wait(60) == 0, out["look"].read_text()
        finally:
            for process in (run, worker, s3):
                process.kill()
                process.wait()
    rows = [line.split() for line in out["look"].read_text().splitlines() if line.startswith("OBJECT")]
    assert {name: digest for _, name, digest in rows} == hashes(tmp_path / "undisturbed")
    writers = set(re.findall(r'^(\S+) .*"PUT /bucket/set/\d+\.tar ', out["s3"].read_text(), re.MULTILINE))
    assert writers == {address["host-a"], address["host-b"]}
