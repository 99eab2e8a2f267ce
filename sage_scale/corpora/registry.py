"""Corpus adapters by name: `read_corpus(recipe.corpus)` returns the manifest of any of them.

An adapter is a function from `config.Corpus` to `Manifest` (corpora/adapters.py has their shared parts). A plug-in, a
module of SAGE_SCALE_PLUGINS or of an installed package (config/extension.py), adds one by `register`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable

from sage_scale.config import Corpus
from sage_scale.config.extension import import_plugins
from sage_scale.corpora.manifest import Manifest
from sage_scale.errors import UsageError
from sage_scale.registry import resolve
from sage_scale.text.languages import checked_tag
from sage_scale.untrusted.display import shortened

Adapter = Callable[[Corpus], Manifest]

ADAPTERS: dict[str, str | Adapter] = {
    "synthetic": "sage_scale.corpora.synthetic:read_corpus",
    "acted": "sage_scale.corpora.acted.corpus:read_corpus",
    "phoenix14t": "sage_scale.corpora.phoenix14t:read_corpus",
    "csl_daily": "sage_scale.corpora.csl_daily:read_corpus",
    "how2sign": "sage_scale.corpora.how2sign:read_corpus",
    "youtube_sl25": "sage_scale.corpora.youtube:read_sl25",
    "youtube_asl": "sage_scale.corpora.youtube:read_asl",
    "openasl": "sage_scale.corpora.openasl:read_corpus",
    "csl_news": "sage_scale.corpora.csl_news:read_corpus",
    "videos": "sage_scale.corpora.videos:read_corpus",
    "manifest": "sage_scale.corpora.manifest:read_corpus",
}
"""Corpus name -> function, or "module:function", imported when it is first read."""


def register(name: str, adapter: str | Adapter) -> None:
    """Makes `corpus.name=NAME` read by `adapter`, a function or "module:function"; the last registration counts."""
    ADAPTERS[name] = adapter


def read_corpus(corpus: Corpus) -> Manifest:
    """Returns the clips of `corpus` and the rejected rows, every language as its BCP 47 tag.

    Raises UsageError for an unknown name, a wrong or empty root, and a language that is no tag.
    """
    import_plugins()
    if corpus.name not in ADAPTERS:
        near = difflib.get_close_matches(corpus.name, ADAPTERS, n=1)
        advice = f"did you mean {near[0]}?" if near else f"known: {', '.join(ADAPTERS)}"
        raise UsageError(f"no corpus reader '{shortened(corpus.name)}'; {advice}")
    corpus = dataclasses.replace(
        corpus,
        language=checked_tag(corpus.language, "corpus.language"),
        languages=tuple(checked_tag(tag, "corpus.languages") for tag in corpus.languages),
    )
    manifest: Manifest = resolve(ADAPTERS[corpus.name])(corpus)
    if not manifest.clips:
        told = ""
        if manifest.rejected:
            first = manifest.rejected[0]
            told = f"; {len(manifest.rejected)} rows were rejected, the first: {shortened(first.id)}: {first.reason}"
        raise UsageError(f"corpus {corpus.name}: no clip in {corpus.root}{told}")
    return manifest
