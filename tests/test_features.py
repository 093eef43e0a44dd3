"""Feature maps: what they draw, what they estimate, and that preconditioning changes no exact weight."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace
from oracle import log_weights, oracle, relative_error, tolerance
from problems import draw_problem, eps
from scipy import integrate, stats
from scipy.special import hyp0f1, hyp1f1

import scatterbrain_core as sb
from scatterbrain_core.low_rank.coupling import block_cosine, coupled_rows, cross_moment

FITTED = {
    "centred": sb.PositiveFeatures(8, centred=True),
    "whitened": sb.PositiveFeatures(8, whitened=True),
    "optimal": sb.PositiveFeatures(8, "orthogonal", rho="optimal"),
    "all": sb.PositiveFeatures(8, "simplex", paired=True, rho="optimal", centred=True, whitened=True),
}
OTHERS = {
    "orthogonal": sb.PositiveFeatures(13, "orthogonal"),
    "simplex": sb.PositiveFeatures(13, "simplex"),
    "paired": sb.PositiveFeatures(6, paired=True),
    "rho": sb.PositiveFeatures(6, rho=0.3),
    "elu": sb.EluFeatures(),
}


@pytest.mark.parametrize("features", (FITTED | OTHERS).values(), ids=(FITTED | OTHERS).keys())
@pytest.mark.parametrize("tables", [0, 1, 3])
def test_every_map_is_the_oracles(library, dtype, rng, features, tables):
    q, k, v = draw_problem(rng, 37, 50, dtype=dtype)
    parts = sb.Scatterbrain(features, sb.RandomHyperplanes(2, tables) if tables else None)
    est = sb.estimate(*library.arrays(q, k, v), method=parts)
    output, lse = oracle(q, k, v, est.parts)
    assert relative_error(library.to_numpy(est.output), output) <= tolerance(dtype, q, k)
    assert np.abs(library.to_numpy(est.lse) - lse).max() <= tolerance(dtype, q, k)


@pytest.mark.parametrize("features", OTHERS.values(), ids=OTHERS.keys())
def test_every_map_without_statistics_is_causal(library, dtype, rng, features):
    q, k, v = draw_problem(rng, 70, 70, dtype=dtype)
    for sparse in (None, sb.RandomHyperplanes(2), sb.RandomHyperplanes(2, 2)):
        parts = sb.Scatterbrain(features, sparse)
        est = sb.estimate(*library.arrays(q, k, v), method=parts, is_causal=True)
        output, _ = oracle(q, k, v, est.parts, is_causal=True)
        assert relative_error(library.to_numpy(est.output), output) <= tolerance(dtype, q, k)


@pytest.mark.parametrize("features", FITTED.values(), ids=FITTED.keys())
@pytest.mark.parametrize("shape", [(1, 50), (37, 1), (2, 1, 50)])
def test_statistics_leave_out_what_a_mask_hides(library, dtype, rng, features, shape):
    q, k, v = draw_problem(rng, 37, 50, dtype=dtype)
    mask = rng.random(shape) < 0.6
    parts = sb.Scatterbrain(features, sb.RandomHyperplanes(2))
    got = sb.attention(*library.arrays(q, k, v), method=parts, attn_mask=library.asarray(mask))
    expected, _ = oracle(q, k, v, parts, mask=mask)
    assert relative_error(library.to_numpy(got), expected) <= tolerance(dtype, q, k)


@pytest.mark.parametrize("features", FITTED.values(), ids=FITTED.keys())
def test_statistics_are_refused_where_they_would_let_in_what_is_hidden(library, rng, features):
    arrays = library.arrays(*draw_problem(rng, 20, 20))
    parts = sb.Scatterbrain(features)
    with pytest.raises(ValueError, match=r"low_rank must not take statistics.*is_causal=True"):
        sb.attention(*arrays, method=parts, is_causal=True)
    mask = library.asarray(np.tri(20, dtype=bool))
    with pytest.raises(ValueError, match=r"low_rank must not take statistics.*attn_mask"):
        sb.attention(*arrays, method=parts, attn_mask=mask)


@pytest.mark.parametrize("tables", [0, 1, 3])
@pytest.mark.parametrize("masked", ["no", "causal", "dense"])
def test_trigonometric_features_are_the_oracles(library, dtype, rng, tables, masked):
    """At small norms, where no normaliser comes near 0."""
    q, k, v = draw_problem(rng, 70, 70, dtype=dtype)
    q, k = (q / 4).astype(dtype), (k / 4).astype(dtype)
    parts = sb.Scatterbrain(sb.TrigonometricFeatures(16), sb.RandomHyperplanes(2, tables) if tables else None)
    mask = np.tri(70, dtype=bool) if masked == "dense" else None
    arguments = {"method": parts, "is_causal": masked == "causal"}
    if mask is not None:
        arguments["attn_mask"] = library.asarray(mask)
    est = sb.estimate(*library.arrays(q, k, v), **arguments)
    weights = np.exp(log_weights(q, k, parts, is_causal=masked == "causal", mask=mask)).real
    sums = weights.sum(-1, keepdims=True)
    assert sums.min() > 0.1
    assert relative_error(library.to_numpy(est.output), weights / sums @ v) <= tolerance(dtype, q, k)
    assert np.abs(library.to_numpy(est.lse) - np.log(sums[..., 0])).max() <= tolerance(dtype, q, k)
    if masked != "dense":
        matrix = sb.attention_matrix(
            *library.arrays(q, k), method=parts, is_causal=masked == "causal", normalize=False
        )
        np.testing.assert_allclose(library.to_numpy(matrix), weights, atol=100 * eps(dtype))


def test_a_negative_normaliser_has_no_log(library, dtype, rng):
    q, k, v = draw_problem(rng, 40, 40, dtype=dtype)
    q, k = (3 * q).astype(dtype), (3 * k).astype(dtype)
    parts = sb.Scatterbrain(sb.TrigonometricFeatures(2))
    est = sb.estimate(*library.arrays(q, k, v), method=parts)
    sums = np.exp(log_weights(q, k, parts)).real.sum(-1)
    assert (sums < 0).any()
    np.testing.assert_array_equal(np.isnan(library.to_numpy(est.lse)), sums < 0)


@pytest.mark.parametrize("coupling", ["orthogonal", "simplex"])
def test_rows_are_coupled_within_blocks_and_standard_normal_alone(coupling):
    dim, n = 6, 6 * 400 + 2
    (W,) = sb.PositiveFeatures(n, coupling).draw(np.random.default_rng(0), dim)
    units = W / np.linalg.norm(W, axis=1, keepdims=True)
    for first in range(0, n, dim):
        block = units[first : first + dim]
        cosines = (block @ block.T)[~np.eye(len(block), dtype=bool)]
        np.testing.assert_allclose(cosines, block_cosine(coupling, dim), atol=1e-12)
    pairs = [min(dim, n - first) * (min(dim, n - first) - 1) for first in range(0, n, dim)]
    assert coupled_rows(coupling, n, dim) == pytest.approx(sum(pairs) / n)
    # Blocks are turned independently of each other.
    assert np.abs(np.sum(units[:-8:6] * units[6:-2:6], axis=1)).max() > 0.5


def test_rows_of_one_dimension_have_nothing_to_be_coupled_to():
    for coupling in ("orthogonal", "simplex"):
        features = sb.PositiveFeatures(4, coupling)
        (W,) = features.draw(np.random.default_rng(0), 1)
        assert W.shape == (4, 1)
        q, k = np.array([[0.3]]), np.array([[0.2]])
        plain = sb.PositiveFeatures(4).variance(np, q, k)
        np.testing.assert_allclose(features.variance(np, q, k), plain)


def test_a_pair_is_a_row_and_its_opposite():
    (W,) = sb.PositiveFeatures(10, "orthogonal", paired=True).draw(np.random.default_rng(0), 4)
    np.testing.assert_array_equal(W[::2], -W[1::2])
    for features in (sb.PositiveFeatures, sb.TrigonometricFeatures):
        options = {"paired": True} if features is sb.PositiveFeatures else {}
        assert features(**options).planned(7, 9, 4).n_features == 6
        assert features(**options).planned(1, 9, 4).n_features == 2


@pytest.mark.parametrize("dim", [2, 3, 16])
def test_moments_of_coupled_rows_are_kummers(library, dim):
    """Orthogonal rows: 1F1 of SciPy."""
    square = np.array([0.0, 0.3, 2.0, 7.0])
    squares = library.asarray(square)
    got = cross_moment(array_namespace(squares), squares, dim, 0.0)
    expected = np.exp(-square) * hyp1f1(dim, dim / 2, square / 2)
    np.testing.assert_allclose(library.to_numpy(got), expected, rtol=1e-12)


@pytest.mark.parametrize("dim", [2, 3, 16])
def test_moments_of_simplex_rows_are_a_mean_over_their_norms(dim):
    cosine = -1 / (dim - 1)
    got = cross_moment(np, np.array([2.0]), dim, cosine)[0]
    assert got == pytest.approx(_by_norms(2.0, dim, cosine), rel=1e-6)


def _by_norms(square, dim, cosine):
    """The mean over the two norms of 0F1(D/2; ‖w1 + w2‖² ‖z‖² / 4), by Simpson's rule."""
    r = np.linspace(0, 14, 1401)
    r1, r2 = r[:, None], r[None, :]
    length = r1**2 + r2**2 + 2 * cosine * r1 * r2
    weight = stats.chi.pdf(r1, dim) * stats.chi.pdf(r2, dim)
    inner = integrate.simpson(weight * hyp0f1(dim / 2, length * square / 4), x=r)
    return np.exp(-square) * integrate.simpson(inner, x=r)


