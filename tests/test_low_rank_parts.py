"""Low-rank parts made from the keys, and the presets of them, against their papers' definitions."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from array_api_compat import array_namespace
from definitions import log_centroids, nystromformer, pinv, segments_of
from libraries import make_library
from oracle import log_weights, oracle, relative_error, tolerance
from problems import draw_problem
from scipy.special import softmax

import scatterbrain_core as sb
from scatterbrain_core.low_rank import nystrom
from scatterbrain_core.random import Draws

PARTS = {
    "n_segments": sb.SegmentMeans,
    "n_clusters": sb.Centroids,
    "n_columns": sb.ColumnSample,
    "n_landmarks": sb.NystromLandmarks,
}
SPARSE = {
    "none": None,
    "window": sb.LocalWindow(5),
    "tables": sb.RandomHyperplanes(2, 2),
    "global": sb.GlobalTokens(2, (), 2),
}


def every(x):
    return np.ones(len(x), dtype=bool)


def by_position(rng, n_queries=48, n_keys=64, dim=8, size=2.5, dtype="float64"):
    """Queries and keys near one direction for each eighth of the sequence: landmarks that differ."""
    directions = size * np.linalg.qr(rng.standard_normal((8, 8)))[0][:, :dim]
    _, _, v = draw_problem(rng, n_queries, n_keys, dim, dtype=dtype)
    q, k = (
        np.repeat(directions, n // 8, axis=0) + 0.3 * rng.standard_normal((2, n, dim))
        for n in (n_queries, n_keys)
    )
    return q.astype(dtype), k.astype(dtype), v


def test_linformer_is_attention_over_pooled_keys_and_values(library, dtype, rng):
    """arXiv 2006.04768, equation 7, with E = F the mean pooling of 8 segments of 8 keys."""
    q, k, v = draw_problem(rng, 37, 64, lead=(2, 3), dtype=dtype)
    pool = np.kron(np.eye(8), np.full((1, 8), 1 / 8))
    expected = softmax(q.astype(float) @ np.swapaxes(pool @ k, -1, -2) / np.sqrt(5), axis=-1) @ (pool @ v)
    got = sb.attention(*library.arrays(q, k, v), method="linformer", budget=1 / 8)
    assert relative_error(library.to_numpy(got), expected) <= tolerance(dtype, q, k)


@pytest.mark.parametrize("n_landmarks", [4, 8])
def test_nystrom_is_the_papers_where_its_iterations_converge(library, dtype, rng, n_landmarks):
    """arXiv 2102.03902, equation 13 with 6 steps of equation 14: nothing is divided there."""
    q, k, v = by_position(rng, size=4.0, dtype=dtype)
    got = sb.attention(*library.arrays(q, k, v), method="nystrom", budget=n_landmarks / 64, scale=1.0)
    for head in range(2):
        x, y = q[head].astype(float), k[head].astype(float)
        matrix = nystromformer(x, y, n_landmarks, 6, every(x), every(y))
        expected = matrix @ v[head]
        assert np.abs(matrix.sum(-1) - 1).max() < 1e-12
        assert relative_error(library.to_numpy(got)[head], expected) <= 4 * tolerance(dtype, q, k, 1.0)


def test_nystrom_is_the_papers_over_its_row_sums(library, rng):
    """Where the iterations stop short the rows of the paper's matrix do not sum to one."""
    q, k, v = draw_problem(rng, 45, 50)
    got = library.to_numpy(sb.attention(*library.arrays(q, k, v), method="nystrom", budget=0.2))
    for head in range(2):
        x, y = q[head] / 5**0.25, k[head] / 5**0.25
        matrix = nystromformer(x, y, 10, 6, every(x), every(y))
        sums = matrix.sum(-1, keepdims=True)
        assert np.abs(sums - 1).max() > 1e-4
        assert relative_error(got[head], matrix @ v[head] / sums) <= 1e-11


