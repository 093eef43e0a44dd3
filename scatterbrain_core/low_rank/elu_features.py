r"""Linear attention's feature map, elu(x) + 1 (arXiv 2006.16236)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from scatterbrain_core._typing import Array, Namespace
from scatterbrain_core.low_rank.feature_map import FeatureMap
from scatterbrain_core.low_rank.kernels import PositiveKernel


@dataclass(frozen=True, repr=False)
class EluFeatures(FeatureMap):
    r"""Linear attention: :math:`\phi(x) = \mathrm{elu}(x) + 1`, elementwise.

    The weights :math:`L = \phi(q)\cdot\phi(k)` are a kernel of their own, not an estimate of
    :math:`e^{q\cdot k}`: nothing is drawn, the variance is 0 and :math:`L - e^{q\cdot k}` is all bias. The
    scale is folded in, √|scale| on each side; `scale=1.0` is the paper's form.

    Parameters
    ----------
    n_features : int, optional
        The rank, which is D; by default that of the call.

    References
    ----------
    Katharopoulos et al., *Transformers are RNNs*, arXiv 2006.16236, equation 7.
    """

    is_random: ClassVar[bool] = False
    has_error: ClassVar[bool] = False
    kernel: ClassVar[PositiveKernel] = PositiveKernel()

    @property
    def is_open(self) -> bool:
        """False: the rank is D, whatever the budget."""
        return False

    def planned(self, rank: int, n_keys: int, dim: int) -> EluFeatures:
        """The same map with the rank D."""
        del rank, n_keys
        if self.n_features not in (None, dim):
            raise ValueError(
                f"n_features of EluFeatures must be the last axis of query, {dim}, got {self.n_features}"
            )
        return replace(self, n_features=dim)

    def query_rows(self, xp: Namespace, drawn: tuple[Array, ...], fitted: Any, x: Array) -> Array:
        """log(elu(x) + 1), which is x below 0 and log(1 + x) above."""
        del drawn, fitted
        above = x > 0
        return xp.where(above, xp.log1p(xp.where(above, x, 0.0)), x)

    def key_rows(self, xp: Namespace, drawn: tuple[Array, ...], fitted: Any, x: Array) -> Array:
        """As for queries."""
        return self.query_rows(xp, drawn, fitted, x)
