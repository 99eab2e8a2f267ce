"""The names of `from sage_scale import ...`: found when they are used, without what they do not need."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from factories.training import make_translator
from factories.videos import write_square

import sage_scale

HEAVY = ("ray", "spacy", "deepspeed", "boto3", "jieba", "HanTa", "matplotlib", "webdataset")

REFUSING = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"{{name}} is not installed", name=name)

sys.meta_path.insert(0, Refuse())
"""
"""Makes an interpreter in which these packages cannot be imported."""


def run(program: str, *, before: str = "") -> str:
    """What a new interpreter prints that runs `before` and the program."""
    done = subprocess.run(
        [sys.executable, "-c", before + textwrap.dedent(program)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_import_brings_nothing():
    """Not even numpy: what `import sage_scale` costs is the reading of one file."""
    loaded = run("import sage_scale, sys; print(*(name.partition('.')[0] for name in sys.modules))").split()
    bare = run(
        "import sys, importlib, typing; print(*(name.partition('.')[0] for name in sys.modules))"
    ).split()
    assert set(loaded) - set(bare) == {"sage_scale"}


def test_all_work_where_ray_spacy_and_deepspeed_cannot_be_imported(tmp_path):
    """Losses, streaming and scores; and a model translates a video, which has no sentence to tag."""
    make_translator(tmp_path / "run")
    write_square(tmp_path / "video.mp4", frames=30, seed=1)
    sample = Path(sage_scale.__file__).parents[1] / "shards" / "sample"
    printed = run(
        f"""
        import torch
        from sage_scale import clcl_loss, clcl_similarity, load_recipe, open_dataset, open_stream, open_webdataset
        from sage_scale import cached_backward, objective_of, open_evaluation, score, score_as
        from sage_scale.config import Clcl

        lengths = torch.tensor([2, 3])
        tokens = torch.eye(5)
        print(float(clcl_loss(*clcl_similarity(tokens, tokens, lengths, lengths), scale=10.0)))
        print(float(objective_of(Clcl()).share(tokens, tokens, lengths, lengths, torch.tensor([10.0]))))
        dataset = open_dataset({str(sample)!r})
        print(dataset.splits)
        recipe = load_recipe("demo", ["vision.size=48", "vision.crop=48", "vision.frame_stride=4"])
        (batch,) = open_stream(dataset, recipe, batch_size=8, epochs=1)
        print(len(batch.sentences), tuple(batch.video.frames_FCHW.shape[1:]))
        print(score(["es regnet"], ["es regnet"], "de")["rouge_l"])
        print({{"av", "transformers"}} & set(sys.modules))
        from sage_scale import Translator
        print(Translator({str(tmp_path / "run")!r}, device="cpu").translate({str(tmp_path / "video.mp4")!r}).frames > 5)
        """,
        before=REFUSING,
    ).splitlines()
    assert float(printed[0]) == pytest.approx(float(printed[1]), rel=1e-5)
    assert printed[2:] == ["{'train': 3, 'dev': 1, 'test': 1}", "3 (3, 48, 48)", "100.0", "set()", "True"]


def test_editors_and_the_interpreter_see_the_same_names():
    """The imports under TYPE_CHECKING, the table that `__getattr__` reads, and `__all__`."""
    tree = ast.parse(Path(sage_scale.__file__).read_text(encoding="utf-8"))
    imported = {
        alias.name: node.module
        for branch in tree.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == sage_scale._MODULES and sorted(imported) == sorted(sage_scale.__all__)
    for name in sage_scale.__all__:
        assert getattr(sage_scale, name) is not None and name in dir(sage_scale)


def test_an_unknown_name_is_refused_as_by_any_module():
    with pytest.raises(ImportError, match="translator"):
        from sage_scale import translator  # noqa: F401
    with pytest.raises(AttributeError, match="has no attribute 'open_streem'"):
        _ = sage_scale.open_streem
