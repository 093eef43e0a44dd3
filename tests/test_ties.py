"""Gains that are equal but for rounding: every library takes both of two such items, or neither."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import numpy as xp
from libraries import make_library

from scatterbrain_core.backend import Backend
from scatterbrain_core.normalization import Partial
from scatterbrain_core.problem import make_problem
from scatterbrain_core.routing.layout import TILE
from scatterbrain_core.routing.spending import Allowance
from scatterbrain_core.routing.view import View, choose, distances

N_HEADS = 200
# The first two clusters are a group which is split; the others gain the same, by pairs of keys at one place.
COUNT, GROUP = np.array([5.0, 1.0, 2.0, 2.0]), np.array([0, 0, 1, 1])
# Entries of a query, and how many of the two it takes: what is left of the first is room for one.
TAKEN = {3.0: 0, 5.0: 2}


def draw_view(dtype):
    """Heads of one query and four clusters without width, of logits that rounding has fall to either side."""
    rng = np.random.default_rng(3)
    logit = np.stack([rng.uniform(*sides, N_HEADS) for sides in ((4, 5), (-2, -1), (-1, 0), (1, 2))], axis=-1)
    mean = rng.standard_normal((N_HEADS, 4, 3)) * np.array([10, 10, 0.1, 0.1])[:, None]
    return View(
        logit[:, None].astype(dtype),
        np.full((N_HEADS, 1, 4), 0.5, dtype),
        np.tile(COUNT, (N_HEADS, 1)).astype(dtype),
        np.zeros((N_HEADS, 4, 1), dtype),
        mean.astype(dtype),
        np.zeros((N_HEADS, 4), dtype),
        np.tile(np.eye(2)[GROUP], (N_HEADS, 1, 1)).astype(dtype),
        np.zeros((N_HEADS, 4), np.int64),
    )


def chosen(backend, library, view, entries):
    """Clusters that each head opens, shape (H, K), as a backend chooses."""
    own = View(*(library.asarray(x) for x in vars(view).values()))
    nothing = Partial(*library.arrays(view.logit[..., 0] - np.inf, 0 * view.logit[..., :2]))
    shape = (len(view.logit), 1, 1)
    mean, most = (np.full(shape, x, view.logit.dtype) for x in (entries, 8 * entries))
    seen = (own, nothing, None, Allowance(*library.arrays(mean, most), None))
    choice, _ = backend.choose(*seen, lambda: choose(backend, *seen))
    return library.to_numpy(choice.opened)[:, 0]


def of_backend(library, dtype):
    x = library.asarray(np.zeros((2, 1, 1), dtype))
    options = {
        "attn_mask": None,
        "scale": None,
        "enable_gqa": False,
        "check_finite": True,
        "is_causal": False,
    }
    return make_problem(x, x, x, **options).backend


@pytest.mark.parametrize("entries", TAKEN)
@pytest.mark.parametrize("other", ["numpy", "array_api_strict", "torch"])
def test_of_equal_gains_both_are_taken_or_neither(other, dtype, entries):
    view, library = draw_view(dtype), make_library(other)
    backend = of_backend(library, dtype)
    for own in (backend, Backend(backend.xp)):
        opened = chosen(own, library, view, entries)
        np.testing.assert_array_equal(opened[:, 2:].sum(axis=1), TAKEN[entries])


@pytest.mark.parametrize("entries", TAKEN)
def test_compiled_tiles_take_both_or_neither(dtype, entries):
    pytest.importorskip("numba")
    view = draw_view(dtype)
    opened = [opened_by_tile(view, head, entries) for head in range(N_HEADS)]
    np.testing.assert_array_equal(np.sum(opened, axis=1), TAKEN[entries])


def opened_by_tile(view, head, entries):
    """Whether each of the two is opened by the only query of a tile."""
    from scatterbrain_backends.numpy_.compiled import query_tiles

    dtype = view.logit.dtype
    logit, spread = (np.repeat(x[head, 0, :, None], TILE, axis=1) for x in (view.logit, view.spread))
    numbers, of_groups = np.zeros((7, 4), dtype), np.zeros((6, 2), dtype)
    distance, part = distances(xp, view)
    numbers[query_tiles.COUNT], of_groups[query_tiles.MEMBERS] = COUNT, 2
    numbers[query_tiles.DEVIATIONS], numbers[query_tiles.PART] = distance[head], part[head]
    seen = logit, spread, np.repeat(logit.max(), TILE), np.zeros(TILE, dtype), np.arange(TILE) == 0
    limits = float(entries), 8 * entries, 4.0
    _, opened = query_tiles._choose(seen, np.arange(4), GROUP, numbers, of_groups, limits, np.zeros(2))
    assert not opened[:, 1:].any()
    return opened[2:, 0]


@pytest.mark.parametrize("other", ["numpy", "array_api_strict", "torch"])
def test_empty_clusters_give_no_entries_back(other, dtype):
    """A split group with three empty clusters, and a cluster that nothing is left for: 1 + 3 + 9 entries."""
    count, group = np.array([4.0, 1.0, 0.0, 0.0, 0.0, 10.0]), np.array([0, 0, 0, 0, 0, 1])
    with np.errstate(divide="ignore"):
        logit = np.array([3.0, 2.0, 1.0, 1.0, 1.0, 1.0]) + np.log(np.minimum(count, 1))
    shape = (1, 1, 6)
    view = View(
        logit.reshape(shape).astype(dtype),
        np.full(shape, 0.5, dtype),
        count[None].astype(dtype),
        np.zeros((1, 6, 1), dtype),
        (np.arange(6.0)[None, :, None] * np.ones(3)).astype(dtype),
        np.ones((1, 6), dtype),
        np.eye(2)[group][None].astype(dtype),
        np.zeros((1, 6), np.int64),
    )
    library = make_library(other)
    backend = of_backend(library, dtype)
    for own in (backend, Backend(backend.xp)):
        np.testing.assert_array_equal(np.flatnonzero(chosen(own, library, view, 11.0)), [0])
        np.testing.assert_array_equal(np.flatnonzero(chosen(own, library, view, 13.0)), [0, 5])
