"""``scatterbrain methods``: the names ``--method`` takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import scatterbrain_core as sb
from scatterbrain_core.cli.console import say

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> int:
    """Print each method with its one line and reference."""
    del arguments
    methods = sb.methods()
    width = max(map(len, methods))
    for name, line in methods.items():
        say(f"{name:{width}}  {line}")
    return 0
