"""``scatterbrain attend``: attention of arrays in files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import scatterbrain_core as sb
from scatterbrain_core.cli.console import announce, duration
from scatterbrain_core.cli.errors import UserError, library_errors
from scatterbrain_core.cli.files import array_writer, check_outputs, read_mask, read_operand, write_whole
from scatterbrain_core.cli.measure import Array, check_methods, timed

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def run(arguments: argparse.Namespace) -> int:
    """Read Q, K and V, attend and write the output."""
    outputs = {"--output": arguments.output, "--lse": arguments.lse, "--stderr": arguments.stderr}
    check_methods([arguments.method])
    check_outputs(outputs, input_files(arguments))
    if arguments.max_memory is not None and (arguments.lse or arguments.stderr):
        raise UserError("--max-memory does not go with --lse or --stderr, which take more than the output")
    operands, options = read_operands(arguments, is_mapped=True), read_options(arguments)
    chosen = {"method": arguments.method, "budget": arguments.budget, "seed": arguments.seed}
    with library_errors(input_files(arguments)):
        results, seconds = timed(lambda: _attend(arguments, operands, {**chosen, **options}))
    output = results[arguments.output]
    if not np.isfinite(output).all():
        raise UserError(f"the attention output is not finite: the entries are too large for {output.dtype}")
    told = f"{output.dtype} {output.shape}, method {arguments.method}, {duration(seconds)}"
    writers = {path: array_writer(array) for path, array in results.items()}
    write_whole(writers, lambda: announce(f"{arguments.output}: {told}"))
    return 0


def _attend(
    arguments: argparse.Namespace, operands: Sequence[Array], options: dict[str, Any]
) -> dict[str, Any]:
    """Return the arrays to write under their files; the estimate is slower and made only where asked for."""
    if not (arguments.lse or arguments.stderr):
        if arguments.max_memory is not None:
            options = {**options, "max_memory": arguments.max_memory}
        return {arguments.output: sb.attention(*operands, **options)}
    estimate = sb.estimate(*operands, **options)
    if arguments.stderr and estimate.stderr is None:
        raise UserError(f"--stderr: the method {estimate.method} has no standard error")
    results = {
        arguments.output: estimate.output,
        arguments.lse: estimate.lse,
        arguments.stderr: estimate.stderr,
    }
    return {path: array for path, array in results.items() if path is not None}


def input_files(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the files a command reads, under the names that messages have for them."""
    names = {
        "query": arguments.query,
        "key": arguments.key,
        "value": arguments.value,
        "--mask": arguments.mask,
    }
    return {name: path for name, path in names.items() if path is not None}


def read_operands(arguments: argparse.Namespace, is_mapped: bool = False) -> tuple[Array, Array, Array]:
    """Read query, key and value."""
    query, key, value = (
        read_operand(x, is_mapped) for x in (arguments.query, arguments.key, arguments.value)
    )
    return query, key, value


def read_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments that say what attention is meant."""
    return {
        "is_causal": arguments.causal,
        "scale": arguments.scale,
        "enable_gqa": arguments.gqa,
        "attn_mask": None if arguments.mask is None else read_mask(arguments.mask),
    }
