"""A method: a low-rank part with any number of sparse parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scatterbrain_core._checks import call_of, require_bool, set_count, type_name
from scatterbrain_core._typing import Seed
from scatterbrain_core.low_rank import LowRank
from scatterbrain_core.sparse import AllPairs, RoutedClusters, Support


@dataclass(frozen=True, repr=False)
class Scatterbrain:
    r"""Sparse + low-rank attention: exact weights on a support, low-rank weights everywhere else.

    .. math:: O_i = \frac{\sum_{j\in S(i)} A_{ij} v_j + \sum_{j\notin S(i)} L_{ij} v_j}
                         {\sum_{j\in S(i)} A_{ij} + \sum_{j\notin S(i)} L_{ij}}

    What a part leaves open, the budget of the call chooses.

    Parameters
    ----------
    low_rank : LowRank or None
        The low-rank part, L: a feature map or another; None leaves out what is off the support.
    sparse : Support, AllPairs, RoutedClusters, tuple of Support, or None
        The support, S. Of several parts it is the union, in which a pair counts once; None is empty.
    debias : int, optional
        s, sampled keys that make the sums unbiased whatever L is: with s of the n keys of a head drawn
        uniformly, :math:`\tfrac ns(A_{ij} - L_{ij})` is added at those off the support, before the division.
        The weights may then be negative, and so may a normaliser: its `lse` is NaN and the output means
        nothing.
    double_counting : bool
        Leave L on the support too, so that it counts there beside A: the naive sum, a baseline of the paper.

    Raises
    ------
    TypeError
        A part is of another type.
    ValueError
        Parts that do not go together: both are None; something beside `AllPairs` or `RoutedClusters`, which
        leave it nothing; `double_counting` without both parts, or with `debias`, which could not be unbiased.

    References
    ----------
    Chen et al., *Scatterbrain: Unifying Sparse and Low-rank Attention Approximation*, arXiv 2110.15343,
    Algorithm 1.
    """

    low_rank: LowRank | None = None
    sparse: Support | AllPairs | RoutedClusters | tuple[Support, ...] | None = None
    debias: int | None = None
    double_counting: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.low_rank, LowRank | None):
            raise TypeError(
                "low_rank must be a feature map (PositiveFeatures, TrigonometricFeatures, EluFeatures), "
                f"another low-rank part or None, got {type_name(self.low_rank)}"
            )
        _check_sparse(self.sparse)
        set_count(self, "debias", at_least=1)
        require_bool("double_counting", self.double_counting)
        if self.low_rank is None and self.sparse is None:
            raise ValueError("low_rank and sparse must not both be None")
        if isinstance(self.sparse, AllPairs | RoutedClusters):
            self._check_nothing_beside(type(self.sparse).__name__)
        reason = None if self.low_rank is None else self.low_rank.reason_not_beside(self.supports)
        if reason is not None:
            raise ValueError(f"low_rank must not {reason}, got {self}")
        if self.double_counting:
            self._check_double_counting()

    def __repr__(self) -> str:
        """The call that makes it, without what is left at its default."""
        return call_of(self)

    def _check_nothing_beside(self, whole: str) -> None:
        stated = {"low_rank": self.low_rank, "debias": self.debias}
        for name, part in stated.items():
            if part is not None:
                raise ValueError(f"{name} must be None with {whole}, which leaves it nothing, got {part}")

    def _check_double_counting(self) -> None:
        if self.low_rank is None or not self.supports:
            raise ValueError("double_counting must be False without a low-rank and a sparse part, got True")
        if self.debias is not None:
            raise ValueError(
                "debias must be None with double_counting, whose sums are biased on the support, "
                f"got {self.debias}"
            )

    @property
    def supports(self) -> tuple[Support, ...]:
        """The sparse parts as a tuple; none of them for what is no table, as `AllPairs`."""
        if isinstance(self.sparse, Support):
            return (self.sparse,)
        return self.sparse if isinstance(self.sparse, tuple) else ()

    @property
    def parts(self) -> dict[str, LowRank | Support]:
        """All parts that are something, by the names that messages give them."""
        is_one = isinstance(self.sparse, Support)
        names = ["sparse"] if is_one else [f"sparse[{i}]" for i in range(len(self.supports))]
        low_rank = {} if self.low_rank is None else {"low_rank": self.low_rank}
        return low_rank | dict(zip(names, self.supports, strict=True))

    def prefill(
        self,
        query: Any,
        key: Any,
        value: Any,
        *,
        budget: float = 0.125,
        length: int | None = None,
        scale: float | None = None,
        enable_gqa: bool = False,
        seed: Seed = 0,
        check_finite: bool = True,
    ) -> tuple[Any, dict[str, Any]]:
        """Causal attention over a prompt, with the state from which decoding goes on.

        Arguments not listed and errors are those of `attention` with `is_causal=True`.

        Parameters
        ----------
        query : array, shape (..., L, D)
        key : array, shape (..., L, D)
        value : array, shape (..., L, Dv)
            At least one token.
        length : int, optional
            Length, prompt included, for which the budget chooses what the parts leave open; it stays for all
            tokens. By default the prompt's: give the length to come where the prompt is short.

        Returns
        -------
        output : array, shape (..., L, Dv)
        state : dict of str to array
            Arrays of the library, on the device of `query`, none of them the caller's. `numpy.savez` can save
            them (Torch tensors detached and on the CPU), and `step` takes them back as NumPy arrays too.
            Beside a few hundred bytes of configuration they are, for Hk key heads, n tokens and rank m, in
            numbers of float32 or float64:

            - without a sparse part Hk · m · (Dv + 2), whatever n;
            - with one Hk · n · (D + Dv), and T codes (ints) a key where there are hashes; and
            - beside one table of W <= 64 buckets Hk · W · m · (Dv + 2), with `max_bucket` twice that; or
              with several or larger tables Hk · n · m.

        Examples
        --------
        >>> import numpy as np
        >>> import scatterbrain_core as sb
        >>> q, k, v = np.random.default_rng(0).standard_normal((3, 4, 100, 16))
        >>> est = sb.Scatterbrain(sb.PositiveFeatures(32), sb.RandomHyperplanes(3))
        >>> out, state = est.prefill(q[:, :90], k[:, :90], v[:, :90])
        >>> out, state = est.step(q[:, 90:], k[:, 90:], v[:, 90:], state)
        >>> bool(np.allclose(out, sb.attention(q, k, v, method=est, is_causal=True)[:, 90:]))
        True
        """
        from scatterbrain_core import decoding

        return decoding.prefill(
            self,
            query,
            key,
            value,
            budget=budget,
            length=length,
            scale=scale,
            enable_gqa=enable_gqa,
            seed=seed,
            check_finite=check_finite,
        )

    def step(
        self, query: Any, key: Any, value: Any, state: dict[str, Any], *, check_finite: bool = True
    ) -> tuple[Any, dict[str, Any]]:
        """The next tokens: one or several at a time, equal to the full causal call to rounding.

        Parameters
        ----------
        query : array, shape (..., t, D)
        key : array, shape (..., t, D)
        value : array, shape (..., t, Dv)
            Of the library, dtype and heads of the prompt.
        state : dict of str to array
            From `prefill` or `step` of the same method; it is left as it is.
        check_finite : bool
            Raise on NaN and inf in the tokens and in the state: one pass over both.

        Returns
        -------
        output : array, shape (..., t, Dv)
        state : dict of str to array

        Raises
        ------
        TypeError, ValueError
            The state is none, is damaged, or is another method's; the tokens do not fit it.
        """
        from scatterbrain_core import decoding

        return decoding.step(self, query, key, value, state, check_finite=check_finite)

    @property
    def is_random(self) -> bool:
        """Whether anything is drawn."""
        return self.debias is not None or any(part.is_random for part in self.parts.values())

    @property
    def is_positive(self) -> bool:
        """Whether no weight is negative."""
        return self.low_rank is None or (self.low_rank.is_positive and self.debias is None)

    @property
    def rank(self) -> int:
        """Rank of the low-rank part; 0 without one, or before it is planned."""
        return 0 if self.low_rank is None else self.low_rank.rank


def _check_sparse(sparse: Any) -> None:
    expected = "RandomHyperplanes, LocalWindow or another sparse part, a tuple of them, AllPairs or None"
    if isinstance(sparse, Support | AllPairs | RoutedClusters | None):
        return
    if not isinstance(sparse, tuple):
        raise TypeError(f"sparse must be {expected}, got {type_name(sparse)}")
    if not sparse:
        raise ValueError(f"sparse must be {expected}, got an empty tuple")
    for i, part in enumerate(sparse):
        if isinstance(part, AllPairs | RoutedClusters):
            whole = type(part).__name__
            raise ValueError(f"sparse must be {whole} alone, which leaves the others nothing, got {sparse}")
        if not isinstance(part, Support):
            raise TypeError(f"sparse[{i}] must be a sparse part, got {type_name(part)}")
