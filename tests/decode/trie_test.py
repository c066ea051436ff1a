"""The trie holds exactly the texts of a catalogue, and generated texts are among them."""

from __future__ import annotations

import functools
import itertools

import jax
import numpy as np
import pytest
import tiny
from decode.tries import tokenized
from hypothesis import given, settings
from hypothesis import strategies as st

from calrec_jax.decode.generate import generate
from calrec_jax.decode.sample import Sampler
from calrec_jax.decode.sampling import SamplingConfig
from calrec_jax.decode.trie import TokenTrie, TrieArrays
from calrec_jax.errors import CalrecError
from calrec_jax.models.decoder import Decoder, for_generation
from calrec_jax.parallel.mesh import MeshConfig, make_mesh

token = st.sampled_from([0, 1, 3, 4, 5, 19])
# Few tokens: items are prefixes of others, equal, equal up to the cut, and empty.
catalogues = st.lists(st.lists(token, max_size=6).map(tuple), min_size=1, max_size=8)
MAX_TOKENS = 4


def build(items, max_tokens=MAX_TOKENS) -> TokenTrie:
    return TokenTrie.build(tokenized(items, max_tokens), tiny.EOS)


def texts_of(arrays: TrieArrays) -> dict[tuple[int, ...], int]:
    """{tokens of a path from the root to a node without children: the node}."""
    found, open_paths = {}, [((), 0)]
    while open_paths:
        path, node = open_paths.pop()
        edges = range(arrays.first_edge[node], arrays.first_edge[node + 1])
        open_paths += [((*path, int(arrays.tokens[edge])), edge + 1) for edge in edges]
        if not edges:
            found[path] = node
    return found


@given(catalogues)
def test_paths_are_the_items_with_eos_and_no_others(items):
    trie = build(items)
    texts = texts_of(trie.arrays)
    cut = [(*item[:MAX_TOKENS], tiny.EOS) for item in items]
    assert set(texts) == set(cut)
    assert trie.leaves.tolist() == [texts[item] for item in cut]
    for text, leaf in texts.items():
        assert trie.items(leaf) == tuple(n for n, item in enumerate(cut) if item == text)
    assert trie.depth == max(map(len, cut))


@given(catalogues)
def test_children_are_sorted_and_no_node_has_more_than_its_depth_says(items):
    trie = build(items)
    first, depth = trie.arrays.first_edge, {0: 0}
    assert first[0] == 0 and first[-1] == len(trie.arrays.tokens) == len(first) - 2
    most = [0] * trie.depth
    for node, (start, end) in enumerate(itertools.pairwise(first)):
        children = trie.arrays.tokens[start:end].tolist()
        assert children == sorted(set(children))
        depth |= {edge + 1: depth[node] + 1 for edge in range(start, end)}
        if children:
            most[depth[node]] = max(most[depth[node]], len(children))
    assert trie.fan_outs == tuple(most)


def test_a_node_within_holds_no_items():
    trie = build([(3, 4), (3, 5)])
    assert trie.items(0) == trie.items(1) == ()


def test_an_item_with_eos_within_is_refused():
    with pytest.raises(CalrecError, match="item 'i001' holds the token that ends texts, 2"):
        build([(), (3, tiny.EOS, 4), (5,)])


def test_an_empty_catalogue_is_refused():
    with pytest.raises(CalrecError, match="made_up has no items"):
        build([])


# What is generated

N, STEPS = 8, MAX_TOKENS + 1
PROMPT = [tiny.BOS, 9, 8, 7]
NODES = 1 + 8 * STEPS


@functools.cache
def model():
    return for_generation(Decoder(tiny.CONFIG), tiny.params(seed=9))


@functools.cache
def program(method: str, **changes):
    """`generate` for tries of at most 8 items, padded so that one program serves all of them."""
    decoder, params = model()
    config = SamplingConfig(N, 2.0, STEPS, method, **changes)

    @functools.partial(jax.jit, compiler_options=tiny.FAST)
    def run(arrays, seed):
        tokens = np.array([PROMPT, PROMPT])
        return generate(
            decoder, config, tiny.EOS, (20,) * STEPS, params, arrays, tokens, tokens > 0, seed
        )

    def generated(trie: TokenTrie, seed: int):
        first, edges = trie.arrays.first_edge, trie.arrays.tokens
        padded = TrieArrays(
            np.pad(first, (0, NODES + 1 - len(first)), mode="edge"),
            np.pad(edges, (0, NODES - len(edges)), constant_values=7),
        )
        return jax.device_get(run(padded, np.array([seed, seed + 1], np.uint32)))

    return generated


