"""Routed clusters: keys in clusters, opened by the queries that need them, summed up for the others."""