def test_long_short_is_the_window_and_the_other_keys_by_their_segments(library, dtype, rng):
    q, k, v = draw_problem(rng, 64, 64, dtype=dtype)
    est = sb.estimate(*library.arrays(q, k, v), method="long_short", budget=0.25)
    assert est.parts == sb.Scatterbrain(sb.SegmentMeans(4), sb.LocalWindow(12))
    for head in range(2):
        x, y = q[head].astype(float), k[head].astype(float)
        weights = np.zeros((64, 64))
        for rows in segments_of(every(y), 4):
            for i, j in itertools.product(range(64), rows):
                is_near = i - 6 <= j < i + 6
                weights[i, j] = np.exp(x[i] @ (y[j] if is_near else y[rows].mean(0)) / np.sqrt(5))
        expected = weights @ v[head] / weights.sum(-1, keepdims=True)
        assert relative_error(library.to_numpy(est.output)[head], expected) <= tolerance(dtype, q, k)


@pytest.mark.parametrize("sparse", SPARSE.values(), ids=SPARSE)
@pytest.mark.parametrize("mask", [None, 50])
def test_nystrom_goes_with_any_support(library, dtype, rng, sparse, mask):
    """A kernel of either sign; masks leave landmarks without keys or queries."""
    q, k, v = by_position(rng, dtype=dtype)
    parts = sb.Scatterbrain(sb.NystromLandmarks(8), sparse)
    hides = None if mask is None else (np.arange(64) < mask)[None, :]
    arguments = {} if mask is None else {"attn_mask": library.asarray(hides)}
    est = sb.estimate(*library.arrays(q, k, v), method=parts, scale=1.0, **arguments)
    output, lse = oracle(q, k, v, parts, scale=1.0, mask=hides)
    assert np.abs(lse.imag).max() < 1e-6  # no normaliser is negative
    assert relative_error(library.to_numpy(est.output), output) <= 4 * tolerance(dtype, q, k, 1.0)
    assert np.abs(library.to_numpy(est.lse) - lse.real).max() <= 4 * tolerance(dtype, q, k, 1.0)


def test_nystroms_scale_is_that_of_exact_weights(rng):
    """Where all keys are one the weights are exact; near it, nearly."""
    q, k, _ = draw_problem(rng, 30, 40)
    k = np.broadcast_to(k[:, :1], k.shape)
    exact = np.exp(log_weights(q, k, sb.Scatterbrain(sparse=sb.AllPairs())))
    got = sb.attention_matrix(q, k, method=sb.Scatterbrain(sb.NystromLandmarks(5)), normalize=False)
    np.testing.assert_allclose(got, exact, rtol=1e-3)
    got = sb.attention_matrix(q, k, method=sb.Scatterbrain(sb.NystromLandmarks(5, 12)), normalize=False)
    np.testing.assert_allclose(got, exact, rtol=1e-12)


@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("rows", ["constant", "repeated", "normal"])
def test_landmarks_without_an_inverse_stay_finite(library, dtype, rng, rows, size):
    q, k, v = draw_problem(rng, 60, 70, dtype=dtype)
    if rows == "constant":
        q, k = (np.broadcast_to(x[:, :1], x.shape) for x in (q, k))
    elif rows == "repeated":
        q, k = (x[:, np.arange(x.shape[1]) % 2] for x in (q, k))
    q, k = (np.ascontiguousarray((size * x).astype(dtype)) for x in (q, k))
    parts = sb.Scatterbrain(sb.NystromLandmarks(16))
    out = library.to_numpy(sb.attention(*library.arrays(q, k, v), method=parts))
    assert np.isfinite(out).all()
    if rows == "constant":
        expected = np.broadcast_to(v.mean(1, keepdims=True), out.shape)
        assert relative_error(out, expected) <= 64 * tolerance(dtype, q, k)


