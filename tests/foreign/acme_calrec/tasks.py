"""Two domains, one of them with a text of its own, and two mixtures of them."""

from calrec_jax.data.registry import register_domain, register_mixture
from calrec_jax.text.templates import Template

PARTS = Template(("title",), "Fitted so far: ", ", ", ". Fitted next: ")

register_domain("acme_tools")
register_domain("acme_parts", dataset="parts", template=PARTS)

BOTH = ("acme_tools", "acme_parts")
register_mixture("acme_all", BOTH, temperature=2.0)
register_mixture("acme_tools_mostly", BOTH, {"acme_tools": 3, "acme_parts": 1})
