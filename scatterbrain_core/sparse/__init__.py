"""Sparse parts: which pairs are exact. Each yields tables of tiles, one family a file."""

from scatterbrain_core.sparse.all_pairs import AllPairs
from scatterbrain_core.sparse.cross_polytope import CrossPolytope
from scatterbrain_core.sparse.e2lsh import E2LSH
from scatterbrain_core.sparse.hashing import Hashing
from scatterbrain_core.sparse.hyperplanes import RandomHyperplanes

__all__ = ["E2LSH", "AllPairs", "CrossPolytope", "Hashing", "RandomHyperplanes"]
