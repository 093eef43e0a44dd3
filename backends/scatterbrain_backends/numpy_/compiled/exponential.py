"""exp and log of one number, which LLVM makes vectors of where they stand in a loop over float32."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

# exp(x) = 2^n exp(r) with n the nearest whole number to x / ln 2, and r = x - n ln 2 from ln 2 in two parts.
PER_LN2, LN2_HIGH, LN2_LOW = map(np.float32, (1.44269504088896341, 0.693359375, -2.12194440e-4))
# exp(r) - 1 - r over r², of least error on [-ln 2 / 2, ln 2 / 2] (Cephes, expf).
SERIES = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
C0, C1, C2, C3, C4, C5 = map(np.float32, SERIES)
LEAST, MOST = np.float32(-87.33), np.float32(88.02)
ONE, ZERO, INFINITY = map(np.float32, (1, 0, np.inf))


def exponential(x: Any) -> Any:
    """exp(x), within 1.5 units of float32; what would be subnormal there is 0."""
    return math.exp(x)


def _of_float32(x: Any) -> Any:
    kept = min(max(x, LEAST), MOST) if x == x else ZERO
    n = np.rint(kept * PER_LN2)
    r = kept - n * LN2_HIGH
    r = r - n * LN2_LOW
    series = ((((C0 * r + C1) * r + C2) * r + C3) * r + C4) * r + C5
    power = np.int32((np.int32(n) + np.int32(127)) << 23).view(np.float32)
    found = (series * r * r + r + ONE) * power
    found = found if x >= LEAST else ZERO
    found = found if x <= MOST else INFINITY
    return found if x == x else x


def _of_float64(x: Any) -> Any:
    return math.exp(x)


@overload(exponential, jit_options={"fastmath": {"contract", "nsz", "arcp"}})
def _exponential(x: Any) -> Any:
    return _of_float32 if x == types.float32 else _of_float64


# log(x) = n ln 2 + log(1 + r), with 1 + r in [sqrt(1/2), sqrt(2)); of least error there (Cephes, logf).
LOG_SERIES = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
L0, L1, L2, L3, L4, L5, L6, L7, L8 = map(np.float32, LOG_SERIES)
HALF, ROOT_OF_HALF = np.float32(0.5), np.float32(0.70710678118654752440)


def logarithm(x: Any) -> Any:
    """log(x) of a positive normal number, within 2 units of float32."""
    return math.log(x)


def _log_of_float32(x: Any) -> Any:
    bits = np.float32(x).view(np.int32)
    fraction = np.int32((bits & 0x007FFFFF) | 0x3F000000).view(np.float32)  # in [1/2, 1)
    is_low = fraction < ROOT_OF_HALF
    n = np.float32((bits >> 23) - 126) - (ONE if is_low else ZERO)
    r = (fraction + fraction if is_low else fraction) - ONE
    series = (((L0 * r + L1) * r + L2) * r + L3) * r + L4
    series = (((series * r + L5) * r + L6) * r + L7) * r + L8
    found = r - HALF * r * r + series * r * r * r + n * LN2_LOW + n * LN2_HIGH
    return found if x == x else x


def _log_of_float64(x: Any) -> Any:
    return math.log(x)


@overload(logarithm, jit_options={"fastmath": {"contract", "nsz", "arcp"}})
def _logarithm(x: Any) -> Any:
    return _log_of_float32 if x == types.float32 else _log_of_float64
