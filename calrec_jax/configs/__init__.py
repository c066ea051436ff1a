"""Gin files as runs: what is parsed, checked and explained. The one place that knows gin."""
