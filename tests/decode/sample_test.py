"""Sampling: log-probabilities are teacher forcing's, draws are from the tempered model."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tiny
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import decoder as oracle
from oracles import losses as losses_oracle

from calrec_jax.decode.generate import generate
from calrec_jax.decode.sample import Sampler, Samples
from calrec_jax.decode.sampling import SamplingConfig
from calrec_jax.errors import CalrecError
from calrec_jax.models.decoder import Decoder, for_generation
from calrec_jax.models.kv_cache import Continuations
from calrec_jax.parallel.mesh import MeshConfig, make_mesh

CONFIG = tiny.CONFIG
PROMPTS = [np.array(p, np.int32) for p in ([3, 4, 5, 6], [7], [], [9, 8, 7, 6, 5, 4, 3])]
SEEDS = [56, 57, 58, 59]
MANY = 16_384  # draws, enough to detect a temperature that is off by a tenth
TOLERANCE = 5e-5  # of a sum of up to 6 log-probabilities, each good to about 1e-5


def params():
    """Drawn so that EOS comes at once, later and never."""
    return tiny.params(seed=9)


@functools.cache
def sampler(
    num_samples=3, temperature=0.5, max_new_tokens=6, devices=1, longest=20, batch_size=None, **more
) -> Sampler:
    mesh_config = MeshConfig(data=devices)
    return Sampler(
        Decoder(CONFIG),
        params(),
        SamplingConfig(num_samples, temperature, max_new_tokens, **more),
        eos_id=tiny.EOS,
        bos_id=tiny.BOS,
        max_prompt_tokens=longest,
        mesh=make_mesh(mesh_config, jax.devices()[:devices]),
        mesh_config=mesh_config,
        batch_size=batch_size,
    )


@functools.cache
def drawn(**changes):
    return sampler(**changes)(PROMPTS, SEEDS)


def texts(samples, row):
    """Each continuation of a prompt: its tokens, with EOS where it came."""
    for tokens, length in zip(samples.tokens[row], samples.lengths[row], strict=True):
        ended = length < samples.tokens.shape[-1]
        yield [*tokens[:length].tolist(), *([tiny.EOS] if ended else [])]


@functools.cache
def oracle_params():
    return tiny.for_oracle(params())


def oracle_log_prob(prompt, text):
    return oracle.teacher_forced_log_prob(
        oracle_params(), [tiny.BOS, *prompt.tolist()], text, tiny.oracle_cfg()
    )


def next_log_probs(prompt, text=()):
    """The oracle's log p of every next token, [V]."""
    whole = [tiny.BOS, *prompt.tolist(), *text]
    hidden = oracle.forward(
        oracle_params(), whole, range(len(whole)), [1] * len(whole), tiny.oracle_cfg()
    )
    return losses_oracle.log_softmax(
        oracle.logits(oracle_params(), hidden[-1:], tiny.oracle_cfg())[0]
    )


# Log-probabilities


def test_texts_of_all_kinds_are_drawn():
    # The tests below rely on this: some texts end at EOS, early and late, and some do not.
    lengths = drawn().lengths
    assert {0, 1, 2, 6} <= set(lengths.ravel().tolist())


@pytest.mark.parametrize("temperature", [0.5, 2.0, 0.0])
def test_log_probabilities_are_the_untempered_models_of_the_text_and_its_eos(temperature):
    samples = drawn(temperature=temperature)
    for row, prompt in enumerate(PROMPTS):
        for text, log_prob in zip(texts(samples, row), samples.log_probs[row], strict=True):
            assert log_prob == pytest.approx(oracle_log_prob(prompt, text), abs=TOLERANCE)


