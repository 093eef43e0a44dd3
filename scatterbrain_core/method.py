"""A method: a low-rank part with a sparse part. The methods people know by name are such pairs."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from scatterbrain_core._checks import type_name
from scatterbrain_core._typing import Seed
from scatterbrain_core.low_rank import FeatureMap, PositiveFeatures
from scatterbrain_core.sparse import AllPairs, Hashing, RandomHyperplanes


@dataclass(frozen=True)
class Scatterbrain:
    r"""Sparse + low-rank attention: exact weights on a support, low-rank weights everywhere else.

    .. math:: O_i = \frac{\sum_{j\in S(i)} A_{ij} v_j + \sum_{j\notin S(i)} L_{ij} v_j}
                         {\sum_{j\in S(i)} A_{ij} + \sum_{j\notin S(i)} L_{ij}}

    Every method is such a pair of parts; what a part leaves open, the budget of the call chooses.

    Parameters
    ----------
    low_rank : FeatureMap or None
        The low-rank part, L; None leaves out what is off the support.
    sparse : RandomHyperplanes, CrossPolytope, E2LSH, AllPairs or None
        The support, S; None is empty.

    Raises
    ------
    TypeError
        A part is of another type.
    ValueError
        Both parts are None, or there is a low-rank part beside `AllPairs`.

    References
    ----------
    Chen et al., *Scatterbrain: Unifying Sparse and Low-rank Attention Approximation*, arXiv 2110.15343,
    Algorithm 1.
    """

    low_rank: FeatureMap | None = None
    sparse: Hashing | AllPairs | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.low_rank, FeatureMap | None):
            raise TypeError(
                "low_rank must be a feature map (PositiveFeatures, TrigonometricFeatures, EluFeatures) or "
                f"None, got {type_name(self.low_rank)}"
            )
        if not isinstance(self.sparse, Hashing | AllPairs | None):
            raise TypeError(
                "sparse must be RandomHyperplanes, CrossPolytope, E2LSH, AllPairs or None, "
                f"got {type_name(self.sparse)}"
            )
        if self.low_rank is None and self.sparse is None:
            raise ValueError("low_rank and sparse must not both be None")
        if self.low_rank is not None and isinstance(self.sparse, AllPairs):
            raise ValueError(
                f"low_rank must be None with AllPairs, which leaves it nothing, got {self.low_rank}"
            )

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
        return isinstance(self.sparse, Hashing) or (self.low_rank is not None and self.low_rank.is_random)

    @property
    def rank(self) -> int:
        """Rank of the low-rank part, its number of features; 0 without one, or before it is planned."""
        return 0 if self.low_rank is None else self.low_rank.n_features or 0


@dataclass(frozen=True)
class _Preset:
    method: Scatterbrain
    line: str


_PRESETS = {
    "exact": _Preset(
        Scatterbrain(sparse=AllPairs()),
        "softmax attention itself, O(Lq·Lk) time (Vaswani et al., arXiv 1706.03762)",
    ),
    "lsh": _Preset(
        Scatterbrain(sparse=RandomHyperplanes()),
        "sparse alone: exact within random-hyperplane buckets, nothing elsewhere (Charikar, STOC 2002)",
    ),
    "performer": _Preset(
        Scatterbrain(low_rank=PositiveFeatures()),
        "low-rank alone: positive random features (Choromanski et al., arXiv 2009.14794)",
    ),
    "scatterbrain": _Preset(
        Scatterbrain(low_rank=PositiveFeatures(), sparse=RandomHyperplanes()),
        "sparse + low-rank: positive random features + LSH (Chen et al., arXiv 2110.15343, Algorithm 1)",
    ),
}
AUTO = "scatterbrain"


def methods() -> dict[str, str]:
    """Names that `method` takes, each with one line and its reference.

    Returns
    -------
    dict of str to str
    """
    lines = {name: preset.line for name, preset in _PRESETS.items()}
    return {"auto": f"the one we would choose, for now {AUTO!r}", **lines}


def resolve_method(method: Any) -> tuple[str, Scatterbrain]:
    """Name and parts of a `method` argument.

    Raises
    ------
    TypeError
        It is neither a name nor a `Scatterbrain`.
    ValueError
        No method has that name; the message tells the nearest ones.
    """
    if isinstance(method, Scatterbrain):
        return repr(method), method
    if not isinstance(method, str):
        raise TypeError(f"method must be a name or a Scatterbrain, got {type_name(method)}")
    name = AUTO if method == "auto" else method
    if name not in _PRESETS:
        known = sorted(methods())
        near = difflib.get_close_matches(method.lower(), known, cutoff=0.5)
        hint = f"the nearest: {', '.join(map(repr, near))}; " if near else ""
        raise ValueError(f"method {method!r} is unknown; {hint}known are {', '.join(map(repr, known))}")
    return name, _PRESETS[name].method
