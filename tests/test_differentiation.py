"""The tape: every rule against central differences, checkpoints, and what has no rule."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import device
from libraries import make_library
from problems import eps

import scatterbrain_core.backend as backends
from scatterbrain_core.backend import Backend, backend_of
from scatterbrain_core.differentiation import Tape, TracingBackend, untraced
from scatterbrain_core.differentiation.rules import CONSTANT, RULES, RULES_OF_LISTS
from scatterbrain_core.differentiation.tape import AtKey, leaf

A = (3, 4)
FUNCTIONS = {
    "abs": (lambda xp, x: xp.abs(x), A),
    "add": (lambda xp, x, y: x + y + (1.0 + x) + xp.add(y, x), A, (4,)),
    "astype": (lambda xp, x: xp.astype(xp.astype(x, xp.float64), xp.float64) * x, A),
    "broadcast_to": (lambda xp, x: xp.broadcast_to(x, (2, 3, 4)), (3, 1)),
    "clip": (lambda xp, x: xp.clip(x, -0.5, 0.5), A),
    "cos": (lambda xp, x: xp.cos(x), A),
    "divide": (lambda _, x, y: x / (y * y + 1.0) + 2.0 / (x * x + 1.0), A, (3, 1)),
    "exp": (lambda xp, x: xp.exp(x), A),
    "expand_dims": (lambda xp, x: xp.expand_dims(x, axis=1), A),
    "expm1": (lambda xp, x: xp.expm1(x), A),
    "flip": (lambda xp, x: xp.flip(x) + xp.flip(x, axis=0), A),
    "log": (lambda xp, x: xp.log(x * x + 1.0), A),
    "log1p": (lambda xp, x: xp.log1p(x * x), A),
    "matmul": (lambda xp, x, y: xp.matmul(x, y), (2, 3, 4), (4, 5)),
    "matmul of batches": (lambda xp, x, y: xp.matmul(x, y), (1, 3, 4), (2, 4, 5)),
    "matrix_transpose": (lambda xp, x: xp.matrix_transpose(x), (2, 3, 4)),
    "max": (lambda xp, x: xp.max(x, axis=-1) + xp.max(x), A),
    "maximum": (lambda xp, x, y: xp.maximum(x, y) + xp.maximum(x, 0.1) + xp.maximum(x, x), A, A),
    "min": (lambda xp, x: xp.min(x, axis=0, keepdims=True), A),
    "minimum": (lambda xp, x, y: xp.minimum(x, y) + xp.minimum(y, 0.1), A, A),
    "multiply": (lambda _, x, y: x * y * x * 3.0 + 2.0 * y, A, (1, 4)),
    "negative": (lambda _, x: -x, A),
    "pow": (lambda _, x: x**2 + (x * x + 1.0) ** -0.5, A),
    "repeat": (lambda xp, x: xp.repeat(x, 3, axis=-2), (2, 3, 4)),
    "reshape": (lambda xp, x: xp.reshape(x, (2, -1)), A),
    "sin": (lambda xp, x: xp.sin(x), A),
    "sqrt": (lambda xp, x: xp.sqrt(x * x + 1.0), A),
    "squeeze": (lambda xp, x: xp.squeeze(x, axis=1), (3, 1, 4)),
    "subtract": (lambda _, x, y: x - y - (1.0 - y), A, (4,)),
    "sum": (lambda xp, x: xp.sum(x) + xp.sum(x, axis=(0, 2), keepdims=True) + xp.sum(x, axis=0), (3, 2, 2)),
    "take": (lambda xp, x: xp.take(x, xp.asarray([2, 0, 2, 2], device=device(x)), axis=0), A),
    "tile": (lambda xp, x: xp.tile(x, (2, 1, 3)), A),
    "where": (lambda xp, x, y: xp.where(x > y, x, y * 2.0) + xp.where(x > 0.0, x, 0.0), A, (4,)),
    "concat": (lambda xp, x, y: xp.concat([x, y, x], axis=-1) + xp.concat([x, x, y], axis=1), A, (3, 2)),
    "stack": (lambda xp, x, y: xp.stack([x, y], axis=-1) * xp.stack([y, x], axis=2), A, A),
    "indexing": (lambda _, x: x[1:, None, :2] * x[0, :2] + x[..., None, 1][:2, ...] - x[::2, None, 1:3], A),
}  # fmt: skip


def differentiated(library, function, arrays, cotangent, **kwargs):
    tracing = TracingBackend(backend_of(x=library.asarray(arrays[0])))
    watched = [tracing.watch(x) for x in library.arrays(*arrays)]
    out = function(tracing, *watched)
    return [library.to_numpy(d) for d in tracing.gradients([(out, library.asarray(cotangent))], *watched)]


def central_differences(function, arrays, cotangent, step=1e-5):
    """Gradient of sum(function * cotangent) with respect to every array."""
    gradients = [np.zeros_like(x) for x in arrays]
    for x, gradient in zip(arrays, gradients, strict=True):
        for place in np.ndindex(x.shape):
            was = x[place]
            sides = []
            for moved in (was + step, was - step):
                x[place] = moved
                sides.append(np.sum(function(*arrays) * cotangent))
            x[place] = was
            gradient[place] = (sides[0] - sides[1]) / (2 * step)
    return gradients


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_rule_has_the_gradient_of_central_differences(library, rng, name):
    function, *shapes = FUNCTIONS[name]
    arrays = [rng.standard_normal(shape) for shape in shapes]
    cotangent = rng.standard_normal(np.shape(function(np, *arrays)))
    got = differentiated(library, lambda b, *x: function(b.xp, *x), arrays, cotangent)
    expected = central_differences(lambda *x: function(np, *x), arrays, cotangent)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7)


def test_every_rule_is_tested():
    assert (RULES.keys() | RULES_OF_LISTS.keys()) <= FUNCTIONS.keys()


def test_ties_share_the_cotangent():
    x = np.asarray([[1.0, 3.0, 3.0]])
    (d,) = differentiated(make_library("numpy"), lambda b, x: b.xp.max(x, axis=-1), [x], np.asarray([1.0]))
    np.testing.assert_array_equal(d, [[0.0, 0.5, 0.5]])
    d, e = differentiated(make_library("numpy"), lambda b, x, y: b.xp.maximum(x, y), [x, x], np.ones((1, 3)))
    np.testing.assert_array_equal(d, e)
    np.testing.assert_array_equal(d, np.full((1, 3), 0.5))


@pytest.mark.parametrize("name", sorted(CONSTANT))
def test_constants_have_no_gradient(name):
    arguments = (2.0,) if name == "full_like" else ()
    (d,) = differentiated(
        make_library("numpy"), lambda b, x: getattr(b.xp, name)(x, *arguments) * 3.0, [np.ones(3)], np.ones(3)
    )
    np.testing.assert_array_equal(d, np.zeros(3))


def test_stop_gradient_makes_a_constant(library):
    def function(backend, x):
        return x * backend.stop_gradient(x) + backend.xp.cumulative_sum(backend.stop_gradient(x))

    (d,) = differentiated(library, function, [np.asarray([2.0, 3.0])], np.ones(2))
    np.testing.assert_array_equal(d, [2.0, 3.0])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda xp, x: xp.cumulative_sum(x, axis=0), "cumulative_sum has no rule"),
        (lambda xp, x: xp.linalg.vector_norm(x), r"linalg\.vector_norm has no rule"),
        (lambda _, x: 2.0 ** -x, "unsupported operand"),
        (lambda _, x: x**x, "pow has no rule"),
        (lambda xp, x: xp.clip(x, 0.0, x), "clip has no rule"),
        (lambda xp, x: xp.clip(x, min=x), "clip has no rule"),
        (lambda xp, x: xp.take(x, xp.asarray([0]), axis=1), "along axis 0 alone"),
        (lambda xp, x: x[xp.asarray([0])], "use take"),
        (lambda _, x: bool(x[0, 0]), "no truth value"),
        (lambda _, x: np.cbrt(x), "Traced.*ufuncs"),
        (lambda _, x: np.linalg.norm(x), "not of its traced namespace"),
    ],
)  # fmt: skip
def test_what_has_no_rule_is_refused(function, message):
    tracing = TracingBackend(Backend(np))
    with pytest.raises((NotImplementedError, TypeError), match=message):
        function(tracing.xp, tracing.watch(np.ones((2, 2))))


def test_a_namespace_without_traced_arguments_is_its_own(library):
    x = library.asarray(np.asarray([1.0, 2.0]))
    tracing = TracingBackend(backend_of(x=x))
    for got in (
        tracing.xp.exp(x),
        tracing.xp.concat([x, x]),
        tracing.xp.linalg.matrix_transpose(tracing.xp.stack([x, x])),
    ):
        assert type(got) is type(tracing.base.xp.exp(x))
    assert tracing.xp.float32 is tracing.base.xp.float32


def test_a_checkpoint_changes_no_gradient(library, rng):
    """Nested, with constants among its results, and summed term by term."""
    x, y = rng.standard_normal((2, 3, 4))

    def product(backend, x, y, z):
        return backend.xp.exp(x[1:, :] * z) * y[1:, :], backend.stop_gradient(x[1:, :])

    def plain(backend, x, y):
        z = backend.xp.sin(x[0, :])
        first, second = product(backend, x, y, z)
        return first * second + x[1:, :] + 3.0 * z

    def kept(backend, x, y):
        z = backend.xp.sin(x[0, :])

        def nested():
            return backend.checkpoint(lambda: product(backend, x, y, z))

        first, second = backend.checkpoint(nested)

        def terms():
            yield (z * backend.xp.asarray([[3.0], [3.0]], device=device(x)),)
            yield (x[1:, :],)

        (rest,) = backend.checkpoint(lambda: (x[1:, :] + 3.0 * z,), terms)
        return first * second + rest

    cotangent = rng.standard_normal((2, 4))
    for a, b in zip(*(differentiated(library, f, [x, y], cotangent) for f in (plain, kept)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)


def test_terms_that_share_what_they_record_are_refused():
    tracing = TracingBackend(Backend(np))
    x = tracing.watch(np.ones(2))

    def terms():
        shared = x * x
        return ((shared * factor,) for factor in (2.0, 3.0))

    (out,) = tracing.checkpoint(lambda: (x * x * 5.0,), terms)
    with pytest.raises(AssertionError, match="after it was pulled back"):
        tracing.gradients([(out, np.ones(2))], x)


def test_a_checkpoint_keeps_nothing_but_its_results():
    tracing = TracingBackend(Backend(np))
    x = tracing.watch(np.ones((2, 2)))
    tracing.checkpoint(lambda: (x * x * x * x, x))
    with_checkpoint = len(tracing.tape)
    x * x * x * x
    assert (with_checkpoint, len(tracing.tape)) == (3, 6)
    assert isinstance(tracing.tape, Tape)


def test_an_unrecorded_temporary_may_be_overwritten():
    """The forward pass of a checkpoint runs as without gradients, in place; a recorded one does not."""
    tracing = TracingBackend(backend_of(x=np.zeros(1)))
    x = tracing.watch(np.zeros((2, 2)))
    temporaries = []

    def function():
        temporaries.append(x + 1.0)
        return (tracing.exp_below(temporaries[-1], np.zeros((2, 1))),)

    (out,) = tracing.checkpoint(function)
    assert untraced(temporaries[0]) is untraced(out)
    function()
    np.testing.assert_array_equal(untraced(temporaries[1]), np.ones((2, 2)))


def test_a_region_of_what_cannot_be_written():
    total = np.arange(6.0).reshape(2, 3)
    total.flags.writeable = False
    got = AtKey((Ellipsis, slice(1, None)), np.ones((2, 2))).added_to(Backend(np), total)
    np.testing.assert_array_equal(got, [[0.0, 2.0, 3.0], [3.0, 5.0, 6.0]])


def test_what_is_added_in_place_belongs_to_its_node_alone():
    """Cotangents that other nodes hold are never overwritten."""
    node, shared = leaf((2,)), np.ones(2)
    for cotangent in (shared, AtKey((slice(1),), np.ones(1)), np.ones(2)):
        node.add(Backend(np), cotangent)
    np.testing.assert_array_equal(shared, np.ones(2))
    np.testing.assert_array_equal(node.total, [3.0, 2.0])


@pytest.mark.parametrize(
    ("n", "count", "columns"), [(7, 40, (3,)), (9, 4, (6, 5)), (5, 30, ()), (4, 0, (2,)), (3, 5, (0,))]
)
def test_scatter_add(library, dtype, rng, n, count, columns):
    """That of each backend and the generic one, against NumPy's loop; rows that none names stay."""
    index = rng.integers(0, max(n - 2, 1), count)
    total, rows = (rng.standard_normal((m, *columns)).astype(dtype) for m in (n, count))
    expected = total.astype(np.float64)
    np.add.at(expected, index, rows)
    own = backend_of(x=library.asarray(total))
    for backend in (own, Backend(own.xp)):
        got = backend.scatter_add(
            own.xp.asarray(library.asarray(total), copy=True), *library.arrays(index, rows)
        )
        assert library.is_own(got)
        assert got.dtype == library.asarray(total).dtype
        np.testing.assert_allclose(library.to_numpy(got), expected, rtol=0, atol=32 * eps(dtype))


def test_scatter_add_keeps_small_sums_beside_large_ones():
    """A difference of running sums would lose them."""
    index, rows = np.asarray([0, 0, 1, 1]), np.asarray([1e20, 1e20, 1.0, 2.0])
    for backend in (Backend(np), backends.backend_of(x=rows)):
        np.testing.assert_array_equal(backend.scatter_add(np.zeros(3), index, rows), [2e20, 3.0, 0.0])
