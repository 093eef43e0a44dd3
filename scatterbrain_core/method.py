"""A method: a low-rank part with a sparse part. The methods people know by name are such pairs."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from scatterbrain_core._checks import type_name
from scatterbrain_core.low_rank import FeatureMap, PositiveFeatures
from scatterbrain_core.sparse import AllPairs, RandomHyperplanes


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
    sparse : RandomHyperplanes, AllPairs or None
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
    sparse: RandomHyperplanes | AllPairs | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.low_rank, FeatureMap | None):
            raise TypeError(
                "low_rank must be a feature map (PositiveFeatures, TrigonometricFeatures, EluFeatures) or "
                f"None, got {type_name(self.low_rank)}"
            )
        if not isinstance(self.sparse, RandomHyperplanes | AllPairs | None):
            raise TypeError(
                f"sparse must be RandomHyperplanes, AllPairs or None, got {type_name(self.sparse)}"
            )
        if self.low_rank is None and self.sparse is None:
            raise ValueError("low_rank and sparse must not both be None")
        if self.low_rank is not None and isinstance(self.sparse, AllPairs):
            raise ValueError(
                f"low_rank must be None with AllPairs, which leaves it nothing, got {self.low_rank}"
            )

    @property
    def is_random(self) -> bool:
        """Whether anything is drawn."""
        return isinstance(self.sparse, RandomHyperplanes) or (
            self.low_rank is not None and self.low_rank.is_random
        )

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