def test_the_pseudo_inverse_is_one(library, rng):
    """Equation 14 step by step, and once it has converged; rows and columns of zeros stay zeros."""
    full = rng.random((3, 6, 6)) + 3 * np.eye(6)
    part = full.copy()
    part[:, 4:], part[:, :, 5:] = 0, 0
    low = full[:, :, :2] @ full[:, :2, :]
    for matrix in (full, part, low, np.zeros((1, 4, 4))):
        own = library.asarray(matrix)
        for n in (1, 6, 12):
            got = library.to_numpy(nystrom.pseudo_inverse(array_namespace(own), own, n))
            expected = [pinv(x, n) if x.any() else x for x in matrix]
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(got, np.linalg.pinv(matrix), atol=1e-8)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n_clusters", [5, 140])
def test_second_order_centroids_are_their_definition(library, dtype, rng, n_clusters, masked):
    """140 clusters are found in two blocks."""
    q, k, v = draw_problem(rng, 60, 171, dtype=dtype)
    mask = (rng.random(171) < 0.9)[None, :] if masked else np.ones((1, 171), dtype=bool)
    parts = sb.Scatterbrain(sb.Centroids(n_clusters, second_order=True))
    arguments = {"attn_mask": library.asarray(mask)} if masked else {}
    est = sb.estimate(*library.arrays(q, k, v), method=parts, **arguments)
    output, lse = oracle(q, k, v, parts, mask=mask)
    assert relative_error(library.to_numpy(est.output), output) <= tolerance(dtype, q, k)
    assert np.abs(library.to_numpy(est.lse) - lse).max() <= tolerance(dtype, q, k)
    first = log_weights(q, k, sb.Scatterbrain(sb.Centroids(n_clusters)), mask=mask)
    assert (log_weights(q, k, parts, mask=mask) >= first - 1e-12).all()


def test_the_second_order_is_the_variance_of_the_logits(rng):
    """Of keys whose covariance is diagonal in the eigenvectors; nearer to the exact sum than the first."""
    q, k, _ = draw_problem(rng, 50, 4000, dim=3, lead=())
    q = q * np.array([2.0, 1.0, 0.5])
    k = 0.4 * k * np.array([1.0, 0.3, 0.6])
    q[25:] = q[:25] * np.array([-1, 1, 1])  # the axes are the eigenvectors, but for the last two
    q[:, 1:] = np.linalg.svd(q[:, 1:], full_matrices=False)[0] * np.array([1.0, 0.5])
    logs = log_centroids(q, k, 1, True, every(q), every(k))
    k = k - k.mean(0)
    exact = np.log(np.exp(q @ k.T).mean(-1))
    got = sb.attention_matrix(q, k, method=sb.Scatterbrain(sb.Centroids(1, True)), scale=1.0, normalize=False)
    np.testing.assert_allclose(np.log(got), logs - (logs - np.log(got)).mean(-1, keepdims=True), atol=1e-9)
    error = np.abs(np.log(got[:, 0]) - exact)
    assert error.mean() < 0.1 * np.abs(exact).mean()


@pytest.mark.parametrize("size", [size for size in PARTS if size != "n_landmarks"])
def test_as_many_features_as_keys_are_exact(library, dtype, rng, size):
    q, k, v = draw_problem(rng, 30, 40, dtype=dtype)
    got = sb.attention(*library.arrays(q, k, v), method=sb.Scatterbrain(PARTS[size](40)))
    exact, _ = oracle(q, k, v, sb.Scatterbrain(sparse=sb.AllPairs()))
    assert relative_error(library.to_numpy(got), exact) <= tolerance(dtype, q, k)


@pytest.mark.parametrize("part", [sb.SegmentMeans, sb.Centroids])
def test_means_underestimate(rng, part):
    """Jensen's inequality, cluster by cluster, and with it in every normaliser."""
    q, k, v = draw_problem(rng, 40, 90)
    exact = sb.estimate(q, k, v, method="exact").lse
    for n in (1, 4, 20):
        assert (sb.estimate(q, k, v, method=sb.Scatterbrain(part(n))).lse < exact).all()


@pytest.mark.parametrize("masked", ["no", "causal", "padding", "dense"])
@pytest.mark.parametrize("n_columns", [1, 2, 4])
def test_sampled_columns_are_unbiased(monkeypatch, rng, n_columns, masked):
    """By enumeration: the mean of all samples, each as likely as the others, is exact."""
    q, k, _ = draw_problem(rng, 5, 5)
    masks = {"padding": np.arange(5) != 2, "dense": np.tri(5, dtype=bool)}
    arguments = {"is_causal": masked == "causal"}
    mask = masks.get(masked)
    exact = np.exp(log_weights(q, k, sb.Scatterbrain(sparse=sb.AllPairs()), mask=mask, **arguments))
    value = np.broadcast_to(np.eye(5), (2, 5, 5))
    parts = sb.Scatterbrain(sb.ColumnSample(n_columns))
    total, orders = np.zeros((2, 5, 5)), list(itertools.permutations(range(5)))
    for order in orders:
        monkeypatch.setattr(sb.ColumnSample, "draw", lambda *_, order=order: (np.array(order),))
        est = sb.estimate(q, k, value, method=parts, attn_mask=mask, **arguments)
        total += est.output * np.exp(est.lse)[..., None]
    np.testing.assert_allclose(total / len(orders), exact, rtol=1e-12)


