"""Sparse parts: which pairs are exact. Each yields tables of tiles, one family a file."""

from scatterbrain_core.sparse.all_pairs import AllPairs
from scatterbrain_core.sparse.blocks import Blocks
from scatterbrain_core.sparse.cross_polytope import CrossPolytope
from scatterbrain_core.sparse.e2lsh import E2LSH
from scatterbrain_core.sparse.global_tokens import GlobalTokens
from scatterbrain_core.sparse.hashing import Hashing
from scatterbrain_core.sparse.hyperplanes import RandomHyperplanes
from scatterbrain_core.sparse.key_clusters import KeyClusters
from scatterbrain_core.sparse.local_window import LocalWindow
from scatterbrain_core.sparse.routed_clusters import RoutedClusters
from scatterbrain_core.sparse.sampled_columns import SampledColumns
from scatterbrain_core.sparse.selected_queries import SelectedQueries
from scatterbrain_core.sparse.sorted_chunks import SortedChunks
from scatterbrain_core.sparse.sorted_clusters import SortedClusters
from scatterbrain_core.sparse.support import Support
from scatterbrain_core.sparse.top_keys import TopKeys

__all__ = [
    "E2LSH",
    "AllPairs",
    "Blocks",
    "CrossPolytope",
    "GlobalTokens",
    "Hashing",
    "KeyClusters",
    "LocalWindow",
    "RandomHyperplanes",
    "RoutedClusters",
    "SampledColumns",
    "SelectedQueries",
    "SortedChunks",
    "SortedClusters",
    "Support",
    "TopKeys",
]
