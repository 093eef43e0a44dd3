"""The kernel of labels against a one-hot matrix."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import relative_error
from problems import eps

from scatterbrain_core.backend import backend_of
from scatterbrain_core.low_rank import Features, IndicatorKernel, indicator_rows


@pytest.fixture(params=[(), (3,), (2, 2)], ids=["no lead", "one", "two"])
def rows(request, rng, dtype):
    """Query rows, labels and log weights, some of them of no label or no weight; values."""
    lead = request.param
    label = rng.integers(-1, 5, (*lead, 90))
    label[label == 3] = 2  # a label without keys
    log_weight = 30 * rng.standard_normal((*lead, 90)).astype(dtype)
    log_weight[..., 7] = -np.inf
    return (30 * rng.standard_normal((*lead, 11, 5)).astype(dtype), label, log_weight), rng.standard_normal(
        (*lead, 90, 3)
    ).astype(dtype)


def logs_of(query, label, log_weight):
    """Log weight of every pair, by the definition."""
    places = np.broadcast_to(np.maximum(label, 0)[..., None, :], (*query.shape[:-1], 90))
    taken = np.take_along_axis(query, places, -1)
    return np.where((label >= 0)[..., None, :], taken + log_weight[..., None, :], -np.inf)


def made(library, rows):
    query, label, log_weight = (library.asarray(x) for x in rows)
    backend = backend_of(x=query)
    return backend, query, indicator_rows(backend.xp, label, log_weight)


def total(library, part):
    """exp(ref) * acc in float64."""
    ref, acc = (library.to_numpy(x).astype(float) for x in (part.ref, part.acc))
    return np.exp(ref)[..., None] * acc


def test_pairs_and_sums_are_those_of_the_definition(library, dtype, rows):
    (query, label, log_weight), values = rows
    backend, own, key = made(library, rows[0])
    kernel, expected = IndicatorKernel(5), logs_of(*rows[0])
    visible = library.asarray(np.ones(expected.shape, dtype=bool))
    got, factor = kernel.pairs(backend, own, key, visible)
    assert factor is None
    np.testing.assert_allclose(library.to_numpy(got), expected, rtol=1e-6, atol=100 * eps(dtype))
    states = kernel.states(backend, key, library.asarray(values))
    assert states.ref.shape == (*query.shape[:-2], 5)
    of_label = label[..., None, :] == np.arange(5)[:, None]
    weights = np.where(of_label, np.exp(log_weight.astype(float))[..., None, :], 0)
    assert relative_error(total(library, states), weights @ values) < 64 * eps(dtype)
    assert np.isneginf(library.to_numpy(states.ref)[..., 3]).all()
    applied = total(library, kernel.apply(backend, own, states))
    assert relative_error(applied, np.exp(expected.astype(float)) @ values) < 300 * eps(dtype)


def test_a_hidden_key_weighs_nothing(library, rows):
    backend, own, key = made(library, rows[0])
    kernel, visible = IndicatorKernel(5), np.arange(90) % 3 > 0
    of_keys = np.broadcast_to(visible, rows[0][1].shape).copy()
    hidden = kernel.hide(backend.xp, key, library.asarray(of_keys))
    every = library.asarray(np.ones((*own.shape[:-1], 90), dtype=bool))
    expected = np.where(visible, logs_of(*rows[0]), -np.inf)
    got = library.to_numpy(kernel.pairs(backend, own, hidden, every)[0])
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-5)


def test_groups_are_the_labels_in_parts(library, rows):
    backend, own, key = made(library, rows[0])
    every = library.asarray(np.ones((*own.shape[:-1], 90), dtype=bool))
    whole, found = Features(own, key, IndicatorKernel(5)), []
    for part in (slice(0, 2), slice(2, 5)):
        group = whole.kernel.group(backend.xp, whole, part)
        assert group.kernel == IndicatorKernel(part.stop - part.start)
        pairs, _ = group.kernel.pairs(backend, group.query, group.key, every)
        found.append(library.to_numpy(pairs))
    np.testing.assert_allclose(np.maximum(*found), logs_of(*rows[0]), rtol=1e-6, atol=1e-5)
    assert np.isneginf(np.minimum(*found)).all()


def test_labels_are_left_out(library, dtype, rng):
    query = rng.standard_normal((7, 4)).astype(dtype)
    labels = np.array([[0, -1], [1, 3], [2, 2], [-1, -1], [3, 0], [0, 1], [-1, 2]])
    got = IndicatorKernel(4).without(backend_of(x=library.asarray(query)).xp, *library.arrays(query, labels))
    expected = query.copy()
    for row, out in zip(expected, labels, strict=True):
        row[out[out >= 0]] = -np.inf
    np.testing.assert_array_equal(library.to_numpy(got), expected)
