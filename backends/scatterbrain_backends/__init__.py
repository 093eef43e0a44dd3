"""Backends of `scatterbrain_core`, one module a library, found by entry point and imported on first use."""
