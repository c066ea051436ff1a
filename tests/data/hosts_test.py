"""The rows of a run are the same for any number of hosts, and from any step."""

from __future__ import annotations

import collections
import functools
import itertools

import numpy as np
import pytest
from data.conftest import write_tiny_domain
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calrec_jax.batch import TARGETS, BatchSpec
from calrec_jax.data import registry, schedule, vocabularies
from calrec_jax.data.domains import Mixture
from calrec_jax.data.loader import Batches
from calrec_jax.data.seqio_tasks import tasks
from calrec_jax.data.specs import MixtureSpec
from calrec_jax.text.items import stable_id

LENGTHS = {"inputs": 110, "targets": 24}  # everything fits
PACKED = BatchSpec.create(4, LENGTHS, row_length=300, max_segments=3)
UNPACKED = BatchSpec.create(4, LENGTHS)
NAMES = ("host_films", "tiny_books", "tiny_games")

properties = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
of_domains = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True).map(sorted)
specs = st.sampled_from([PACKED, UNPACKED])


@st.composite
def mixtures(draw) -> MixtureSpec:
    names = tuple(draw(of_domains))
    own = st.tuples(*[st.sampled_from([0.2, 1.0, 7.0]) for _ in names])
    rates = draw(st.one_of(st.sampled_from(["proportional", "equal"]), own))
    return MixtureSpec("drawn", names, rates, draw(st.sampled_from([1.0, 2.5])))


@pytest.fixture(scope="module")
def _films(tmp_path_factory):
    """A third domain, in a store of its own."""
    data_dir = tmp_path_factory.mktemp("films")
    write_tiny_domain(data_dir, "host_films", 6)
    registry.register_domain("host_films", data_dir=str(data_dir))


@pytest.fixture
def config(tiny_config, _films):
    """A configuration that is in use, with all three domains."""
    return tiny_config


def plan(mixture, spec, targets="last", host=(0, 1), seed=0, **more):
    found = Mixture(mixture, tuple(map(tasks.in_use().domain, mixture.domains)))
    return Batches(
        found, spec, LENGTHS, split="train", seed=seed, targets=targets, host=host, **more
    )


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@properties
@given(
    mixture=mixtures(),
    spec=specs,
    targets=st.sampled_from(TARGETS),
    hosts=st.sampled_from([1, 2, 4]),
    step=st.one_of(st.integers(0, 30), st.integers(0, 10**7)),
    one_pass=st.booleans(),
)
def test_hosts_rows_one_after_another_are_the_global_batch(
    config, mixture, spec, targets, hosts, step, one_pass
):
    more = {"targets": targets, "one_pass": one_pass}
    whole = plan(mixture, spec, **more).batch(step)
    spec.check(whole)
    parts = [plan(mixture, spec, host=(i, hosts), **more).batch(step) for i in range(hosts)]
    assert {len(value) for part in parts for value in part.values()} == {4 // hosts}
    assert_equal({name: np.concatenate([part[name] for part in parts]) for name in whole}, whole)


@properties
@given(
    mixture=mixtures(),
    spec=specs,
    targets=st.sampled_from(TARGETS),
    host=st.sampled_from([(0, 1), (1, 2), (3, 4)]),
    start=st.integers(0, 25),
    seed=st.integers(0, 3),
)
def test_a_fresh_plan_gives_at_any_step_what_iterating_from_0_does(
    config, mixture, spec, targets, host, start, seed
):
    iterated = plan(mixture, spec, targets, host, seed).iterate(0, start + 2)
    *_, before, last = itertools.chain([None], iterated)
    fresh = plan(mixture, spec, targets, host, seed)
    assert_equal(fresh.batch(start + 1), last)
    assert_equal(fresh.batch(start), before)  # backwards, too


@functools.cache  # the stores are the same for all tests
def expected(name, template, targets) -> collections.Counter:
    """(domain, target, text) of each example of an epoch."""
    domain = tasks.in_use().domain(name)
    catalogue = domain.catalogue
    fields = dict(zip(catalogue.item_ids, catalogue.fields, strict=True))
    found = collections.Counter()
    for sequence in domain.sequences("train"):
        ids = sequence.item_ids
        for end in range(1, len(ids)) if targets == "all" else [len(ids) - 1]:
            text = template.render_joint([fields[i] for i in ids[:end]], fields[ids[end]])
            found[stable_id(name), stable_id(name, ids[end]), text] += 1
    return found


def rows(batches: Batches, count: int) -> list[list[tuple[int, int, str]]]:
    """(domain, target, text) of each segment of each of the first rows."""
    vocabulary = vocabularies.byte()
    found = []
    for step in range(-(-count // 4)):
        batch = batches.batch(step)
        for row in range(4):
            ids, tokens = batch["decoder_segment_ids"][row], batch["decoder_target_tokens"][row]
            found.append(
                [
                    (
                        int(batch["domain_ids"][row, segment - 1]),
                        int(batch["target_item_ids"][row, segment - 1]),
                        vocabulary.decode(tokens[ids == segment].tolist()),
                    )
                    for segment in range(1, ids.max() + 1)
                ]
            )
    return found[:count]


def assert_whole_epochs(found, batches, template):
    """Each domain's rows, cut into epochs in their order, hold each example once an epoch."""
    counts = []
    for name, of in zip(batches.mixture.spec.domains, batches.rows, strict=True):
        mine = [row for row in found if {domain for domain, *_ in row} == {stable_id(name)}]
        epochs, rest = divmod(len(mine), of.per_epoch)
        assert rest == 0
        targets = batches.examples[0].targets
        once = expected(name, template, targets)
        for epoch in range(epochs):
            held = mine[epoch * of.per_epoch : (epoch + 1) * of.per_epoch]
            assert collections.Counter(segment for row in held for segment in row) == once
        counts.append((len(mine), epochs))
    assert sum(count for count, _ in counts) == len(found)
    return {epochs for _, epochs in counts}


@settings(properties, max_examples=40)
@given(
    names=of_domains,
    spec=specs,
    targets=st.sampled_from(["last", "all"]),
    seed=st.integers(0, 5),
    finest=st.integers(1, 300),
)
def test_a_period_of_a_proportional_mixture_is_whole_epochs_of_each_domain(
    config, names, spec, targets, seed, finest
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "_MIN_PERIOD", finest)  # otherwise a period has 65,536 rows
        batches = plan(MixtureSpec("all", tuple(names)), spec, targets, seed=seed)
    each = sum(of.per_epoch for of in batches.rows)
    times = -(-finest // each)
    found = rows(batches, each * times)
    assert assert_whole_epochs(found, batches, config.template) == {times}


@properties
@given(names=of_domains, spec=specs, targets=st.sampled_from(["last", "all"]))
def test_one_pass_is_one_epoch_of_each_domain(config, names, spec, targets):
    batches = plan(MixtureSpec("all", tuple(names)), spec, targets, one_pass=True)
    found = rows(batches, 4 * batches.num_batches)
    filled = [row for row in found if row]
    assert found[: len(filled)] == filled and len(found) - len(filled) < 4
    assert assert_whole_epochs(filled, batches, config.template) == {1}


def test_epochs_are_counted_over_whole_periods(config):
    batches = plan(MixtureSpec("all", NAMES), PACKED, "all")
    each = sum(of.per_epoch for of in batches.rows)
    times = -(-(2**16) // each)
    # Four periods of `each * times` rows, in batches of four rows.
    assert batches.epochs(each * times) == dict.fromkeys(NAMES, 4.0 * times)
