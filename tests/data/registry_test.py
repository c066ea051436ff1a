import dataclasses
import itertools

import pytest
import seqio

from calrec_jax.data import registry, specs, vocabularies
from calrec_jax.data.domains import Domains
from calrec_jax.data.seqio_tasks import tasks
from calrec_jax.data.seqio_tasks.seqio_vocabularies import as_seqio
from calrec_jax.errors import CalrecError
from calrec_jax.text.templates import Template

LENGTHS = {"inputs": 80, "targets": 24}
_numbers = itertools.count()


@pytest.fixture
def name():
    """A name that is not registered yet: registries are global."""
    return f"registry_test_{next(_numbers)}"


def examples(task, split="train"):
    return list(task.get_dataset(LENGTHS, split, shuffle=False).as_numpy_iterator())


def test_registration_reads_nothing(name, monkeypatch):
    monkeypatch.setattr(tasks, "_in_use", [])
    registry.register_domain(name)
    registry.register_mixture(f"{name}_mix", [name])
    assert seqio.get_mixture_or_task(name).splits == ("train", "validation", "test")


def test_our_own_modules_register_their_domains():
    specs.import_modules(["calrec_jax.tasks.mixtures", "calrec_jax.tasks.synthetic"])
    assert "industrial_and_scientific_timed" in specs.mixtures["amazon_multi"].domains
    assert len(specs.mixtures["synthetic_all"].domains) == 4
    for domain in ("industrial_and_scientific", "beauty", "toys_and_games", "sports_and_outdoors"):
        assert domain in specs.domains


def test_a_domain_is_a_mixture_of_its_own(tiny_config):
    mixture = Domains(tiny_config).mixture("tiny_games")
    assert mixture.spec.domains == (mixture.name,) == ("tiny_games",)
    assert [domain.name for domain in mixture.domains] == ["tiny_games"]


def test_without_a_config_the_line_says_what_to_call(name, monkeypatch):
    monkeypatch.setattr(tasks, "_in_use", [])
    registry.register_domain(name)
    with pytest.raises(CalrecError, match="no run's DataConfig is in use"):
        examples(seqio.get_mixture_or_task(name))


def test_a_missing_dataset_names_the_path_and_the_commands(name, tiny_config):
    registry.register_domain(name)
    registry.register_mixture(f"{name}_mix", ["tiny_books", name])
    for provider in (name, f"{name}_mix"):
        with pytest.raises(CalrecError) as error:
            examples(seqio.get_mixture_or_task(provider))
        for part in (name, tiny_config.data_dir, "calrec prepare", "calrec synthetic"):
            assert part in str(error.value)


def test_the_same_domain_again_is_accepted_and_another_is_refused(name):
    registry.register_domain(name, dataset="tiny_books")
    registry.register_domain(name, dataset="tiny_books")
    with pytest.raises(CalrecError, match="registered already"):
        registry.register_domain(name, dataset="tiny_games")
    with pytest.raises(CalrecError, match="registered already"):
        registry.register_domain(name, dataset="tiny_books", template=Template(fields=("brand",)))


def test_the_same_mixture_again_is_accepted_and_another_is_refused(name, tiny_config):
    domains = ["tiny_books", "tiny_games"]
    registry.register_mixture(name, domains)
    registry.register_mixture(name, domains[::-1])
    for other in ("equal", {"tiny_books": 1, "tiny_games": 2}):
        with pytest.raises(CalrecError, match="registered already"):
            registry.register_mixture(name, domains, rate=other)
    with pytest.raises(CalrecError, match="registered already"):
        registry.register_mixture(name, domains[:1])


def test_names_of_tasks_and_mixtures_do_not_mix(name, tiny_config):
    with pytest.raises(CalrecError, match="registered already"):
        registry.register_mixture("tiny_books", ["tiny_games"])
    with pytest.raises(CalrecError, match="registered already"):
        registry.register_domain("tiny_mixture")


@pytest.mark.parametrize(
    "rate",
    [
        "sometimes",
        {"tiny_books": 1.0},
        {"tiny_books": 1, "tiny_games": 0},
        {"tiny_books": 1, "x": 2},
    ],
)
def test_rates_must_be_one_for_each_domain(name, tiny_config, rate):
    with pytest.raises(CalrecError, match="rate .* of mixture"):
        registry.register_mixture(name, ["tiny_books", "tiny_games"], rate)


def test_rates(name, tiny_config):
    def rates(mixture):
        mixture = seqio.get_mixture_or_task(mixture)
        return {task.name: mixture.get_rate(task) for task in mixture.tasks}

    given = {"tiny_books": 3, "tiny_games": 1}
    registry.register_mixture(name, ["tiny_books", "tiny_games"], given)
    assert rates(name) == given
    assert rates("tiny_equal") == {"tiny_books": 1, "tiny_games": 1}
    assert rates("tiny_mixture") == {"tiny_books": 37, "tiny_games": 11}  # training examples


