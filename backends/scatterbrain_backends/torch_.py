"""Torch: autograd needs the streaming references to be constants."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from scatterbrain_core.backend import Backend


class TorchBackend(Backend):
    """Backend for `torch.Tensor` on any device."""

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

    def scatter_add(self, total: Any, index: Any, rows: Any) -> Any:
        """`total` with rows added in place, in the same order at every run."""
        if total.is_cuda:  # index_add_ adds atomically there, in any order; this sorts
            return total.index_put_((index,), rows, accumulate=True)
        return total.index_add_(0, index, rows)
