"""A run at `s3://bucket/runs/NAME` goes on, and is read, on any machine; each TMPDIR stands for a machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from factories.processes import wait_until
from factories.ranks import free_port
from factories.training import log_rows, losses, make_language_folder, make_shards, tiny_recipe

from sage_scale.cli import main
from sage_scale.config import LAUNCH_FOLDER, Recipe, override, to_yaml
from sage_scale.errors import NoDataset, StorageError, UsageError
from sage_scale.storage import open_store
from sage_scale.storage import s3 as s3_store
from sage_scale.training import run_place as place_module
from sage_scale.training.checkpoint.checkpoints import Checkpoints
from sage_scale.training.run_lock import lock_run
from sage_scale.training.run_place import run_place
from sage_scale.training.stage import STAGE1, run_stage

PLAN = [("train", 24), ("dev", 4), ("test", 3)]
PATIENCE_S = 2.0


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Recipe, str]:
    root = tmp_path_factory.mktemp("world")
    language = make_language_folder(root / "language")
    changes = [
        f"model.language_model={language}",
        "pretrain.save_every=2",
        "pretrain.max_steps=6",
        "finetune.max_steps=2",
        "pretrain.schedule=constant",
    ]
    recipe = tiny_recipe("features", *changes, f"stream.give_up_after_s={PATIENCE_S}")
    return recipe, make_shards(root / "shards", recipe, PLAN)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Moves this process to another machine."""

    def move(name: str) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.setenv("TMPDIR", str(tmp_path / name))

    move("a")
    return move


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> Path:
    """A run in a folder that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run_stage("pretrain", world[0], folder, world[1])
    return folder


def names(url: str) -> set[str]:
    return {entry.name for entry in open_store(url).list()}


def weights(folder: Path) -> bytes:
    return (folder / STAGE1).read_bytes()


def test_a_run_goes_on_elsewhere_with_equal_losses_and_is_read_anywhere(
    world, whole, s3, machine, tmp_path, capsys
):
    recipe, data = world
    url = f"{s3.url}/runs/one"
    run_stage("pretrain", override(recipe, ["pretrain.max_steps=3"]), url, data)
    begun = names(url)
    assert {"recipe.yaml", "timing.json", "alignment.json", STAGE1, "pretrain/log.jsonl"} <= begun
    assert any(name.startswith("pretrain/tensorboard/events.out") for name in begun)
    assert any(name.startswith("pretrain/checkpoints/step-00000003/") for name in begun)

    machine("b")
    assert not run_place(url).folder.exists()
    run_stage("pretrain", recipe, url, data)
    folder = run_place(url).folder
    assert losses(folder) == pytest.approx(losses(whole), rel=1e-6)
    assert weights(folder) == weights(whole)
    assert "resumed at step 3 of 6" in capsys.readouterr().err
    assert not (folder / "pretrain" / "checkpoints").exists()
    for name in names(url) - {n for n in names(url) if "/checkpoints/" in n}:
        assert open_store(url).get(name) == (folder / name).read_bytes(), name

    machine("c")
    run_stage("finetune", recipe, url, data)
    assert {"model/hashes.json", "model/visual.safetensors", "finetune/log.jsonl"} <= names(url)

    machine("d")
    assert main.run(["evaluate", "--run", url, "--data", data, "--no-controls"]) == 0
    assert {"scores.json", "predictions/test.jsonl"} <= names(url)
    machine("e")
    capsys.readouterr()
    assert main.run(["report", url]) == 0
    assert capsys.readouterr().out == f"{url}/report.html\n"
    page = open_store(url).get("report.html").decode()
    scores = json.loads(open_store(url).get("scores.json"))
    assert f"{scores['test']['bleu4']:.2f}" in page and "<title>one" in page
    assert not (run_place(url).folder / "model").exists()  # a report reads no weights
    assert main.run(["report", url, str(whole), "--json"]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert [run["name"] for group in groups for run in group["runs"]] == ["one", "whole"]
    machine("f")
    from sage_scale.training.export import load_translator

    for model in (url, f"{url}/model"):
        chosen = run_place(model).fetch_to_read(place_module.is_model, place_module.is_export)
        assert load_translator(chosen)[2].pretrain == recipe.pretrain
        assert not (chosen / "pretrain").exists()


@pytest.mark.system
def test_the_store_away_for_a_while_changes_nothing(
    world, whole, s3, machine, behind_proxy, monkeypatch, capsys
):
    recipe, data = world
    monkeypatch.setattr(s3_store, "ATTEMPTS", 1)
    proxy = behind_proxy(s3)
    url = f"{s3.url}/runs/one"
    logs = proxy.add("refuse", method="PUT", path=r"log\.jsonl", times=2)
    last = proxy.add("refuse", method="PUT", path="visual", times=2)
    run_stage("pretrain", recipe, url, data)
    said = capsys.readouterr().err
    assert (logs.hits, last.hits) == (2, 2)
    assert "the checkpoint of step 2 waits for its storage" in said and "the run's files wait" in said
    assert weights(run_place(url).folder) == weights(whole) == open_store(url).get(STAGE1)


@pytest.mark.system
@pytest.mark.parametrize("files", [r"log\.jsonl", "visual"])
def test_the_store_away_for_longer_ends_the_run_by_the_rule_of_checkpoints(
    files, world, whole, s3, machine, behind_proxy, monkeypatch
):
    recipe, data = world
    monkeypatch.setattr(s3_store, "ATTEMPTS", 1)
    proxy = behind_proxy(s3)
    url = f"{s3.url}/runs/one"
    gone = proxy.add("refuse", method="PUT", path=files, times=10**9)
    line = (
        r"run's files could not be uploaded for 2 s"
        if files == "visual"
        else r"checkpoint of step 2 could not"
    )
    with pytest.raises(StorageError, match=line) as ended:
        run_stage("pretrain", recipe, url, data)
    assert ended.value.exit_code == 1 and gone.hits > 3
    done = len(losses(run_place(url).folder))
    assert done == 6 if files == "visual" else done >= 2  # training went on meanwhile
    steps = Checkpoints(f"{url}/pretrain/checkpoints").steps()
    assert (6 in steps) if files == "visual" else steps == []  # none without the files of its run
    proxy.rules.clear()
    run_stage("pretrain", recipe, url, data)
    assert open_store(url).get(STAGE1) == weights(whole)
    assert losses(run_place(url).folder) == pytest.approx(losses(whole), rel=1e-6)


@pytest.mark.system
def test_a_folder_of_an_older_day_gives_way_to_the_url(world, s3, machine, tmp_path):
    """Machine a holds step 2; b went on to 4; a goes on from there, and a run deleted at the URL begins anew."""
    recipe, data = world
    url = f"{s3.url}/runs/one"
    for name, steps in (("a", 2), ("b", 4), ("a", 6)):
        machine(name)
        run_stage("pretrain", override(recipe, [f"pretrain.max_steps={steps}"]), url, data)
    folder = run_place(url).folder
    assert [row["step"] for row in log_rows(folder, event="step")] == list(range(1, 7))
    store = open_store(url)
    for name in names(url):
        store.delete(name)
    run_stage("pretrain", override(recipe, ["pretrain.max_steps=1"]), url, data)
    assert [row["step"] for row in log_rows(folder, event="step")] == [1]


def test_a_failed_stage_leaves_an_older_folder_unsent(world, s3, machine):
    """An error before the folder was compared with the URL sends nothing: the URL may be further."""
    recipe, _ = world
    url = f"{s3.url}/runs/one"
    folder = run_place(url).folder
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("name: old\n")
    with pytest.raises(NoDataset):
        run_stage("pretrain", recipe, url, "/no/such/shards")
    assert names(url) == set()


def test_a_reader_on_the_machine_that_trains_takes_its_files_as_they_are(world, s3, machine, tmp_path):
    recipe, data = world
    url = f"{s3.url}/runs/one"
    run_stage("pretrain", override(recipe, ["pretrain.max_steps=1"]), url, data)
    folder = run_place(url).folder
    with lock_run(folder):
        (folder / "timing.json").write_text("[]\n")  # newer than the URL's
        assert run_place(url).fetch_to_read() == folder
        assert (folder / "timing.json").read_text() == "[]\n"
    run_place(url).fetch_to_read()
    assert (folder / "timing.json").read_text() != "[]\n"


@pytest.mark.parametrize(
    ("run", "line"),
    [
        ("s3://bucket", "names no run: write s3://bucket/runs/NAME"),
        ("s3://bucket/runs/.x", "names no run"),
        ("s3:/bucket/runs/x", "is not a local folder or file"),
        ("gs://bucket/runs/x", "is not a local folder or file"),
        ("s3://key:secret@bucket/x", r"s3://\*\*\*@bucket/x: an S3 URL is"),
    ],
)
def test_urls_that_name_no_run(run, line):
    with pytest.raises(UsageError, match=line):
        run_place(run)


def test_wrong_runs_are_one_line(world, s3, machine, capsys):
    _, data = world
    url = f"{s3.url}/runs/none"
    for words, line in (
        (["pretrain", "--run", url, "--data", data], f"{url} has no recipe.yaml yet: name a recipe"),
        (["evaluate", "--run", url, "--data", data], f"there is no run {url}, or nothing in it yet"),
        (["report", url], f"there is no run {url}"),
        (["translate", __file__, "--model", url], f"there is no run {url}"),
        (
            ["pretrain", "--run", "s3://no-such-bucket-x/r", "--data", data, "--recipe", "demo"],
            "does not exist",
        ),
    ):
        assert main.run(words) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert line in said[-1] and not any("Traceback" in part for part in said)


def test_a_working_folder_of_another_user_is_refused(s3, machine, tmp_path, monkeypatch):
    monkeypatch.setattr(
        place_module,
        "own_folder",
        lambda: (_ for _ in ()).throw(PermissionError(1, "it was made by another user", "/tmp/sage-scale-0")),
    )
    with pytest.raises(StorageError, match=r"/tmp/sage-scale-0: it was made by another user: set TMPDIR"):
        run_place(f"{s3.url}/runs/one")


@pytest.mark.system
def test_two_hosts_without_a_shared_disk_stop_by_a_signal_and_one_goes_on(world, s3, machine, tmp_path):
    """Rank 0 makes the language model; the other host has it by way of the URL. The monitors send `ended.json`."""
    made, data = world
    changes = ["model.language_model=", "denoise.enabled=true", "denoise.steps=3", "denoise.width=16",
               "denoise.vocabulary=60", "pretrain.max_steps=30", "pretrain.save_every=-1"]  # fmt: skip
    recipe = override(made, changes)
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(recipe))
    url = f"{s3.url}/runs/two"

    def start(host: str, **variables: object) -> subprocess.Popen:
        (tmp_path / host).mkdir()
        own = {"TMPDIR": str(tmp_path / host), **{name: str(value) for name, value in variables.items()}}
        words = ["--run", url, "--data", data, "--recipe", str(path)]
        script = [sys.executable, str(LAUNCH_FOLDER / "pretrain.py")]
        return subprocess.Popen([*script, *words], env=os.environ | own, stderr=subprocess.PIPE, text=True)

    port = free_port()
    alone = {"LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "WORLD_SIZE": 2}
    hosts = [start(f"host{n}", RANK=n, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **alone) for n in range(2)]
    try:
        assert wait_until(
            lambda: any(map(began, tmp_path.glob("host0/*/runs/*/two/pretrain/log.jsonl"))), 200
        )
        hosts[1].send_signal(signal.SIGTERM)
        said = [host.communicate(timeout=120)[1] for host in hosts]
        assert [host.returncode for host in hosts] == [130, 130], said
    finally:
        for host in hosts:
            host.kill()
    ended = json.loads(open_store(url).get("pretrain/ended.json"))
    (step,) = Checkpoints(f"{url}/pretrain/checkpoints").steps()
    assert (ended["code"], ended["step"]) == (130, step) and 0 < step < 30
    assert list(tmp_path.glob("host1/*/runs/*/two/language_model/config.json"))
    machine("host2")
    run_stage("pretrain", recipe, url, data)
    rows = map(json.loads, open_store(url).get("pretrain/log.jsonl").splitlines())
    trained = {row["step"]: row["loss"] for row in rows if row["event"] == "step"}
    run_stage("pretrain", recipe, tmp_path / "alone", data)
    assert [trained[step] for step in range(1, 31)] == pytest.approx(losses(tmp_path / "alone"), rel=1e-3)


def began(log: Path) -> bool:
    return log.read_text().count('"event": "step"') > 2
