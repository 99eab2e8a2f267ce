"""Compiles the Triton kernels for an A100 (sm_80) and an H100 or H200 (sm_90), where neither is (test_clcl_triton.py).

Prints how many were compiled.
"""

from __future__ import annotations

import itertools
import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sage_scale.losses.clcl_triton import MAXIMUM, ONE, TWO, VALUES, _gradient, _measure

TYPES = {
    "u_ptr": "*{u}",
    "Zv_ptr": "*{u}",
    "Zt_ptr": "*{u}",
    "G_ptr": "*{u}",
    "H_ptr": "*{u}",
    "W_ptr": "*{w}",
}
NUMBERS = ("stride", "texts")
SOME = (
    (16, 8, ONE, "fp32", "fp32"),
    (64, 32, ONE, "fp32", "bf16"),
    (1, 1, ONE, "fp64", "fp64"),
    (32, 16, TWO, "fp32", "fp32"),
    (8, 1, MAXIMUM, "fp32", "fp32"),
    (128, 128, TWO, "fp64", "fp64"),
)


def compile_for(capability: int, kernel: Any, n: int, m: int, mode: int, u: str, w: str) -> None:
    texts = max(1, min(VALUES // (n * m), 64))
    constants = {"n_block": n, "texts_block": texts, "m_block": m, "mode": mode}
    signature = {
        name: "constexpr"
        if name in constants
        else "i32"
        if name in NUMBERS
        else TYPES.get(name, "*i32").format(u=u, w=w)
        for name in kernel.arg_names
    }
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    options = {"num_warps": max(1, min(16, n * m * texts // 512))}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert made.asm["cubin"]


def main() -> None:
    todo = list(itertools.product((80, 90), (_measure, _gradient), SOME))
    for capability, kernel, case in todo:
        compile_for(capability, kernel, *case)
    json.dump(len(todo), sys.stdout)


if __name__ == "__main__":
    main()
