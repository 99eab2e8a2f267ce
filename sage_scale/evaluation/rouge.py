"""ROUGE-L of a sentence, in the three forms of the field's scripts.

`lin`: F_beta of the longest common subsequence of words, F = (1 + beta^2) P R / (R + beta^2 P) (Lin 2004, equation 4);
beta 1.2 is that of the MS COCO caption scorer. `seq2seq`: the same with beta = P / R of the sentence (tf-seq2seq, in
the scripts of TwoStream-SLT). `package`: the package `rouge` 1.0.1, which splits at full stops and counts distinct
words.
"""

from __future__ import annotations

from collections.abc import Sequence

FORMS = ("lin", "seq2seq", "package")


def sentence_rouge_l(
    hypothesis: Sequence[str], reference: Sequence[str], form: str = "lin", beta: float = 1.0
) -> float:
    """Returns ROUGE-L of two lists of words, 0 to 1; 0 where one is empty. `beta` is of the form `lin` only."""
    if not hypothesis or not reference:
        return 0.0
    if form == "package":
        return _of_package(hypothesis, reference)
    common = _common_length(hypothesis, reference)
    if not common:
        return 0.0
    precision, recall = common / len(hypothesis), common / len(reference)
    if form == "seq2seq":
        beta = precision / recall
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def _of_package(hypothesis: Sequence[str], reference: Sequence[str]) -> float:
    """Returns 2 P R / (P + R) of the distinct words in the common subsequences of all pairs of sentences."""
    h, r = _sentences(hypothesis), _sentences(reference)
    if not h or not r:
        return 0.0
    common = {word for theirs in r for ours in h for word in _common_words(theirs, ours)}
    precision = len(common) / len({word for sentence in h for word in sentence})
    recall = len(common) / len({word for sentence in r for word in sentence})
    return 2 * precision * recall / (precision + recall + 1e-8)


def _sentences(words: Sequence[str]) -> list[list[str]]:
    """Returns the words of each sentence of a text; a part of spaces alone is one empty word, as in the package."""
    parts = " ".join(words).split(".")
    return [" ".join(part.split()).split(" ") for part in parts if part]


def _common_length(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, start=1):
            above = row[j]
            row[j] = before + 1 if x == y else max(above, row[j - 1])
            before = above
    return row[-1]


def _common_words(a: Sequence[str], b: Sequence[str]) -> list[str]:
    """Returns a longest common subsequence; of several, that of the package, which shortens `b` first."""
    table = [[0] * (len(b) + 1)]
    for x in a:
        above = table[-1]
        row = [0]
        for j, y in enumerate(b, start=1):
            row.append(above[j - 1] + 1 if x == y else max(above[j], row[j - 1]))
        table.append(row)
    i, j, words = len(a), len(b), []
    while i and j:
        if a[i - 1] == b[j - 1]:
            words.append(a[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words
