r"""Landmarks of queries and keys: Nyströmformer (arXiv 2102.03902)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from scatterbrain_core._checks import set_count
from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.backend import Backend
from scatterbrain_core.low_rank.indicator import label_means
from scatterbrain_core.low_rank.kernels import SignedKernel
from scatterbrain_core.low_rank.low_rank import Features
from scatterbrain_core.low_rank.of_keys import OfKeys
from scatterbrain_core.normalization import finite
from scatterbrain_core.problem import Problem
from scatterbrain_core.segments import segments

# Each step makes singular values that are rounding of zero up to 13/4 times larger: nothing to take more for.
MAX_ITERATIONS = 20


@dataclass(frozen=True, repr=False)
class NystromLandmarks(OfKeys):
    r"""Nyströmformer's three softmax kernels over landmarks, the means of segments of queries and of keys.

    .. math:: L = \mathrm{diag}(c)\,F Z B,\quad F = \mathrm{softmax}(Q\tilde K^T),\quad
              B = \mathrm{softmax}(\tilde Q K^T),\quad Z \approx \mathrm{softmax}(\tilde Q\tilde K^T)^+.

    Z is what `iterations` steps of the paper's equation 14 make of the pseudo-inverse. FZB stands for the
    normalised weights; :math:`c_i = \sum_a n_a e^{q_i\cdot\tilde k_a}`, the normaliser with each key replaced
    by the mean of its segment, of :math:`n_a` keys, brings them to the scale of :math:`e^{q\cdot k}`, so that
    they go with exact pairs. Alone c cancels and the output is the paper's, divided by the row sums of FZB:
    these are 1 where the iterations have converged, and the paper leaves them as they are.

    The segments are those of `SegmentMeans`, of visible queries and of visible keys; empty ones take no part.
    Landmarks that repeat, or nearly, make a matrix without an inverse: the steps then stop short of it, its
    small singular values stay small in Z, and the output stays finite. The weights may be negative, as may a
    normaliser: its `lse` is then NaN and the output means nothing.

    Biased: it is no expectation of anything, and nothing in it is trained.

    Parameters
    ----------
    n_landmarks : int, optional
        m, the rank, at most the number of keys. By default the budget of the call chooses it.
    iterations : int
        Steps towards the pseudo-inverse, at most 20; the paper takes 6.

    References
    ----------
    Xiong et al., *Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention*,
    arXiv 2102.03902, equations 13 and 14.
    """

    n_landmarks: int | None = None
    iterations: int = 6

    size_name: ClassVar[str] = "n_landmarks"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations is None:
            raise TypeError("iterations must be an int, got NoneType")
        set_count(self, "iterations", at_least=1, at_most=MAX_ITERATIONS)

    @property
    def is_positive(self) -> bool:
        """False: the pseudo-inverse has negative entries."""
        return False

    @property
    def reason_not_causal(self) -> str:
        """Landmarks."""
        return "take means of queries and keys"

    def features(self, problem: Problem, drawn: tuple[Array, ...]) -> Features:
        """Rows of FZ for queries and columns of B for keys, with the scales taken out."""
        del drawn
        backend, xp = problem.backend, problem.xp
        query, n_query = self._landmarks(problem, problem.query, problem.row_mask)
        key, n_key = self._landmarks(problem, problem.key, problem.key_mask)
        is_query, is_key = (n_query > 0)[..., None], (n_key > 0)[:, None, :]
        of_queries = xp.where(is_key, xp.matmul(problem.query, xp.matrix_transpose(key)), -math.inf)
        middle = xp.where(is_key & is_query, xp.matmul(query, xp.matrix_transpose(key)), -math.inf)
        inverse = pseudo_inverse(xp, xp.exp(_log_softmax(backend, middle)), self.iterations)
        rows = xp.matmul(xp.exp(_log_softmax(backend, of_queries)), inverse)
        n_key = xp.where(n_key > 0, n_key, 1.0)  # the logits of empty segments are -inf
        log_scale = log_sum_exp(backend, of_queries + xp.log(n_key)[:, None, :])
        return Features(
            _with_scale(backend, rows, log_scale), self._key_rows(problem, query, is_query), SignedKernel()
        )

    def _landmarks(self, problem: Problem, x: Array, mask: Array | None) -> tuple[Array, Array]:
        label = segments(problem.xp, x, mask, self.rank).label
        return label_means(problem.backend, label, x, self.rank)

    def _key_rows(self, problem: Problem, landmarks: Array, is_landmark: Array) -> Array:
        backend, xp, kernel = problem.backend, problem.xp, SignedKernel()
        logits = xp.matmul(landmarks, xp.matrix_transpose(problem.key))
        is_seen = is_landmark if problem.key_mask is None else is_landmark & problem.key_mask[:, None, :]
        logits = xp.where(is_seen, logits, -math.inf)
        columns = xp.matrix_transpose(_log_softmax(backend, logits))
        scale = finite(backend, xp.max(backend.stop_gradient(columns), axis=-1))[..., None]
        key = xp.concat([scale, xp.exp(columns - scale)], axis=-1)
        return key if problem.key_mask is None else kernel.hide(xp, key, problem.key_mask)


def pseudo_inverse(xp: Namespace, matrix: Array, iterations: int) -> Array:
    """Iterated pseudo-inverse of matrices (..., m, m) of entries that are not negative (equation 14)."""
    norms = [xp.max(xp.sum(matrix, axis=axis), axis=-1)[..., None, None] for axis in (-1, -2)]
    norm = norms[0] * norms[1]
    inverse = xp.matrix_transpose(matrix) / xp.where(norm > 0, norm, 1.0)
    for _ in range(iterations):
        product = xp.matmul(matrix, inverse)
        # Z (13 - P (15 - P (7 - P))) / 4 without a unit matrix.
        inner = 7.0 * product - xp.matmul(product, product)
        inner = 15.0 * product - xp.matmul(product, inner)
        inverse = (13.0 * inverse - xp.matmul(inverse, inner)) / 4.0
    return inverse


def log_sum_exp(backend: Backend, logits: Array) -> Array:
    """Log of the sum of exp along the last axis, which is kept; 0 where all are -inf."""
    xp = backend.xp
    top = finite(backend, xp.max(backend.stop_gradient(logits), axis=-1))[..., None]
    total = xp.sum(xp.exp(logits - top), axis=-1)[..., None]
    return xp.log(xp.where(total > 0, total, 1.0)) + top


def _log_softmax(backend: Backend, logits: Array) -> Array:
    return logits - log_sum_exp(backend, logits)


def _with_scale(backend: Backend, rows: Array, log_scale: Array) -> Array:
    """Signed rows as (log scale, factors of at most 1)."""
    xp = backend.xp
    top = xp.max(xp.abs(backend.stop_gradient(rows)), axis=-1)[..., None]
    top = xp.where(top > 0, top, 1.0)
    return xp.concat([log_scale + xp.log(top), rows / top], axis=-1)
