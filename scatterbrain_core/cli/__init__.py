"""The command ``scatterbrain``."""

from scatterbrain_core.cli.main import main

__all__ = ["main"]
