"""How far the collisions of fast rotations are from those of Gaussian matrices.

The worst difference over angles, for random planes of R^D and for the plane of its first two axes.
"""

from __future__ import annotations

import numpy as np

import scatterbrain_core as sb
from scatterbrain_core.random import Draws
from scatterbrain_core.sparse.cross_polytope import nearest_axis

ROTATIONS = 20_000
ANGLES = np.deg2rad([20, 45, 70, 90, 120])


def worst(dim: int, n_coordinates: int, plane: np.ndarray) -> float:
    """Largest difference of frequency and closed form over ANGLES, with its sign."""
    draws = sb.CrossPolytope(1, n_coordinates, ROTATIONS).draw(Draws(0).support_generator(), dim)[0]
    signs = np.moveaxis(draws[:, 0], 0, -1).astype(float)
    query, keys = plane[:1], np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1) @ plane
    axes = [
        nearest_axis(np, signs, np.pad(x, (0, signs.shape[1] - dim))[:, None], n_coordinates)
        for x in np.concatenate([query, keys])
    ]
    rates = np.array([(axis == axes[0]).mean() for axis in axes[1:]])
    gaps = rates - sb.CrossPolytope(1, n_coordinates, 1).collision_probability(np, query, keys)[0]
    return gaps[np.argmax(np.abs(gaps))]


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    print("    D   d'   random plane   two axes")
    for dim in (2, 5, 8, 16, 64, 128):
        for n_coordinates in (1, 4, 16, 64):
            plane = np.linalg.qr(rng.standard_normal((dim, 2)))[0].T
            gaps = [worst(dim, n_coordinates, p) for p in (plane, np.eye(dim)[:2])]
            print(f"{dim:5d} {n_coordinates:4d}   {gaps[0]:+12.4f} {gaps[1]:+10.4f}")
