"""Corpus readers by name: `read_corpus(recipe.corpus)` gives the manifest of any of them.

A reader is a function from `config.Corpus` to `Manifest`. It looks at names, tables and captions, never into
a video.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib

from sage_scale.config import Corpus
from sage_scale.corpora.clip import Manifest
from sage_scale.errors import UsageError
from sage_scale.storage import on_this_machine
from sage_scale.text.languages import checked_tag
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import expanded

READERS = {
    "synthetic": "sage_scale.corpora.registry:_read_synthetic",
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
"""Corpus name -> module:function, imported when asked for."""


def read_corpus(corpus: Corpus) -> Manifest:
    """Returns the clips of `corpus` and the rows set aside, every language as its BCP 47 tag.

    Raises UsageError for an unknown name, a wrong or empty root, and a language that is no tag.
    """
    if corpus.name not in READERS:
        near = difflib.get_close_matches(corpus.name, READERS, n=1)
        advice = f"did you mean {near[0]}?" if near else f"known: {', '.join(READERS)}"
        raise UsageError(f"no corpus reader '{shortened(corpus.name)}'; {advice}")
    corpus = dataclasses.replace(
        corpus,
        language=checked_tag(corpus.language, "corpus.language"),
        languages=tuple(checked_tag(tag, "corpus.languages") for tag in corpus.languages),
    )
    module, _, function = READERS[corpus.name].partition(":")
    manifest: Manifest = getattr(importlib.import_module(module), function)(corpus)
    if not manifest.clips:
        set_aside = f"; {len(manifest.rejected)} rows were set aside" if manifest.rejected else ""
        first = (
            f", the first: {shortened(manifest.rejected[0].id)}: {manifest.rejected[0].reason}"
            if set_aside
            else ""
        )
        raise UsageError(f"corpus {corpus.name}: no clip in {corpus.root}{set_aside}{first}")
    return manifest


def _read_synthetic(corpus: Corpus) -> Manifest:
    from sage_scale.corpora.synthetic import read_corpus as read_made

    if not corpus.root:
        raise UsageError("corpus synthetic: give the folder it was made in (--root PATH or corpus.root=PATH)")
    return read_made(corpus, expanded(on_this_machine(corpus.root, "a corpus")))