def test_log_probabilities_are_those_of_the_training_forward_pass():
    samples = drawn()
    read = jax.jit(Decoder(CONFIG).apply, compiler_options=tiny.FAST)
    for row, prompt in enumerate(PROMPTS):
        for text, log_prob in zip(texts(samples, row), samples.log_probs[row], strict=True):
            whole = np.zeros((1, 16), np.int32)
            tokens = [tiny.BOS, *prompt.tolist(), *text]
            whole[0, : len(tokens)] = tokens
            segments = (np.arange(16) < len(tokens))[None].astype(np.int32)
            hidden = read({"params": params()}, whole, np.arange(16)[None], segments)
            table = jax.nn.log_softmax(hidden[0] @ params()["embedding"].T)
            places = np.arange(len(prompt), len(tokens) - 1)
            expected = table[places, np.array(text)].sum()
            assert log_prob == pytest.approx(float(expected), abs=TOLERANCE)


def test_log_probabilities_are_sums_and_not_means():
    # Known defect elsewhere: scores divided by the length. Here a longer text scores less than
    # its own beginning.
    samples = drawn()
    for row, prompt in enumerate(PROMPTS):
        for text, log_prob in zip(texts(samples, row), samples.log_probs[row], strict=True):
            if len(text) > 1:
                assert log_prob < oracle_log_prob(prompt, text[:-1])
    assert samples.log_probs.dtype == np.float64


def test_tokens_hold_no_eos_and_zeros_after_the_end():
    samples = drawn()
    assert samples.tokens.shape == (4, 3, 6) and samples.tokens.dtype == np.int32
    for tokens, length in zip(samples.tokens.reshape(-1, 6), samples.lengths.ravel(), strict=True):
        assert tiny.EOS not in tokens.tolist()
        assert not tokens[length:].any()


def test_in_bfloat16_log_probabilities_are_those_of_the_same_steps():
    """Only the decoder rounds to bfloat16; sums are float32."""
    decoder = Decoder(tiny.changed(dtype="bfloat16"))
    half = Sampler(
        decoder,
        params(),
        SamplingConfig(3, 0.5, 6, top_k=5, top_p=0.9),
        eos_id=tiny.EOS,
        bos_id=tiny.BOS,
        max_prompt_tokens=20,
        mesh=make_mesh(MeshConfig(), jax.devices()[:1]),
        mesh_config=MeshConfig(),
    )
    kernels = {leaf.dtype for leaf in jax.tree.leaves(half._params)}
    assert kernels == {jnp.dtype("bfloat16"), jnp.dtype("float32")}  # norms' scales
    samples = half(PROMPTS, SEEDS)
    logits = logits_of_steps(decoder, params(), *half._pad(PROMPTS), samples.tokens)
    table = scipy.special.log_softmax(np.asarray(logits, np.float64), axis=-1)
    for row, prompt in enumerate(PROMPTS):
        for n, text in enumerate(texts(samples, row)):
            expected = table[row, n, np.arange(len(text)), text].sum()
            assert samples.log_probs[row, n] == pytest.approx(expected, abs=TOLERANCE)
            # Hidden states keep 8 bits: of logits of about 2, each is good to about 0.02.
            assert expected == pytest.approx(oracle_log_prob(prompt, text), abs=0.1)


@functools.partial(jax.jit, static_argnums=0)
def logits_of_steps(decoder, params, tokens, mask, new):
    """The logits [B, N, T, V] before each of the tokens `new`, int32 [B, N, T], in cached steps."""
    alone, params = for_generation(decoder, params)
    apply = functools.partial(alone.apply, {"params": params})
    last, prefix = apply(tokens, mask, method="prefill")
    b, n, t = new.shape
    states = [jnp.broadcast_to(last[:, None], (b, n, last.shape[-1]))]
    cache = Continuations.empty(alone.config, b, n, t)
    for step in range(t - 1):
        hidden, cache = apply(new[:, :, step], prefix, cache, method="decode")
        states.append(hidden)
    return apply(jnp.stack(states, axis=2), method="unembed")


