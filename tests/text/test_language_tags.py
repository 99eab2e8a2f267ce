"""Language tags as people write them, brought to one BCP 47 form."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_scale.errors import UsageError
from sage_scale.text.languages import checked_tag, has_mbart50_code, language_tag, matches, primary_subtag


@pytest.mark.parametrize(
    ("written", "tag"),
    [("zh_CN", "zh-CN"), ("zh-hans", "zh-Hans"), ("cmn-Hans", "zh-Hans"), ("pt_BR", "pt-BR"), ("PT-br", "pt-BR"),
     ("por", "pt"), ("deu_AT", "de-AT"), ("ger", "de"), ("arb", "ar"), ("iw", "he"), ("nb", "nb"), ("nob", "nb"),
     ("es_419", "es-419"), ("en-UK", "en-GB"), ("sgn-DE", "gsg"), (" de ", "de"), ("yue-hk", "yue-HK")],
)  # fmt: skip
def test_one_form(written, tag) -> None:
    assert language_tag(written) == tag == language_tag(tag)


@pytest.mark.parametrize("written", ["cc", "xx", "live_chat", "de-XQ-zzzzz"])
def test_well_formed_tags_of_no_registered_language(written) -> None:
    assert language_tag(written) and not language_tag(written, registered=True)
    assert language_tag("pt_BR", registered=True) == "pt-BR"


@pytest.mark.parametrize("written", ["", "2", "german", "part1", "de-", "日本", "\ud83d", "e" * 9000])
def test_no_tag(written) -> None:
    assert language_tag(written) == ""
    with pytest.raises(UsageError, match=r"^corpus\.language=.{0,110} is not a language tag") as caught:
        checked_tag(written, "corpus.language")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("written", "subtag"), [("por", "pt"), ("cmn-Hans", "zh"), ("zh_TW", "zh"), ("yue", "yue"), ("deu", "de")]
)
def test_the_primary_subtag_of_any_form(written, subtag, monkeypatch) -> None:
    assert primary_subtag(written) == subtag
    assert has_mbart50_code(written) == (subtag != "yue")
    monkeypatch.setitem(sys.modules, "langcodes", None)  # a machine that only trains
    language_tag.cache_clear()
    assert primary_subtag("pt-BR") == "pt" and primary_subtag("gsg") == "gsg"


def test_ranges_of_tags() -> None:
    assert matches("pt-BR", "pt") and matches("pt-BR", "pt-BR") and matches("zh-Hant-TW", "zh-Hant")
    assert not matches("pt", "pt-BR") and not matches("fil", "fi") and not matches("pt-PT", "pt-BR")


@settings(max_examples=100, deadline=None)
@given(st.text() | st.text("aAbdeghnrtu-_1", max_size=14))
def test_any_text_is_a_tag_or_none(written) -> None:
    tag = language_tag(written)
    assert language_tag(tag) == tag and tag.isascii()
    assert isinstance(primary_subtag(written), str)
