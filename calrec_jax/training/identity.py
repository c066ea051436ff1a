"""What weights belong to, as a manifest holds it and as another's weights must have it."""

from __future__ import annotations

import dataclasses
from typing import Any

from calrec_jax.models.config import DecoderConfig
from calrec_jax.text.templates import Template


@dataclasses.dataclass(frozen=True)
class Identity:
    """What weights belong to.

    Attributes:
      vocabulary: its fingerprint.
      model: the decoder.
      template: how prompts are written; None for weights that no prompt of ours was read with yet.
      seed: the run's, for fresh weights and the order of examples; None for weights of no run.
    """

    vocabulary: str
    model: DecoderConfig
    template: Template | None = None
    seed: int | None = None

    def described(self) -> dict[str, Any]:
        """The parts of a manifest that say so: "model", "vocabulary" and, for a run, "data"."""
        data: dict[str, Any] = {}
        if self.template is not None:
            data["template"] = dataclasses.asdict(self.template)
        if self.seed is not None:
            data["seed"] = self.seed
        parts = {"model": dataclasses.asdict(self.model), "vocabulary": self.vocabulary}
        return parts | {"data": data} if data else parts

    def required_to_train(self) -> dict[str, Any]:
        """The parts of a manifest that weights must share to be trained on as this model."""
        return {"vocabulary": self.vocabulary, "model": self.model.meaning()}

    def required_to_query(self) -> dict[str, Any]:
        """The parts that trained weights must share to be queried with this model's prompts."""
        template = dataclasses.asdict(self.template)
        return self.required_to_train() | {"data": {"template": template}}
