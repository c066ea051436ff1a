"""Every number that `inspect` shows, counted by hand: from texts, whose bytes are the tokens."""

from __future__ import annotations

import collections
import functools
import json

import pytest

from calrec_jax.batch import BatchSpec
from calrec_jax.data.inspection import describe
from calrec_jax.data.loader import Batches
from calrec_jax.data.seqio_tasks import tasks
from calrec_jax.text.items import stable_id

# Histories of four items do not fit; of items, those of more than 17 bytes do not.
LENGTHS = {"inputs": 80, "targets": 18}
NAMES = ("tiny_books", "tiny_games")
SEGMENTS = 5
# Five of the longest examples fit a row: however they are packed, rows are full but for one.
PACKED = BatchSpec.create(4, LENGTHS, row_length=SEGMENTS * 98, max_segments=SEGMENTS)
UNPACKED = BatchSpec.create(4, LENGTHS)
SPECS = pytest.mark.parametrize("spec", [UNPACKED, PACKED], ids=["unpacked", "packed"])
TARGETS = pytest.mark.parametrize("targets", ["last", "all"])
# Users 0, 1, 2, ... have 2, 3, 4, 5, 2, ... items. An example each, or one for each but the first.
EXAMPLES = {
    "last": {"tiny_books": 37, "tiny_games": 11},
    "all": {"tiny_books": 91, "tiny_games": 26},
}


def plan(spec, targets, mixture="tiny_mixture", lengths=LENGTHS) -> Batches:
    return Batches(
        tasks.in_use().mixture(mixture), spec, lengths, split="train", seed=0, targets=targets
    )


@functools.cache  # the store is the same for all tests
def described(spec, targets, steps=8, shown=1, mixture="tiny_mixture") -> dict[str, dict]:
    """{domain: its description}."""
    stage = describe(plan(spec, targets, mixture), steps, shown)
    return {domain["name"]: domain for domain in stage["domains"]}


@functools.cache
def texts(name, targets) -> list[tuple[str, str, bool]]:
    """(prompt, target, whether items were left out) of each example of an epoch."""
    domain = tasks.in_use().domain(name)
    catalogue = domain.catalogue
    titles = {i: f["title"] for i, f in zip(catalogue.item_ids, catalogue.fields, strict=True)}
    found = []
    for sequence in domain.sequences("train"):
        items = [f"Title: {titles[i]}"[: LENGTHS["targets"] - 1] for i in sequence.item_ids]
        for end in range(1, len(items)) if targets == "all" else [len(items) - 1]:
            prompts = [f"Bought: {'; '.join(items[i:end])}. Next: " for i in range(end)]
            fit = [prompt for prompt in prompts if len(prompt) <= LENGTHS["inputs"]]
            found.append((fit[0], items[end], len(fit) < len(prompts)))
    return found


def sizes(name, targets) -> list[int]:
    """The number of bytes of each example, plus one for EOS, sorted."""
    return sorted(len(prompt) + len(item) + 1 for prompt, item, _ in texts(name, targets))