def test_a_mixture_of_unknown_domains_is_refused(name):
    with pytest.raises(CalrecError, match="no domain 'tiny_bookz'.*did you mean 'tiny_books'"):
        registry.register_domain("tiny_books")
        registry.register_mixture(name, ["tiny_bookz"])


def test_an_unknown_mixture_lists_the_known_ones_nearest_first(tiny_config):
    with pytest.raises(CalrecError) as error:
        tasks.in_use().mixture("tiny_mixtur")
    line = str(error.value)
    assert "did you mean 'tiny_mixture'?" in line and "tiny_books" in line
    assert line.index("registered: tiny_mixture") < line.index("tiny_books")


def test_another_packages_module_is_loaded(tmp_path, monkeypatch, tiny_config):
    (tmp_path / "foreign_domains.py").write_text(
        "from calrec_jax.data.registry import register_domain, register_mixture\n"
        "register_domain('foreign_books', dataset='tiny_books')\n"
        "register_mixture('foreign_mix', ['foreign_books', 'tiny_games'], rate='equal')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    specs.import_modules(["foreign_domains"])
    assert specs.mixtures["foreign_mix"].domains == ("foreign_books", "tiny_games")
    ours = examples(seqio.get_mixture_or_task("tiny_books"))
    seqio_vocabulary = examples(seqio.get_mixture_or_task("foreign_books"))
    assert [e["inputs"].tolist() for e in seqio_vocabulary] == [e["inputs"].tolist() for e in ours]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import a_module_that_is_nowhere", "No module named 'a_module_that_is_nowhere'"),
        ("def broken(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_module_that_cannot_be_imported(tmp_path, monkeypatch, code, reason):
    module = f"foreign_{next(_numbers)}"
    (tmp_path / f"{module}.py").write_text(code + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CalrecError, match=f"MIXTURE_OR_TASK_MODULE '{module}'.*{reason}"):
        specs.import_modules([module])


def test_a_module_that_does_not_exist():
    with pytest.raises(CalrecError, match="'nowhere.at_all' cannot be imported"):
        specs.import_modules(["nowhere.at_all"])


def test_a_users_error_in_a_module_stays_as_it_is(tmp_path, monkeypatch):
    module = f"foreign_{next(_numbers)}"
    (tmp_path / f"{module}.py").write_text(
        "from calrec_jax.data.registry import register_domain\nregister_domain('Not a name')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CalrecError, match="^'Not a name' cannot name a domain"):
        specs.import_modules([module])


def test_another_config_gives_other_tokens(tiny_config):
    other = Template(fields=("title",), opening="So: ", separator=", ", target_separator=" > ")
    both = Domains(tiny_config), Domains(dataclasses.replace(tiny_config, template=other))
    first, second = (domains.domain("tiny_books") for domains in both)
    assert first.tokens(LENGTHS).text is first.tokens({**LENGTHS, "targets": 10}).text
    assert second.tokens(LENGTHS).prompt(["i00"])[0] == ord("S") + 3
    assert first.tokens(LENGTHS).prompt(["i00"])[0] == ord("B") + 3
    for config, letter in ((tiny_config, "B"), (both[1].config, "S")):
        tasks.use(config)
        (example, *_) = examples(seqio.get_mixture_or_task("tiny_books"))
        assert example["inputs"][0] == ord(letter) + 3


def test_a_domain_may_have_its_own_settings(name, tiny_config):
    own = Template(fields=("title",), opening="Own: ", separator=", ", target_separator=" > ")
    byte = vocabularies.byte()
    registry.register_domain(name, dataset="tiny_games", template=own, vocabulary=byte)
    (first, *_) = examples(seqio.get_mixture_or_task(name))
    assert byte.decode(first["inputs"]).startswith("Own: Title: games")


def test_a_split_that_is_not_there(tiny_config):
    with pytest.raises(CalrecError, match="no split 'training'"):
        examples(seqio.get_mixture_or_task("tiny_books"), "training")


class Shouted(vocabularies.ByteVocabulary):
    """A vocabulary that encodes a template's sentences in capitals."""

    def encode_template(self, text):
        return self.encode(text.upper())


@pytest.mark.parametrize("wrap", [lambda vocabulary: vocabulary, as_seqio])
def test_sentences_of_the_template_are_encoded_as_such(name, tiny_config, wrap):
    registry.register_domain(name, dataset="tiny_games", vocabulary=wrap(Shouted()))
    prompt = Shouted().decode(tasks.in_use().domain(name).tokens(LENGTHS).prompt(["i00", "i01"]))
    assert prompt == "BOUGHT: Title: games 0; Title: games x1. NEXT: "
