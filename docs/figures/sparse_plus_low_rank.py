"""Draw the picture of sparse + low-rank: ``python docs/figures/sparse_plus_low_rank.py [FILE]``.

Writes sparse_plus_low_rank.png beside this script, or FILE, and prints the errors of the panels.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

import scatterbrain_core as sb

CLUSTERS, SIZE, DIM, SQUARED_NORM, NOISE = 8, 12, 16, 2.0, 0.2
FEATURES = sb.PositiveFeatures(24)
HASHES = sb.RandomHyperplanes(n_bits=4, n_tables=2)
SEED = 0
OFF_SUPPORT = "0.92"


def clustered_points():
    """Queries and keys of norm √2 around the same orthogonal centres, ordered by cluster."""
    rng = np.random.default_rng(SEED)
    centres = np.linalg.qr(rng.standard_normal((DIM, CLUSTERS)))[0].T

    def around():
        points = np.repeat(centres, SIZE, axis=0)
        points = points + NOISE * rng.standard_normal(points.shape) / np.sqrt(DIM)
        return points * np.sqrt(SQUARED_NORM) / np.linalg.norm(points, axis=1, keepdims=True)

    return around(), around()


def estimates(query, key, seed):
    """The three estimates of exp(q·k) and the mean number of exact pairs a query."""
    parts = {
        "low-rank": sb.Scatterbrain(low_rank=FEATURES),
        "sparse": sb.Scatterbrain(sparse=HASHES),
        "both": sb.Scatterbrain(low_rank=FEATURES, sparse=HASHES),
    }
    matrices = {
        name: sb.attention_matrix(query, key, method=method, scale=1.0, normalize=False, seed=seed)
        for name, method in parts.items()
    }
    pairs = sb.estimate(query, key, key, method=parts["sparse"], scale=1.0, seed=seed).cost.pairs
    return matrices, pairs


def relative_error(estimate, exact):
    """Frobenius norm of the difference over that of the exact matrix."""
    return np.linalg.norm(estimate - exact) / np.linalg.norm(exact)


def draw(exact, matrices, pairs):
    """The figure: exact, low-rank alone, sparse alone, both."""

    def error(name):
        return f"relative error {relative_error(matrices[name], exact):.2f}"

    panels = (
        (exact, r"exact: $A_{ij} = \exp(q_i \cdot k_j)$", f"{len(exact)} × {len(exact)} pairs"),
        (matrices["low-rank"], f"low-rank alone: $L$, rank {FEATURES.n_features}", error("low-rank")),
        (matrices["sparse"], f"sparse alone: $A$ on $S$, {pairs:.1f} pairs a query", error("sparse")),
        (matrices["both"], "sparse + low-rank: $A$ on $S$, $L$ elsewhere", error("both")),
    )
    figure = Figure(figsize=(8.6, 8.0), layout="constrained", dpi=110)
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    norm = LogNorm(vmin=0.25, vmax=exact.max())
    for axis, (matrix, title, subtitle) in zip(axes.flat, panels, strict=True):
        axis.set_facecolor(OFF_SUPPORT)
        image = axis.imshow(
            np.ma.masked_equal(matrix, 0.0), norm=norm, cmap="viridis", interpolation="nearest"
        )
        axis.set_title(f"{title}\n{subtitle}", fontsize=11)
        edges = np.arange(0, len(exact) + 1, 2 * SIZE)
        axis.set_xticks(edges - 0.5, edges)
        axis.set_yticks(edges - 0.5, edges)
    for axis in axes[-1]:
        axis.set_xlabel("key $j$, by cluster")
    for axis in axes[:, 0]:
        axis.set_ylabel("query $i$, by cluster")
    bar = figure.colorbar(image, ax=axes, extend="both", shrink=0.7, ticks=[0.25, 0.5, 1, 2, 4])
    bar.ax.minorticks_off()
    bar.ax.set_yticklabels(["0.25", "0.5", "1", "2", "4"])
    bar.set_label("weight before normalisation (log scale; grey: left out)")
    return figure


def main(argv):
    query, key = clustered_points()
    exact = np.exp(query @ key.T)
    matrices, pairs = estimates(query, key, SEED)
    target = Path(argv[0]) if argv else Path(__file__).with_suffix(".png")
    draw(exact, matrices, pairs).savefig(target, metadata={"Software": None})
    sys.stdout.write(f"{target}: {pairs:.1f} exact pairs a query\n")
    seeds = range(100)
    errors = {name: [] for name in matrices}
    for seed in seeds:
        for name, matrix in estimates(query, key, seed)[0].items():
            errors[name].append(relative_error(matrix, exact))
    for name, matrix in matrices.items():
        shown, median = relative_error(matrix, exact), np.median(errors[name])
        sys.stdout.write(f"{name}: {shown:.3f} (median of {len(seeds)} seeds {median:.3f})\n")


if __name__ == "__main__":
    main(sys.argv[1:])
