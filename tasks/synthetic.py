"""The domains of the embedded store, and their mixture for stage I."""

from calrec_jax.data.preparation.synthetic import DOMAINS
from calrec_jax.data.registry import register_domain, register_mixture

for _name in DOMAINS:
    register_domain(_name)

register_mixture("synthetic_all", sorted(DOMAINS))