def test_filters_do_not_change_log_probabilities():
    samples = drawn(top_k=4, top_p=0.7, temperature=1.5)
    for row, prompt in enumerate(PROMPTS):
        for text, log_prob in zip(texts(samples, row), samples.log_probs[row], strict=True):
            assert log_prob == pytest.approx(oracle_log_prob(prompt, text), abs=TOLERANCE)
            likeliest = np.argsort(-next_log_probs(prompt, text[:-1]))[:4]
            assert text[-1] in likeliest


# What is drawn


def test_temperature_zero_takes_the_likeliest_token():
    samples = drawn(temperature=0.0)
    for row, prompt in enumerate(PROMPTS):
        text = []
        while len(text) < 6 and text[-1:] != [tiny.EOS]:
            text.append(int(np.argmax(next_log_probs(prompt, text))))
        assert list(texts(samples, row)) == [text] * 3


def tempered(prompt, temperature, text=()):
    """The probabilities of the next token, float64 [V]."""
    weights = np.exp(next_log_probs(prompt, text) / temperature)
    return weights / weights.sum()


def chi_square_excess(counts, probabilities):
    """Pearson's statistic / its 99.9 % quantile: above 1, the distribution is another one.

    What is expected less than 5 times goes together with all other outcomes.
    """
    n = MANY
    expected = n * np.asarray(probabilities)
    counts, expected = (np.asarray(x)[expected >= 5] for x in (counts, expected))
    assert len(counts) > 5
    if n - expected.sum() > 1:
        counts = np.append(counts, n - counts.sum())
        expected = np.append(expected, n - expected.sum())
    statistic = ((counts - expected) ** 2 / expected).sum()
    return statistic / scipy.stats.chi2.ppf(0.999, len(counts) - 1)


def first_tokens(samples):
    return np.where(samples.lengths[0] == 0, tiny.EOS, samples.tokens[0, :, 0])


@pytest.mark.parametrize("temperature", [0.5, 1.5])
def test_one_token_is_drawn_from_the_tempered_softmax(temperature):
    # The seed is fixed: this passes always or never.
    samples = sampler(MANY, temperature, max_new_tokens=1)(PROMPTS[:1], [5])
    counts = np.bincount(first_tokens(samples), minlength=CONFIG.vocab_size)
    assert chi_square_excess(counts, tempered(PROMPTS[0], temperature)) < 1
    for other in (0.9 * temperature, 1.1 * temperature, 1.0):
        assert chi_square_excess(counts, tempered(PROMPTS[0], other)) > 1


def test_later_tokens_are_drawn_from_the_tempered_softmax_too():
    prompt, temperature = PROMPTS[1], 0.7
    samples = sampler(MANY, temperature, max_new_tokens=2)([prompt], [6])
    tokens, lengths = samples.tokens[0], samples.lengths[0]
    counts, probabilities, first = [], [], tempered(prompt, temperature)
    for a in np.argsort(-first)[:4]:
        if a == tiny.EOS:
            continue
        second = tempered(prompt, temperature, [int(a)])
        for b in range(CONFIG.vocab_size):
            ends_so = (lengths == 1) if b == tiny.EOS else (lengths == 2) & (tokens[:, 1] == b)
            counts.append(((lengths > 0) & (tokens[:, 0] == a) & ends_so).sum())
            probabilities.append(first[a] * second[b])
    assert chi_square_excess(counts, probabilities) < 1
    assert chi_square_excess(counts, np.roll(probabilities, 1)) > 1


def test_samples_are_independent_draws_and_no_beams():
    # Known defect elsewhere: beams with sampling flags. Beams never repeat, samples do; and how
    # often two of them agree is as chance has it.
    samples = sampler(MANY, 0.5, max_new_tokens=1)(PROMPTS[:1], [5])
    chosen = first_tokens(samples)
    agree = (tempered(PROMPTS[0], 0.5) ** 2).sum()
    for apart in (1, 2, 7):
        deviation = np.sqrt(agree * (1 - agree) / (MANY - apart))
        same = (chosen[apart:] == chosen[:-apart]).mean()
        assert same == pytest.approx(agree, abs=4 * deviation)


