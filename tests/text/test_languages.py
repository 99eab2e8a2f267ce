"""BCP 47 to mBART-50."""

from __future__ import annotations

import pytest
from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES

from sage_scale.errors import UsageError
from sage_scale.text import MBART50_CODES, mbart50_code


def test_every_language_of_mbart50_is_reached():
    assert list(MBART50_CODES) == FAIRSEQ_LANGUAGE_CODES
    for code in FAIRSEQ_LANGUAGE_CODES:
        assert mbart50_code(code.split("_")[0]) == mbart50_code(code) == code


@pytest.mark.parametrize(
    ("tag", "code"),
    [("de", "de_DE"), ("de-AT", "de_DE"), ("zh-Hans", "zh_CN"), ("zh-Hant-TW", "zh_CN"), ("EN-us", "en_XX"),
     ("pt-BR", "pt_XX"), ("fil", "tl_XX")],
)  # fmt: skip
def test_script_and_region_do_not_matter(tag, code):
    assert mbart50_code(tag) == code


@pytest.mark.parametrize("tag", ["da", "gsg", "", "german"])
def test_an_unsupported_language_is_refused_with_the_choices(tag):
    with pytest.raises(UsageError, match=r"mBART-50 has no language.*de, en"):
        mbart50_code(tag)
