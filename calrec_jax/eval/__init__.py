"""Retrievers, baselines, predictions, and what is measured of them (metrics.json)."""
