"""Sign2GPT under ZeRO: frozen weights never change, byte for byte, and ranks learn what one process learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sign2gpt_ranks
from factories.ranks import run_ranks


@pytest.mark.system
def test_frozen_weights_stay_and_two_ranks_learn_what_one_does():
    output = run_ranks(Path(sign2gpt_ranks.__file__), 2, [])[0]
    found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [(*row["case"], row["zero"]) for row in found] == [
        (*case, zero) for case in sign2gpt_ranks.CASES for zero in (1, 2, 3)
    ]
    for case in sign2gpt_ranks.CASES:
        alone = sign2gpt_ranks.steps(*case, 0)
        assert alone["before"] == alone["after"] and alone["losses"][-1] < alone["losses"][0]
        # bfloat16 rounds products of other shapes otherwise.
        close = {"rel": 1e-4, "abs": 1e-5} if case[1] == "float32" else {"rel": 0.03, "abs": 0.003}
        for row in found:
            if tuple(row["case"]) == case:
                what = f"{case}, ZeRO-{row['zero']}"
                assert row["before"] == row["after"] == alone["before"], f"a frozen weight changed: {what}"
                assert row["losses"] == pytest.approx(alone["losses"], **close), what
                assert row["weights"] == pytest.approx(alone["weights"], **close), what
