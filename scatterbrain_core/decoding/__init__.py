"""Decoding: causal attention over a prompt, then a few tokens at a time, with a state in between."""

from scatterbrain_core.decoding.calls import prefill, step

__all__ = ["prefill", "step"]
