"""Domains of Amazon's review data."""

from calrec_jax.data.registry import register_domain

DOMAINS = (
    "beauty",
    "industrial_and_scientific",
    "industrial_and_scientific_timed",
    "sports_and_outdoors",
    "toys_and_games",
)

for _name in DOMAINS:
    register_domain(_name)
