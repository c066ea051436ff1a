"""Every family's hidden states and logits against transformers, on random weights, in float32."""

from __future__ import annotations

import dataclasses
import functools

import hf_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from calrec_jax.checkpoints import hf_io
from calrec_jax.models.config import DecoderConfig
from calrec_jax.models.decoder import Block, Decoder, for_generation
from calrec_jax.models.kv_cache import Continuations

REASON = "the parity tests need it: pip install -c constraints.txt -e '.[parity]'"
torch = pytest.importorskip("torch", reason=REASON)
pytest.importorskip("transformers", reason=REASON)

TOLERANCE = {"rtol": 0, "atol": 1e-4}
LENGTHS = (17, 11, 3)  # far beyond the sliding window of 5, and within it
EVERY = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case in hf_models.FAMILIES else pytest.mark.slow)
        for case in hf_models.CASES
    ],
)


@dataclasses.dataclass(frozen=True)
class Pair:
    """The model of transformers and our decoder, read from the same files."""

    case: str
    hf_model: torch.nn.Module
    config: DecoderConfig
    params: dict

    def logits(self, tokens) -> np.ndarray:
        """The logits of transformers for one text, [S, V]."""
        with torch.no_grad():
            return self.hf_model(torch.tensor(np.asarray(tokens)[None])).logits[0].numpy()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Pairs by case; each is made once."""

    @functools.cache
    def make(case: str) -> Pair:
        folder = hf_models.save(case, tmp_path_factory.mktemp("hf"))
        weights = hf_io.read(folder)
        return Pair(case, hf_models.load(folder), weights.config, imported(weights))

    torch.set_num_threads(1)
    return make


def imported(weights: hf_io.Weights) -> dict:
    """The parameters that `calrec convert` and a restore would give, with scanned layers."""
    tree: dict = {}
    for entry in weights.table:
        *above, last = entry.name.split("/")
        node = functools.reduce(lambda node, name: node.setdefault(name, {}), above, tree)
        found = hf_io._streamed(weights, entry)
        node[last] = np.zeros(found.shape, found.dtype)
        for where, part in found.pieces():
            node[last][where] = part
    return tree


def texts(lengths=LENGTHS, seed=0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, hf_models.VOCAB, length) for length in lengths]


def padded(rows) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, mask) [B, S], padded on the right."""
    width = max(map(len, rows))
    tokens = np.array([np.pad(row, (0, width - len(row)), constant_values=7) for row in rows])
    return tokens.astype(np.int32), np.array([np.arange(width) < len(row) for row in rows])


@functools.partial(jax.jit, static_argnums=0, compiler_options=tiny.FAST)
def ours(config, params, tokens, positions, segments):
    """(hidden states, logits), [B, S, D] and [B, S, V]."""
    decoder = Decoder(config)
    hidden = decoder.apply({"params": params}, tokens, positions, segments)
    return hidden, decoder.apply({"params": params}, hidden, method="unembed")


def calrec_rows(found: Pair, tokens, mask):
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    return ours(found.config, found.params, tokens, positions, mask.astype(np.int32))


def hf_layers(found: Pair, tokens, mask) -> tuple[list[np.ndarray], np.ndarray]:
    """The outputs of each layer [B, S, D], and the logits [B, S, V], of transformers."""
    layers: list[np.ndarray] = []

    def keep(module, arguments, output):
        layers.append((output[0] if isinstance(output, tuple) else output).numpy())

    hooks = [layer.register_forward_hook(keep) for layer in found.hf_model.model.layers]
    with torch.no_grad():
        options = {"attention_mask": torch.tensor(mask.astype(int)), "use_cache": False}
        logits = found.hf_model(torch.tensor(tokens).long(), **options).logits.numpy()
    for hook in hooks:
        hook.remove()
    return layers, logits


def calrec_layers(found: Pair, tokens, mask) -> tuple[list[np.ndarray], np.ndarray]:
    """The same of our decoder, with layers in a loop, so that Flax can capture their outputs."""
    config = dataclasses.replace(found.config, scan_layers=False)
    params = {"params": tiny.unstacked(found.params, config.num_layers)}
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    # Not compiled as a whole: one by one, operations are compiled once for all cases.
    hidden, state = Decoder(config).apply(
        params,
        tokens,
        positions,
        mask.astype(np.int32),
        capture_intermediates=lambda module, _: isinstance(module, Block),
        mutable=["intermediates"],
    )
    logits = Decoder(config).apply(params, hidden, method="unembed")
    kept = state["intermediates"]
    outputs = [kept[f"layers_{n}"]["__call__"][0] for n in range(config.num_layers)]
    return [output[0] for output in outputs], logits