# Reproducibility


def assert_same_samples(one, two):
    np.testing.assert_array_equal(one.tokens, two.tokens)
    np.testing.assert_array_equal(one.lengths, two.lengths)
    # With another shape, sums may be in another order: float32 rounding.
    np.testing.assert_allclose(one.log_probs, two.log_probs, atol=1e-5)


def test_the_seed_decides():
    assert_same_samples(sampler()(PROMPTS, SEEDS), drawn())
    other = sampler()(PROMPTS, [s + 1 for s in SEEDS])
    assert (other.tokens != drawn().tokens).any(axis=(1, 2)).all()


def test_prompts_with_the_same_seed_draw_on_their_own_texts():
    same_prompt = sampler()([PROMPTS[0]] * 2, [1, 2])
    assert (same_prompt.tokens[0] != same_prompt.tokens[1]).any()
    same_both = sampler()([PROMPTS[0]] * 2, [1, 1])
    np.testing.assert_array_equal(same_both.tokens[0], same_both.tokens[1])


def test_samples_do_not_depend_on_the_batch_around_them():
    for row in range(len(PROMPTS)):
        alone = sampler()(PROMPTS[row : row + 1], SEEDS[row : row + 1])
        np.testing.assert_array_equal(alone.tokens[0], drawn().tokens[row])
    assert_same_samples(sampler()(PROMPTS[::-1], SEEDS[::-1]), part(drawn(), slice(None, None, -1)))


def part(samples, rows):
    return Samples(samples.tokens[rows], samples.lengths[rows], samples.log_probs[rows], None)


def test_samples_do_not_depend_on_the_length_to_which_prompts_are_padded():
    wide = sampler(longest=200)
    long_prompt = np.arange(3, 93, dtype=np.int32) % 17 + 3
    samples = wide([*PROMPTS, long_prompt], [*SEEDS, 5])
    assert_same_samples(part(samples, slice(4)), drawn())


FILLERS = [np.arange(3, 3 + n, dtype=np.int32) % 17 + 3 for n in (1, 70)]


@settings(max_examples=30)
@given(
    st.lists(st.sampled_from(range(4)), max_size=4, unique=True),
    st.lists(st.sampled_from(range(2)), max_size=3),
    st.randoms(use_true_random=False),
)
def test_samples_depend_on_prompt_and_seed_alone(rows, fillers, random):
    """Not on the other prompts of the batch, their order, or the bucket's length."""
    batch = [(PROMPTS[row], SEEDS[row], row) for row in rows]
    batch += [(FILLERS[n], random.randrange(2**32), None) for n in fillers]
    assume(batch)
    random.shuffle(batch)
    samples = filled()([prompt for prompt, _, _ in batch], [seed for _, seed, _ in batch])
    assert len(samples.tokens) == len(batch)
    for place, (_, _, row) in enumerate(batch):
        if row is not None:
            assert_same_samples(part(samples, [place]), part(drawn(), [row]))


@functools.cache
def filled() -> Sampler:
    return sampler(longest=200, batch_size=8)


def test_a_smaller_batch_is_filled_up_and_does_not_compile_again():
    few = sampler(batch_size=4)
    for rows in (4, 1, 3):
        samples = few(PROMPTS[:rows], SEEDS[:rows])
        assert len(samples.tokens) == len(samples.log_probs) == rows
        assert_same_samples(samples, part(drawn(), slice(rows)))
    assert few._generate._cache_size() == 1


def test_samples_do_not_depend_on_how_many_devices_share_the_batch():
    assert_same_samples(sampler(devices=4)(PROMPTS, SEEDS), drawn())
    # Three prompts do not divide over four devices, so a row is filled up and dropped.
    three = sampler(devices=4)(PROMPTS[:3], SEEDS[:3])
    np.testing.assert_array_equal(three.tokens, drawn().tokens[:3])


