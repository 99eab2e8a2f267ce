"""The synthetic corpus: an articulated signer who signs a German weather forecast.

No sign language corpus may be shipped, so the demo makes its own: see lexicon.py (the signs), grammar.py and
german.py (meanings, glosses, sentences), choreography.py and articulation.py (timing and motion), render.py (the
picture), corpus.py (files). Its signs are invented: nothing learnt from it is knowledge of a sign language.
"""

from sage_scale.corpora.synthetic.corpus import VERSION, load_gold, make_corpus, read_corpus

__all__ = ["VERSION", "load_gold", "make_corpus", "read_corpus"]