def percentile(values: list[int], percent: int) -> float:
    """A percentile of sorted values, interpolated between the two next to it."""
    place = (len(values) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def rows_of(spec, examples: int) -> int:
    return -(-examples // spec.max_segments)


@SPECS
@TARGETS
def test_the_stage_is_described(spec, targets, tiny_config):
    found = describe(plan(spec, targets), steps=7)
    assert [domain["name"] for domain in found.pop("domains")] == list(NAMES)
    assert found == {
        "mixture": "tiny_mixture",
        "rates": "proportional",
        "targets": targets,
        "rows": 4,
        "row_length": spec.row_length,
        "max_segments": spec.max_segments,
        "steps": 7,
    }


@SPECS
@TARGETS
def test_items_sequences_examples_and_rows_are_counted(spec, targets, tiny_config):
    found = described(spec, targets)
    for name, train in (("tiny_books", 37), ("tiny_games", 11)):
        assert found[name]["items"] == 20
        assert found[name]["sequences"] == {"train": train, "validation": 5, "test": 5}
        assert found[name]["examples"] == EXAMPLES[targets][name]
        assert found[name]["rows"] == rows_of(spec, EXAMPLES[targets][name])


@SPECS
@TARGETS
def test_a_proportional_mixture_shares_rows_by_their_numbers(spec, targets, tiny_config):
    found = described(spec, targets)
    rows = {name: rows_of(spec, EXAMPLES[targets][name]) for name in NAMES}
    for name in NAMES:
        assert found[name]["share"] == pytest.approx(rows[name] / sum(rows.values()), rel=1e-12)
        assert found[name]["steps_per_epoch"] == pytest.approx(sum(rows.values()) / 4, rel=1e-12)


def test_an_equal_mixture_has_as_many_examples_of_each(tiny_config):
    found = described(PACKED, "last", mixture="tiny_equal")
    # 37 examples in 8 rows and 11 in 3: for one example of each, 8 / 37 and 3 / 11 rows.
    books, games = 8 / 37, 3 / 11
    assert found["tiny_books"]["share"] == pytest.approx(books / (books + games), abs=1e-5)
    assert found["tiny_games"]["share"] == pytest.approx(games / (books + games), abs=1e-5)
    # An epoch of games is 11 of 22 examples, or 3 of 3 + 11 * 8 / 37 rows, at 4 rows a step.
    assert found["tiny_games"]["steps_per_epoch"] == pytest.approx((3 + 88 / 37) / 4, abs=1e-3)
    assert found["tiny_books"]["steps_per_epoch"] == pytest.approx((8 + 111 / 11) / 4, abs=1e-3)


@SPECS
@TARGETS
@pytest.mark.parametrize("steps", [1, 9])
def test_epochs_are_those_of_the_batches(spec, targets, steps, tiny_config):
    found = described(spec, targets, steps)
    first = [plan(spec, targets).batch(step)["domain_ids"][:, 0] for step in range(steps)]
    seen = collections.Counter(domain for batch in first for domain in batch.tolist())
    for name in NAMES:
        rows = rows_of(spec, EXAMPLES[targets][name])
        assert found[name]["epochs"] == seen[stable_id(name)] / rows


@TARGETS
def test_lengths_are_those_of_the_texts(targets, tiny_config):
    found = described(UNPACKED, targets)
    for name in NAMES:
        expected = sizes(name, targets)
        tokens = found[name]["tokens"]
        assert tokens["mean"] == pytest.approx(sum(expected) / len(expected))
        for percent in (50, 90, 99):
            assert tokens[f"p{percent}"] == pytest.approx(percentile(expected, percent))
        assert tokens["max"] == expected[-1]


@TARGETS
def test_the_histogram_has_every_example_once(targets, tiny_config):
    found = described(UNPACKED, targets)
    for name in NAMES:
        expected = sizes(name, targets)
        edges, counts = (found[name]["tokens"]["histogram"][part] for part in ("edges", "counts"))
        assert (edges[0], edges[-1], len(edges)) == (0, expected[-1], 17)
        assert sum(counts) == len(expected)
        for count, low, high in zip(counts[:-1], edges[:-2], edges[1:-1], strict=True):
            assert count == sum(low <= size < high for size in expected)


@SPECS
@TARGETS
def test_fill_is_the_share_of_places_with_a_token(spec, targets, tiny_config):
    found = described(spec, targets)
    for name in NAMES:
        places = rows_of(spec, EXAMPLES[targets][name]) * spec.row_length
        assert found[name]["fill"] == pytest.approx(sum(sizes(name, targets)) / places, rel=1e-12)


@TARGETS
def test_what_is_cut_is_counted(targets, tiny_config):
    found = described(UNPACKED, targets)
    for name in NAMES:
        cut = [left_out for _, _, left_out in texts(name, targets)]
        assert 0 < sum(cut) < len(cut)
        assert found[name]["histories_cut"] == pytest.approx(sum(cut) / len(cut))
        # "Title: games xxx9" has 17 bytes: n, of which n % 6 are x, is cut if it has 18 or more.
        assert [n for n in range(20) if 13 + n % 6 + len(str(n)) > 17] == [4, 5, 10, 11, 15, 16, 17]
        assert found[name]["items_cut"] == 7 / 20


def test_where_everything_fits_nothing_is_cut(tiny_config):
    lengths = {"inputs": 110, "targets": 24}
    batches = plan(BatchSpec.create(4, lengths), "all", lengths=lengths)
    for domain in describe(batches, steps=1)["domains"]:
        assert (domain["histories_cut"], domain["items_cut"]) == (0, 0)


@SPECS
@TARGETS
def test_the_examples_that_are_shown_are_the_templates_text(spec, targets, tiny_config):
    found = described(spec, targets, shown=1000)
    for name in NAMES:
        shown = collections.Counter(tuple(map(tuple, spans)) for spans in found[name]["shown"])
        assert shown == collections.Counter(
            (("history", prompt), ("target", item)) for prompt, item, _ in texts(name, targets)
        )


def test_as_many_examples_are_shown_as_are_requested(tiny_config):
    for domain in described(PACKED, "last", shown=3).values():
        assert len(domain["shown"]) == 3


def test_random_targets_are_described_too(tiny_config):
    for name, domain in described(PACKED, "random", shown=1000).items():
        train = EXAMPLES["last"][name]
        assert domain["examples"] == train == sum(domain["tokens"]["histogram"]["counts"])
        assert domain["rows"] == rows_of(PACKED, train)
        assert len(domain["shown"]) == train


def test_it_is_ready_for_json(tiny_config):
    found = json.loads(json.dumps(describe(plan(PACKED, "all"), 5)))
    (((kind, history), (other, target)),) = found["domains"][0]["shown"]
    assert (kind, other) == ("history", "target")
    assert history.startswith("Bought: Title: books ") and target.startswith("Title: books ")
