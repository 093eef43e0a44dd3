"""The text that perplexity is measured on."""

from __future__ import annotations

from importlib.resources import files

DARWIN = (
    "Charles Darwin, On the Origin of Species, first edition (1859), from the Introduction into Chapter I"
)


def sample_text() -> str:
    """Return the first 33 paragraphs of `DARWIN`, 8,698 tokens, a text in the public domain."""
    return files("smollm2_numpy").joinpath("data", "darwin_1859.txt").read_text(encoding="utf-8")
