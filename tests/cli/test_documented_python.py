"""Every Python block of README and docs is run, the blocks of a page one after another."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories.forks import fork_ranks, in_fork
from factories.notebook import NOTEBOOK, PAGE, ROOT, blocks_of, make_environment, notebook_of, run_notebook
from factories.training import make_causal_folder, make_translator, sign2gpt_recipe
from factories.videos import write_square

from sage_scale import config
from sage_scale.cli import main as command_line
from sage_scale.losses import clcl_loss, reference_similarity

PAGES = [ROOT / "README.md", ROOT / "shards" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = ("import lightning", "import Accelerator", "import deepspeed", "from datasets import")
"""Blocks that another test runs: with an environment of its own (shards/test_export_readers.py), or on two ranks."""


def of_keypoints() -> dict[str, Any]:
    np.savez("talk.npz", keypoints=np.random.default_rng(0).random((20, 134)).astype(np.float32), fps=25.0)
    return {}


def of_segmentation() -> dict[str, Any]:
    torch.jit.script(torch.nn.Linear(2, 2)).save("model.pth")
    Path("weights").mkdir()
    return {"open_mine": lambda folder: None}


def of_sign2gpt() -> dict[str, Any]:
    """A language model and a recipe of toy size, and two clips of features."""
    make_causal_folder(Path("PATH_TO_XGLM"))
    recipe = sign2gpt_recipe("features", "model.language_model=PATH_TO_XGLM")
    config.load_recipe = lambda *_: recipe
    from sage_scale.vision.packed import PackedVideo

    frames, segments = torch.tensor([2, 3, 4]), torch.tensor([1, 2])
    features, seeds = torch.randn(9, recipe.model.feature_dim).half(), torch.tensor([5, 6])
    video = PackedVideo(
        segment_frames_N=frames, clip_segments_B=segments, features_FC=features, clip_seeds_B=seeds
    )
    return {"sentences": ["rot blau", "blau"], "languages": ["de", "de"], "video": video}


def of_python() -> dict[str, Any]:
    """A model that has learnt nothing, and a video."""
    make_translator(Path("runs/mine"))
    make_translator(Path("mine_to_give"))
    write_square(Path("holiday.mp4"), frames=30, seed=1)
    return {}


PREPARED: dict[str, Callable[[], dict[str, Any]]] = {
    "README.md": of_python, "docs/python.md": of_python, "docs/keypoints.md": of_keypoints,
    "docs/captions.md": of_python,
    "docs/segmentation.md": of_segmentation, "docs/sign2gpt.md": of_sign2gpt,
}  # fmt: skip
"""What the reader of a page has: makes its files in the present folder, and returns its names."""


def prints_python(page: Path) -> bool:
    return any(block.language == "python" for block in blocks_of(page))


def run_page(page: Path) -> None:
    """Run the blocks of a page in this process; on docs/python.md its commands too."""
    Path("shards").symlink_to(ROOT / "shards")
    names = PREPARED.get(str(page.relative_to(ROOT)), dict)() | {"__name__": "__main__"}
    for block in blocks_of(page):
        if block.language == "sh" and page == PAGE:
            for words in map(shlex.split, block.text.splitlines()):
                assert words[0] != "sage-scale" or command_line.run(words[1:]) == 0, block
        elif block.language == "python" and not any(name in block.text for name in ELSEWHERE):
            exec(compile(block.text, f"{block.page}: {block.text[:40]!r}", "exec"), names)


@pytest.mark.parametrize(
    "page",
    list(filter(prints_python, PAGES)),
    ids=lambda p: p.name,
)
def test_the_blocks_of_a_page_run(page, tmp_path):
    def work() -> None:
        os.chdir(tmp_path)
        run_page(page)

    in_fork(work)


def test_every_block_stands_on_a_page_that_is_run():
    """Pages of other folders print no Python, or are listed above."""
    others = [page for page in ROOT.rglob("*.md") if not {".venv", ".peers", "runs"} & set(page.parts)]
    found = set(filter(prints_python, others))
    assert PAGE in found and found <= set(PAGES)


def test_the_notebook_is_the_page():
    """`make notebook` writes it again after a change of the page."""
    wanted, found = notebook_of(PAGE), json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert ["".join(cell["source"]) for cell in found["cells"]] == [
        "".join(cell["source"]) for cell in wanted["cells"]
    ]
    assert NOTEBOOK.stat().st_size < 60_000
    outputs = [out for cell in found["cells"] for out in cell.get("outputs", [])]
    assert len(outputs) > 8 and {out["output_type"] for out in outputs} == {"stream"}


@pytest.mark.system
@pytest.mark.extras
@pytest.mark.timeout(600)
def test_the_notebook_runs(tmp_path):
    """Lightning, accelerate and DeepSpeed on two ranks included."""
    try:
        python = make_environment(tmp_path / "environment")
    except subprocess.CalledProcessError as failed:
        pytest.skip(f"pip cannot install Lightning, accelerate and nbclient here: {failed.stderr[-300:]}")
    (tmp_path / "bare.ipynb").write_text(json.dumps(notebook_of(PAGE)), encoding="utf-8")
    try:
        run_notebook(python, tmp_path / "bare.ipynb", tmp_path / "run.ipynb")
    except subprocess.CalledProcessError as failed:
        pytest.fail(failed.stderr[-4000:])
    text = (tmp_path / "run.ipynb").read_text(encoding="utf-8")
    assert "each of 50 samples once" in text and "step 6 epoch 3" in text and "step 2: loss" in text


def gradients_of_the_page(stages: tuple[int, ...], cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """This rank's losses and, by parameter, errors of the gradients of docs/python.md's step, for each ZeRO stage."""
    from deepspeed.utils import safe_get_full_grad

    from sage_scale.training import distributed

    ranks = distributed.initialise()
    (block,) = (block for block in blocks_of(PAGE) if block.file)
    names: dict[str, Any] = {"__name__": "clcl_step"}
    exec(compile(block.text, block.file, "exec"), names)
    found = []
    for stage in stages:
        torch.manual_seed(0)
        model = names["Encoder"]()
        model.layers[2].p = 0.0
        case = cases[ranks.rank]
        engine = names["make_engine"](stage, model)
        share = names["step"](engine, case["features"].split(case["chunks"]), *case["rest"])
        gradients = {
            name: safe_get_full_grad(weight).flatten().tolist() for name, weight in model.named_parameters()
        }
        engine.step()
        found.append({"share": float(share), "gradients": gradients})
    return found


@pytest.mark.system
def test_gradients_of_the_page_s_step_are_those_of_one_large_batch():
    """ZeRO-2 and 3 on two ranks with unequal clips, in chunks, against the reference of the whole batch."""
    torch.manual_seed(4)
    cases = []
    for clips, chunks in ((9, [14, 10, 9]), (5, [4, 0, 12])):
        n, m = torch.randint(1, 5, (clips,)), torch.randint(1, 4, (clips,))
        n[0] += sum(chunks) - n.sum()  # as many rows as the chunks have
        cases.append({"features": torch.randn(sum(chunks), 32), "chunks": chunks,
                      "rest": (torch.randn(int(m.sum()), 64), n, m)})  # fmt: skip
    found = fork_ranks(2, lambda: gradients_of_the_page((2, 3), cases))

    (block,) = (block for block in blocks_of(PAGE) if block.file)
    names: dict[str, Any] = {"__name__": "clcl_step"}
    exec(compile(block.text, block.file, "exec"), names)
    torch.manual_seed(0)
    model = names["Encoder"]().double()
    model.layers[2].p = 0.0
    visual, scale = model(torch.cat([case["features"] for case in cases]).double())
    text, n, m = (torch.cat(parts) for parts in zip(*(case["rest"] for case in cases)))
    loss = clcl_loss(*reference_similarity(visual, text.double(), n, m), scale)
    loss.backward()
    for stage in range(2):
        shares = [rank[stage]["share"] for rank in found]
        assert sum(shares) == pytest.approx(float(loss.detach()), rel=1e-5)
        for name, weight in model.named_parameters():
            wanted = weight.grad.flatten()
            error = torch.tensor(found[0][stage]["gradients"][name], dtype=torch.float64) - wanted
            assert error.norm() < 1e-5 * wanted.norm(), name


def aligner_of_the_page(rank: int, world: int) -> list[list[float]]:
    """Gradients of docs/python.md's model for the first global batch of shards/sample, under DDP on several ranks."""
    from sage_scale import load_recipe, open_stream

    (block,) = (block for block in blocks_of(PAGE) if "class Aligner" in block.text)
    names: dict[str, Any] = {}
    exec(block.text.partition("\ntorch.manual_seed(0)")[0], names)
    torch.manual_seed(0)
    model = names["Aligner"]()
    trained = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
    recipe = load_recipe("demo", ["vision.size=48", "vision.crop=48", "vision.frame_stride=4"])
    stream = open_stream(ROOT / "shards" / "sample", recipe, batch_size=3, epochs=1, rank=rank, world=world)
    (batch,) = stream
    assert len(batch.keys) < 3 or world == 1
    trained(batch).backward()
    return [weight.grad.flatten().tolist() for weight in model.parameters()]


@pytest.mark.system
def test_the_page_s_model_has_the_same_gradients_on_two_ranks():
    """What Lightning and accelerate train under: DDP, whose mean over ranks the model turns into a sum."""

    def work() -> list[list[float]]:
        from sage_scale.training import distributed

        ranks = distributed.initialise()
        return aligner_of_the_page(ranks.rank, ranks.world)

    wanted = aligner_of_the_page(0, 1)
    for found in fork_ranks(2, work):
        for one, other in zip(found, wanted, strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-7)
