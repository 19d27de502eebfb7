"""Corpora, recipes of mixtures, and the store of rendered examples."""
