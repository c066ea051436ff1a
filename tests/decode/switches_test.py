"""Sampling from a decoder with all that families differ in, beyond its sliding window."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import tiny
from oracles import decoder as oracle

from calrec_jax.decode.sample import Sampler
from calrec_jax.decode.sampling import SamplingConfig
from calrec_jax.models.decoder import Decoder
from calrec_jax.parallel.mesh import MeshConfig, make_mesh

# Shorter than the window of 3, as long, and longer.
PROMPTS = [np.array(p, np.int32) for p in ([], [7, 5], [9, 8, 7, 6, 5, 4, 3])]
TOLERANCE = 5e-5  # of a sum of up to 6 log-probabilities, each good to about 1e-5


@pytest.mark.parametrize(
    "pattern",
    [
        ("sliding", "global"),
        pytest.param(("global", "sliding"), marks=pytest.mark.slow),
        pytest.param(("sliding",), marks=pytest.mark.slow),
    ],
    ids="-".join,
)
def test_log_probabilities_are_those_of_reading_the_whole_text(pattern):
    config = tiny.changed(**tiny.FAMILY | {"attention_pattern": pattern})
    params = tiny.params(config, seed=9)
    sampler = Sampler(
        Decoder(config),
        params,
        SamplingConfig(num_samples=2, temperature=1.5, max_new_tokens=6),
        eos_id=tiny.EOS,
        bos_id=tiny.BOS,
        max_prompt_tokens=10,
        mesh=make_mesh(MeshConfig(1), jax.devices()[:1]),
        mesh_config=MeshConfig(1),
    )
    samples = sampler(PROMPTS, [1, 2, 3])
    assert samples.lengths.max() > config.sliding_window
    for row, prompt in enumerate(PROMPTS):
        for n, length in enumerate(samples.lengths[row]):
            text = samples.tokens[row, n, :length].tolist()
            text += [tiny.EOS] if length < 6 else []
            expected = oracle.teacher_forced_log_prob(
                tiny.for_oracle(params, config),
                [tiny.BOS, *prompt.tolist()],
                text,
                tiny.oracle_cfg(config),
            )
            assert samples.log_probs[row, n] == pytest.approx(expected, abs=TOLERANCE)
