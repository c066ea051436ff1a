"""The decoder's config: impossible sizes are refused, and the vocabulary is rounded up."""

from __future__ import annotations

import pytest
import tiny

from calrec_jax.errors import CalrecError


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_kv_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ({"head_dim": 5}, "head_dim 5 is odd"),
        ({"activation": "relu"}, "activation 'relu' is none of"),
        ({"remat": "some"}, "remat 'some' is none of"),
    ],
)
def test_impossible_sizes_and_unknown_names_are_refused(changes, says):
    with pytest.raises(CalrecError, match=says):
        tiny.changed(**changes)


@pytest.mark.parametrize(("needed", "rounded"), [(1, 128), (128, 128), (129, 256), (259, 384)])
def test_the_vocabulary_is_rounded_up_so_that_it_divides_over_a_mesh(needed, rounded):
    assert tiny.changed(vocab_size=None).with_vocab_size(needed).vocab_size == rounded


def test_a_given_vocabulary_is_kept_and_must_be_large_enough():
    assert tiny.CONFIG.with_vocab_size(20) == tiny.CONFIG
    with pytest.raises(CalrecError, match="21 ids but the model only 20"):
        tiny.CONFIG.with_vocab_size(21)
