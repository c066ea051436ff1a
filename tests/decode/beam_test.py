"""Beam search against the enumeration of all texts, and against beam search on lists."""

from __future__ import annotations

import functools
import itertools

import jax
import numpy as np
import pytest
import tiny

from calrec_jax.decode.sample import Sampler
from calrec_jax.decode.sampling import SamplingConfig
from calrec_jax.models.decoder import Decoder
from calrec_jax.parallel.mesh import MeshConfig, make_mesh

CONFIG = tiny.changed(vocab_size=6)
PROMPTS = [np.array(p, np.int32) for p in ([3, 4, 5], [3])]
STEPS = 3
OTHERS = [token for token in range(CONFIG.vocab_size) if token != tiny.EOS]
# All texts of at most three tokens: those that end, and those that are cut.
TEXTS = [
    *([*text, tiny.EOS] for n in range(STEPS) for text in itertools.product(OTHERS, repeat=n)),
    *map(list, itertools.product(OTHERS, repeat=STEPS)),
]


def params():
    return tiny.params(CONFIG, seed=2)


@functools.cache
def log_probs(row: int) -> dict[tuple[int, ...], float]:
    """{text or beginning of one: its sum of log-probabilities} after a prompt."""
    prompt = [tiny.BOS, *PROMPTS[row].tolist()]
    rows = np.zeros((len(TEXTS), len(prompt) + STEPS), np.int32)
    for tokens, text in zip(rows, TEXTS, strict=True):
        tokens[: len(prompt) + len(text)] = [*prompt, *text]

    @functools.partial(jax.jit, compiler_options=tiny.FAST)
    def read(tokens):
        decoder, variables = Decoder(CONFIG), {"params": params()}
        positions = np.broadcast_to(np.arange(tokens.shape[1])[None], tokens.shape)
        hidden = decoder.apply(variables, tokens, positions, np.ones(tokens.shape, np.int32))
        return jax.nn.log_softmax(decoder.apply(variables, hidden, method="unembed"))

    table, found = np.asarray(read(rows), np.float64), {(): 0.0}
    for n, text in enumerate(TEXTS):
        for end in range(1, len(text) + 1):
            steps = [table[n, len(prompt) - 1 + i, text[i]] for i in range(end)]
            found[tuple(text[:end])] = sum(steps)
    return found


@functools.cache
def found(beams: int):
    """[(text with EOS, sum)] of each prompt."""
    sampler = Sampler(
        Decoder(CONFIG),
        params(),
        SamplingConfig(beams, max_new_tokens=STEPS, method="beam"),
        eos_id=tiny.EOS,
        bos_id=tiny.BOS,
        max_prompt_tokens=20,
        mesh=make_mesh(MeshConfig(), jax.devices()[:1]),
        mesh_config=MeshConfig(),
    )
    samples = sampler(PROMPTS, [1, 2])
    again = sampler(PROMPTS, [3, 4])  # nothing is drawn
    np.testing.assert_array_equal(samples.tokens, again.tokens)
    np.testing.assert_array_equal(samples.log_probs, again.log_probs)
    return [
        [
            ((*tokens[:length].tolist(), *[tiny.EOS] * int(length < STEPS)), log_prob)
            for tokens, length, log_prob in zip(*of_prompt, strict=True)
        ]
        for of_prompt in zip(samples.tokens, samples.lengths, samples.log_probs, strict=True)
    ]


def check(got, expected):
    """`expected` is in order, and its sums differ by more than float32 rounding."""
    assert (np.diff([log_prob for _, log_prob in expected]) < -1e-5).all()
    assert [text for text, _ in got] == [text for text, _ in expected]
    np.testing.assert_allclose([p for _, p in got], [p for _, p in expected], atol=5e-5)


@pytest.mark.parametrize("row", range(len(PROMPTS)))
def test_beams_enough_find_the_best_of_all_texts(row):
    """1 + 5 + 25 beams hold all texts of two tokens, so none is lost before the last step."""
    table = log_probs(row)
    every = [(tuple(text), table[tuple(text)]) for text in TEXTS]
    best = sorted(every, key=lambda pair: -pair[1])[:31]
    assert {len(text) for text, _ in best} == {1, 2, 3}
    check(found(31)[row], best)


@pytest.mark.parametrize("row", range(len(PROMPTS)))
@pytest.mark.parametrize("beams", [1, 4])
def test_few_beams_keep_the_best_at_each_step(row, beams):
    table, kept = log_probs(row), [()]
    for _ in range(STEPS):
        ended = [text for text in kept if text[-1:] == (tiny.EOS,)]
        going = [text for text in kept if text not in ended]
        every = [*ended, *((*text, token) for text in going for token in range(6))]
        kept = sorted(every, key=lambda text: -table[text])[:beams]
    check(found(beams)[row], [(text, table[text]) for text in kept])
