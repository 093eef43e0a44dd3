r"""Positive random features of the softmax kernel: FAVOR+ (arXiv 2009.14794) and what lowers its variance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from scatterbrain_core._checks import require_bool, require_real, type_name
from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.low_rank.coupling import COUPLINGS, block_cosine, coupled_rows, cross_moment
from scatterbrain_core.low_rank.feature_map import FeatureMap, pair_products, require_rank, square_norm
from scatterbrain_core.low_rank.kernels import PositiveKernel
from scatterbrain_core.low_rank.preconditioning import (
    LEAST_RHO,
    Preconditioner,
    fit_preconditioner,
    optimal_rho,
)
from scatterbrain_core.random import normal_rows


@dataclass(frozen=True, repr=False)
class PositiveFeatures(FeatureMap):
    r"""Positive random features, :math:`\phi(x) = \exp(Wx - \|x\|^2/2)/\sqrt m`.

    The rows of W are standard normal vectors. The estimate of :math:`A = e^{q\cdot k}` is
    :math:`L = \phi(q)\cdot\phi(k)`. It is unbiased, :math:`E[L] = A`, with every choice of the parameters.
    With :math:`z = q + k` its variance is

    .. math:: \mathrm{Var}\,L = \tfrac1r A^2\left(v + n\,(e^{-\|z\|^2}M_\gamma - 1)\right)

    - r is the number of rows of W: m, or m/2 if they are paired;
    - :math:`v = e^{\|z\|^2} - 1`, or :math:`\tfrac12(e^{\|z\|^2} - 1)(1 - e^{-\|z\|^2})` if paired; with
      :math:`\beta = \left(\frac{1+\rho}{2\sqrt\rho}\right)^D` it is :math:`\beta e^{\rho\|z\|^2} - 1`, or
      :math:`\tfrac12\beta(e^{\rho\|z\|^2} + e^{-\|z\|^2}) - 1` if paired;
    - n is the mean number of other rows that a row is coupled to, 0 for independent ones, and
      :math:`M_\gamma = E[e^{(w_1+w_2)\cdot z}]` for two coupled rows at cosine γ; for orthogonal ones
      :math:`{}_1F_1(D; D/2; \|z\|^2/2)` (if paired, the mean of those at γ and -γ).

    With centring and whitening, z is that of the vectors moved, A stays.

    Parameters
    ----------
    n_features : int, optional
        m, the rank. By default the budget of the call chooses it.
    rows : str
        "independent"; "orthogonal" or "simplex": blocks of D rows at right angles, or at the angles of a
        simplex, which lowers the variance. Groups of features are then not quite independent, and `stderr`
        is rather too large.
    paired : bool
        Rows come in pairs ±w, so that L is a mean of hyperbolic cosines; n_features is even.
    rho : float in [1e-6, 1], or "optimal"
        Variance of the Gaussian that rows are importance-sampled from is (1 + ρ)/(2ρ) times 1: 1 is plain,
        less bounds the features (FAVOR++). "optimal" takes the best ρ for each head's mean ‖q + k‖².
    centred : bool
        Take the features of q - mean q and k - mean k of a head; the factors
        :math:`e^{q\cdot c}e^{\mu\cdot(k-c)}` that are left are exact.
    whitened : bool
        Take them of Pq and P⁻ᵀk, which leaves q·k and makes the second moments of a head's queries and keys
        equal, so that the mean ‖Pq + P⁻ᵀk‖² is least.

    Notes
    -----
    `rho="optimal"`, `centred` and `whitened` take statistics of all queries and keys of a head. Under a
    causal or dense mask they would let in what is hidden, and are an error. To differentiation they are
    constants.

    References
    ----------
    Choromanski et al., *Rethinking Attention with Performers*, arXiv 2009.14794 (Lemma 1; orthogonal rows;
    the ± pair). Reid et al., *Simplex Random Features*, arXiv 2301.13856. Likhosherstov et al., *Chefs'
    Random Tables*, arXiv 2205.15317 (ρ; whitening is their FAVOR#'s with one Gaussian).
    """

    rows: str = "independent"
    paired: bool = False
    rho: float | str = 1.0
    centred: bool = False
    whitened: bool = False

    kernel: ClassVar[PositiveKernel] = PositiveKernel()

    def __post_init__(self) -> None:
        if not isinstance(self.rows, str):
            raise TypeError(f"rows must be one of {COUPLINGS}, got {type_name(self.rows)}")
        if self.rows not in COUPLINGS:
            raise ValueError(f"rows must be one of {COUPLINGS}, got {self.rows!r}")
        for name in ("paired", "centred", "whitened"):
            require_bool(name, getattr(self, name))
        if self.rho != "optimal":
            expected = f'a real number in [{LEAST_RHO:g}, 1] or "optimal"'
            if isinstance(self.rho, str):
                raise ValueError(f"rho must be {expected}, got {self.rho!r}")
            rho = require_real("rho", self.rho, expected)
            if not LEAST_RHO <= rho <= 1:
                raise ValueError(f"rho must be {expected}, got {rho}")
            object.__setattr__(self, "rho", rho)
        super().__post_init__()

    @property
    def unit(self) -> int:
        """Two features a row of W if they are paired."""
        return 2 if self.paired else 1

    @property
    def is_fitted(self) -> bool:
        """Whether it takes statistics of all queries and keys of a head."""
        return self.centred or self.whitened or self.rho == "optimal"

    def draw(self, generator: Any, dim: int, n_keys: int = 0) -> tuple[Any, ...]:
        """W, shape (m, dim), on the host; of a pair, -w stands behind w."""
        del n_keys
        n = require_rank(self.n_features) // self.unit
        projections = normal_rows(generator, n, dim, self.rows)
        if self.paired:
            projections = projections.repeat(2, axis=0)
            projections[1::2] *= -1
        return (projections,)

    def fit(
        self, xp: Namespace, query: Array, key: Array, row_mask: Array | None, key_mask: Array | None
    ) -> Preconditioner | None:
        """Centres, transforms and mean ‖z‖² of each head, where the parameters ask for them."""
        if not self.is_fitted:
            return None
        return fit_preconditioner(xp, query, key, row_mask, key_mask, self.centred, self.whitened)

    def query_rows(
        self, xp: Namespace, drawn: tuple[Array, ...], fitted: Preconditioner | None, x: Array
    ) -> Array:
        """Logs of the features of P(q - μ), and the factor of the row, q·c - log m."""
        offset = -math.log(require_rank(self.n_features))
        if fitted is None:
            return self._log_features(xp, drawn[0], None, x, offset)
        moved = _moved(xp, x, fitted.mean_query, fitted.transform)
        rows = self._log_features(xp, drawn[0], fitted, moved, offset)
        return rows if fitted.mean_key is None else rows + _inner(xp, x, fitted.mean_key)

    def key_rows(
        self, xp: Namespace, drawn: tuple[Array, ...], fitted: Preconditioner | None, x: Array
    ) -> Array:
        """Logs of the features of P⁻¹(k - c), and the factor of the column, μ·(k - c)."""
        if fitted is None:
            return self._log_features(xp, drawn[0], None, x)
        moved = _moved(xp, x, fitted.mean_key, fitted.inverse)
        rows = self._log_features(xp, drawn[0], fitted, moved)
        if fitted.mean_key is None or fitted.mean_query is None:
            return rows
        return rows + _inner(xp, x - fitted.mean_key, fitted.mean_query)

    def _log_features(
        self,
        xp: Namespace,
        projections: Array,
        fitted: Preconditioner | None,
        x: Array,
        offset: float = 0.0,
    ) -> Array:
        """Wx - ‖x‖²/2, with ρ D/2 log B + A‖w‖² + B Wx - ‖x‖²/2 (arXiv 2205.15317, equation 10), + offset."""
        rho = self._rho(xp, fitted, x.shape[-1])
        products = xp.matmul(x, xp.matrix_transpose(projections))
        # Added to the norms, of which there are few.
        of_row = square_norm(xp, x) / 2 - offset
        if isinstance(rho, float) and rho == 1.0:
            return products - of_row
        inflation = (1 + rho) / (2 * rho)
        norms = xp.matrix_transpose(square_norm(xp, projections))
        bound = x.shape[-1] / 4 * _log(xp, inflation) + (1 - 1 / rho) / 8 * norms
        return products * inflation**0.5 + bound - of_row

    def _rho(self, xp: Namespace, fitted: Preconditioner | None, dim: int) -> Any:
        if isinstance(self.rho, str):
            assert fitted is not None
            return optimal_rho(xp, fitted.square, dim)
        return float(self.rho)

    def variance(self, xp: Namespace, query: Array, key: Array) -> Array:
        """Closed-form variance of the estimate of exp(q·k), for every pair.

        Parameters
        ----------
        query : array, shape (..., Lq, D)
            With the scale folded in; statistics that the map takes are those of these arrays.
        key : array, shape (..., Lk, D)

        Returns
        -------
        array, shape (..., Lq, Lk)
            The formula above.
        """
        dim, lead = query.shape[-1], query.shape[:-2]
        query, key = (xp.reshape(x, (-1, *x.shape[-2:])) for x in (query, key))
        logits = xp.matmul(query, xp.matrix_transpose(key))
        fitted = self.fit(xp, query, key, None, None)
        if fitted is not None:
            query = _moved(xp, query, fitted.mean_query, fitted.transform)
            key = _moved(xp, key, fitted.mean_key, fitted.inverse)
        square = pair_products(xp, query, key)[1]
        square = xp.where(square > 0, square, 0.0)
        relative = self._relative_variance(xp, square, self._rho(xp, fitted, dim), dim)
        return xp.reshape(xp.exp(2 * logits) * relative, (*lead, *logits.shape[-2:]))

    def _relative_variance(self, xp: Namespace, square: Array, rho: Any, dim: int) -> Array:
        """Var L / A² at ‖z‖²: of one row of W, and of its coupling to others."""
        log_bound = dim * _log(xp, (1 + rho) / (2 * rho**0.5))
        of_row = xp.expm1(rho * square + log_bound)
        if self.paired:
            of_row = (of_row + xp.expm1(log_bound - square)) / 2
        n_rows = require_rank(self.n_features) // self.unit
        coupled = coupled_rows(self.rows, n_rows, dim)
        if coupled:
            cosines = {sign * block_cosine(self.rows, dim) for sign in ((1, -1) if self.paired else (1,))}
            moments = [cross_moment(xp, square, dim, cosine) for cosine in cosines]
            of_row = of_row + coupled * (sum(moments[1:], start=moments[0]) / len(moments) - 1)
        return of_row / n_rows


def _moved(xp: Namespace, x: Array, mean: Array | None, transform: Array | None) -> Array:
    x = x if mean is None else x - mean
    return x if transform is None else xp.matmul(x, transform)


def _inner(xp: Namespace, x: Array, vector: Array) -> Array:
    return xp.sum(x * vector, axis=-1)[..., None]


def _log(xp: Namespace, x: Any) -> Any:
    return math.log(x) if isinstance(x, float) else xp.log(x)
