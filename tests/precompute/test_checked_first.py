"""What each actor would refuse is refused before Ray is started and before anything is written."""

from __future__ import annotations

import os
import sys

import pytest
from factories.precompute import CLIPS, manifest_of, recipe_for, run_here

from sage_scale.config.data import Text
from sage_scale.errors import SageError, UsageError
from sage_scale.precompute import job, pool
from sage_scale.storage import open_store
from sage_scale.text.pseudogloss import PseudoGlosser, check_tagger

RESNET = {"kind": "features", "backbone": "resnet34"}


@pytest.fixture
def no_ray(monkeypatch):
    def start(recipe):
        raise AssertionError("Ray is started")

    monkeypatch.setattr(pool, "ray_session", start)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text": {"tagger": "jieba"}}, "text.tagger=jieba knows zh"),
        ({"text": {"tagger": "spacy"}, "corpus": {"language": "fi"}}, "no spaCy pipeline for 'fi'"),
        ({"text": {"tagger": "none", "target": "pseudo_gloss"}}, "no pseudo-glosses"),
        (
            {"vision": {**RESNET, "backbone_weights": "no/such.pth"}, "model": {"feature_dim": 512}},
            "there is no",
        ),
        (
            {"vision": {**RESNET, "backbone_weights": "{text}"}, "model": {"feature_dim": 512}},
            "not a weights file",
        ),
        ({"vision": {**RESNET, "backbone_weights": "{tensors}"}, "model": {"feature_dim": 512}}, "tensors"),
    ],
)
def test_a_wrong_tagger_or_weights_file(no_ray, corpus_root, tmp_path, changes, words) -> None:
    import torch

    (tmp_path / "text").write_text("no weights")
    torch.save(["no mapping"], tmp_path / "tensors")
    vision = changes.get("vision", {})
    if "backbone_weights" in vision:
        file = vision["backbone_weights"].format(text=tmp_path / "text", tensors=tmp_path / "tensors")
        changes = {**changes, "vision": {**vision, "backbone_weights": file}}
    recipe = recipe_for(corpus_root, **changes)
    with pytest.raises(SageError, match=words) as refused:
        job.PrecomputeJob(
            recipe=recipe, manifest=manifest_of(recipe), url=str(tmp_path / "out"), quiet=True
        ).execute()
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file/below", "/proc/no/such", "/sys/no", "readonly/out", "link/out"])
def test_an_output_that_cannot_be_written_is_wrong_usage(no_ray, corpus_root, tmp_path, place) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "readonly").mkdir(mode=0o555)
    if place.startswith("readonly") and os.getuid() == 0:
        pytest.skip("root may write everywhere")
    if place.startswith("/") and not sys.platform.startswith("linux"):
        pytest.skip("Linux alone has it")
    recipe = recipe_for(corpus_root)
    with pytest.raises(UsageError):
        job.PrecomputeJob(
            recipe=recipe, manifest=manifest_of(recipe), url=str(tmp_path / place), quiet=True
        ).execute()


def test_looking_whether_a_folder_can_be_written_leaves_nothing(tmp_path) -> None:
    open_store(tmp_path / "a" / "b").check_writable()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    open_store(tmp_path / "a").check_writable()
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


def test_a_finished_output_that_can_no_longer_be_written_is_still_whole(
    corpus_root, tmp_path, monkeypatch
) -> None:
    recipe = recipe_for(corpus_root)
    run_here(recipe, tmp_path / "out").execute()
    run = run_here(recipe, tmp_path / "out")
    monkeypatch.setattr(type(run.store), "check_writable", lambda self: pytest.fail("asked"))
    assert run.execute().clips == CLIPS + 2


@pytest.mark.parametrize("language", ["de", "zh", "fi", "xx"])
@pytest.mark.parametrize("tagger", ["auto", "spacy", "jieba", "none"])
@pytest.mark.parametrize("target", ["pseudo_gloss", "sentence"])
def test_the_quick_look_at_a_tagger_says_what_loading_it_would(language, tagger, target) -> None:
    settings = Text(tagger=tagger, target=target)
    said = []
    for ask in (check_tagger, PseudoGlosser):
        try:
            ask(language, settings)
            said.append("")
        except SageError as error:
            said.append(str(error))
    assert said[0] == said[1]
