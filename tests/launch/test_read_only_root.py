"""Precompute and both stages in a container with a read-only root, under a uid without a passwd entry, without HOME."""

from __future__ import annotations

import pytest
from factories.containers import USER, Container, why_not
from factories.training import COLOURS, log_rows, make_language_folder, tiny_recipe
from factories.videos import write_square

from sage_scale.config import to_yaml
from sage_scale.shards import verify_dataset

pytestmark = [pytest.mark.extras, pytest.mark.timeout(300)]


@pytest.fixture
def container(tmp_path):
    if reason := why_not():
        pytest.skip(reason)
    given = tmp_path / "given"
    names = list(COLOURS)
    for split, clips in (("train", 6), ("dev", 2)):
        for number in range(clips):
            video = given / "videos" / split / f"{split}{number}.mp4"
            write_square(video, frames=24 + 2 * number, seed=number + 50 * (split == "dev"))
            words = [names[(number + place) % len(names)] for place in range(3)]
            video.with_suffix(".txt").write_text(" ".join(words), encoding="utf-8")
    make_language_folder(given / "language")
    recipe = tiny_recipe(
        "frames", "model.language_model=/given/language", "corpus.name=videos", "corpus.language=de",
        "text.tagger=none", "text.target=sentence", "shards.clips_per_unit=4", "precompute.actors=1",
        "pretrain.max_steps=2", "finetune.max_steps=2",
    )  # fmt: skip
    (given / "tiny.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    return Container(tmp_path, {"/given": given}, ("/tmp", "/data"))


def test_only_declared_folders_are_written_to(container):
    program = ["python", "-m", "sage_scale.cli.main"]
    refused = "import os, pathlib; pathlib.Path(os.path.expanduser('~/x')).mkdir(parents=True)"
    printed = container.start(
        ["python", "-c", f"import os; assert os.getuid() == {USER}; {refused}"]
    ).communicate()[0]
    assert "Read-only file system" in printed

    corpus = ["--corpus", "videos", "--root", "/given/videos", "--recipe", "/given/tiny.yaml"]
    precompute = [*program, "precompute", *corpus, "--out", "/data/shards"]
    assert "a conditional PUT keeps the first" in container.run([*precompute, "--check"])
    container.run(precompute)
    data = container.inside("/data")
    assert verify_dataset(data / "shards").problems == ()
    trained = ["--run", "/data/run", "--data", "/data/shards"]
    stage1 = [*program, "pretrain", *trained, "--recipe", "/given/tiny.yaml", "--ranks", "2"]
    weights = container.read["/given"] / "language" / "model.safetensors"
    weights.chmod(0o600)  # as transformers leaves them where another user saved the folder
    refused = container.start(stage1[:-2])
    printed = refused.communicate(timeout=240)[0]
    assert f"uid {USER} may not read model.safetensors" in printed and refused.returncode == 1
    weights.chmod(0o644)
    container.run(stage1)
    container.run([*program, "finetune", *trained])
    assert log_rows(data / "run", "pretrain", "start")[0]["ranks"] == 2
    assert (data / "run" / "model" / "hashes.json").is_file()
    assert "Nothing that the main job needs is missing." in container.run([*program, "doctor"])
    assert {path.stat().st_uid for path in data.rglob("*")} == {USER}
    assert {path.name for path in data.iterdir()} == {"shards", "run"}
