"""The texts of a catalogue as a trie of tokens, so that nothing but an item can be generated."""

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
    """The trie as a program reads it, NumPy arrays or a device's: compressed sparse rows.

    Nodes are numbered breadth first from the root, 0, the children of a node by their tokens. So
    the edges in order of where they come from are also in order of where they lead: edge e leads
    to node e + 1, and no array needs to say so.

    Attributes:
      first_edge: int32 [nodes + 1], where each node's edges begin in `tokens`.
      tokens: int32 [edges], ascending among the edges of a node.
    """

    first_edge: np.ndarray | jax.Array
    tokens: np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True)
class TokenTrie:
    """All items' tokens, each as training has it for a target: cut to its length, and EOS.

    Items with the same tokens, be it that they are listed twice or cut alike, share a leaf.

    Attributes:
      arrays: see there.
      leaves: int32 [items], the leaf of each item, in the catalogue's order.
      fan_outs: the most children of a node of each depth; as many as the longest item has tokens,
        EOS included.
    """

    arrays: TrieArrays
    leaves: np.ndarray
    fan_outs: tuple[int, ...]

    @classmethod
    def build(cls, tokens: TokenizedCatalogue, eos_id: int) -> TokenTrie:
        """The trie of all items of a catalogue.

        Raises:
          CalrecError: the catalogue is empty, or an item has EOS within.
        """
        starts, lengths = tokens.text.splits[:-1], tokens.item_lengths
        values = tokens.text.values
        if not len(lengths):
            raise CalrecError(f"{tokens.catalogue.domain} has no items: nothing can be generated")
        for place in np.searchsorted(tokens.text.splits, np.flatnonzero(values == eos_id), "right"):
            raise CalrecError(
                f"the text of item {tokens.catalogue.item_ids[place - 1]!r} holds the token that "
                f"ends texts, {eos_id}: no trie can be made of it"
            )
        base = int(max(values.max(initial=0), eos_id)) + 1
        items = np.arange(len(lengths))  # those not at their leaf yet
        above = np.zeros(len(items), np.int64)  # and their nodes, counted within the depth
        nodes, leaves = 1, np.zeros(len(items), np.int32)
        counts, edges, fan_outs = [], [], []
        parents = 1  # nodes of this depth
        for depth in range(int(lengths.max()) + 1):
            ends = lengths[items] == depth
            places = np.where(ends, 0, starts[items] + depth)
            token = np.where(ends, eos_id, np.append(values, eos_id)[places])
            keys, below = np.unique(above * base + token, return_inverse=True)
            children = np.bincount(keys // base, minlength=parents)
            counts.append(children)
            edges.append(keys % base)
            fan_outs.append(int(children.max()))
            leaves[items[ends]] = nodes + below[ends]
            nodes, parents = nodes + len(keys), len(keys)
            items, above = items[~ends], below[~ends]
        counts.append(np.zeros(parents, np.int64))  # the deepest leaves
        first_edge = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        arrays = TrieArrays(first_edge.astype(np.int32), np.concatenate(edges).astype(np.int32))
        return cls(arrays, leaves, tuple(fan_outs))

    @property
    def depth(self) -> int:
        """Tokens of the longest item, EOS included."""
        return len(self.fan_outs)

    @functools.cached_property
    def _by_leaf(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.leaves, kind="stable")
        return order, self.leaves[order]

    def items(self, leaf: int) -> tuple[int, ...]:
        """Places in the catalogue of the items that end at a node; none where it is no leaf."""
        order, leaves = self._by_leaf
        start, end = np.searchsorted(leaves, [leaf, leaf + 1])
        return tuple(order[start:end].tolist())
