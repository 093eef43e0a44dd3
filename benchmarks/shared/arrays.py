"""Query, key and value to measure on, of shape (heads, length, dim) in float32, from fixed seeds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

TOPICS = 64
SPREAD = 0.5  # of the entries that have nothing to find


def normal(heads: int, length: int, dim: int, seed: int = 0) -> list[Array]:
    """Independent normal entries of standard deviation 1/2: weights that are nearly equal."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((heads, length, dim), dtype=np.float32) for _ in range(3)]
    for x in arrays:
        x *= np.float32(SPREAD)
    return arrays


def topical(heads: int, length: int, dim: int, seed: int = 0) -> list[Array]:
    """Rows around common centres, one a topic: most weight of a query is on the keys of its own topic.

    So it is in trained models, where a query's weights are concentrated on few groups of similar keys,
    whose values are similar too. Positions do not matter.
    """
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((2, heads, TOPICS, dim), dtype=np.float32)

    def around(centre: Array, topic: npt.NDArray[np.integer]) -> Array:
        noise = rng.standard_normal((*topic.shape, dim), dtype=np.float32)
        for head in range(heads):  # a head at a time, for its memory
            noise[head] += centre[head, topic[head]]
        return noise

    of_query, of_key = rng.integers(0, TOPICS, (2, heads, length))
    return [around(centres[0], of_query), around(centres[0], of_key), around(centres[1], of_key)]


def sampled_rows(length: int, most: int) -> npt.NDArray[np.intp]:
    """At most so many rows, evenly spaced from the first to the last."""
    return np.linspace(0, length - 1, min(most, length)).astype(np.intp)
