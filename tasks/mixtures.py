"""Mixtures of domains for stage I, and with them the domains that they are of."""

from calrec_jax.data.registry import register_mixture
from calrec_jax.tasks import amazon  # noqa: F401  (registers the domains)

# The two forms of Industrial are the same purchases: only one of them in a mixture.
register_mixture(
    "amazon_multi",
    ["beauty", "industrial_and_scientific_timed", "sports_and_outdoors", "toys_and_games"],
)
