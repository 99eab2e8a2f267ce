"""The subset of training clips that `stream.fraction` chooses, for curves of score against data.

A clip belongs to it if the hash of its own key, as a number in [0, 1), is below the fraction. So subsets are nested
(0.1 lies inside 0.25), and a clip's choice depends on nothing else: not on the other clips, their order, shards,
datasets or ranks. A merged or resharded dataset has the same subset, a clip that is added or removed changes no other's
choice, and the subset of a mixture is the union of its sources' subsets. The price is a binomial size: of N clips f N
are chosen, with a deviation of sqrt(f (1 - f) N) (48 +- 6.6 of 480 at 0.1); logs and plans give the number. The k
lowest hashes would give an exact size, but each choice would depend on all other clips.

The hash is the first output of SplitMix64 (Steele, Lea, Flood, 2014) seeded by the key. The key itself, 64 bits of
sha256 over the clip's id, would not do: corpora without published splits are split by the same hash of a name.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sage_scale.errors import UsageError

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def splitmix64(seed_S: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns the first output of SplitMix64 for each seed."""
    z_S = seed_S + _GAMMA
    z_S = (z_S ^ (z_S >> np.uint64(30))) * _FACTORS[0]
    z_S = (z_S ^ (z_S >> np.uint64(27))) * _FACTORS[1]
    return z_S ^ (z_S >> np.uint64(31))


def in_fraction(key_S: NDArray[np.uint64], fraction: float) -> NDArray[np.bool_]:
    """Returns whether each clip, by its key, belongs to the subset of this fraction. Raises UsageError for a fraction
    that is not above 0 and at most 1."""
    if not 0 < fraction <= 1:
        raise UsageError(f"stream.fraction={fraction}: must be above 0 and at most 1")
    if fraction == 1:
        return np.ones(len(key_S), bool)
    return splitmix64(key_S) < np.uint64(int(fraction * 2**64))  # exact: 2^64 only changes the exponent
