"""Which blocks of keys are clustered at which scale: from lengths and the entries of a query alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scatterbrain_core.problem import Problem
from scatterbrain_core.sparse.routed_clusters import LINEAR_FROM, RoutedClusters

# Clusters of the largest blocks together: what a query looks at does not grow with the length.
MOST_CLUSTERS = 512
LARGEST_BLOCKS = 8
# Keys of a cluster where there are fewer keys than that.
CLUSTER = 4
# A smaller block's clusters serve until the next larger block is complete.
RATIO = 8
SMALL_CLUSTER = 8
MOST_SMALL_CLUSTERS = 32
# Clusters of all the blocks of a size that may wait for the next larger one.
MOST_WAITING = 128
# The first keys, which many models use as a sink, are always exact (arXiv 2309.17453).
MOST_FIRST_KEYS, ENTRIES_A_FIRST_KEY = 4, 8
LARGEST_OWN_BLOCK = 128
# What the coarsest view may take of the entries, where a smaller one can be had.
COARSEST_SHARE = 0.6
# Where all queries see all keys: queries of a chunk, and of a tile of those that look at the same clusters.
CHUNK, TILE = 1024, 64
# A tile looks at as many clusters as a query has entries, or at so many.
LEAST_LOOKED = 128


@dataclass(frozen=True)
class Level:
    """Blocks of one size, each clustered by itself.

    Attributes
    ----------
    block : int
        Keys of a block.
    parent : int
        Keys of the block of the next level, whose clusters take the place of these once it is complete.
    n_fine, n_coarse : int
        Clusters of a block, and groups of them.
    """

    block: int
    parent: int
    n_fine: int
    n_coarse: int


@dataclass(frozen=True)
class Layout:
    """The blocks and clusters of one call.

    Attributes
    ----------
    length : int
        Keys, and causal queries, with what pads them to whole largest blocks.
    first : int
        How many of the first keys are exact for every query.
    own : int
        A causal query sees the keys of its own block of this size exactly; 0 where not causal.
    levels : tuple of Level
        Smallest blocks first. Where not causal there is one, with as many coarse groups over all blocks.
    refined : int
        Entries that a query may add to its coarsest view of the keys.
    looked : int
        Where not causal, about how many clusters a tile of queries looks at, beside groups seen as one.
    """

    length: int
    first: int
    own: int
    levels: tuple[Level, ...]
    refined: int
    looked: int = 0

    @property
    def chunk(self) -> int:
        """Queries that see the same blocks, but for the smallest ones before their own."""
        if not self.own:
            return CHUNK
        return self.levels[0].parent if len(self.levels) > 1 else self.levels[0].block

    @property
    def largest(self) -> Level:
        """The level of the largest blocks."""
        return self.levels[-1]

    @property
    def n_blocks(self) -> int:
        """Number of the largest blocks."""
        return self.length // self.largest.block


def lay_out(problem: Problem, part: RoutedClusters) -> Layout:
    """Blocks and clusters of a problem for a planned part.

    Raises
    ------
    ValueError
        The entries are fewer than the coarsest view has; the message says the least budget.
    """
    assert part.entries is not None
    if problem.is_causal:
        return _causal(problem.n_queries, problem.n_keys, part.entries)
    return _not_causal(problem.n_keys, part.entries)


def _not_causal(n_keys: int, entries: float) -> Layout:
    block = max(MOST_CLUSTERS, -(-n_keys // LARGEST_BLOCKS))
    block = min(block, n_keys)
    n_blocks = -(-n_keys // block)
    n_fine = max(1, min(block // CLUSTER, MOST_CLUSTERS // n_blocks))
    n_coarse = max(1, min(int(entries / 4), n_blocks * n_fine // 2))
    first = _first_keys(entries)
    refined = int(entries) - n_coarse - first
    if refined < 0:
        raise _too_small(2, entries, n_keys)  # a first key and a group
    length = n_blocks * block
    looked = max(LEAST_LOOKED, int(entries))
    return Layout(length, first, 0, (Level(block, length, n_fine, n_coarse),), refined, looked)


def _causal(n_queries: int, n_keys: int, entries: float) -> Layout:
    length = max(n_queries, n_keys)
    largest = _power_of_two_above(-(-length // LARGEST_BLOCKS))
    length = -(-length // largest) * largest
    first = _first_keys(entries)
    wanted = max(1, int(entries / 2) // (length // largest))
    forms = []
    for own in _halves(min(_largest_own(entries), largest)):
        for n_coarse in _halves(wanted):
            levels = _levels(own, largest, length, n_coarse)
            base = _base_entries(first, own, levels, n_queries, n_keys)
            mean = sum(base) / len(base)
            if mean <= COARSEST_SHARE * entries:
                return Layout(length, first, own, levels, _refinement(base, entries, n_queries, n_keys))
            forms.append((mean, own, levels, base))
    mean, own, levels, base = min(forms, key=lambda form: form[0])
    if mean > entries:
        raise _too_small(_least_entries(n_queries, n_keys, largest, length), entries, n_keys)
    return Layout(length, first, own, levels, _refinement(base, entries, n_queries, n_keys))


def _halves(n: int) -> list[int]:
    """n, n // 2, ... down to 1."""
    return [n >> shift for shift in range(n.bit_length())]


