"""Which of our parameters is which tensor of Hugging Face's: one table, read in both directions.

A projection's weight is [outputs, inputs] there and [*inputs, *outputs] here; layers are one tensor
each there and stacked here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

import numpy as np

from calrec_jax.checkpoints.safetensors_io import row_blocks
from calrec_jax.errors import CalrecError

_LAYER = "model.layers.{}."
MODULES: Mapping[str, str] = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.o_proj",
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
}
"""Projections of a layer, by their path in our block."""

_NORMS = {
    "attention_norm": "input_layernorm",
    "attention/query_norm": "self_attn.q_norm",
    "attention/key_norm": "self_attn.k_norm",
}
# What stands between attention and MLP has the same name in all families, but not the same place.
_NORMS_AROUND_MLP = {
    False: {"mlp_norm": "post_attention_layernorm"},
    True: {
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
}
_WHOLE = {
    "embedding": "model.embed_tokens.weight",
    "final_norm/scale": "model.norm.weight",
    "unembedding": "lm_head.weight",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of our parameters and its tensors.

    Attributes:
      name: ours, as "layers/attention/query/kernel".
      shape: ours, without the axis of the layers.
      tensors: theirs, one a layer, or one.
      stacked: whether ours has an axis of layers.
      num_inputs: of a projection's weight, how many axes of ours are inputs; else 0.
    """

    name: str
    shape: tuple[int, ...]
    tensors: tuple[str, ...]
    stacked: bool
    num_inputs: int = 0

    @property
    def their_shape(self) -> tuple[int, ...]:
        """The shape of each of `tensors`."""
        if self.num_inputs:
            inputs, outputs = self.shape[: self.num_inputs], self.shape[self.num_inputs :]
            return math.prod(outputs), math.prod(inputs)
        if self.name.endswith("/bias"):
            return (math.prod(self.shape),)
        return self.shape

    @property
    def split_axis(self) -> int:
        """The axis of ours along which their rows lie."""
        return self.num_inputs

    def blocks(self, itemsize: int) -> Iterator[tuple[slice, slice]]:
        """(their rows, our places along `split_axis`) of pieces that are small enough."""
        rows = self.their_shape[0]
        rows_a_place = rows // self.shape[self.split_axis]
        row_bytes = math.prod(self.their_shape[1:]) * itemsize
        for first, last in row_blocks(rows, row_bytes, rows_a_place):
            yield slice(first, last), slice(first // rows_a_place, last // rows_a_place)

    def from_theirs(self, rows: np.ndarray) -> np.ndarray:
        """Rows of a tensor of theirs as the part of ours that they are."""
        shape = self._part_shape(rows.shape[0])
        return (rows.T if self.num_inputs else rows).reshape(shape)

    def to_theirs(self, part: np.ndarray) -> np.ndarray:
        """A part of ours as rows of a tensor of theirs."""
        if not self.num_inputs:
            return part.reshape(-1, *self.their_shape[1:])
        return part.reshape(math.prod(self.shape[: self.num_inputs]), -1).T

    def _part_shape(self, rows: int) -> tuple[int, ...]:
        axis = self.split_axis
        places = rows * self.shape[axis] // self.their_shape[0]
        return (*self.shape[:axis], places, *self.shape[axis + 1 :])


def entries(shapes: Mapping[str, tuple[int, ...]]) -> list[Entry]:
    """The table for a decoder's parameters.

    Args:
      shapes: {name: shape} of all of them, layers stacked.

    Raises:
      CalrecError: a parameter has no place in a checkpoint of Hugging Face's.
    """
    post_norms = any("post_norm" in name for name in shapes)
    names = _NORMS | _NORMS_AROUND_MLP[post_norms]
    norms = {f"{ours}/scale": f"{theirs}.weight" for ours, theirs in names.items()}
    return [_entry(name, shape, norms) for name, shape in sorted(shapes.items())]


def _entry(name: str, shape: tuple[int, ...], norms: Mapping[str, str]) -> Entry:
    if name in _WHOLE:
        return Entry(name, shape, (_WHOLE[name],), stacked=False)
    top, _, inner = name.partition("/")
    module, _, leaf = inner.rpartition("/")
    tensor, num_inputs = norms.get(inner), 0
    if module in MODULES and leaf in ("kernel", "bias"):
        tensor = f"{MODULES[module]}.{'weight' if leaf == 'kernel' else 'bias'}"
        num_inputs = (2 if module == "attention/out" else 1) if leaf == "kernel" else 0
    if top != "layers" or tensor is None:
        raise CalrecError(f"parameter {name} has no place in a checkpoint of Hugging Face's")
    theirs = tuple((_LAYER + tensor).format(layer) for layer in range(shape[0]))
    return Entry(name, shape[1:], theirs, stacked=True, num_inputs=num_inputs)


# Of files with images too: what is no part of the decoder of text, and where that is.
_IMAGES = ("vision_tower.", "multi_modal_projector.")
_TEXT = {"language_model.": "", "model.language_model.": "model."}


def plain_name(name: str) -> str | None:
    """A tensor's name in a file of text alone; None where it is no part of the decoder."""
    if name.removeprefix("model.").startswith(_IMAGES) or name.endswith(".rotary_emb.inv_freq"):
        return None
    for prefix, plain in _TEXT.items():
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name
