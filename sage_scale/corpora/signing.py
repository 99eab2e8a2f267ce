"""The signing of corpora: its sign languages, and the corpora whose signs are invented."""

from __future__ import annotations

INVENTED = ("synthetic", "acted")
"""Corpora whose signs are no sign language."""
SIGN_LANGUAGES = {
    "phoenix14t": ("gsg",), "csl_daily": ("csl",), "csl_news": ("csl",), "how2sign": ("ase",), "openasl": ("ase",),
    "youtube_asl": ("ase",),
}  # fmt: skip
"""Corpus reader -> sign languages, ISO 639-3; youtube_sl25 has many."""
