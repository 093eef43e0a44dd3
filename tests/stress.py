"""Extremes of the numerics, and the table of what they cost (`make stress`).

Errors are relative, ‖got - expected‖ / ‖expected‖ of a head against the dense float64 oracle with the same
draws and the same support, in units of eps · (1 + max|logit|): what rounding of the logits alone may cost.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from libraries import EVERYWHERE, make_library
from oracle import METHODS as PARTS
from oracle import oracle
from problems import draw_problem
from rich.progress import track

import scatterbrain_core as sb
from scatterbrain_core.random import Draws

MAPS = {
    "orthogonal": sb.PositiveFeatures(6, "orthogonal"),
    "paired": sb.PositiveFeatures(6, paired=True),
    "rho 0.3": sb.PositiveFeatures(6, rho=0.3),
    "centred": sb.PositiveFeatures(6, centred=True),
    "whitened": sb.PositiveFeatures(6, whitened=True),
    "rho optimal": sb.PositiveFeatures(6, rho="optimal"),
    "all": sb.PositiveFeatures(6, "orthogonal", paired=True, rho="optimal", centred=True, whitened=True),
}
MAPPED = {
    f"{name}{of}": sb.Scatterbrain(features, sparse)
    for name, features in MAPS.items()
    for of, sparse in (("", None), (", hyperplanes", sb.RandomHyperplanes(2)))
}
METHODS = PARTS | MAPPED
LIMIT = 32.0
PAGE = """# What rounding costs

`make stress` runs the methods of `tests/oracle.py` and every feature map, alone and with a table of
hyperplanes, causal and not, over {seeds} seeds of data and draws, and compares with a dense float64 oracle
that has the same draws and the same support. Here is the worst relative error of a head,
‖got − expected‖ / ‖expected‖, in units of ε · (1 + max|q·k|), which rounding of the logits alone may cost;
the tests allow {limit:.0f}. ε is the unit of the dtype (2⁻¹⁰, 2⁻⁷, 2⁻²³, 2⁻⁵²).
Half precision is worked in float32. CuPy and Torch on CUDA stand here where a GPU is.
"""
LSE = """Of the log-normaliser: the worst absolute error, in units of ε · (1 + max|q·k| + max‖q‖² + max‖k‖²),
for the logs of features are that large; the tests allow as many. Of half precision ε is that of float32.
"""
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
SCENARIOS = (
    "logits of 1e-6",
    "logits of 1",
    "logits of 100",
    "logits of 10 000",
    "one key 1000 times the rest",
    "constant keys",
    "duplicate keys",
    "rows that see one key",
    "all keys opposite to all queries",
    "features too large by e^30",
    "values of 10 000",
    "fewer keys than dimensions",
    "all vectors nearly equal",
)


def scenario(name, rng, parts, seed):
    """Query, key, value in float64, and a mask or None."""
    if name == "features too large by e^30":
        return *_overestimated(rng, parts, seed), None
    if name == "fewer keys than dimensions":
        return *draw_problem(rng, 10, 10, dim=64), None
    q, k, v = draw_problem(rng, 48, 56, dim=8)
    if name == "rows that see one key":
        return q, k, v, np.arange(56)[None, :] == rng.integers(0, 56, 48)[:, None]
    return *changed(name, q, k, v), None


def changed(name, q, k, v):
    if name.startswith("logits of"):
        factor = math.sqrt(float(name.removeprefix("logits of ").replace(" ", "")) / _top(q, k))
        q, k = factor * q, factor * k
    elif name == "one key 1000 times the rest":
        k[:, 17] *= 1e3
    elif name == "constant keys":
        k = np.broadcast_to(k[:, :1], k.shape).copy()
    elif name == "duplicate keys":
        k = np.repeat(k[:, : k.shape[1] // 2], 2, axis=1)
    elif name == "all keys opposite to all queries":
        k = -5 * np.abs(k) * np.sign(q.mean(axis=1, keepdims=True))
    elif name == "all vectors nearly equal":
        q, k = (5 / math.sqrt(8) + 0.1 * x for x in (q, k))
    elif name == "values of 10 000":
        v = 1e4 * v
    return q, k, v


def _top(query, key):
    return np.abs(query @ np.swapaxes(key, -1, -2)).max() / math.sqrt(query.shape[-1])


def _overestimated(rng, parts, seed):
    """Half of the queries and keys with q + k near a row w of W: log L exceeds q·k by ‖w‖²/2 - log m."""
    q, k, v = draw_problem(rng, 48, 56, dim=96)
    if isinstance(parts.low_rank, sb.PositiveFeatures):
        (W,) = parts.low_rank.draw(Draws(seed).feature_generator(), 96)
        hot = 96**0.25 / 2 * W[np.argmax((W**2).sum(-1))]
        q[:, :24], k[:, :28] = 0.01 * q[:, :24] + hot, 0.01 * k[:, :28] + hot
    return q, k, v


def unit_of(dtype, query, key):
    """eps · (1 + max|logit|)."""
    return EPS[dtype] * (1 + _top(query, key))


def lse_unit_of(dtype, query, key):
    """eps · (1 + max|logit| + max‖q‖² + max‖k‖²), scale folded in: logs of features are as large."""
    norms = sum((x**2).sum(-1).max() for x in (query, key)) / math.sqrt(query.shape[-1])
    # Half precision is worked in float32, and its lse stays there.
    return min(EPS[dtype], EPS["float32"]) * (1 + _top(query, key) + norms)


def is_refused(method, is_causal, mask):
    """Whether it would let in what is hidden."""
    parts = METHODS[method].parts.values()
    reasons = [part.reason_not_causal if is_causal else part.reason_not_masked for part in parts]
    return any(reasons) and (is_causal or mask is not None)


@cache
def reference(name, method, dtype, is_causal, seed):
    """Arrays of a scenario, rounded to `dtype`, as float64, its mask, and what the oracle makes of them.

    None where there is no such call.
    """
    rng = np.random.default_rng([seed, SCENARIOS.index(name)])
    q, k, v, mask = scenario(name, rng, METHODS[method], seed)
    if (mask is not None and is_causal) or is_refused(method, is_causal, mask):
        return None
    arrays = tuple(x.astype(_numpy_dtype(dtype)).astype(np.float64) for x in (q, k, v))
    return arrays, mask, oracle(*arrays, METHODS[method], mask=mask, is_causal=is_causal, seed=seed)


def errors(name, method, kind, dtype, is_causal, seed=0):
    """Worst error of a head's output, relative, and of an lse, in their units; 0 where it is no call."""
    found = reference(name, method, dtype, is_causal, seed)
    if found is None:
        return 0.0, 0.0
    arrays, mask, (output, lse) = found
    options = {"method": METHODS[method], "is_causal": is_causal, "seed": seed}
    if mask is not None:
        options["attn_mask"] = kind.mask(mask)
    # All features in one group, as `attention` runs them.
    with mock.patch.object(sys.modules["scatterbrain_core.attention"], "ERROR_GROUPS", 1):
        est = sb.estimate(*(kind.asarray(x, dtype) for x in arrays), **options)
    norms = np.linalg.norm(output, axis=(-2, -1))
    moved = np.linalg.norm(kind.to_numpy(est.output) - output, axis=(-2, -1)) / np.where(norms > 0, norms, 1)
    got = kind.to_numpy(est.lse)
    unseen = np.isneginf(got) & np.isneginf(lse)
    lse_moved = np.abs(np.where(unseen, 0.0, got) - np.where(unseen, 0.0, lse))
    units = unit_of(dtype, *arrays[:2]), lse_unit_of(dtype, *arrays[:2])
    # A NaN must not get lost among the maxima.
    return tuple(
        float(np.nan_to_num(x.max() / unit, nan=np.inf))
        for x, unit in zip((moved, lse_moved), units, strict=True)
    )


