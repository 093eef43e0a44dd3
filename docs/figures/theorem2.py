"""Draw Theorem 2, the paper's Figure 4: ``python docs/figures/theorem2.py [-o FILE]``.

Mean squared error of one weight against q·k for unit vectors, by sparse alone, low-rank alone and both:
points as measured over independent draws, lines as in closed form. Needs the extras plot and demo.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress

import scatterbrain_core as sb

FEATURES = sb.PositiveFeatures(256)
HASHES = sb.RandomHyperplanes(n_bits=2, n_tables=2)
METHODS = {
    "sparse": sb.Scatterbrain(sparse=HASHES),
    "low-rank": sb.Scatterbrain(low_rank=FEATURES),
    "both": sb.Scatterbrain(low_rank=FEATURES, sparse=HASHES),
}
MEASURED = np.linspace(-0.95, 0.75, 18)  # beyond, the squares' tails are too heavy to measure
HEADS = 64
TARGET = Path(__file__).parent.parent / "images" / "theorem2.png"
STYLES = {
    "sparse": ("sparse alone: $(1-p)\\,A^2$", "#1b7837", "s"),
    "low-rank": ("low-rank alone: $A^2\\,(e^{2+2q\\cdot k}-1)/m$", "#2166ac", "^"),
    "both": ("Scatterbrain: $(1-p)\\,A^2\\,(e^{2+2q\\cdot k}-1)/m$", "#b2182b", "o"),
}


def vectors(cosines: Sequence[float], heads: int = HEADS) -> tuple[np.ndarray, np.ndarray]:
    """A unit query and keys at these cosines to it, in a plane of each head's own.

    Heads share the draws of a call, but a head that is zero outside its plane meets its own columns of W
    and of the hyperplanes alone: heads are independent, and a call is worth as many seeds.
    """
    cosine = np.asarray(cosines)
    query, key = np.zeros((heads, 1, heads, 2)), np.zeros((heads, len(cosine), heads, 2))
    for head in range(heads):
        query[head, :, head] = [1.0, 0.0]
        key[head, :, head] = np.stack([cosine, np.sqrt(1 - cosine**2)], axis=-1)
    return query.reshape(heads, 1, -1), key.reshape(heads, len(cosine), -1)


def squared_errors(
    name: str, cosines: Sequence[float], seeds: Sequence[int], heads: int = HEADS
) -> Iterator[np.ndarray]:
    """For every seed, (estimate - exp(q·k))², shape (heads, len(cosines)), over independent heads."""
    query, key = vectors(cosines, heads)
    exact = np.exp(np.asarray(cosines))
    for seed in seeds:
        estimate = sb.attention_matrix(
            query, key, method=METHODS[name], scale=1.0, seed=seed, normalize=False
        )
        yield (estimate[:, 0] - exact) ** 2


def closed_form(name: str, cosines: Sequence[float]) -> np.ndarray:
    """Mean squared error of exp(q·k) by Theorem 2."""
    query, key = vectors(cosines, heads=1)
    error = np.ones(len(cosines))
    if METHODS[name].sparse is not None:
        error = error * (1 - HASHES.collision_probability(np, query, key)[0, 0])
    if METHODS[name].low_rank is not None:
        return error * FEATURES.variance(np, query, key)[0, 0]
    return error * np.exp(2 * np.asarray(cosines))


def sampling_error(name: str, cosines: Sequence[float], n_draws: int) -> np.ndarray:
    """Standard deviation of the mean of `n_draws` squared errors, in closed form.

    From the central moments of one feature's product, log-normal with E Yⁿ = exp((n² - n) ‖q + k‖² / 2); a
    sample's own would be too small where the tail is heavy.
    """
    cosine = np.asarray(cosines)
    weight = np.exp(cosine)
    off = closed_form("sparse", cosine) / weight**2 if METHODS[name].sparse is not None else 1.0
    second = fourth = np.ones(len(cosine))
    if METHODS[name].low_rank is not None:
        m = FEATURES.n_features
        one, two, three = (np.exp(n * (2 + 2 * cosine)) for n in (1, 3, 6))
        second = (one - 1) / m
        fourth = (three - 4 * two + 6 * one - 3 - 3 * (one - 1) ** 2) / m**3 + 3 * second**2
    return weight**2 * np.sqrt((off * fourth - (off * second) ** 2) / n_draws)


def measure(n_seeds: int, progress: Progress) -> dict[str, np.ndarray]:
    """Mean squared error of every method at MEASURED."""
    found = {}
    for name in METHODS:
        runs = squared_errors(name, MEASURED, range(n_seeds))
        found[name] = sum(
            errors.mean(axis=0) for errors in progress.track(runs, total=n_seeds, description=name)
        )
    return {name: total / n_seeds for name, total in found.items()}


def draw(found: dict[str, np.ndarray], n_draws: int) -> Figure:
    """The figure: points with bars of one standard deviation of the sampling, on the closed forms."""
    figure = Figure(figsize=(7.2, 5.2), layout="constrained", dpi=150)
    axis = figure.subplots()
    fine = np.cos(np.linspace(np.pi, 0, 801))  # dense where the curves go to zero
    for name, (label, colour, marker) in STYLES.items():
        axis.plot(fine, np.maximum(closed_form(name, fine), 1e-12), color=colour, linewidth=1.2)
        axis.errorbar(
            MEASURED,
            found[name],
            yerr=sampling_error(name, MEASURED, n_draws),
            color=colour,
            marker=marker,
            markersize=5,
            linestyle="none",
            capsize=2.5,
            elinewidth=1,
            label=label,
        )
    axis.set_yscale("log")
    axis.set_xlim(-1, 1)
    axis.set_ylim(1e-4, 10)
    axis.set_xlabel("$q\\cdot k$")
    axis.set_ylabel("mean squared error of $A = e^{q\\cdot k}$")
    axis.grid(which="major", color="0.9")
    axis.set_axisbelow(True)
    axis.legend(loc="upper left", frameon=False, title="lines: closed form, points: measured")
    axis.set_title(
        f"unit vectors, $m$ = {FEATURES.n_features} features, "
        f"{HASHES.n_tables} tables of {HASHES.n_bits} bits, {n_draws:,} draws a point",
        fontsize=10,
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw Theorem 2 (the paper's Figure 4).")
    parser.add_argument("-o", "--output", type=Path, default=TARGET, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=5000, help="calls a method (default: %(default)s)")
    options = parser.parse_args()
    with Progress(console=Console(stderr=True)) as progress:
        found = measure(options.seeds, progress)
    n_draws = options.seeds * HEADS
    part = options.output.with_suffix(".part.png")
    draw(found, n_draws).savefig(part, metadata={"Software": None})
    part.replace(options.output)
    for name, mean in found.items():
        ratio = mean / closed_form(name, MEASURED)
        z = (mean - closed_form(name, MEASURED)) / sampling_error(name, MEASURED, n_draws)
        print(
            f"{name}: measured / closed form from {ratio.min():.3f} to {ratio.max():.3f}, "
            f"{z.min():+.1f} to {z.max():+.1f} standard deviations of the sampling"
        )
    print(f"{options.output}: {n_draws} draws a point")


if __name__ == "__main__":
    main()
