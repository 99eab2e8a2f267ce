"""The Triton kernels against the reference: by Triton's interpreter on a CPU, and on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sage_scale.errors import RecipeError
from sage_scale.losses import chosen_implementation
from sage_scale.losses import objectives as similarity

has_triton = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(
    not has_triton, reason="triton is not installed: pip install 'sage-scale[triton]'"
)
BOUND = {"float64": 1e-9, "float32": 2e-5, "bfloat16": 4e-3}


@needs_triton
def test_the_kernels_equal_the_reference_in_the_interpreter():
    """In a process of its own: interpreting is decided when the kernels are imported."""
    script = Path(__file__).with_name("triton_by_interpreter.py")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, timeout=280)
    assert run.returncode == 0, run.stderr.decode()
    found = json.loads(run.stdout)
    assert len(found) == 4 + 1 + 2 + 2
    assert {name: value for name, value in found.items() if value > BOUND[name.rsplit(" ", 1)[1]]} == {}


@needs_triton
def test_the_kernels_compile_for_gpus_that_are_not_here():
    """To machine code, by the assembler that comes with Triton."""
    script = Path(__file__).with_name("triton_for_gpus.py")
    run = subprocess.run([sys.executable, str(script)], capture_output=True, timeout=280)
    assert run.returncode == 0, run.stderr.decode()
    assert json.loads(run.stdout) == 2 * 2 * 6


@pytest.mark.gpu
@needs_triton
def test_the_kernels_equal_the_reference_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    from made_tokens import Options
    from triton_by_interpreter import TAUS, errors, loss_error, narrow_error

    dtypes = (torch.float64, torch.float32)
    found = errors("cuda", (512, 256), 40, (70, 33), dtypes, TAUS) | {
        "loss float64": loss_error("cuda", Options(implementation="triton")),
        "sigmoid loss float64": loss_error("cuda", Options(loss="siglip_tokens", implementation="triton")),
        "narrow bfloat16": narrow_error("cuda"),
    }
    assert {name: value for name, value in found.items() if value > BOUND[name.rsplit(" ", 1)[1]]} == {}


def test_which_implementation_is_chosen(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(similarity.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(similarity.shutil, "which", lambda name: "/usr/bin/gcc")
    assert chosen_implementation("cuda") == "triton" and chosen_implementation("cpu") == "tiled"
    assert chosen_implementation("cuda", "tiled") == "tiled"
    with pytest.raises(RecipeError, match="needs a GPU: take auto"):
        chosen_implementation("cpu", "triton")
    with monkeypatch.context() as patch:
        patch.setattr(similarity.sysconfig, "get_path", lambda *_: "/no/such/place")
        assert chosen_implementation("cuda") == "tiled" and "python3-dev" in similarity.triton_lacks("cuda")
    monkeypatch.setattr(similarity.shutil, "which", lambda name: None)
    assert chosen_implementation("cuda") == "tiled"
    monkeypatch.setattr(similarity.importlib.util, "find_spec", lambda name: None)
    assert chosen_implementation("cuda") == "tiled"
    with pytest.raises(RecipeError, match="not installed"):
        chosen_implementation("cuda", "triton")