@functools.partial(jax.jit, compiler_options=tiny.FAST)
def read(tokens):
    """The log-probabilities of every next token in whole rows, [B, S, V]."""
    positions = np.broadcast_to(np.arange(tokens.shape[1])[None], tokens.shape)
    decoder = Decoder(tiny.CONFIG)
    variables = {"params": tiny.params(seed=9)}
    hidden = decoder.apply(variables, tokens, positions, np.ones(tokens.shape, np.int32))
    return jax.nn.log_softmax(decoder.apply(variables, hidden, method="unembed"))


def log_probs_of(texts) -> np.ndarray:
    """The log-probabilities of texts with EOS after PROMPT, over the whole vocabulary."""
    rows = np.zeros((16, len(PROMPT) + STEPS), np.int32)
    for row, text in zip(rows, texts, strict=False):
        row[: len(PROMPT) + len(text)] = [*PROMPT, *text]
    table = np.asarray(read(rows))
    return np.array(
        [
            sum(table[n, len(PROMPT) - 1 + i, token] for i, token in enumerate(text))
            for n, text in enumerate(texts)
        ]
    )


def texts(out, row) -> list[tuple[int, ...]]:
    """The texts of one prompt, with EOS; beams that do not exist are left out."""
    assert out.ended[row][np.isfinite(out.log_probs[row])].all()
    return [
        (*tokens[:length].tolist(), tiny.EOS)
        for tokens, length, log_prob in zip(
            out.tokens[row], out.lengths[row], out.log_probs[row], strict=True
        )
        if np.isfinite(log_prob)
    ]


FILTERS = [{}, {"top_k": 2, "top_p": 0.8}]


@pytest.mark.parametrize("filters", FILTERS, ids=["all", "filtered"])
@settings(max_examples=50)
@given(catalogues, st.integers(0, 1000))
def test_every_sample_is_an_item_with_the_models_own_log_probability(filters, items, seed):
    trie = build(items)
    out = program("sample", **filters)(trie, seed)
    of = texts_of(trie.arrays)
    for row in range(2):
        said = texts(out, row)
        assert len(said) == N and set(said) <= set(of)
        assert out.nodes[row].tolist() == [of[text] for text in said]
        np.testing.assert_allclose(out.log_probs[row], log_probs_of(said), atol=5e-5)


@settings(max_examples=50)
@given(catalogues)
def test_as_many_beams_as_items_reach_every_item_the_likeliest_first(items):
    trie = build(items)
    out = program("beam")(trie, 0)
    of = texts_of(trie.arrays)
    for row in range(2):
        said = texts(out, row)
        assert len(said) == len(of) and set(said) == set(of)
        found = out.log_probs[row, : len(of)]
        assert (np.diff(found) <= 0).all() and np.isneginf(out.log_probs[row, len(of) :]).all()
        np.testing.assert_allclose(found, log_probs_of(said), atol=5e-5)
        places = [place for leaf in out.nodes[row, : len(of)] for place in trie.items(leaf)]
        assert sorted(places) == list(range(len(items)))


def sampler(trie, num_samples, max_new_tokens=5, **changes) -> Sampler:
    return Sampler(
        Decoder(tiny.CONFIG),
        tiny.params(seed=9),
        SamplingConfig(num_samples, max_new_tokens=max_new_tokens, **changes),
        eos_id=tiny.EOS,
        bos_id=tiny.BOS,
        max_prompt_tokens=20,
        mesh=make_mesh(MeshConfig(), jax.devices()[:1]),
        mesh_config=MeshConfig(),
        trie=trie,
    )


def test_samples_have_the_models_distribution_within_the_trie():
    """A root of twelve children, more than eight candidates, and nodes with one child."""
    items = [(first, 3) for first in range(3, 15)]
    draws, temperature = 20_000, 0.7
    samples = sampler(build(items), draws, temperature=temperature)([np.array(PROMPT[1:])], [3])
    assert (samples.lengths == 2).all() and (samples.tokens[0, :, 1] == 3).all()
    assert samples.tokens.shape == (1, draws, 3)
    row = np.zeros((16, len(PROMPT) + STEPS), np.int32)
    row[0, : len(PROMPT)] = PROMPT
    weights = np.exp(np.asarray(read(row), np.float64)[0, len(PROMPT) - 1, 3:15] / temperature)
    p = weights / weights.sum()
    counts = np.bincount(samples.tokens[0, :, 0], minlength=15)[3:15]
    assert (np.abs(counts - draws * p) < 5 * np.sqrt(draws * p * (1 - p))).all()
    assert (samples.leaves[0] == samples.tokens[0, :, 0] - 3 + 1 + 24).all()  # the third level


def test_items_that_cannot_be_finished_are_refused():
    with pytest.raises(CalrecError, match="max_new_tokens is 2, but the longest item has 3"):
        sampler(build([(3, 4), ()]), 2, max_new_tokens=2)
