"""The embedded store's domains, and their mixture for stage I."""

from calrec_jax.data.registry import register_domain, register_mixture
from calrec_jax.data.synthetic import DOMAINS

for _name in DOMAINS:
    register_domain(_name)

register_mixture("synthetic_all", sorted(DOMAINS))
