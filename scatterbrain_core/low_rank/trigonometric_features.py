r"""Trigonometric random features of the softmax kernel (random Fourier features)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.low_rank.feature_map import FeatureMap, pair_products, require_rank, square_norm
from scatterbrain_core.low_rank.kernels import SignedKernel
from scatterbrain_core.random import normal_rows


@dataclass(frozen=True, repr=False)
class TrigonometricFeatures(FeatureMap):
    r"""Random Fourier features, :math:`\phi(x) = e^{\|x\|^2/2}(\cos Wx, \sin Wx)\sqrt{2/m}`, for reference.

    The rows of W are m/2 independent standard normal vectors. The estimate of :math:`A = e^{q\cdot k}` is
    :math:`L = \phi(q)\cdot\phi(k)`:

    - unbiased, :math:`E[L] = A`;
    - :math:`\mathrm{Var}\,L = \tfrac1m e^{\|q\|^2+\|k\|^2}(1 - e^{-\|q-k\|^2})^2`, large where A is small.

    L may be negative, and with it a normaliser: its `lse` is then NaN and the output means nothing. With
    several hash tables every row is summed pair by pair.

    Parameters
    ----------
    n_features : int, optional
        m, the rank, even. By default the budget of the call chooses it.

    References
    ----------
    Rahimi and Recht, *Random features for large-scale kernel machines*, NIPS 2007; Choromanski et al.,
    arXiv 2009.14794, Lemma 2.
    """

    kernel: ClassVar[SignedKernel] = SignedKernel()

    @property
    def unit(self) -> int:
        """A cosine and a sine."""
        return 2

    def draw(self, generator: Any, dim: int, n_keys: int = 0) -> tuple[Any, ...]:
        """W, shape (m/2, dim), on the host."""
        del n_keys
        return (normal_rows(generator, require_rank(self.n_features) // 2, dim, "independent"),)

    def query_rows(self, xp: Namespace, drawn: tuple[Array, ...], fitted: Any, x: Array) -> Array:
        """Log scale ‖x‖²/2 + log(2/m), then cosine and sine of each row of W."""
        rows = self.key_rows(xp, drawn, fitted, x)
        scale = rows[..., :1] + math.log(2 / require_rank(self.n_features))
        return xp.concat([scale, rows[..., 1:]], axis=-1)

    def key_rows(self, xp: Namespace, drawn: tuple[Array, ...], fitted: Any, x: Array) -> Array:
        """Log scale ‖x‖²/2, then cosine and sine of each row of W."""
        del fitted
        angles = xp.matmul(x, xp.matrix_transpose(drawn[0]))
        # A row's cosine stands beside its sine, so that groups of features are independent.
        waves = xp.stack([xp.cos(angles), xp.sin(angles)], axis=-1)
        waves = xp.reshape(waves, (*angles.shape[:-1], -1))
        return xp.concat([square_norm(xp, x) / 2, waves], axis=-1)

    def variance(self, xp: Namespace, query: Array, key: Array) -> Array:
        r"""Closed-form variance of the estimate of exp(q·k), for every pair.

        Parameters
        ----------
        query : array, shape (..., Lq, D)
            With the scale folded in.
        key : array, shape (..., Lk, D)

        Returns
        -------
        array, shape (..., Lq, Lk)
            :math:`\tfrac1m e^{\|q\|^2+\|k\|^2}(1 - e^{-\|q-k\|^2})^2`.
        """
        logits, _, distance = pair_products(xp, query, key)
        return xp.exp(distance + 2 * logits) * xp.expm1(-distance) ** 2 / require_rank(self.n_features)
