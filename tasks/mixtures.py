"""Mixtures of domains for stage I. Importing this module registers their domains, too."""

from calrec_jax.data.registry import register_mixture
from calrec_jax.tasks import amazon  # noqa: F401  (registers the domains)

# The two forms of Industrial have the same purchases, so a mixture may have only one of them.
register_mixture(
    "amazon_multi",
    ["beauty", "industrial_and_scientific_timed", "sports_and_outdoors", "toys_and_games"],
)
