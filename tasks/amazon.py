"""Domains of Amazon's review data, and mixtures of them for stage I."""

from calrec_jax.data.registry import register_domain, register_mixture

DOMAINS = (
    "beauty",
    "industrial_and_scientific",
    "industrial_and_scientific_timed",
    "sports_and_outdoors",
    "toys_and_games",
)

for _name in DOMAINS:
    register_domain(_name)

# The two forms of Industrial are the same purchases: only one of them in a mixture.
register_mixture(
    "amazon_multi",
    ["beauty", "industrial_and_scientific_timed", "sports_and_outdoors", "toys_and_games"],
)
