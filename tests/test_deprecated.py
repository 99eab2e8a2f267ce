"""Names that older versions documented can be imported, and say once where they are now."""

import importlib
import warnings

import pytest

from sage_scale.deprecated import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_is_the_new_object_and_warns_once(old):
    module, _, name = old.partition(":")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = getattr(importlib.import_module(module), name)
    where, _, called = MOVED[old].partition(":")
    assert value is getattr(importlib.import_module(where), called)
    assert [(w.category, where in str(w.message)) for w in caught] == [(DeprecationWarning, True)]


def test_other_names_are_missing_as_ever():
    module = importlib.import_module("sage_scale.models.sign2gpt")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing
