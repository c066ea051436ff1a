"""How continuations of a prompt are chosen, as a configuration says it; without JAX."""

from __future__ import annotations

import dataclasses

from calrec_jax import ranges
from calrec_jax.errors import CalrecError

METHODS = ("sample", "beam")


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How continuations are chosen (method: Inference 1).

    Attributes:
      num_samples: N continuations a prompt.
      temperature: of sampling; 0 = the likeliest token. Beams have none.
      max_new_tokens: T, tokens at most, with EOS.
      method: "sample", N independent draws, or "beam", the N best of a beam search: those with the
        highest sums of log-probabilities are kept at each step, whether they have ended or not.
      top_k: draws are from the likeliest k tokens alone; None = from all.
      top_p: and from the smallest set of the likeliest that has this probability; 1 = from all.

    Raises:
      CalrecError: a value is out of its range, or there are filters of draws where nothing is
        drawn.
    """

    num_samples: int = 32  # unverified
    temperature: float = 0.5  # unverified
    max_new_tokens: int = 80  # unverified: 50 to 80
    method: str = "sample"
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        ranges.require_one_of(self, "method", METHODS)
        ranges.require_at_least_one(self, "num_samples", "max_new_tokens", "top_k")
        ranges.require_not_negative(self, "temperature")
        ranges.require_at_most_one(self, "top_p", zero=False)
        if self.method == "beam" and (self.top_k, self.top_p) != (None, 1):
            raise CalrecError(
                "SamplingConfig.top_k and .top_p filter what is drawn, and method 'beam' draws "
                "nothing: unset them"
            )
