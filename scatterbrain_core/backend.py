"""Backends: what the array API cannot say, or says slowly, one object a library.

A library is recognised by the arrays the caller brought and never imported from here. Its backend is
looked up once among the entry points of the group ``scatterbrain.backends``; a library without one runs
on `Backend` itself, which is plain array-API code.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeAlias, TypeVar

from array_api_compat import array_namespace, device

from scatterbrain_core._checks import type_name
from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.tiles import Sorted, combined

if TYPE_CHECKING:
    from scatterbrain_core.estimator import Projections
    from scatterbrain_core.method import Scatterbrain
    from scatterbrain_core.normalization import Partial
    from scatterbrain_core.problem import Problem
    from scatterbrain_core.routing.layout import Layout
    from scatterbrain_core.routing.query_tiles import QueryTiles
    from scatterbrain_core.routing.spending import Allowance
    from scatterbrain_core.routing.view import Choice, View
    from scatterbrain_core.routing.visits import Keys, Opened
    from scatterbrain_core.sparse_correction import Visits

Arrays: TypeAlias = tuple[Any, ...]
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

ENTRY_POINT_GROUP = "scatterbrain.backends"


class Backend:
    """The generic backend: any array-API namespace, and the base of every other.

    Parameters
    ----------
    xp : namespace
        An array-API namespace, 2024.12 or later.

    Attributes
    ----------
    chunk_elements : int
        How many elements one temporary may have, where the device says no other; longer work is cut into
        chunks of this size.
    group_elements : int
        How many elements of features and running states one group of heads may have; one head may have more.
    visit_elements : int
        How many elements of vectors the visits of queries to clusters may have that are worked at a time.
    checked_elements : int
        How many elements of query, key and value are checked to be finite at a time.
    most_heads : int
        How many heads may be worked at a time.
    chunk_limit : int
        How many elements one temporary may have on any device.
    """

    chunk_elements = 2**20
    group_elements = 2**25
    visit_elements = 2**24
    checked_elements = 2**25
    most_heads = 2**31 - 1
    chunk_limit = 2**62

    def __init__(self, xp: Namespace) -> None:
        self.xp = xp

    def chunk_of(self, like: Array) -> int:  # noqa: ARG002
        """How many elements one temporary may have on the device of `like`."""
        return min(self.chunk_elements, self.chunk_limit)

    def within(self, chunk_limit: int, most_heads: int) -> Self:
        """The same backend for one call, with smaller temporaries and fewer heads at a time."""
        backend = copy(self)
        backend.chunk_limit, backend.most_heads = chunk_limit, most_heads
        backend.visit_elements = min(self.visit_elements, chunk_limit)
        return backend

    @property
    def is_limited(self) -> bool:
        """Whether it comes from `within`."""
        return self.chunk_limit < Backend.chunk_limit

    def checked_bytes(self, item_size: int) -> int:
        """Of the copies that the check of entries makes at a time, of half precision or under a mask."""
        return 2 * item_size * self.checked_elements

    def joined_bytes(self, output_bytes: int) -> int:
        """What it takes to put the output of a call together from its parts."""
        return output_bytes

    def stop_gradient(self, x: Array) -> Array:
        """`x` as a constant for automatic differentiation; the same array where there is none."""
        return x

    def exp_below(self, logits: Array, reference: Array) -> Array:
        """exp(logits - reference), elementwise.

        Parameters
        ----------
        logits : array, shape (..., n)
            A temporary of the caller's: it may be overwritten.
        reference : array, shape (..., 1)
            Finite.
        """
        return self.xp.exp(logits - reference)

    def full_precision(self, like: Array) -> AbstractContextManager[Any]:  # noqa: ARG002
        """What a call runs in, so that its products have the dtype of their arguments.

        Parameters
        ----------
        like : array
            On the device of the call.
        """
        return nullcontext()

    def checkpoint(
        self,
        function: Callable[[], Arrays],
        terms: Callable[[], Iterable[Arrays]] | None = None,  # noqa: ARG002
    ) -> Arrays:
        """`function()`, of which a gradient keeps nothing but the results: it is run again.

        Parameters
        ----------
        function : callable
            Gives a tuple of arrays, the same whenever it is called.
        terms : callable, optional
            Gives tuples of arrays of the same shapes, which sum to those of `function` where these are
            differentiable. A gradient runs these instead, one at a time; no two may share what depends on
            its variables and is computed here.
        """
        return function()

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """`function` of every item, in order; no item's result may depend on another's."""
        return [function(item) for item in items]

    def attend(
        self,
        groups: Sequence[Problem],
        method: Scatterbrain,  # noqa: ARG002
        projections: Projections,
        generic: Callable[[Problem, Projections], Array],
    ) -> Array:
        """Output of a planned method, shape (H, Lq, Dv): what a library has a faster way to.

        Parameters
        ----------
        groups : sequence of Problem
            A few heads each, in order.
        projections : Projections
            The draws of the call.
        generic : callable
            Gives the output of a group by array-API code.
        """
        outputs = self.map(lambda group: generic(group, projections), groups)
        return outputs[0] if len(outputs) == 1 else self.xp.concat(outputs)

    def tile_partial(
        self,
        visits: Visits,  # noqa: ARG002
        generic: Callable[[], tuple[Array, Array]],
    ) -> tuple[Array, Array]:
        """Softmax-weighted sums of every visit of some blocks: what kernels are written for.

        Parameters
        ----------
        visits : Visits
        generic : callable
            Gives the result by array-API code, for what a backend has no kernel for.

        Returns
        -------
        ref : array, shape (n_blocks, size)
            The largest logit of a visit's pairs, -inf where it has none.
        acc : array, shape (n_blocks, size, Dv + 1)
            Sums of exp(logit - ref) * weighted value.
        """
        return generic()

    def running_merge(
        self,
        ref: Array,  # noqa: ARG002
        acc: Array,  # noqa: ARG002
        segment: Array,  # noqa: ARG002
        generic: Callable[[], tuple[Array, Array]],
    ) -> tuple[Array, Array]:
        """Running merges of partial results along the first axis, afresh in every segment: causal states.

        Parameters
        ----------
        ref : array, shape (n, m)
        acc : array, shape (n, m, Dv + 1)
        segment : array of int, shape (n,)
            Equal numbers stand together.
        generic : callable
            Gives the result by array-API code.

        Returns
        -------
        ref, acc : array
            Of the same shapes. The order of the sums depends on a place within its segment alone.
        """
        return generic()

    def sort_jointly(
        self,
        key_bucket: Array,  # noqa: ARG002
        query_bucket: Array,  # noqa: ARG002
        key_rank: Array,  # noqa: ARG002
        query_rank: Array,  # noqa: ARG002
        generic: Callable[[], Sorted],
    ) -> Sorted:
        """Queries and keys sorted by bucket, then by rank; equal keys, and equal queries, in order of row.

        Parameters
        ----------
        key_bucket, key_rank : array, shape (n_keys,)
            Ints that are not negative; and floats, or positions from 0 on, below the number of rows. A key
            stands before a query of its own rank.
        query_bucket, query_rank : array, shape (n_queries,)
        generic : callable
            Gives the result by array-API code.
        """
        return generic()

    def kmeans(
        self,
        x: Array,  # noqa: ARG002
        weight: Array,  # noqa: ARG002
        metric: Array,  # noqa: ARG002
        n_clusters: int,  # noqa: ARG002
        generic: Callable[[], Array],
    ) -> Array:
        """Labels of points (..., n, d), as `kmeans.kmeans`.

        Parameters
        ----------
        generic : callable
            Gives the result by array-API code.
        """
        return generic()

    def two_largest(self, x: Array, generic: Callable[[], Array]) -> Array:  # noqa: ARG002
        """The two largest of each row (..., K) as one number, as `routing.query_tiles.two_largest`.

        Parameters
        ----------
        generic : callable
            Gives the result by array-API code.
        """
        return generic()

    def cluster_statistics(
        self,
        key: Array,  # noqa: ARG002
        value: Array,  # noqa: ARG002
        weight: Array,  # noqa: ARG002
        labels: Array,  # noqa: ARG002
        axes: Array,  # noqa: ARG002
        n_clusters: int,  # noqa: ARG002
        generic: Callable[[], tuple[Array, Array, Array, Array]],
    ) -> tuple[Array, Array, Array, Array]:
        """Count, mean, variance along the axes and mean value of clusters: as `routing.nodes` has them.

        Parameters
        ----------
        key, value : array, shape (H, A, B, block, D) and (H, A, B, block, Dv)
        weight, labels : array, shape (H, A, B, block)
            A key of weight 0 is in no cluster.
        axes : array, shape (H, A, 1, D, D)
        generic : callable
            Gives the result by array-API code.
        """
        return generic()

    def cluster_logits(
        self,
        query: Array,  # noqa: ARG002
        axes: Array,  # noqa: ARG002
        mean: Array,  # noqa: ARG002
        variance: Array,  # noqa: ARG002
        count: Array,  # noqa: ARG002
        generic: Callable[[], tuple[Array, Array]],
    ) -> tuple[Array, Array]:
        """Logits of clusters to second order and variances within: as `routing.view.cluster_logits`.

        Parameters
        ----------
        generic : callable
            Gives the result by array-API code.
        """
        return generic()

    def true_places(self, mask: Array, generic: Callable[[], Array]) -> Array:  # noqa: ARG002
        """Places of a flat mask that are True, ascending.

        Parameters
        ----------
        generic : callable
            Gives the result by array-API code, without shapes that depend on data.
        """
        return generic()

    def choose(
        self,
        view: View,  # noqa: ARG002
        near: Partial,  # noqa: ARG002
        is_row: Array | None,  # noqa: ARG002
        allowance: Allowance,  # noqa: ARG002
        generic: Callable[[], tuple[Choice, tuple[Array, Array]]],
    ) -> tuple[Choice, tuple[Array, Array]]:
        """What a chunk of queries refines of the clusters that it sees: as `routing.view.choose`.

        Parameters
        ----------
        view : View
            Its spread may be overwritten.
        generic : callable
            Gives the result by array-API code.
        """
        return generic()

    def far_partial(
        self,
        view: View,  # noqa: ARG002
        choice: Choice,  # noqa: ARG002
        generic: Callable[[], Partial],
    ) -> Partial:
        """Partial result of all clusters that a chunk of queries did not open: as `routing.view.far_partial`.

        Parameters
        ----------
        choice : Choice
            Made for this view, by `choose` of this backend.
        generic : callable
            Gives the result by array-API code.
        """
        return generic()

    def solve_tiles(
        self,
        tiles: QueryTiles,  # noqa: ARG002
        layout: Layout,  # noqa: ARG002
        keys: Keys,  # noqa: ARG002
        query: Array,  # noqa: ARG002
        near: Callable[[], Partial],  # noqa: ARG002
    ) -> Partial | None:
        """Partial result of queries with all that their tiles look at and open: `routing.solve` at once.

        Parameters
        ----------
        query : array, shape (H, Lq, D)
        near : callable
            Gives their partial result on other keys, `ref` of shape (H, Lq), which may be overwritten.

        Returns
        -------
        Partial or None
            None leaves it to array-API code.
        """
        return None

    def with_opened(
        self,
        near: Partial,  # noqa: ARG002
        query: Array,  # noqa: ARG002
        visits: Opened,  # noqa: ARG002
        keys: Keys,  # noqa: ARG002
        generic: Callable[[], Partial],
    ) -> Partial:
        """Partial result of query rows with the keys of the clusters that they opened.

        Parameters
        ----------
        near : Partial
            `ref` of shape (R,), on other keys; a temporary that may be overwritten.
        query : array, shape (R, D)
        visits : Opened
            In order of their first slots.
        generic : callable
            Gives the result by array-API code.
        """
        return generic()

    def hyperplane_codes(
        self,
        x: Array,  # noqa: ARG002
        normals: Array,  # noqa: ARG002
        direction: Array | None,  # noqa: ARG002
        generic: Callable[[], tuple[Array, Array | None]],
    ) -> tuple[Array, Array | None]:
        """Codes of vectors, and what large buckets are cut along, both equal for equal vectors.

        Parameters
        ----------
        x : array, shape (..., D)
        normals : array, shape (K, D)
            Of the hyperplanes, K at most 24.
        direction : array, shape (D,), or None
            None where no bucket is cut.
        generic : callable
            Gives the result by array-API code.

        Returns
        -------
        code : array of int, shape (...)
            A bit a normal, the first the highest: whether the product with it is at least 0.
        projection : array, shape (...), or None
            Products with the direction.
        """
        return generic()

    def segment_sum(self, rows: Array, segment: Array, n_segments: int) -> Array:
        """Sums of rows by the number of their segment, shape (n_segments, ...).

        Parameters
        ----------
        rows : array, shape (r, ...)
        segment : array of int, shape (r,)
        """
        xp = self.xp
        zeros = xp.zeros((n_segments, *rows.shape[1:]), dtype=rows.dtype, device=device(rows))
        return self.scatter_add(zeros, segment, rows)

    def scatter_add(self, total: Array, index: Array, rows: Array) -> Array:
        """`total` with rows added at their indices, which may repeat: the adjoint of a gather.

        Parameters
        ----------
        total : array, shape (n, ...)
            A temporary of the caller's: it may be overwritten.
        index : array of int, shape (r,)
        rows : array, shape (r, ...)
        """
        xp = self.xp
        if 0 in rows.shape:
            return total
        return total + combined(xp, rows, index, total.shape[0], operator.add, 0.0)


def in_full_precision(position: int = 0) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Run a call whose `query` stands at this position within `Backend.full_precision` of its library."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*arguments: P.args, **keywords: P.kwargs) -> R:
            query: Any = keywords.get("query", arguments[position] if len(arguments) > position else None)
            if not _is_array(query):  # an error, which the call itself says best
                return function(*arguments, **keywords)
            with backend_of(query=query).full_precision(query):
                return function(*arguments, **keywords)

        return call

    return decorate


def library_name(xp: Namespace) -> str:
    """Root module of the library behind a namespace: 'numpy', 'torch', 'jax', 'array_api_strict', ..."""
    return str(xp.__name__).removeprefix("array_api_compat.").partition(".")[0]


@cache
def _backend_class(library: str) -> type[Backend]:
    from importlib.metadata import entry_points  # 20 ms, and only the first call needs it

    found = tuple(entry_points(group=ENTRY_POINT_GROUP, name=library))
    if len({entry.value for entry in found}) > 1:
        values = ", ".join(sorted(entry.value for entry in found))
        raise ValueError(
            f"more than one installed backend claims the library {library!r}: {values}; keep one"
        )
    return found[0].load() if found else Backend


@cache
def _backend(library: str, xp: Namespace) -> Backend:
    return _backend_class(library)(xp)


def backend_of(**arrays: Any) -> Backend:
    """Backend of the one library that all the named arrays come from.

    Raises
    ------
    TypeError
        An argument is no array, or the arrays come from different libraries.
    """
    for name, x in arrays.items():
        _require_array(name, x)
    names = {name: library_name(array_namespace(x)) for name, x in arrays.items()}
    if len(set(names.values())) > 1:
        got = ", ".join(f"{name} from {library}" for name, library in names.items())
        raise TypeError(f"all arrays must come from one library, got {got}")
    xp = array_namespace(*arrays.values())
    return _backend(library_name(xp), xp)


def _is_array(x: Any) -> bool:
    try:
        # Subclasses that change what operators mean are none.
        return type(x).__name__ not in ("MaskedArray", "matrix") and bool(array_namespace(x))
    except TypeError:
        return False


def _require_array(name: str, x: Any) -> None:
    if not _is_array(x):
        raise TypeError(
            f"{name} must be an array of a library with the array API (NumPy, CuPy, Torch, JAX, ...), "
            f"got {type_name(x)}"
        )