BIASED = {
    "segments, window": (sb.SegmentMeans(3), sb.LocalWindow(3)),
    "centroids": (sb.Centroids(3), None),
    "centroids, tables": (sb.Centroids(4), sb.RandomHyperplanes(2, 2)),
    "second order, global": (sb.Centroids(2, second_order=True), sb.GlobalTokens(2, (), 2)),
    "nystrom, window": (sb.NystromLandmarks(4), sb.LocalWindow(4)),
    "columns, window": (sb.ColumnSample(4), sb.LocalWindow(3)),
}


@pytest.mark.parametrize("parts", BIASED.values(), ids=BIASED)
def test_a_sampled_residual_takes_the_bias(rng, monkeypatch, parts):
    """The mean over all columns as single samples is exact; tiles have the weights of the definition."""
    q, k, _ = draw_problem(rng, 9, 12, dim=3)
    value = np.broadcast_to(np.eye(12), (2, 12, 12))
    method = sb.Scatterbrain(*parts, debias=1)
    found = []
    for column in range(12):
        monkeypatch.setattr(Draws, "columns", lambda *_, column=column: np.array([column]))
        weights = sb.attention_matrix(q, k, method=method, normalize=False)
        found.append(weights)
        total = weights.sum(-1, keepdims=True)
        lost = np.abs(weights).sum(-1, keepdims=True) / np.abs(total)
        got = sb.attention(q, k, value, method=method)
        assert (np.abs(got - weights / total) <= 1e-13 * lost**2).all()
    exact = sb.attention_matrix(q, k, method="exact", normalize=False)
    np.testing.assert_allclose(np.mean(found, axis=0), exact, rtol=1e-11, atol=1e-13)
    biased = sb.attention_matrix(q, k, method=sb.Scatterbrain(*parts), normalize=False)
    assert relative_error(biased, exact) > 1e-3


def test_the_order_of_the_sample_is_uniform():
    orders = [tuple(sb.ColumnSample(1).draw(np.random.default_rng(seed), 4, 3)[0]) for seed in range(400)]
    assert set(orders) == set(itertools.permutations(range(3)))


@pytest.mark.parametrize("size", PARTS)
def test_what_cannot_be_is_refused(rng, size):
    q, k, v = draw_problem(rng, 20, 20)
    part = PARTS[size]
    with pytest.raises(ValueError, match=rf"{size} must be at most the number of keys, 20, got 21"):
        sb.attention(q, k, v, method=sb.Scatterbrain(part(21)))
    with pytest.raises(ValueError, match=rf"{size} must be an int of at least 1"):
        part(0)
    with pytest.raises(TypeError, match=rf"{size} must be an int"):
        part(2.5)
    if size == "n_columns":
        return
    for hidden in ({"is_causal": True}, {"attn_mask": np.tri(20, dtype=bool)}):
        with pytest.raises(ValueError, match=r"low_rank must not (take means of|cluster all)"):
            sb.attention(q, k, v, method=sb.Scatterbrain(part(4)), **hidden)
    with pytest.raises(ValueError, match=r"low_rank must not (take means of|cluster all)"):
        sb.Scatterbrain(part(4)).prefill(q, k, v)


def test_other_mistakes_are_refused():
    with pytest.raises(TypeError, match="second_order must be True or False, got int"):
        sb.Centroids(4, 1)
    with pytest.raises(ValueError, match="iterations must be an int of at least 1 and at most 20"):
        sb.NystromLandmarks(4, 0)
    with pytest.raises(TypeError, match="iterations must be an int"):
        sb.NystromLandmarks(4, None)


