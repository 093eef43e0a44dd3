"""`sb.attention` beside Torch's own attention, by length: time, memory at the peak, and error."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import scatterbrain_core as sb
from benchmarks.gpu.devices import OnCupy, OnTorch, as_tensor, median_milliseconds, peak_bytes
from benchmarks.shared.arrays import sampled_rows, topical

# Work per row that does not grow with the length.
STATED = sb.Scatterbrain(sb.PositiveFeatures(64), sb.RandomHyperplanes(max_bucket=128))
METHODS: dict[str, Any] = {"auto": "auto", "scatterbrain": "scatterbrain", "m = 64, buckets <= 128": STATED}
SDPA = "scaled_dot_product_attention"
# Rows of each head whose error is looked at, exact in float64.
SAMPLED_ROWS = 64


@dataclass(frozen=True)
class Sizes:
    """Of one call, and how long it may be measured."""

    heads: int
    dim: int
    length: int
    is_causal: bool
    repeats: int
    most_seconds: float


def measure(sizes: Sizes, dtypes: list[str], skipped: set[tuple[str, str, str]]) -> Iterator[dict[str, Any]]:
    """A record for every library, dtype and method; those in `skipped` took too long at a smaller length."""
    host = topical(sizes.heads, sizes.length, sizes.dim)
    rows = sampled_rows(sizes.length, SAMPLED_ROWS)
    for library in (OnTorch(), OnCupy()):
        for dtype in dtypes:
            if dtype not in library.dtypes:
                continue
            arrays = [library.asarray(x, dtype) for x in host]
            exact = exact_rows(arrays, rows, sizes.is_causal)
            for name, call in _calls(library, arrays, sizes):
                key = (library.name, dtype, name)
                if key not in skipped:
                    record = _record(library, call, rows, exact, sizes)
                    if record["seconds_in_all"] > sizes.most_seconds or "failed" in record:
                        skipped.add(key)
                    yield dict(zip(("library", "dtype", "method"), key, strict=True)) | record
            del arrays
            library.free()


def _calls(library: OnTorch | OnCupy, arrays: list[Any], sizes: Sizes) -> Iterator[tuple[str, Any]]:
    causal = {"is_causal": sizes.is_causal}
    if isinstance(library, OnTorch):
        # One batch of heads, as Torch's fast kernels want it.
        batch = [x[None] for x in arrays]
        yield SDPA, lambda: _torch_attention(batch, **causal)[0]
    for name, method in METHODS.items():
        yield name, lambda method=method: sb.attention(*arrays, method=method, check_finite=False, **causal)


def _torch_attention(batch: list[Any], **form: bool) -> Any:
    """Torch's own attention: in half precision by its flash kernel or not at all."""
    context: AbstractContextManager[Any] = nullcontext()
    if batch[0].dtype is not torch.float32:
        context = sdpa_kernel(SDPBackend.FLASH_ATTENTION)
    with context:
        return torch.nn.functional.scaled_dot_product_attention(*batch, **form)


def _record(
    library: OnTorch | OnCupy, call: Callable[[], Any], rows: np.ndarray, exact: np.ndarray, sizes: Sizes
) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        with torch.inference_mode():
            call()  # kernels are compiled
            library.free()
            found: dict[str, Any] = {"length": sizes.length}
            with peak_bytes(found):
                output = call()
            found["error"] = _error(output, rows, exact)
            del output
            found["milliseconds"], found["times"] = median_milliseconds(
                library, call, sizes.repeats, sizes.most_seconds
            )
    except (RuntimeError, MemoryError, ValueError) as error:
        found = {"length": sizes.length, "failed": f"{type(error).__name__}: {error}"[:500]}
    return found | {"seconds_in_all": time.perf_counter() - start}


def exact_rows(arrays: list[Any], rows: np.ndarray, is_causal: bool) -> np.ndarray:
    """Exact attention of some rows of every head, in float64, of the very arrays (rounded as they are)."""
    query, key, value = (as_tensor(x).double() for x in arrays)
    logits = query[:, rows.tolist()] @ key.mT / math.sqrt(query.shape[-1])
    if is_causal:
        future = torch.arange(key.shape[1], device="cuda")[None] > torch.asarray(rows, device="cuda")[:, None]
        logits = logits.masked_fill(future, -math.inf)
    return np.asarray((torch.softmax(logits, dim=-1) @ value).cpu().numpy())


def _error(output: Any, rows: np.ndarray, exact: np.ndarray) -> float:
    """‖output - exact‖ / ‖exact‖ over the sampled rows."""
    own = as_tensor(output)[:, rows.tolist()].double().cpu().numpy()
    return float(np.linalg.norm(own - exact) / np.linalg.norm(exact))