@EVERY
def test_each_layer_and_the_logits_of_a_padded_batch(pair, case):
    found = pair(case)
    tokens, mask = padded(texts())
    expected, hf_logits = hf_layers(found, tokens, mask)
    outputs, logits = calrec_layers(found, tokens, mask)
    assert len(expected) == len(outputs) == found.config.num_layers
    for layer, (a, b) in enumerate(zip(outputs, expected, strict=True)):
        np.testing.assert_allclose(a[mask], b[mask], err_msg=f"layer {layer}", **TOLERANCE)
    assert np.abs(hf_logits).max() > 0.5
    np.testing.assert_allclose(logits[mask], hf_logits[mask], **TOLERANCE)
    _, scanned = calrec_rows(found, tokens, mask)
    np.testing.assert_allclose(scanned[mask], hf_logits[mask], **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("case", hf_models.CASES)
def test_each_text_alone_and_two_packed_into_a_row(pair, case):
    found = pair(case)
    rows = texts((9, 8), seed=1)
    tokens = np.concatenate(rows)[None].astype(np.int32)
    positions = np.concatenate([np.arange(len(row)) for row in rows])[None]
    segments = np.repeat([1, 2], [len(row) for row in rows])[None]
    _, packed = ours(found.config, found.params, tokens, positions, segments)
    alone = np.concatenate([found.logits(row) for row in rows])
    np.testing.assert_allclose(packed[0], alone, **TOLERANCE)


STEPS = 8  # enough for the window to move past prompts that it covers at first


_compiled = functools.partial(jax.jit, static_argnums=0, compiler_options=tiny.FAST)


@_compiled
def prefilled(config, params, prompts, mask):
    """(logits of the prompts' last tokens [B, V], their keys and values)."""
    decoder, params = for_generation(Decoder(config), params)
    last, prefix = decoder.apply({"params": params}, prompts, mask, method="prefill")
    return decoder.apply({"params": params}, last, method="unembed"), prefix


@_compiled
def decoded(config, params, tokens, prefix, written):
    """(logits of one step [B, N, V], the cache)."""
    decoder, params = for_generation(Decoder(config), params)
    hidden, written = decoder.apply({"params": params}, tokens, prefix, written, method="decode")
    return decoder.apply({"params": params}, hidden, method="unembed"), written


@EVERY
def test_decoding_with_a_cache_is_reading_the_whole_text(pair, case):
    found = pair(case)
    decoder, params = for_generation(Decoder(found.config), found.params)
    config = decoder.config
    prompts = texts((9, 4, 2), seed=2)
    continuations = np.array(texts([STEPS] * 6, seed=3)).reshape(3, 2, STEPS).astype(np.int32)
    first, prefix = prefilled(config, params, *padded(prompts))
    written, steps = Continuations.empty(config, 3, 2, STEPS), []
    for step in range(STEPS):
        logits, written = decoded(config, params, continuations[..., step], prefix, written)
        steps.append(logits)
    for row, prompt in enumerate(prompts):
        for n, continuation in enumerate(continuations[row]):
            expected = found.logits([*prompt, *continuation])[len(prompt) - 1 :]
            got = np.stack([first[row], *[step[row, n] for step in steps]])
            np.testing.assert_allclose(got, expected, **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("case", hf_models.FAMILIES)
def test_in_bfloat16_it_is_close(tmp_path, case):
    """bfloat16 keeps 8 bits: rounding in a few layers makes a fiftieth of the largest logit."""
    weights = hf_io.read(hf_models.save(case, tmp_path, dtype="bfloat16"))
    params = imported(weights)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    hf_model = hf_models.load(tmp_path)
    config = dataclasses.replace(weights.config, dtype="bfloat16", param_dtype="bfloat16")
    tokens, mask = padded(texts())
    exact = Pair(case, hf_model, weights.config, jax.tree.map(np.float32, params))
    half = Pair(case, hf_model, config, params)
    _, expected = hf_layers(exact, tokens, mask)
    _, got = calrec_rows(half, tokens, mask)
    off = np.abs(got - expected)[mask]
    assert off.mean() < 0.02 * np.abs(expected).max()
    # The same weights in float32 give the logits of transformers exactly.
    _, widened = calrec_rows(exact, tokens, mask)
    np.testing.assert_allclose(widened[mask], expected[mask], **TOLERANCE)
