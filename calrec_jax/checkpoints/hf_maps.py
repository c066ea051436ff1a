"""The table of our parameters and Hugging Face's tensors, read in both directions.

A projection's weight is [outputs, inputs] in Hugging Face's files and [*inputs, *outputs] here.
Their layers are a tensor each, ours are stacked.
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
# The norm between attention and MLP has one name in all families, and not one position.
_NORMS_AROUND_MLP = {
    False: {"mlp_norm": "post_attention_layernorm"},
    True: {
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
}
_UNSTACKED = {
    "embedding": "model.embed_tokens.weight",
    "final_norm/scale": "model.norm.weight",
    "unembedding": "lm_head.weight",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A parameter and its tensors.

    Attributes:
      name: the parameter, "layers/attention/query/kernel".
      shape: of the parameter, without the axis of layers.
      tensors: names of Hugging Face's tensors, one per layer, or one.
      stacked: whether the parameter has an axis of layers.
      num_inputs: how many axes of a projection's weight are inputs; 0 for other parameters.
    """

    name: str
    shape: tuple[int, ...]
    tensors: tuple[str, ...]
    stacked: bool
    num_inputs: int = 0

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """The shape of each of `tensors`."""
        if self.num_inputs:
            inputs, outputs = self.shape[: self.num_inputs], self.shape[self.num_inputs :]
            return math.prod(outputs), math.prod(inputs)
        if self.name.endswith("/bias"):
            return (math.prod(self.shape),)
        return self.shape

    @property
    def split_axis(self) -> int:
        """The axis of the parameter along which the tensors' rows lie."""
        return self.num_inputs

    def blocks(self, itemsize: int) -> Iterator[tuple[slice, slice]]:
        """(rows of a tensor, indices along `split_axis`) of pieces that are small enough."""
        num_rows = self.hf_shape[0]
        rows_per_index = num_rows // self.shape[self.split_axis]
        row_bytes = math.prod(self.hf_shape[1:]) * itemsize
        for first, last in row_blocks(num_rows, row_bytes, rows_per_index):
            yield slice(first, last), slice(first // rows_per_index, last // rows_per_index)

    def from_hf(self, rows: np.ndarray) -> np.ndarray:
        """Rows of a tensor as the part of the parameter that they are."""
        shape = self._part_shape(rows.shape[0])
        return (rows.T if self.num_inputs else rows).reshape(shape)

    def to_hf(self, part: np.ndarray) -> np.ndarray:
        """A part of the parameter as rows of a tensor."""
        if not self.num_inputs:
            return part.reshape(-1, *self.hf_shape[1:])
        return part.reshape(math.prod(self.shape[: self.num_inputs]), -1).T

    def _part_shape(self, rows: int) -> tuple[int, ...]:
        axis = self.split_axis
        size = rows * self.shape[axis] // self.hf_shape[0]
        return (*self.shape[:axis], size, *self.shape[axis + 1 :])


def entries(shapes: Mapping[str, tuple[int, ...]]) -> list[Entry]:
    """The table for a decoder's parameters.

    Args:
      shapes: {name: shape} of all of them, layers stacked.

    Raises:
      CalrecError: a parameter has no place in a checkpoint of Hugging Face's.
    """
    post_norms = any("post_norm" in name for name in shapes)
    names = _NORMS | _NORMS_AROUND_MLP[post_norms]
    norms = {f"{name}/scale": f"{hf_name}.weight" for name, hf_name in names.items()}
    return [_entry(name, shape, norms) for name, shape in sorted(shapes.items())]


def _entry(name: str, shape: tuple[int, ...], norms: Mapping[str, str]) -> Entry:
    """The entry of a parameter; `norms` names the tensors of the scales in a layer."""
    if name in _UNSTACKED:
        return Entry(name, shape, (_UNSTACKED[name],), stacked=False)
    top, _, inner = name.partition("/")
    module, _, leaf = inner.rpartition("/")
    tensor, num_inputs = norms.get(inner), 0
    if module in MODULES and leaf in ("kernel", "bias"):
        tensor = f"{MODULES[module]}.{'weight' if leaf == 'kernel' else 'bias'}"
        num_inputs = (2 if module == "attention/out" else 1) if leaf == "kernel" else 0
    if top != "layers" or tensor is None:
        raise CalrecError(f"parameter {name} has no place in a checkpoint of Hugging Face's")
    tensors = tuple((_LAYER + tensor).format(layer) for layer in range(shape[0]))
    return Entry(name, shape[1:], tensors, stacked=True, num_inputs=num_inputs)


# In files of models that read images too: the parts that are not the text decoder, and its prefix.
_IMAGES = ("vision_tower.", "multi_modal_projector.")
_TEXT = {"language_model.": "", "model.language_model.": "model."}


def plain_name(name: str) -> str | None:
    """A tensor's name in a file of a text model; None where it is no part of the decoder."""
    if name.removeprefix("model.").startswith(_IMAGES) or name.endswith(".rotary_emb.inv_freq"):
        return None
    for prefix, plain in _TEXT.items():
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name