@pytest.mark.parametrize("size", PARTS)
def test_the_budget_chooses_the_rank(rng, size):
    q, k, v = draw_problem(rng, 30, 64)
    est = sb.estimate(q, k, v, method=sb.Scatterbrain(PARTS[size]()), budget=0.25)
    assert est.parts.low_rank == PARTS[size](16)
    assert est.cost.rank == 16
    assert est.stderr is None


@pytest.mark.parametrize("size", PARTS)
def test_fewer_visible_keys_than_features(library, dtype, rng, size):
    """A head that hides all but three keys, and one that hides all."""
    q, k, v = draw_problem(rng, 20, 24, lead=(3,), dtype=dtype)
    mask = np.ones((3, 1, 24), dtype=bool)
    mask[1] = np.isin(np.arange(24), (2, 9, 17))
    mask[2] = False
    parts = sb.Scatterbrain(PARTS[size](8, **({"iterations": 20} if size == "n_landmarks" else {})))
    out = library.to_numpy(
        sb.attention(*library.arrays(q, k, v), method=parts, attn_mask=library.asarray(mask))
    )
    exact, _ = oracle(q, k, v, sb.Scatterbrain(sparse=sb.AllPairs()), mask=mask)
    assert np.isfinite(out).all()
    assert not out[2].any()
    if size != "n_landmarks":
        assert relative_error(out[1], exact[1]) <= tolerance(dtype, q, k)


@pytest.mark.parametrize("part", [sb.NystromLandmarks(6), sb.Centroids(5, True)], ids=repr)
def test_gradients_are_those_of_autograd(library, rng, part):
    torch = pytest.importorskip("torch")
    arrays = by_position(rng)
    mask = (rng.random(64) < 0.8)[None, :]
    cotangent = rng.standard_normal((2, 48, 3))
    for sparse in (None, sb.LocalWindow(6)):
        parts = sb.Scatterbrain(part, sparse)
        tensors = [torch.asarray(x).requires_grad_() for x in arrays]
        output = sb.attention(*tensors, method=parts, attn_mask=torch.asarray(mask))
        expected = torch.autograd.grad(output, tensors, torch.asarray(cotangent))
        _, vjp = sb.attention_vjp(*library.arrays(*arrays), method=parts, attn_mask=library.asarray(mask))
        for got, x in zip(vjp(library.asarray(cotangent)), expected, strict=True):
            assert relative_error(library.to_numpy(got), x.numpy()) <= 1e-10


@pytest.mark.parametrize("part", [sb.NystromLandmarks(3), sb.Centroids(3, True)], ids=repr)
def test_gradients_are_central_differences(rng, part):
    """Of queries too for Nyström; the axes of the second order, made from queries, are constants."""
    q, k, v = by_position(rng, 8, 8, dim=3)
    cotangent = rng.standard_normal((2, 8, 3))
    method = sb.Scatterbrain(part, sb.GlobalTokens(1))
    _, vjp = sb.attention_vjp(q, k, v, method=method)
    found = dict(zip("qkv", vjp(cotangent), strict=True))
    arrays = {"q": q, "k": k, "v": v}
    for name in "qkv" if isinstance(part, sb.NystromLandmarks) else "kv":
        x = arrays[name]
        for place in itertools.islice(np.ndindex(x.shape), 0, None, 5):
            was, sides = x[place], []
            for moved in (was + 1e-6, was - 1e-6):
                x[place] = moved
                sides.append(np.sum(sb.attention(q, k, v, method=method) * cotangent))
            x[place] = was
            assert abs((sides[0] - sides[1]) / 2e-6 - found[name][place]) < 1e-7


@pytest.mark.parametrize("size", PARTS)
def test_time_and_memory_are_linear_in_the_keys(size):
    """Of as many features, no array has more entries than (Lq + Lk) times a constant."""
    library = make_library("numpy")
    peaks = []
    for n in (2**12, 2**14):
        q, k, v = draw_problem(np.random.default_rng(0), n, n, dim=8, lead=(1,))
        tracemalloc.start()
        sb.attention(*library.arrays(q, k, v), method=sb.Scatterbrain(PARTS[size](256)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 4.5 * peaks[0]
