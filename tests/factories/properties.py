"""Properties that Hypothesis checks."""

from hypothesis import given, settings


def many(*strategies):
    """Sixty examples of a property, without a deadline: other tests share the cores."""
    return lambda test: settings(max_examples=60, deadline=None)(given(*strategies)(test))
