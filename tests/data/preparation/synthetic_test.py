import collections
import dataclasses
import itertools
import os
import pathlib
import subprocess
import sys

import pytest
import reference_pipeline

from calrec_jax.data.preparation import synthetic
from calrec_jax.data.preparation.sequences import Rules
from calrec_jax.data.preparation.synthetic import DOMAINS, STEPS, SyntheticConfig
from calrec_jax.data.sources import Event, Item, get_source, read_events, read_items
from calrec_jax.errors import CalrecError

SMALL = SyntheticConfig(users=40, target_users=20)


@pytest.fixture(scope="module")
def domains():
    """The store at its preset sizes."""
    return synthetic.generate()


@pytest.fixture(scope="module")
def splits(domains):
    return {name: prepared(raw) for name, raw in domains.items()}


def prepared(raw) -> reference_pipeline.Reference:
    items = [Item(item_id, fields) for item_id, fields in raw.items.items()]
    return reference_pipeline.run(raw.name, raw.events, items, Rules())


def product_of(raw, item_id) -> tuple[str, int, int]:
    """(brand, kind, step) of an item, parsed from its text alone."""
    brand, kind, step, _ = raw.items[item_id]["title"].split()
    return brand, DOMAINS[raw.name].split().index(kind), STEPS.index(step)


def files(directory: pathlib.Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def written(config: SyntheticConfig, directory: pathlib.Path) -> dict[str, bytes]:
    for name, raw in synthetic.generate(config).items():
        synthetic.write_raw(raw, directory / name)
    return files(directory)


def test_there_are_at_least_four_domains_of_the_sizes_asked_for(domains):
    assert len(domains) >= 4 and set(domains) == set(DOMAINS)
    for name, raw in domains.items():
        users = {event.user_id for event in raw.events}
        assert len(users) == (600 if name == "synthetic_sports" else 1500)
        assert len(raw.items) == 8 * 10 * 4 + 6  # brands x kinds x steps, and duplicates


def test_sizes_are_parameters():
    config = SyntheticConfig(users=30, target_users=7, target="synthetic_office", brands=3)
    made = synthetic.generate(config)
    sizes = {name: len({e.user_id for e in raw.events}) for name, raw in made.items()}
    assert sizes == {name: 7 if name == "synthetic_office" else 30 for name in DOMAINS}
    assert all(len(raw.items) == 3 * 40 + 2 for raw in made.values())


def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path):
    code = """
import pathlib, sys
from calrec_jax.data.preparation import synthetic
for name, raw in synthetic.generate(synthetic.SyntheticConfig(users=40, target_users=20)).items():
    synthetic.write_raw(raw, pathlib.Path(sys.argv[1]) / name)
"""
    for seed in "12":  # of Python's own hashes
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, str(tmp_path / seed)]
        subprocess.run(command, env=environment, check=True)
    first = files(tmp_path / "1")
    assert len(first) == 8 and all(first.values())
    assert first == files(tmp_path / "2") == written(SMALL, tmp_path / "here")


def test_another_seed_gives_other_bytes_everywhere(tmp_path):
    first = written(SMALL, tmp_path / "0")
    other = written(dataclasses.replace(SMALL, seed=1), tmp_path / "1")
    assert first.keys() == other.keys()
    assert not [name for name in first if first[name] == other[name]]


def test_domains_differ_from_each_other(domains):
    texts = [{item["title"] for item in raw.items.values()} for raw in domains.values()]
    assert not any(a & b for a, b in itertools.combinations(texts, 2))


def test_what_is_written_is_read_back_as_it_was(tmp_path):
    source = get_source("jsonl")
    for name, raw in synthetic.generate(SMALL).items():
        synthetic.write_raw(raw, tmp_path / name)
        items = [item for _, item in read_items(source, tmp_path / name / "items.jsonl.gz")]
        assert items == [Item(item_id, fields) for item_id, fields in raw.items.items()]
        events = read_events(source, tmp_path / name / "interactions.jsonl.gz")
        assert [event for _, event in events] == raw.events
        assert type(raw.events[0]) is Event


def test_next_purchases_follow_one_rule_in_all_domains(domains, splits):
    """The rule gives the next item's text from the last item's; by chance it would in 1 of 320."""
    for name, raw in domains.items():
        pairs = [(s.history[-1], s.target) for s in splits[name].split("test").values()]
        hits = [
            synthetic.next_product(product_of(raw, last), kinds=10) == product_of(raw, target)
            for last, target in pairs
        ]
        share = sum(hits) / len(hits)
        assert 0.7 < share < 0.95, name