def _first_keys(entries: float) -> int:
    return min(max(int(entries / ENTRIES_A_FIRST_KEY), 1), MOST_FIRST_KEYS)


def _largest_own(entries: float) -> int:
    return min(_power_of_two_below(entries / 2), LARGEST_OWN_BLOCK)


def _least_entries(n_queries: int, n_keys: int, largest: int, length: int) -> float:
    """The least entries that a form of causal blocks can be had for."""
    for first in range(1, MOST_FIRST_KEYS + 1):
        means = []
        for own in _halves(min(LARGEST_OWN_BLOCK, largest)):
            base = _base_entries(first, own, _levels(own, largest, length, 1), n_queries, n_keys)
            # Fewer entries have neither so large an own block nor so many first keys.
            least = (2 * own if own > 1 else 1, ENTRIES_A_FIRST_KEY * first if first > 1 else 1)
            means.append(max(sum(base) / len(base), *least))
        if _first_keys(min(means)) == first:
            break
    return min(means)


def _levels(own: int, largest: int, length: int, n_coarse: int) -> tuple[Level, ...]:
    levels = []
    block = own
    while block < largest:
        parent = min(RATIO * block, largest)
        most = min(MOST_SMALL_CLUSTERS, MOST_WAITING * block // parent)
        n_fine = max(1, min(block // SMALL_CLUSTER, most))
        levels.append(Level(block, parent, n_fine, max(1, n_fine // 16)))
        block = parent
    n_fine = max(1, min(largest // CLUSTER, MOST_CLUSTERS // (length // largest)))
    levels.append(Level(largest, length, n_fine, min(n_coarse, max(1, n_fine // 2))))
    return tuple(levels)


def _base_entries(
    first_keys: int, own: int, levels: tuple[Level, ...], n_queries: int, n_keys: int
) -> list[float]:
    """Entries of the coarsest view of each block of own keys, the mean over its queries."""
    means = []
    for first in range(0, n_queries, own):
        coarse = sum(_blocks_behind(level, first, n_keys) * level.n_coarse for level in levels)
        own_keys = (own + 1) / 2 if first < n_keys else 0.0
        means.append(coarse + own_keys + (min(first_keys, first) if first else 0))
    return means


def _blocks_behind(level: Level, first: int, n_keys: int) -> int:
    """Blocks of a level with keys that a query at this position sees, but for those in blocks of the next."""
    inside = first // level.parent * level.parent // level.block
    return max(min(first // level.block, -(-n_keys // level.block)) - inside, 0)


def _refinement(base: list[float], entries: float, n_queries: int, n_keys: int) -> int:
    """The most a query may add such that the mean over all queries is within the entries."""
    own = -(-n_queries // len(base))
    seen = [min((i + 0.5) * own, n_queries, n_keys) for i in range(len(base))]
    low, high = 0, int(seen[-1]) + 1
    while high - low > 1:
        middle = (low + high) // 2
        total = sum(min(b + middle, max(s, b)) for b, s in zip(base, seen, strict=True))
        low, high = (middle, high) if total <= entries * len(base) else (low, middle)
    return low


def _power_of_two_below(x: float) -> int:
    return 1 << (max(int(x), 1).bit_length() - 1)


def _power_of_two_above(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def _too_small(least: float, entries: float, n_keys: int) -> ValueError:
    n_entries, fraction = (math.ceil(1e4 * x) / 1e4 for x in (least, least / min(n_keys, LINEAR_FROM)))
    return ValueError(
        f"budget must be at least {fraction:g}, or entries {n_entries:g}, for the coarsest clusters of "
        f"{n_keys} keys, got {entries:g} entries"
    )
