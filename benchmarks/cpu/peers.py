"""Other packages: what of each is timed, and how many entries a query it is given.

Of each the attention alone is timed, without the projections of its layer. What each of them computes is
not always softmax attention of the arrays; where it is not, its error is against what it stands for.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.cpu.cases import Workload
from benchmarks.cpu.exact import SHARED
from benchmarks.cpu.methods import Cost, Method, Prepared, Rows, on_torch, torch_rows
from benchmarks.shared.arrays import Array


@dataclass(frozen=True)
class Peer:
    """A package that may be installed.

    Attributes
    ----------
    distribution, version : str
        As pinned in the extra `peer-…` of pyproject.toml.
    module : str
        What is imported.
    method : Method
    """

    distribution: str
    version: str
    module: str
    method: Method


def missing(peer: Peer) -> str | None:
    """Why it cannot be run, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module(peer.module)
    except Exception as error:
        return f"{peer.distribution} {peer.version} cannot be imported: {' '.join(str(error).split())}"
    return None


def _performer(arrays: list[Array], load: Workload) -> Prepared:
    import torch
    from performer_pytorch import FastAttention

    torch.manual_seed(load.seed)
    attention = FastAttention(dim_heads=load.dim, nb_features=load.entries, causal=load.is_causal)
    return Prepared(on_torch(attention, arrays), torch_rows)


def _linear(arrays: list[Array], load: Workload) -> Prepared:
    from linear_attention_transformer import linear_attention_transformer as package

    if load.is_causal:
        return Prepared(on_torch(package.causal_linear_attn, arrays), torch_rows)
    # It divides the weighted means by √d, once more than softmax attention does: undone for the error.
    back = math.sqrt(load.dim)
    return Prepared(on_torch(package.linear_attn, arrays), lambda x, rows: torch_rows(x, rows) * back)


def _reformer(arrays: list[Array], load: Workload) -> Prepared:
    """One round of hashes; a query attends its chunk and the one before, half of the entries each."""
    import torch
    from reformer_pytorch import LSHAttention

    torch.manual_seed(load.seed)
    bucket = load.entries // 2
    attention = LSHAttention(bucket_size=bucket, n_hashes=1, causal=load.is_causal).eval()
    padding = -load.length % (2 * bucket)
    mask = torch.arange(load.length + padding) < load.length if padding else None

    def call(query: Any, _: Any, value: Any) -> Any:
        both = [torch.nn.functional.pad(x[0], (0, 0, 0, padding)) for x in (query, value)]
        hides = None if mask is None else mask.expand(load.heads, -1)
        return attention(*both, input_mask=hides)[0][None]

    return Prepared(on_torch(call, arrays), torch_rows, SHARED)


def _nystrom(arrays: list[Array], load: Workload) -> Prepared:
    """The layer with its projections replaced by nothing, and without its convolution."""
    import torch
    from nystrom_attention import NystromAttention

    layer = NystromAttention(
        load.heads * load.dim, load.dim, load.heads, num_landmarks=load.entries, residual=False
    ).eval()
    layer.to_qkv, layer.to_out = torch.nn.Identity(), torch.nn.Identity()
    joined = np.concatenate([x.swapaxes(0, 1).reshape(load.length, -1) for x in arrays], axis=1)

    def of_heads(output: Any, rows: Rows) -> npt.NDArray[Any]:
        chosen = output[0, 0, rows.tolist()].numpy()
        return np.asarray(chosen.reshape(len(rows), load.heads, load.dim).swapaxes(0, 1))

    return Prepared(on_torch(lambda x: layer(x[0])[None], [joined[None]]), of_heads)


def _clustered(arrays: list[Array], load: Workload) -> Prepared:
    """Clusters of queries, one row of weights each, and the exact pairs of its largest ones."""
    import torch
    from fast_transformers.attention.improved_clustered_attention import ImprovedClusteredAttention
    from fast_transformers.masking import FullMask, LengthMask

    torch.manual_seed(load.seed)
    clusters = _clusters(load)
    attention = ImprovedClusteredAttention(clusters, topk=load.entries - clusters).eval()
    # It only asks whether the mask hides nothing: one entry instead of a square of them.
    nothing, lengths = FullMask(1), LengthMask(torch.tensor([load.length]), max_len=load.length)

    def call(*heads: Any) -> Any:
        found = attention(*(x.transpose(1, 2) for x in heads), nothing, lengths, lengths)
        return found.transpose(1, 2)

    return Prepared(on_torch(call, arrays), torch_rows)


def _clusters(load: Workload) -> int:
    return load.entries // 3


def _of_clusters(_: list[Array] | None, load: Workload) -> Cost:
    return Cost(load.entries - _clusters(load), _clusters(load))


def _of_rank(_: list[Array] | None, load: Workload) -> Cost:
    return Cost(0.0, load.entries)


def _of_dim(_: list[Array] | None, load: Workload) -> Cost:
    return Cost(0.0, load.dim)


def _of_pairs(_: list[Array] | None, load: Workload) -> Cost:
    return Cost(load.entries // 2 * 2, 0.0)


Prepare = Callable[[list[Array], Workload], Prepared]

PEERS: dict[str, Peer] = {
    "performer-pytorch": Peer(
        "performer-pytorch",
        "1.1.4",
        "performer_pytorch",
        Method("FastAttention, as many features as entries", _performer, _of_rank),
    ),
    "reformer-pytorch": Peer(
        "reformer-pytorch",
        "1.4.4",
        "reformer_pytorch",
        Method(
            "LSHAttention, 1 round, a query attends 2 chunks of half the entries; its keys are the queries, "
            "normalised, and its error is against exact attention of that kind",
            _reformer,
            _of_pairs,
            SHARED,
        ),
    ),
    "linear-attention-transformer": Peer(
        "linear-attention-transformer",
        "0.19.1",
        "linear_attention_transformer",
        Method(
            "linear_attn, of rank d, which cannot be set: no estimate of softmax attention; causally a query "
            "sees the 64-blocks before its own",
            _linear,
            _of_dim,
        ),
    ),
    "nystrom-attention": Peer(
        "nystrom-attention",
        "0.0.14",
        "nystrom_attention",
        Method(
            "NystromAttention, as many landmarks as entries, projections and convolution taken out",
            _nystrom,
            _of_rank,
            reason_not_causal="it has no causal form",
        ),
    ),
    "fast-transformers": Peer(
        "pytorch-fast-transformers",
        "0.4.0",
        "fast_transformers.attention.improved_clustered_attention",
        Method(
            "ImprovedClusteredAttention, clusters of queries for a third of the entries, pairs for the rest",
            _clustered,
            _of_clusters,
            reason_not_causal="its clustered attention has no causal form",
        ),
    ),
}

# Packages that were tried and cannot be run here, whatever is installed.
NOT_RUN = {
    "xformers": "memory_efficient_attention has no operator for the CPU (tried: 0.0.35)",
}
