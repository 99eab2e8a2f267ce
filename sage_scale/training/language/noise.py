"""Noise for denoising pretraining: mBART's noise on sentences, and sentences reduced to their pseudo-glosses.

Every example is a pure function of (seed, step, position in the batch). A sentence is a list of *units*, lists of
subword ids that make a word; noise works on whole units.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sage_scale.config import Denoise
from sage_scale.text.tokenizer import encode_texts

Units = list[list[int]]
Example = tuple[Units, list[Units]]
"""A sentence's units, and those of each of its pseudo-glosses."""

_SPAN = 3.5
"""Mean length of a masked span, words (mBART, section 2.2)."""


def units(tokenizer: Any, text: str) -> Units:
    """Returns the subword ids of each word of a text, or of each subword if the language has no spaces."""
    [ids] = encode_texts(tokenizer, [text])
    found: Units = []
    for number, piece in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        if piece.startswith("▁") or not found:
            found.append([number])
        else:
            found[-1].append(number)
    return [[number] for number in found[0]] if len(found) == 1 else found


def infill(sentence: Units, share: float, mask_id: int, rng: random.Random) -> Units:
    """Replace spans of Poisson length by one mask each (text infilling); at most `share` of the words are removed.

    A span of length 0 only inserts a mask, as in mBART.
    """
    noisy: list[list[int] | None] = list(sentence)
    left = round(share * len(sentence))
    while left > 0:
        length = min(_poisson(_SPAN, rng), left)
        start = rng.randint(0, len(noisy) - length)
        if any(unit is None for unit in noisy[start : start + length]):
            left -= 1  # two spans would grow together
            continue
        noisy[start : start + length] = [None]
        left -= length
    return [[mask_id] if unit is None else unit for unit in noisy]


def shuffle_lightly(items: list[Any], reach: float, rng: random.Random) -> list[Any]:
    """Returns the items permuted so that items `reach` or more positions apart keep their order."""
    keys = [index + rng.uniform(0, reach) for index in range(len(items))]
    return [items[index] for index in sorted(range(len(items)), key=keys.__getitem__)]


class Noise:
    """Batches of noisy inputs and clean targets, in mBART-50's form."""

    def __init__(
        self,
        examples: Sequence[Example],
        recombined: Sequence[Example],
        language_id: int,
        tokenizer: Any,
        denoise: Denoise,
        seed: int,
        longest: int,
        languages: tuple[Sequence[int], Sequence[int]] | None = None,
    ) -> None:
        """`language_id` is the language code of all examples; for several languages, `languages` has one code per
        example and per recombined example."""
        self.examples = examples
        self.recombined = recombined
        self.languages = languages or ([language_id] * len(examples), [language_id] * len(recombined))
        self.eos, self.pad, self.mask = (
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
            tokenizer.mask_token_id,
        )
        self.denoise = denoise
        self.seed = seed
        self.longest = longest
        self.lemmas = [gloss for _, glosses in examples for gloss in glosses]
        self._orders: dict[int, list[int]] = {}

    def batch(self, step: int) -> dict[str, Tensor]:
        """Returns the batch of a step: input_ids_BM, mask_BM, decoder_input_ids_BL and labels_BL (-100 on padding)."""
        B = self.denoise.batch_size
        # Recombined sentences teach to read lemmas, but some are odd: they give way to the true ones.
        chance = self.denoise.recombined * max(0.0, 1 - step / self.denoise.steps)
        sources, targets = [], []
        for position in range(step * B, (step + 1) * B):
            epoch, index = divmod(position, len(self.examples))
            rng = random.Random(f"{self.seed}/{position}")
            number = self._order(epoch)[index]
            example, language = self.examples[number], self.languages[0][number]
            if self.recombined and rng.random() < chance:
                number = rng.choice(range(len(self.recombined)))
                example, language = self.recombined[number], self.languages[1][number]
            sources.append(self._source(example, language, rng))
            targets.append(self._target(example, language))
        inputs = padded(sources, self.pad)
        labels = padded(targets, -100)
        shifted = padded([[self.eos, *row[:-1]] for row in targets], self.pad)
        return {
            "input_ids_BM": inputs,
            "mask_BM": inputs.ne(self.pad).long(),
            "decoder_input_ids_BL": shifted,
            "labels_BL": labels,
        }

    def _source(self, example: Example, language: int, rng: random.Random) -> list[int]:
        """Returns a noisy input: masked and permuted sentence, pseudo-glosses, or a single lemma."""
        sentence, glosses = example
        kind = rng.random()
        if kind < self.denoise.glosses and glosses:
            noisy = self._gloss_noise(glosses, rng)
        elif kind < self.denoise.glosses + self.denoise.single and glosses:
            noisy = rng.choice(glosses)
        else:
            noisy = infill(sentence, self.denoise.mask, self.mask, rng)
            if rng.random() < 0.5:
                noisy = shuffle_lightly(noisy, 3.0, rng)
        flat = [number for unit in noisy for number in unit][: self.longest - 2]
        # Visual tokens come without language code and end of sentence, so half of the inputs do too.
        return [language, *flat, self.eos] if rng.random() < 0.5 or not flat else flat

    def _gloss_noise(self, glosses: list[Units], rng: random.Random) -> Units:
        """Returns glosses with deletions, repeats, substitutions and a perturbed order, as from a sign recogniser."""
        if rng.random() < 0.3:
            return [unit for gloss in glosses for unit in gloss]
        level = rng.random() * self.denoise.gloss_noise
        kept = []
        for gloss in glosses:
            chance = rng.random()
            if chance < level * 0.4:
                continue
            if chance < level * 0.6:
                gloss = rng.choice(self.lemmas)
            kept += [gloss, gloss] if rng.random() < level * 0.5 else [gloss]
        reach = 1.0 + 4.0 * rng.random()
        return [unit for gloss in shuffle_lightly(kept or glosses, reach, rng) for unit in gloss]

    def _target(self, example: Example, language: int) -> list[int]:
        flat = [number for unit in example[0] for number in unit][: self.longest - 2]
        return [language, *flat, self.eos]

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            order = list(range(len(self.examples)))
            random.Random(f"{self.seed}/epoch/{epoch}").shuffle(order)
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 1} | {epoch: order}
        return self._orders[epoch]


def _poisson(mean: float, rng: random.Random) -> int:
    limit, product, count = math.exp(-mean), rng.random(), 0
    while product > limit:
        product *= rng.random()
        count += 1
    return count


def padded(rows: Sequence[list[int]], value: int) -> Tensor:
    """Returns int64 (rows, longest row): the rows, padded at their ends with `value`."""
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows], dtype=torch.int64)
