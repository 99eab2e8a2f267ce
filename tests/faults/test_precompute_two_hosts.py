"""A Ray cluster of two hosts writes one dataset to an S3 server on a third, each with a network of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from factories.precompute import hashes, recipe_for, run_here, write_corpus
from two_hosts import hosts, start_s3, why_not

from sage_scale.config import to_yaml

pytestmark = [
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


@pytest.mark.system
def test_two_hosts_write_one_dataset_to_one_s3_server(tmp_path) -> None:
    corpus = write_corpus(tmp_path / "corpus", clips=20)
    run_here(recipe_for(corpus), tmp_path / "undisturbed").execute()
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe_for(corpus)))
    with hosts("host-a", "host-b", "host-s3") as switch:
        address = switch.addresses
        s3, keys = start_s3(switch, tmp_path)
        environment = keys | {
            "PYTHONPATH": str(REPOSITORY), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "disabled",
        }  # fmt: skip
        out = {name: tmp_path / f"{name}.txt" for name in ("s3", "a", "b", "look")}
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


@pytest.mark.extras
def test_a_cluster_over_ssh_is_brought_up_and_given_the_script(tmp_path) -> None:
    """`ray up` and `ray submit` with launch/ray/hosts.yaml, from a third host, over sshd, less the installation."""
    missing = [name for name in ("ssh", "sshd", "ssh-keygen", "rsync") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (Debian: openssh-server openssh-client rsync)")
    corpus = write_corpus(tmp_path / "corpus", clips=12)
    run_here(recipe_for(corpus), tmp_path / "undisturbed").execute()
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe_for(corpus)))
    bin_folder = Path(sys.executable).parent
    shell = tmp_path / "bashrc"
    shell.write_text(
        f"export PATH={bin_folder}:$PATH PYTHONPATH={REPOSITORY} RAY_AUTH_MODE=disabled RAY_enable_autoscaler_v2=0\n"
    )
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    settings = {"HostKey": key, "AuthorizedKeysFile": f"{key}.pub", "PermitRootLogin": "yes", "StrictModes": "no",
                "UsePAM": "no", "PidFile": "none"}  # fmt: skip
    sshd = " ".join(
        [shutil.which("sshd"), "-D -e -f /dev/null", *(f"-o {n}={v}" for n, v in settings.items())]
    )
    own_shell = "".join(
        f"mount --bind {shell} {file} && "
        for file in (Path.home() / ".bashrc", Path.home() / ".profile")
        if file.exists()
    )
    with hosts("host-a", "host-b", "host-c") as switch:
        servers = [
            switch.start(host, ["sh", "-c", f"{OWN_RAY}{own_shell}exec {sshd}"], {}, tmp_path / f"{host}.txt")
            for host in ("host-a", "host-b")
        ]
        cluster = yaml.safe_load((REPOSITORY / "launch" / "ray" / "hosts.yaml").read_text())
        cluster["provider"] |= {
            "head_ip": switch.addresses["host-a"],
            "worker_ips": [switch.addresses["host-b"]],
        }
        cluster["auth"] = {"ssh_user": "root", "ssh_private_key": str(key)}
        cluster |= {"min_workers": 1, "max_workers": 1, "file_mounts": {}, "setup_commands": []}
        for role in ("head", "worker"):
            commands = [line for line in cluster[f"{role}_start_ray_commands"] if "ray stop" not in line]
            cluster[f"{role}_start_ray_commands"] = [
                line.replace("~/sage-scale-venv/bin/", "").replace(
                    "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"
                )
                + " --num-cpus=1"
                for line in commands
            ]
        (tmp_path / "hosts.yaml").write_text(yaml.safe_dump(cluster))
        (tmp_path / "home").mkdir()
        environment = {
            "PATH": f"{bin_folder}:{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled", "RAY_enable_autoscaler_v2": "0",
            "PYTHONPATH": str(REPOSITORY), "HOME": str(tmp_path / "home"),
        }  # fmt: skip
        submit = (
            f"{OWN_RAY}ray up -y --no-config-cache {tmp_path}/hosts.yaml && ray submit {tmp_path}/hosts.yaml "
            f"{REPOSITORY}/launch/preprocess.py -- --corpus videos --root {corpus} --out {tmp_path}/out "
            f"--recipe {tmp_path}/recipe.yaml"
        )
        said = tmp_path / "said.txt"
        run = switch.start("host-c", ["sh", "-c", submit], environment, said)
        try:
            assert run.wait(200) == 0, said.read_text()
        finally:
            for process in (run, *servers):
                process.kill()
                process.wait()
    assert "14 clips, 0 rejects" in said.read_text()
    assert hashes(tmp_path / "out") == hashes(tmp_path / "undisturbed")
