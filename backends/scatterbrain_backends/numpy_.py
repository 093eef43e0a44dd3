"""NumPy: temporaries are overwritten in place, which the array API cannot say."""

from __future__ import annotations

from typing import Any

import numpy as np

from scatterbrain_core.backend import Backend


class NumpyBackend(Backend):
    """Backend for `numpy.ndarray`."""

    def exp_below(self, logits: Any, reference: Any) -> Any:
        """exp(logits - reference), written over `logits`."""
        np.subtract(logits, reference, out=logits)
        return np.exp(logits, out=logits)