def test_the_rule_can_be_learnt_in_one_domain_and_used_in_another(domains, splits):
    """Rules learnt from training pairs of the other domains hold in the target domain."""

    def pairs(name):
        raw = domains[name]
        for s in splits[name].split("train").values():
            for a, b in itertools.pairwise(s.item_ids):
                yield product_of(raw, a), product_of(raw, b)

    target = "synthetic_sports"
    seen = collections.Counter()
    for name in DOMAINS.keys() - {target}:
        for (brand, kind, step), (next_brand, next_kind, next_step) in pairs(name):
            seen[step, (next_kind - kind) % 10, next_step, brand == next_brand] += 1
    likeliest = {
        step: max((n, rest) for (s, *rest), n in seen.items() if s == step)[1] for step in range(4)
    }
    hits = [likeliest[a[2]] == [(b[1] - a[1]) % 10, b[2], a[0] == b[0]] for a, b in pairs(target)]
    assert sum(hits) / len(hits) > 0.7


def test_neighbouring_domains_share_half_of_their_brands(domains):
    brands = [{raw.items[i]["title"].split()[0] for i in raw.items} for raw in domains.values()]
    assert [len(a & b) for a, b in itertools.pairwise(brands)] == [4, 4, 4]


def test_item_ids_tell_nothing_about_products(domains):
    for raw in domains.values():
        products = [product_of(raw, item_id) for item_id in sorted(raw.items)]
        follows = [
            synthetic.next_product(a, kinds=10) == b for a, b in itertools.pairwise(products)
        ]
        assert sum(follows) <= 8  # of 325; about one by chance


def test_one_purchase_in_twenty_is_there_twice(domains, splits):
    for name, raw in domains.items():
        twice = sum(
            (a.user_id, a.item_id, a.timestamp) == (b.user_id, b.item_id, b.timestamp)
            for a, b in itertools.pairwise(raw.events)
        )
        assert 0.04 < twice / (len(raw.events) - twice) < 0.06, name
        # Following the rule from an earlier product may give the last one again: more to merge.
        merged = sum(user.repeats_merged for user in splits[name].users.values())
        assert merged >= twice


def test_some_users_are_too_short(splits):
    for name, made in splits.items():
        short = [user.problem == "users_too_short" for user in made.users.values()]
        assert 0.015 < sum(short) / len(short) < 0.055, name


def test_some_fields_are_missing_but_never_the_title(domains):
    expected = {
        "title": (0, 0),
        "category": (0.01, 0.08),
        "brand": (0.003, 0.05),
        "price": (0.1, 0.2),
    }
    for name, raw in domains.items():
        for field, (low, high) in expected.items():
            missing = [field not in fields for fields in raw.items.values()]
            assert low <= sum(missing) / len(missing) <= high, (name, field)


def test_some_items_are_listed_twice_with_the_same_text_and_both_are_bought(domains):
    for name, raw in domains.items():
        listings = collections.defaultdict(list)
        for item_id, fields in raw.items.items():
            listings[tuple(sorted(fields.items()))].append(item_id)
        twice = [item_ids for item_ids in listings.values() if len(item_ids) > 1]
        assert len(twice) >= 6, name
        sold = {event.item_id for event in raw.events}
        assert sum(set(item_ids) <= sold for item_ids in twice) >= 3, name


def test_some_test_targets_are_never_seen_in_training(splits):
    for name, made in splits.items():
        share = made.cold("test") / len(made.split("test"))
        assert 0.002 < share < 0.06, name


def test_a_share_of_zero_means_none():
    config = dataclasses.replace(SMALL, follow=1.0, go_back=0.0, repeat=0.0, too_short=0.0)
    for raw in synthetic.generate(config).values():
        for user in prepared(raw).users.values():
            assert user.problem is None and user.repeats_merged == 0


def test_without_noise_every_purchase_follows_the_rule():
    config = SyntheticConfig(
        users=30, target_users=30, follow=1.0, go_back=0.0, repeat=0.0, cold=0.0, too_short=0.0
    )
    for raw in synthetic.generate(config).values():
        for a, b in itertools.pairwise(raw.events):
            if a.user_id == b.user_id:
                before = product_of(raw, a.item_id)
                assert synthetic.next_product(before, 10) == product_of(raw, b.item_id)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"target": "synthetic_sport"}, "target 'synthetic_sport' is none of"),
        ({"brands": 0}, "brands 0"),
        ({"brands": 21}, "brands 21"),
        ({"cold": 1.0}, "cold 1.0"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(CalrecError, match=message):
        SyntheticConfig(**wrong)
