"""The built-in models, a folder each: `SPEC` (a `registry.ModelSpec`) in its `__init__.py` says what it consists of.

Nothing outside such a folder names a model: the program asks `registry.model_spec(recipe.model.kind)`.
"""
