"""What is timed: Torch's own attention, and ours on NumPy arrays or Torch tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

import scatterbrain_core as sb
from benchmarks.cpu.cases import Workload
from benchmarks.cpu.exact import PLAIN
from benchmarks.shared.arrays import Array
from scatterbrain_core.sparse.routed_clusters import LINEAR_FROM

Rows = npt.NDArray[np.intp]
LIBRARIES = ("numpy", "torch")
SDPA = "torch sdpa"
# Of the entries, what goes into features where there are tiles too.
FEATURE_SHARE = 1 / 3


@dataclass(frozen=True)
class Cost:
    """Exact pairs a query and rank of the low-rank part."""

    pairs: float
    rank: float
    is_counted: bool = False


@dataclass(frozen=True)
class Prepared:
    """A call on inputs that exist.

    Attributes
    ----------
    call : callable
        What is timed.
    rows : callable
        From its output and some rows to an array of shape (heads, rows, dim).
    target : str
        What its error is against, of `benchmarks.cpu.exact`.
    """

    call: Callable[[], Any]
    rows: Callable[[Any, Rows], npt.NDArray[Any]]
    target: str = PLAIN


@dataclass(frozen=True)
class Method:
    """A line of the tables.

    Attributes
    ----------
    told : str
        What it is and how its entries are set.
    prepare : callable
        From arrays and a workload to what is called.
    cost : callable
        From arrays and a workload to what a query uses; None instead of arrays where counting costs too much.
    target : str
        As in `Prepared`.
    reason_not_causal : str or None
        Why it cannot be run causally.
    """

    told: str
    prepare: Callable[[list[Array], Workload], Prepared]
    cost: Callable[[list[Array] | None, Workload], Cost]
    target: str = PLAIN
    reason_not_causal: str | None = None


def visible(load: Workload) -> float:
    """Keys that a query sees, on average."""
    return (load.length + 1) / 2 if load.is_causal else load.length


def on_torch(call: Callable[..., Any], arrays: list[Array], **form: Any) -> Callable[[], Any]:
    """A call on tensors of the same memory, of shape (1, heads, length, dim), without autograd."""
    import torch

    tensors = [torch.from_numpy(x)[None] for x in arrays]

    def run() -> Any:
        with torch.inference_mode():
            return call(*tensors, **form)

    return run


def torch_rows(output: Any, rows: Rows) -> npt.NDArray[Any]:
    """Rows of a tensor of shape (1, heads, length, dim)."""
    return np.asarray(output[0, :, rows.tolist()].numpy())


def sdpa(arrays: list[Array], load: Workload) -> Prepared:
    """Torch's own attention."""
    import torch

    attention = torch.nn.functional.scaled_dot_product_attention
    return Prepared(on_torch(attention, arrays, is_causal=load.is_causal), torch_rows)


def _all_pairs(_: list[Array] | None, load: Workload) -> Cost:
    return Cost(visible(load), 0.0, is_counted=True)


Arguments = Callable[[Workload], dict[str, Any]]


def _exact(_: Workload) -> dict[str, Any]:
    return {"method": "exact"}


def _scatterbrain(load: Workload) -> dict[str, Any]:
    """Tiles and features of stated sizes: 128 keys and 64 features of 192 entries."""
    features = round(FEATURE_SHARE * load.entries)
    hashes = sb.RandomHyperplanes(max_bucket=load.entries - features)
    return {"method": sb.Scatterbrain(sb.PositiveFeatures(features), hashes)}


def _auto(load: Workload) -> dict[str, Any]:
    """The budget that gives so many entries: `auto` takes it as a fraction of at most LINEAR_FROM keys."""
    return {"method": "auto", "budget": min(1.0, load.entries / min(load.length, LINEAR_FROM))}


def _prepare_ours(arguments: Arguments, library: str, arrays: list[Array], load: Workload) -> Prepared:
    form = {**arguments(load), "is_causal": load.is_causal, "seed": load.seed}
    if library == "torch":
        return Prepared(on_torch(sb.attention, arrays, **form), torch_rows)
    return Prepared(partial(sb.attention, *arrays, **form), lambda output, rows: np.asarray(output[:, rows]))


def _cost_of_ours(arguments: Arguments, arrays: list[Array] | None, load: Workload) -> Cost:
    if arrays is None:
        features = 0 if arguments is _auto else round(FEATURE_SHARE * load.entries)
        return Cost(load.entries - features, features)
    found = sb.estimate(*arrays, **arguments(load), is_causal=load.is_causal, seed=load.seed).cost
    return Cost(found.pairs, found.rank, is_counted=True)


_OURS: dict[str, tuple[str, Arguments, Callable[[list[Array] | None, Workload], Cost]]] = {
    "exact": ("ours, all pairs", _exact, _all_pairs),
    "scatterbrain": (
        "ours, hashed tiles and positive random features, 2 : 1",
        _scatterbrain,
        partial(_cost_of_ours, _scatterbrain),
    ),
    "auto": ("ours, what `auto` chooses", _auto, partial(_cost_of_ours, _auto)),
}


def own_methods(libraries: Sequence[str]) -> dict[str, Method]:
    """Torch's own attention and our methods, on each library under a name of its own."""
    found = {SDPA: Method("torch.nn.functional.scaled_dot_product_attention, all pairs", sdpa, _all_pairs)}
    for library in libraries:
        for name, (told, arguments, cost) in _OURS.items():
            label = name if library == "numpy" else f"{name} ({library})"
            found[label] = Method(f"{told}, on {library}", partial(_prepare_ours, arguments, library), cost)
    return found
