"""The texts of a catalogue as a trie of tokens, so that only items can be generated."""

from __future__ import annotations

import dataclasses
import functools

import flax.struct
import jax
import numpy as np

from calrec_jax.errors import CalrecError
from calrec_jax.text.prompts import TokenizedCatalogue


@flax.struct.dataclass
class TrieArrays:
    """The trie in compressed sparse rows, as NumPy arrays or on a device.

    Nodes are numbered breadth first from the root, 0, and the children of a node by their tokens.
    So edges that are ordered by the node they start from are also ordered by the node they lead
    to: edge e leads to node e + 1, and no array has to hold that.

    Attributes:
      first_edge: int32 [nodes + 1], the index in `tokens` of each node's first edge.
      tokens: int32 [edges], the token of each edge, ascending among the edges of a node.
    """

    first_edge: np.ndarray | jax.Array
    tokens: np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True)
class TokenTrie:
    """All items' tokens, each as training has it for a target: cut to its length, and EOS.

    Items with the same tokens share a leaf: those listed twice, or equal after they were cut.

    Attributes:
      arrays: nodes and edges.
      leaves: int32 [items], the leaf of each item, in the catalogue's order.
      fan_outs: for each depth, the largest number of children of a node; as many depths as the
        longest item has tokens, EOS included.
    """

    arrays: TrieArrays
    leaves: np.ndarray
    fan_outs: tuple[int, ...]

    @classmethod
    def build(cls, tokens: TokenizedCatalogue, eos_id: int) -> TokenTrie:
        """The trie of all items of a catalogue.

        Raises:
          CalrecError: the catalogue is empty, or an item's text contains EOS.
        """
        starts, lengths = tokens.text.splits[:-1], tokens.item_lengths
        values = tokens.text.values
        if not len(lengths):
            raise CalrecError(f"{tokens.catalogue.domain} has no items: nothing can be generated")
        for end in np.searchsorted(tokens.text.splits, np.flatnonzero(values == eos_id), "right"):
            raise CalrecError(
                f"the text of item {tokens.catalogue.item_ids[end - 1]!r} holds the token that "
                f"ends texts, {eos_id}: no trie can be made of it"
            )
        base = int(max(values.max(initial=0), eos_id)) + 1
        open_items = np.arange(len(lengths))  # places of items that are not at their leaf yet
        node_of = np.zeros(len(open_items), np.int64)  # their nodes, counted within the depth
        leaves = np.zeros(len(open_items), np.int32)
        child_counts, edge_tokens, fan_outs = [], [], []
        nodes_before, width = 1, 1  # nodes down to this depth, and at this depth
        for depth in range(int(lengths.max()) + 1):
            ends = lengths[open_items] == depth
            indices = np.where(ends, 0, starts[open_items] + depth)
            tokens_here = np.where(ends, eos_id, np.append(values, eos_id)[indices])
            keys, child_of = np.unique(node_of * base + tokens_here, return_inverse=True)
            child_counts.append(np.bincount(keys // base, minlength=width))
            edge_tokens.append(keys % base)
            fan_outs.append(int(child_counts[-1].max()))
            leaves[open_items[ends]] = nodes_before + child_of[ends]
            nodes_before, width = nodes_before + len(keys), len(keys)
            open_items, node_of = open_items[~ends], child_of[~ends]
        child_counts.append(np.zeros(width, np.int64))  # the deepest leaves have none
        first_edge = np.concatenate([[0], np.cumsum(np.concatenate(child_counts))])
        edge_tokens = np.concatenate(edge_tokens)
        arrays = TrieArrays(first_edge.astype(np.int32), edge_tokens.astype(np.int32))
        return cls(arrays, leaves, tuple(fan_outs))

    @property
    def depth(self) -> int:
        """The number of tokens of the longest item, EOS included."""
        return len(self.fan_outs)

    @functools.cached_property
    def _items_by_leaf(self) -> tuple[np.ndarray, np.ndarray]:
        """Places of all items in the order of their leaves, and these leaves."""
        order = np.argsort(self.leaves, kind="stable")
        return order, self.leaves[order]

    def items(self, leaf: int) -> tuple[int, ...]:
        """The places of the items that end at a node; none if it is not a leaf."""
        order, leaves = self._items_by_leaf
        start, end = np.searchsorted(leaves, [leaf, leaf + 1])
        return tuple(order[start:end].tolist())
