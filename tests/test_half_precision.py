"""Half precision comes and goes; the work between is float32, rounded once at the end."""

from __future__ import annotations

import numpy as np
import pytest
from libraries import make_library
from oracle import METHODS, oracle
from problems import draw_problem

import scatterbrain_core as sb
from scatterbrain_core.rows import exact_weights

ml_dtypes = pytest.importorskip("ml_dtypes")


def _torch(name):
    torch = pytest.importorskip("torch")
    library = make_library("torch")
    return lambda x: library.asarray(x).to(getattr(torch, name)), lambda x: library.to_numpy(x.double())


def _numpy(dtype):
    return lambda x: x.astype(dtype), lambda x: x.astype(np.float64)


KINDS = {
    "numpy-float16": (lambda: _numpy(np.float16), 2.0**-11),
    "numpy-bfloat16": (lambda: _numpy(ml_dtypes.bfloat16), 2.0**-8),
    "torch-float16": (lambda: _torch("float16"), 2.0**-11),
    "torch-bfloat16": (lambda: _torch("bfloat16"), 2.0**-8),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def half(request):
    maker, unit = request.param
    return (*maker(), unit)


@pytest.mark.parametrize("name", METHODS)
def test_output_is_the_oracles_rounded_once(half, is_causal, rng, name):
    """Half a unit in the last place of each entry, and float32's own rounding: no more."""
    cast, back, unit = half
    arrays = [cast(x) for x in draw_problem(rng, 60, 50, dim=8)]
    exact = [back(x) for x in arrays]
    est = sb.estimate(*arrays, method=METHODS[name], is_causal=is_causal)
    output, lse = oracle(*exact, METHODS[name], is_causal=is_causal)
    assert est.output.dtype == arrays[0].dtype
    error = np.abs(back(est.output) - output)
    assert (error <= unit * np.abs(output) + 1e-5).all()
    seen = np.isfinite(lse)
    assert str(est.lse.dtype).endswith("float32")
    assert np.abs(np.asarray(est.lse)[seen] - lse[seen]).max() <= 1e-5
    out = sb.attention(*arrays, method=METHODS[name], is_causal=is_causal)
    assert out.dtype == arrays[0].dtype
    # Groups of features are summed in another order.
    assert np.abs(back(out) - back(est.output)).max() <= 2 * unit * np.abs(output).max() + 1e-5


@pytest.mark.parametrize("name", sb.methods())
def test_what_is_said_to_be_half_precision_is_so(monkeypatch, rng, is_causal, name):
    """What kernels may rely on: divided by their factors, exact pairs' rows are those that came."""
    from scatterbrain_backends.numpy_ import NumpyBackend
    from scatterbrain_core.backend import Backend

    seen = []
    monkeypatch.setattr(NumpyBackend, "tile_partial", lambda _, visits, g: seen.append(visits) or g())
    for hook in ("attend", "with_opened"):  # NumPy's own ways around the tiles
        monkeypatch.setattr(NumpyBackend, hook, getattr(Backend, hook))
    arrays = [x.astype(np.float16) for x in draw_problem(rng, 300, 300, dim=24)]
    sb.attention(*arrays, method=name, is_causal=is_causal, scale=-0.3)
    for visits in seen:
        half, is_exact = visits.pairs.half, visits.pairs.weights is exact_weights
        assert (half is not None) == is_exact
        if half is not None:
            factors = (half.query_factor, half.key_factor, 1.0)
            rows = (visits.pairs.query, visits.pairs.key, visits.weighted_value[:, :-1])
            for x, factor in zip(rows, factors, strict=True):
                came = (x / np.float32(factor)).astype(half.dtype).astype(np.float32)
                assert np.abs(came * np.float32(factor) - x).max() <= 2.0**-22 * np.abs(x).max()
            assert half.query_factor * half.key_factor == pytest.approx(-0.3)


def test_long_sums_do_not_stall(half, rng):
    """A sum of 40000 weights in half precision would stop growing at 2048 (float16) or 256 (bfloat16)."""
    cast, back, unit = half
    q, k = cast(np.zeros((1, 4))), cast(np.zeros((40000, 4)))
    v = cast(np.ones((40000, 1)))
    for method in ("exact", "performer", "scatterbrain"):
        est = sb.estimate(q, k, v, method=method, budget=0.001)
        assert np.abs(back(est.output) - 1).max() <= unit
        np.testing.assert_allclose(np.asarray(est.lse), np.log(40000), rtol=1e-5)


def test_matrices_masks_and_gradients_keep_the_dtype(half, rng):
    cast, back, unit = half
    q, k, v = (cast(x) for x in draw_problem(rng, 20, 20))
    matrix = sb.attention_matrix(q, k, method="performer")
    assert matrix.dtype == q.dtype
    assert np.abs(back(matrix).sum(-1) - 1).max() <= 20 * unit
    empty = sb.estimate(q, k[:, :0], v[:, :0], method="performer")
    assert empty.output.dtype == q.dtype
    assert empty.stderr.shape == (2, 20, 3)
    if hasattr(q, "requires_grad_"):
        q.requires_grad_()
        sb.attention(q, k, v).sum().backward()
        assert q.grad.dtype == q.dtype
        assert q.grad.any()


def test_other_dtypes_are_refused(rng):
    for dtype in (np.int64, np.complex128, np.longdouble, bool):
        if np.dtype(dtype) == np.float64:
            continue
        arrays = (np.ones((3, 4)).astype(dtype) for _ in range(3))
        with pytest.raises(TypeError, match="query must have dtype float16, bfloat16, float32, float64, got"):
            sb.attention(*arrays)
