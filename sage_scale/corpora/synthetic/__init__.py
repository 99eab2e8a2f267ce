"""The synthetic corpus: an articulated signer who signs a German weather forecast.

No sign language corpus may be shipped, so the demo makes its own: see lexicon.py (the signs), grammar.py and
german.py (meanings, glosses, sentences), sampling.py (splits), animation.py and articulation.py (timing and motion),
render.py (pictures and videos), corpus.py (files). Its signs are invented: it teaches no sign language.
"""

from sage_scale.corpora.synthetic.corpus import VERSION, load_gold, make_corpus, read_corpus, write_keypoints
