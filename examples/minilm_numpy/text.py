"""The text the demonstration reads."""

from __future__ import annotations

from importlib.resources import files

DARWIN = "Charles Darwin, On the Origin of Species, first edition (1859), opening of the Introduction"


def sample_text() -> str:
    """Return the first four paragraphs of `DARWIN`, a text in the public domain."""
    return files("minilm_numpy").joinpath("data", "darwin_1859.txt").read_text(encoding="utf-8")