@pytest.mark.parametrize("features", FITTED.values(), ids=FITTED.keys())
def test_preconditioning_lowers_the_variance_of_shifted_and_skewed_data(rng, features):
    q, k, _ = draw_problem(rng, 60, 60, dim=6, lead=())
    q, k = 0.5 * q * np.array([4, 1, 1, 1, 1, 0.2]) + 1, 0.5 * k * np.array([0.2, 1, 1, 1, 1, 4]) + 1
    plain = sb.PositiveFeatures(8, features.rows, features.paired)
    weight = np.exp(2 * q @ k.T)
    better, worse = (np.log(f.variance(np, q, k) / weight).mean() for f in (features, plain))
    assert better < worse - 2


BAD = [
    (lambda: sb.PositiveFeatures(4, "foo"), ValueError, "rows must be one of .*'foo'"),
    (lambda: sb.PositiveFeatures(4, 3), TypeError, "rows must be one of .*int"),
    (lambda: sb.PositiveFeatures(0), ValueError, "n_features must be an int of at least 1"),
    (lambda: sb.TrigonometricFeatures(0), ValueError, "n_features must be an int of at least 1"),
    (lambda: sb.PositiveFeatures(5, paired=True), ValueError, "n_features must be even.*5"),
    (lambda: sb.TrigonometricFeatures(5), ValueError, "n_features must be even.*5"),
    (lambda: sb.PositiveFeatures(4, paired=1), TypeError, "paired must be True or False"),
    (lambda: sb.PositiveFeatures(4, centred="yes"), TypeError, "centred must be True or False"),
    (lambda: sb.PositiveFeatures(4, whitened=0), TypeError, "whitened must be True or False"),
    (lambda: sb.PositiveFeatures(4, rho=0.0), ValueError, r"rho must be a real number in \[1e-06, 1\]"),
    (lambda: sb.PositiveFeatures(4, rho=1.5), ValueError, r"rho must be a real number in \[1e-06, 1\]"),
    (
        lambda: sb.PositiveFeatures(4, rho=float("nan")),
        ValueError,
        r"rho must be a real number in \[1e-06, 1\]",
    ),
    (lambda: sb.PositiveFeatures(4, rho="best"), ValueError, "rho must be a real number.* got 'best'"),
    (lambda: sb.Scatterbrain("positive"), TypeError, "low_rank must be a feature map.*str"),
    (lambda: sb.PositiveFeatures().variance(np, np.ones((1, 2)), np.ones((1, 2))), ValueError, "n_features"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_bad_parts_say_what_came(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_elu_features_have_the_rank_of_the_queries(rng):
    q, k, v = draw_problem(rng, 9, 9)
    with pytest.raises(ValueError, match=r"n_features of EluFeatures must be .* 5, got 4"):
        sb.attention(q, k, v, method=sb.Scatterbrain(sb.EluFeatures(4)))
    est = sb.estimate(q, k, v, method=sb.Scatterbrain(sb.EluFeatures()))
    assert est.cost.rank == 5
    assert est.stderr is None


@pytest.mark.parametrize(
    "parts",
    [
        *(sb.Scatterbrain(features) for features in (FITTED | OTHERS).values()),
        sb.Scatterbrain(FITTED["all"], sb.RandomHyperplanes(2)),
        sb.Scatterbrain(sb.TrigonometricFeatures(8), sb.RandomHyperplanes(2, 2)),
    ],
    ids=repr,
)
def test_gradients_are_torchs_and_statistics_are_constants(library, rng, parts):
    """Central differences of the estimate with the statistics held are the reference for the fitted maps."""
    torch = pytest.importorskip("torch")
    q, k, v = draw_problem(rng, 20, 30)
    q, k = q / 3, k / 3
    arguments = {"method": parts, "scale": 0.7}
    output, vjp = sb.attention_vjp(*library.arrays(q, k, v), **arguments)
    cotangent = rng.standard_normal(output.shape)
    got = vjp(library.asarray(cotangent))
    tensors = [torch.asarray(x).requires_grad_() for x in (q, k, v)]
    expected = torch.autograd.grad(sb.attention(*tensors, **arguments), tensors, torch.asarray(cotangent))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(library.to_numpy(a), b.numpy(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("features", FITTED.values(), ids=FITTED.keys())
def test_gradients_hold_the_statistics(rng, monkeypatch, features):
    """Torch's gradcheck, with what was fitted to the first call kept for all."""
    torch = pytest.importorskip("torch")
    q, k, v = (torch.asarray(x / 2).requires_grad_() for x in draw_problem(rng, 5, 6, dim=3, lead=(1,)))
    parts = sb.Scatterbrain(features)
    first = features.fit(array_namespace(q), q.detach(), k.detach(), None, None)
    # The scale is 1, so that the statistics are those of the arguments.
    monkeypatch.setattr(sb.PositiveFeatures, "fit", lambda *_: first)
    assert torch.autograd.gradcheck(
        lambda q, k, v: sb.attention(q, k, v, method=parts, scale=1.0), (q, k, v), eps=1e-7, atol=1e-6
    )


def test_whitening_balances_the_moments(library, dtype, rng):
    """P Σ_q P = P⁻¹ Σ_k P⁻¹ where no eigenvalue is cut, P P⁻¹ = 1 and a condition of at most 10 always."""
    for stretch in (1.5, 1e3):
        q, k, _ = draw_problem(rng, 80, 90, dim=6, dtype=dtype)
        q, k = (q * np.linspace(1, stretch, 6)).astype(dtype), (k * np.linspace(stretch, 1, 6)).astype(dtype)
        xp, query = array_namespace(library.asarray(q)), library.asarray(q)
        fitted = sb.PositiveFeatures(4, whitened=True).fit(xp, query, library.asarray(k), None, None)
        P, inverse = (library.to_numpy(x).astype(float) for x in (fitted.transform, fitted.inverse))
        # Eigenvectors are orthonormal to some units, of a condition of 10.
        np.testing.assert_allclose(P @ inverse, np.broadcast_to(np.eye(6), P.shape), atol=100 * eps(dtype))
        values = np.linalg.eigvalsh(P)
        assert (values[:, 0] * 10.01 > values[:, -1]).all()
        moments = [x.swapaxes(-1, -2) @ x / x.shape[1] for x in (q.astype(float), k.astype(float))]
        ridge = [1e-2 * np.trace(m, axis1=1, axis2=2)[:, None, None] / 6 * np.eye(6) for m in moments]
        sides = P @ (moments[0] + ridge[0]) @ P, inverse @ (moments[1] + ridge[1]) @ inverse
        if stretch < 2:
            np.testing.assert_allclose(*sides, rtol=0, atol=1e3 * eps(dtype) * np.abs(sides[0]).max())
