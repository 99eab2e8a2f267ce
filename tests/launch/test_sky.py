"""The files for SkyPilot: its fields, no secret in a file, and commands that the real command line parses."""

from __future__ import annotations

import re
import subprocess
import venv
from pathlib import Path

import pytest
from factories.documents import ROOT, parse

from sage_scale.untrusted.yaml_values import parse_yaml

FILES = {path.stem: path for path in sorted((ROOT / "launch" / "sky").glob("*.yaml"))}
GIVEN_BY_SKYPILOT = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}


def task(name: str) -> dict:
    return parse_yaml(FILES[name].read_text(encoding="utf-8"))


def commands_of(name: str, **values: str) -> list[list[str]]:
    """The words of each line of `run`, as its shell makes them; programs are replaced by `printf`."""
    printed = (
        "printed() { printf '%s\\0' \"$@\"; printf '\\n'; }\nsage-scale() { printed sage-scale \"$@\"; }\n"
    )
    shell = printed + task(name)["run"].replace("launch/ray/on_nodes.sh", "printed on_nodes.sh")
    written = task(name)["envs"]
    variables = {key: value for key, value in written.items() if value} | GIVEN_BY_SKYPILOT | values
    variables |= {"SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-euc", shell], env=variables, capture_output=True, text=True, check=True)
    return [line.strip("\0").split("\0") for line in done.stdout.splitlines()]


def test_the_training_command_is_that_of_a_node():
    [words] = commands_of("train", RUN="s3://b/runs/mine", DATA="s3://b/shards")
    assert parse(words) == "pretrain"
    options = dict(zip(words[2::2], words[3::2]))
    assert (options["--nodes"], options["--node-rank"], options["--ranks"]) == ("2", "1", "8")
    assert options["--master-addr"] == "10.0.0.5"
    [words] = commands_of("train", RUN="s3://b/runs/mine", DATA="s3://b/shards", STAGE="finetune")
    assert parse(words) == "finetune"


def test_precompute_runs_on_a_cluster_of_the_nodes():
    [[script, nodes, rank, address, port, *options]] = commands_of("preprocess", OUT="s3://b/shards")
    assert (script, nodes, rank, address) == ("on_nodes.sh", "2", "1", "10.0.0.5") and port.isdigit()
    assert int(port) not in (6380, 8265, 8266), "SkyPilot's own Ray"
    assert parse(["sage-scale", "precompute", *options]) == "precompute"
    root = options[options.index("--root") + 1]
    assert root in task("preprocess")["file_mounts"]


@pytest.mark.parametrize("name", FILES)
def test_what_a_user_has_to_give_is_asked_for_and_no_secret_is_in_a_file(name):
    values = task(name)
    asked = {
        key for part in ("envs", "secrets") for key, value in values.get(part, {}).items() if value is None
    }
    assert asked == {"train": {"RUN", "DATA"}, "preprocess": {"OUT", "RAY_AUTH_TOKEN"}}[name]
    assert not any(value for value in values.get("secrets", {}).values())
    used = set(re.findall(r"\$([A-Z][A-Z_]+)", values["run"])) - {"PATH"}
    known = {*values["envs"], *values.get("secrets", {}), *GIVEN_BY_SKYPILOT, "SKYPILOT_NODE_IPS"}
    assert used <= known
    assert "-c constraints.txt" in values["setup"] and values["resources"]["use_spot"] is True


PARSE = """
import sys, yaml
from sky import task
given = {"OUT": "s3://b/s", "RUN": "s3://b/r", "DATA": "s3://b/d"}
for path in sys.argv[1:]:
    values = yaml.safe_load(open(path))
    envs = [(name, given[name]) for name in values["envs"] if name in given]
    secrets = [(name, "x") for name in values.get("secrets", {})]
    made = task.Task.from_yaml_config(values, env_overrides=envs, secrets_overrides=secrets or None)
    print(made.name, made.num_nodes, [one.use_spot for one in made.resources])
"""


@pytest.mark.extras
@pytest.mark.timeout(900)
def test_skypilots_own_parser_takes_them(request, tmp_path):
    """In an environment of its own in pytest's cache, 460 MB."""
    folder = Path(str(request.config.cache.mkdir("skypilot")))
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "skypilot==0.14.1"], check=True, timeout=800
        )
        (folder / "made").touch()
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    done = subprocess.run(
        [python, "-c", PARSE, *FILES.values()], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n")[:2] == ["sage-precompute 4 [True]", "sage-train 2 [True]"]