def test_fewer_tokens_are_the_beginning_of_more():
    short, long = drawn(max_new_tokens=1), drawn()
    np.testing.assert_array_equal(short.tokens[:, :, 0], long.tokens[:, :, 0])
    assert short.tokens.shape[-1] == 1
    for row, prompt in enumerate(PROMPTS):
        table = next_log_probs(prompt)
        for text, log_prob in zip(texts(short, row), short.log_probs[row], strict=True):
            assert len(text) == 1 and log_prob == pytest.approx(table[text[0]], abs=TOLERANCE)


def test_stopping_when_all_texts_have_ended_changes_nothing(monkeypatch):
    """Three users whose texts end early, alone and among others whose texts never end."""
    steps, while_loop = [], jax.lax.while_loop

    def counted(*args):
        end = while_loop(*args)
        steps.append(end.written.length)
        return end

    monkeypatch.setattr(jax.lax, "while_loop", counted)
    width = 8
    tokens = np.zeros((40, width), np.int32)
    tokens[:, :5] = [tiny.BOS, *PROMPTS[0]]
    mask = tokens != 0

    @functools.partial(jax.jit, compiler_options=tiny.FAST)
    def run(tokens, mask, seeds):
        config = SamplingConfig(2, 0.5, 12)
        model = for_generation(Decoder(CONFIG), params())
        out = generate(model[0], config, tiny.EOS, (), model[1], None, tokens, mask, seeds)
        return out.tokens, out.lengths, out.log_probs, steps[-1]

    everyone = run(tokens, mask, np.arange(40, dtype=np.uint32))
    last = np.asarray(everyone[1]).max(axis=1)
    early = np.argsort(last, kind="stable")[:3]
    alone = run(tokens[:3], mask[:3], early.astype(np.uint32))
    assert everyone[3] == 11  # the last token is drawn, but never read
    assert alone[3] == last[early].max() < 8
    for one, all_of_them in zip(alone[:3], everyone[:3], strict=True):
        np.testing.assert_allclose(one, np.asarray(all_of_them)[early], rtol=1e-5)


# Refusals


def test_a_prompt_that_is_too_long_is_refused():
    with pytest.raises(CalrecError, match="a prompt has 21 tokens, more than 20"):
        sampler()([np.zeros(21, np.int32)], [0])


def test_the_longest_prompt_is_not_refused():
    prompt = np.full(20, 5, np.int32)
    samples = sampler()([prompt], [0])
    for text, log_prob in zip(texts(samples, 0), samples.log_probs[0], strict=True):
        assert log_prob == pytest.approx(oracle_log_prob(prompt, text), abs=TOLERANCE)


def test_as_many_seeds_as_prompts_are_needed():
    for seeds in ([1, 2, 3], [1, 2, 3, 4, 5]):
        with pytest.raises(ValueError, match=f"{len(seeds)} seeds for 4 prompts"):
            sampler()(PROMPTS, seeds)


def test_prompts_are_padded_to_few_lengths_and_few_numbers_of_rows(monkeypatch):
    many, shapes = sampler(longest=300), set()

    class Seen(Exception):
        """Nothing is generated."""

    def seen(params, trie, tokens, *rest):
        shapes.add(tokens.shape)
        raise Seen

    monkeypatch.setattr(many, "_generate", seen)
    for lengths in ([3], [60], [63], [64], [3, 70], [5, 6, 7], [1, 2, 3, 4], [290]):
        prompts = [np.full(length, 5, np.int32) for length in lengths]
        with pytest.raises(Seen):
            many(prompts, list(range(len(prompts))))
    # BOS stands before each: 63 tokens are the most that 64 positions hold.
    assert shapes == {(1, 64), (1, 128), (2, 128), (4, 64), (1, 301)}