class Kind:
    """A library with half precision: arrays of any dtype there, float64 back."""

    def __init__(self, name):
        self.library = make_library(name)
        self.mask = self.library.asarray

    def asarray(self, x, dtype):
        if self.library.name.startswith("torch"):
            import torch

            return self.library.asarray(x).to(getattr(torch, dtype))
        return self.library.asarray(x.astype(_numpy_dtype(dtype)))

    def to_numpy(self, x):
        x = x.double() if self.library.name.startswith("torch") else x
        return self.library.to_numpy(x).astype(np.float64)


def _numpy_dtype(name):
    import ml_dtypes

    return ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)


def dtypes_of(name):
    """dtypes that a library has."""
    halves = ("float16", "bfloat16")
    return [dtype for dtype in EPS if name != "array_api_strict" or dtype not in halves]


def worst(name, kind, dtype, seeds, methods=tuple(METHODS)):
    """Worst errors of a scenario over methods, causal or not, and seeds: (units, method), output and lse."""
    calls = list(itertools.product(methods, (False, True), seeds))
    found = [errors(name, method, kind, dtype, causal, seed) for method, causal, seed in calls]
    named = [method for method, *_ in calls]
    return tuple(max(zip(units, named, strict=True)) for units in zip(*found, strict=True))


def tables(kinds, seeds):
    """Rows of scenario by library and dtype, as Markdown: of the output, and of the lse."""
    columns = [(name, dtype) for name in kinds for dtype in dtypes_of(name)]
    head = [
        "| scenario | " + " | ".join(f"{name} {dtype}" for name, dtype in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    rows = head.copy(), head.copy()
    for scenario_name in track(SCENARIOS, description="scenarios"):
        cells = zip(*(worst(scenario_name, Kind(name), dtype, seeds) for name, dtype in columns), strict=True)
        for table, row in zip(rows, cells, strict=True):
            table.append(f"| {scenario_name} | " + " | ".join(f"{units:.2g}" for units, _ in row) + " |")
    return rows


def main():
    """Print the table, and write it where it belongs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds of data and draws (default 3)")
    parser.add_argument("--output", type=Path, help="a Markdown file to write the table to")
    arguments = parser.parse_args()
    kinds = [name for name in EVERYWHERE if name != "numpy-readonly" and _is_here(name)]
    of_output, of_lse = tables(kinds, range(arguments.seeds))
    rows = [*of_output, "", LSE, *of_lse]
    print("\n".join(rows))
    if arguments.output is not None:
        write(arguments.output, [PAGE.format(seeds=arguments.seeds, limit=LIMIT), *rows])


def write(path, rows):
    """Write lines to a temporary name, then move it."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write("\n".join(rows) + "\n")
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def _is_here(name):
    try:
        make_library(name)
    except pytest.skip.Exception:
        return False
    return True


if __name__ == "__main__":
    main()
