"""Acted text: invented signs perform anybody's glossed sentences, so that methods can be compared on the sentences and
gloss orders of a real corpus without its video.

table.py reads the sentences, signs.py invents signs and signers by their names, corpus.py makes and reads the corpus.
Figures on such a corpus are not results on the corpus of the table; the corpus says so wherever it is shown.
"""
