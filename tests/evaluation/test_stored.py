"""scores.json of a run: any content gives scores by split or one line, and writing one split keeps the others."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_scale.errors import UsageError
from sage_scale.evaluation.stored import read_scores, scores_by_split, write_scores
from sage_scale.reporting.page import write_report

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-9, 9) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["bleu4", "split", "clips", "languages", "controls", "heldout", "rouge_l", "test", "dev"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=150, deadline=None)
def test_any_file_is_scores_or_one_line_and_never_breaks_the_report(tmp_path_factory, content):
    run = tmp_path_factory.mktemp("run")
    (run / "scores.json").write_bytes(content)
    (run / "recipe.yaml").write_text("name: x\n")
    try:
        found = read_scores(run)
    except UsageError as error:
        assert "\n" not in str(error) and "scores.json is damaged" in str(error)
        lost = write_scores(run, "dev", {"bleu4": 1.0})
        assert "lost" in lost and set(read_scores(run)) == {"dev"}
    else:
        assert all(scores["split"] == split for split, scores in found.items())
        assert write_scores(run, "dev", {"bleu4": 1.0}) == ""
        assert read_scores(run) == {**found, "dev": {"bleu4": 1.0, "split": "dev"}}
    (run / "scores.json").write_bytes(content)
    assert "</html>" in write_report(run).read_text()


def test_nothing_yet_is_no_scores_and_a_folder_is_named(tmp_path):
    assert read_scores(tmp_path) == {} == scores_by_split({})
    (tmp_path / "scores.json").mkdir()
    with pytest.raises(UsageError, match="damaged"):
        read_scores(tmp_path)
