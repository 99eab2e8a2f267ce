"""`precompute --check`: exit code 2 and the words of the run itself for what would end it, 0 else, and no trace."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from factories.precompute import hashes, manifest_of, recipe_for, run_here, write_corpus

from sage_scale.cli.main import run
from sage_scale.config import to_yaml
from sage_scale.errors import SageError, StorageError
from sage_scale.precompute import pool
from sage_scale.storage import Unconditional, open_store
from sage_scale.storage.s3 import S3Store

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
WITHOUT_RAY = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    assert "ray" not in sys.modules
"""
RESNET = {"kind": "features", "backbone": "resnet34"}


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    def start(recipe):
        raise AssertionError("Ray is started")

    monkeypatch.setattr(pool, "ray_session", start)


@pytest.fixture
def check(corpus_root, tmp_path, capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs the verb with --check for a recipe's sections. Returns exit code, stdout and stderr."""

    def checked(
        out: object, *options: str, root: Path = corpus_root, **sections: dict
    ) -> tuple[int, str, str]:
        (tmp_path / "recipe.yaml").write_text(to_yaml(recipe_for(root, **sections)))
        recipe = ["--recipe", str(tmp_path / "recipe.yaml")]
        given = ["precompute", "--corpus", "videos", "--root", str(root), "--out", str(out), *recipe]
        code = run([*given, "--check", *options])
        said = capsys.readouterr()
        return code, said.out, said.err

    return checked


def test_a_new_output_is_in_order_and_stays_absent(check, tmp_path) -> None:
    code, said, errors = check(tmp_path / "new" / "deep")
    assert (code, errors) == (0, ""), errors
    recipe, corpus, output = said.splitlines()
    assert "frames, segments by motion" in recipe
    assert "9 clips (2 dev, 7 train) in 5 units, 0 rows rejected" in corpus
    assert "new; objects can be stored and read, a conditional PUT keeps the first" in output
    assert not (tmp_path / "new").exists()


def test_states_of_an_output(check, corpus_root, tmp_path) -> None:
    out = tmp_path / "out"
    run_here(recipe_for(corpus_root), out).execute()
    before = hashes(out)
    assert "finished, nothing to do" in check(out)[1]
    assert "5 shards of the dataset there will be deleted" in check(out, "--overwrite")[1]
    code, _, errors = check(out, vision={"size": 40, "crop": 32})
    assert code == 2 and "vision.size is 32 there, 40 here" in errors
    assert check(out, "--overwrite", vision={"size": 40, "crop": 32})[0] == 0
    more = write_corpus(tmp_path / "more", clips=8)
    code, _, errors = check(out, root=more)
    assert code == 2 and "--extend" in errors
    assert check(out, "--extend", root=more)[0] == 0
    assert hashes(out) == before
    (out / "index.json").unlink()
    (out / "000004.json").unlink()
    assert "begun, 4 units stored" in check(out)[1]
    code, _, errors = check(out, "--extend", root=more)
    assert code == 0, "the tar is there: its marker is made again"
    (out / "000004.tar").unlink()
    code, _, errors = check(out, "--extend", root=more)
    assert code == 2 and "cannot be extended before it is whole" in errors
    (out / "dataset.json").unlink()
    assert check(out)[0] == 2 and check(out, "--overwrite")[0] == 0
    assert set(before) - set(hashes(out)) == {"index.json", "000004.json", "000004.tar", "dataset.json"}


@pytest.mark.parametrize(
    "changes",
    [
        {"text": {"tagger": "jieba"}},
        {"text": {"tagger": "none", "target": "pseudo_gloss"}},
        {"vision": RESNET, "model": {"feature_dim": 512}},
        {"vision": {**RESNET, "backbone_weights": "no/such.pth"}, "model": {"feature_dim": 512}},
        {"vision": {**RESNET, "backbone_weights": "{text}"}, "model": {"feature_dim": 512}},
        {"segmentation": {"tagger": "precomputed", "labels": "no/such"}},
        {"shards": {"clips_per_unit": 0}},
    ],
)  # fmt: skip
def test_what_ends_a_run_before_its_first_unit_ends_the_check_in_its_words(
    check, corpus_root, tmp_path, capsys, changes
) -> None:
    """Also where the run would end with 1, as for a damaged file: the check has 0 and 2."""
    (tmp_path / "text").write_text("no weights")
    weights = changes.get("vision", {}).get("backbone_weights", "").format(text=tmp_path / "text")
    options = [f"vision.backbone_weights={weights}"] if weights else []
    given = [f"{name}.{key}={value}" for name, values in changes.items() for key, value in values.items()]
    options = [*[word for word in given if "backbone_weights" not in word], *options]
    code, _, errors = check(tmp_path / "out", *options)
    assert code == 2 and len(errors.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    words = ["precompute", "--corpus", "videos", "--root", str(corpus_root), "--out", str(tmp_path / "out")]
    assert run([*words, "--recipe", str(tmp_path / "recipe.yaml"), *options]) in (1, 2)
    assert capsys.readouterr().err == errors


def test_too_many_rows_without_a_video_end_the_check_as_they_would_end_the_run(check, tmp_path) -> None:
    root = write_corpus(tmp_path / "videos", clips=1)
    (root / "train" / "sentences.tsv").write_text("train00.mp4\tSatz\ngone.mp4\tSatz\n")
    (root / "train" / "train00.txt").unlink()
    code, said, errors = check(tmp_path / "out", root=root)
    assert code == 3 and "(1 missing)" in errors and "gone" in errors and len(errors.splitlines()) == 1
    assert "output" not in said


@pytest.mark.parametrize("place", ["file/below", "/proc/no/such"])
def test_a_folder_that_cannot_be_written(check, tmp_path, place) -> None:
    (tmp_path / "file").touch()
    code, _, errors = check(tmp_path / place)
    assert code == 2 and len(errors.splitlines()) == 1


def test_a_bucket_is_really_tried_and_left_as_it_was(check, s3, corpus_root, monkeypatch) -> None:
    code, said, errors = check(f"{s3.url}/set")
    assert (code, errors) == (0, "") and "a conditional PUT keeps the first" in said
    assert list(open_store(s3.url).list()) == []

    def refuse(self, name):
        raise StorageError(f"{name}: refuses this (AccessDenied)")

    with monkeypatch.context() as denied:
        denied.setattr(S3Store, "delete", refuse)
        code, said, _ = check(f"{s3.url}/set")
        assert code == 0 and "may not be deleted" in said
        (left,) = open_store(s3.url).list()
        assert left.name.removeprefix("set/") in said
        code, _, errors = check(f"{s3.url}/set", "--overwrite")
        assert code == 2 and "s3:DeleteObject" in errors
    for variable, value, words in (
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1", "cannot be reached"),
        ("AWS_PROFILE", "none", "AWS_PROFILE names a profile that does not exist"),
    ):
        with monkeypatch.context() as wrong:
            wrong.setenv(variable, value)
            wrong.setattr("sage_scale.storage.s3.ATTEMPTS", 1)
            code, _, errors = check(f"{s3.url}/set")
            assert code == 2 and words in errors and len(errors.splitlines()) == 1
    code, _, errors = check("s3://no-such-bucket/set")
    assert code == 2 and "no-such-bucket" in errors
    # Leftovers of an earlier check are no part of a dataset.
    run_here(recipe_for(corpus_root), f"{s3.url}/set").execute()
    assert "finished" in check(f"{s3.url}/set")[1]


def test_wrong_keys_are_refused_by_a_server_that_looks_at_them(check, ceph, monkeypatch) -> None:
    assert check(f"{ceph.url}/set")[0] == 0
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    code, _, errors = check(f"{ceph.url}/set")
    assert code == 2 and "AWS_SECRET_ACCESS_KEY" in errors and "wrong" not in errors


def test_a_server_that_ignores_the_condition_is_refused(check, s3, corpus_root, monkeypatch) -> None:
    """By the check, and by a run before its first shard."""
    send = S3Store._send
    monkeypatch.setattr(S3Store, "_send", lambda self, name, data, token, **_: send(self, name, data, token))
    code, _, errors = check(f"{s3.url}/set")
    assert code == 2 and "ignores `If-None-Match: *` on PUT" in errors
    with pytest.raises(Unconditional, match="If-None-Match") as refused:
        run_here(recipe_for(corpus_root), f"{s3.url}/set").execute()
    assert isinstance(refused.value, SageError) and refused.value.exit_code == 2
    assert list(open_store(s3.url).list()) == []


def test_the_script_checks_without_ray_and_without_a_cluster(corpus_root, tmp_path) -> None:
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe_for(corpus_root)))
    options = ["--corpus", "videos", "--root", corpus_root, "--out", tmp_path / "out", "--check"]
    words = [LAUNCH / "preprocess.py", *options, "--recipe", tmp_path / "recipe.yaml"]
    done = subprocess.run(
        list(map(str, [sys.executable, "-c", WITHOUT_RAY, *words])),
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert f"{len(manifest_of(recipe_for(corpus_root)).clips)} clips" in done.stdout
