"""Predictions, baselines, metrics and the report."""
