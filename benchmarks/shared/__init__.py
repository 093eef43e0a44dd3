"""What the benchmarks share: the arrays they draw, where a result came from, and how it is written."""
