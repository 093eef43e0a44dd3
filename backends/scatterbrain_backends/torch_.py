"""Torch: autograd needs the streaming references to be constants; on CUDA, CuPy's kernels where it is."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad

from scatterbrain_backends.cupy_.forms import C_TYPES
from scatterbrain_backends.cupy_.launches import CHUNK_ELEMENTS, dtype_name
from scatterbrain_backends.numpy_.backend import is_compiled_for
from scatterbrain_core.backend import Backend, backend_of
from scatterbrain_core.estimator import Projections
from scatterbrain_core.method import Scatterbrain
from scatterbrain_core.problem import Problem
from scatterbrain_core.sparse_correction import Visits
from scatterbrain_core.tiles import Sorted


class TorchBackend(Backend):
    """Backend for `torch.Tensor` on any device."""

    def chunk_of(self, like: Any) -> int:
        """More on CUDA, where launches cost more than the temporaries' memory."""
        return min(CHUNK_ELEMENTS, self.chunk_limit) if like.device.type == "cuda" else super().chunk_of(like)

    def stop_gradient(self, x: Any) -> Any:
        """`x` cut from the autograd graph."""
        return x.detach()

    def full_precision(self, like: Any) -> AbstractContextManager[Any]:
        """Without autocast, which would take products in half precision."""
        if not torch.amp.is_autocast_available(like.device.type):
            return nullcontext()
        return torch.autocast(like.device.type, enabled=False)

    def exp_below(self, logits: Any, reference: Any) -> Any:
        """exp(logits - reference), in place where autograd does not record."""
        if torch.is_grad_enabled() and logits.requires_grad:
            return torch.exp(logits - reference)
        return logits.sub_(reference).exp_()

    def attend(
        self,
        groups: Sequence[Problem],
        method: Scatterbrain,
        projections: Projections,
        generic: Callable[[Problem, Projections], Any],
    ) -> Any:
        """By NumPy on the CPU, on the same memory, where it is faster and nothing is differentiated."""
        arrays: list[Any] = [x for group in groups for x in group.arrays]
        is_plain = all(x.device.type == "cpu" and not is_differentiated(x) for x in arrays)
        if not is_plain or torch.compiler.is_compiling() or not is_compiled_for(groups[0], method):
            return super().attend(groups, method, projections, generic)
        heads = [group.of_heads(slice(i, i + 1)) for group in groups for i in range(group.n_heads)]
        supports = [_as_numpy(support) for support in projections.supports]
        drawn = replace(projections, features=_as_numpy(projections.features), supports=supports)
        first, numpy = heads[0], backend_of(query=np.empty(0))
        if self.is_limited:
            numpy = numpy.within(self.chunk_limit, self.most_heads)
        dtype = str(first.worked_in).removeprefix("torch.")
        output = np.empty((len(heads), first.n_queries, first.dim_value), dtype)

        def write(i: int) -> None:
            own = _on_numpy(heads[i], numpy)
            output[i : i + 1] = numpy.attend([own], method, drawn, generic)

        numpy.map(write, range(len(heads)))
        return torch.from_numpy(output)

    def true_places(self, mask: Any, generic: Callable[[], Any]) -> Any:
        """In one pass."""
        del generic
        return torch.nonzero(mask, as_tuple=True)[0]

    def scatter_add(self, total: Any, index: Any, rows: Any) -> Any:
        """`total` with rows added in place, on CUDA without the atomics of `index_add_`."""
        if total.device.type != "cuda":
            return total.index_add_(0, index, rows)
        kernels = _kernels(total, rows)
        is_taken = rows.dtype == total.dtype and dtype_name(rows) in C_TYPES and 0 not in rows.shape
        if kernels is None or not is_taken:
            return total.index_put_((index,), rows, accumulate=True)  # sorts the indices
        return kernels.scatter_add(total, index, rows)

    def tile_partial(self, visits: Visits, generic: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
        """By CuPy's kernel on CUDA where nothing is differentiated and CuPy is installed."""
        kernels = _kernels(visits.pairs.query, visits.pairs.key, visits.weighted_value)
        found = None if kernels is None else kernels.tile_partial(self.xp, visits)
        return generic() if found is None else found

    def running_merge(
        self, ref: Any, acc: Any, segment: Any, generic: Callable[[], tuple[Any, Any]]
    ) -> tuple[Any, Any]:
        """By CuPy's kernel on CUDA, as `tile_partial`."""
        kernels = _kernels(ref, acc)
        found = None if kernels is None else kernels.running_merge(self.xp, ref, acc, segment)
        return generic() if found is None else found

    def sort_jointly(
        self,
        key_bucket: Any,
        query_bucket: Any,
        key_rank: Any,
        query_rank: Any,
        generic: Callable[[], Sorted],
    ) -> Sorted:
        """By CuPy's kernels around Torch's own sort on CUDA, as `tile_partial`."""
        buckets, ranks = (key_bucket, query_bucket), (key_rank, query_rank)
        kernels = _kernels(*buckets, *ranks)
        found = None if kernels is None else kernels.sort_jointly(self.xp, buckets, ranks)
        return generic() if found is None else found

    def hyperplane_codes(
        self, x: Any, normals: Any, direction: Any, generic: Callable[[], tuple[Any, Any]]
    ) -> tuple[Any, Any]:
        """By CuPy's kernel on CUDA, as `tile_partial`."""
        kernels = _kernels(x, normals)
        found = None if kernels is None else kernels.hyperplane_codes(self.xp, x, normals, direction)
        return generic() if found is None else found


def _as_numpy(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.detach().resolve_neg().numpy() for x in tensors)


def _on_numpy(problem: Problem, backend: Backend) -> Problem:
    """The problem of the same memory as NumPy arrays."""
    is_half = problem.half is not None  # which NumPy may not have
    arrays = _as_numpy((problem.query, problem.key, problem.value) if is_half else problem.arrays)
    masks: list[Any] = [problem.key_mask, problem.row_mask]
    key_mask, row_mask = (None if mask is None else mask.numpy() for mask in masks)
    return replace(
        problem,
        backend=backend,
        arrays=arrays,
        in_form=problem.in_form or is_half,
        key_mask=key_mask,
        row_mask=row_mask,
    )


def _kernels(*tensors: Any) -> Any:
    """The module of the kernels; None where they cannot or must not be used on these tensors."""
    if any(x.device.type != "cuda" or is_differentiated(x) for x in tensors):
        return None
    return None if torch.compiler.is_compiling() else _cuda_module()


@cache
def _cuda_module() -> Any:
    try:
        module = importlib.import_module("scatterbrain_backends.cupy_.on_torch")
    except ImportError:  # no CuPy
        return None
    reason = module.reason_against()
    if reason is None:
        return module
    warnings.warn(f"CuPy is installed but compiles no kernels, Torch works without: {reason}", stacklevel=2)
    return None


def is_differentiated(x: Any) -> bool:
    """Whether autograd, forward or backward, or a transform of torch.func follows what is done to `x`."""
    if x.requires_grad and torch.is_grad_enabled():
        return True
    is_wrapped: Callable[[Any], bool] = torch._C._functorch.is_functorch_wrapped_tensor
    return is_wrapped(x) or forward_ad.unpack_dual(x).tangent is not None
