"""Counter-based random numbers: each is a pure function of (seed, position), so no state can be lost or shared.

A sequence that resumes on another node draws what it would have drawn, and a draw does not depend on
which sequences happen to share the batch. Legend: B sequences (rows).

The generator is SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014),
whose n-th output has the closed form mix(state + n * gamma), computed here for all rows at once.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Words: TypeAlias = npt.NDArray[np.uint64]
Doubles: TypeAlias = npt.NDArray[np.float64]

GAMMA = np.uint64(0x9E3779B97F4A7C15)  # the odd integer nearest to 2^64 / golden ratio
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
SHIFT_1, SHIFT_2, SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)
ONE = np.uint64(1)
DROPPED_BITS = np.uint64(11)  # a float64 holds 53 of the 64 bits
STEP = 2.0**-53


def mix(words_B: Words) -> Words:
    """SplitMix64's finalizer: a bijection of 64-bit words in which each input bit flips half of the output bits."""
    words_B = (words_B ^ (words_B >> SHIFT_1)) * MIX_1
    words_B = (words_B ^ (words_B >> SHIFT_2)) * MIX_2
    return words_B ^ (words_B >> SHIFT_3)


def random_words(states_B: Words, positions_B: npt.NDArray[np.int64]) -> Words:
    """Output number `position` (from 0) of the SplitMix64 generator that starts in `state`, for each row [B]."""
    return mix(states_B + (positions_B.astype(np.uint64) + ONE) * GAMMA)


def stream_state(seed: int) -> np.uint64:
    """The starting state of a request's stream; hashed, so that neighbouring seeds start far apart."""
    return mix(np.array([seed], dtype=np.uint64) ^ GAMMA)[0]


def uniforms(states_B: Words, positions_B: npt.NDArray[np.int64]) -> Doubles:
    """One number in [0, 1) for each row [B]: that of output token `position` in the stream that starts in `state`."""
    return (random_words(states_B, positions_B) >> DROPPED_BITS).astype(np.float64) * STEP
