"""The command ``scatterbrain``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``scatterbrain``.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        The exit code: 0, or 2 for a mistake of the user's, told in one line on standard error; 130 after
        Ctrl-C and 141 where the reader of the output went away, as a shell counts those signals.
    """
    try:
        # Ctrl-C may come while the modules are still being read, so that they are read in here.
        from scatterbrain_core.cli.command import run

        return run(argv)
    except KeyboardInterrupt:
        from scatterbrain_core.cli.streams import tell

        tell("scatterbrain: interrupted")
        return INTERRUPTED
    finally:
        from scatterbrain_core.cli.streams import settle

        settle()
