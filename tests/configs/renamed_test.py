"""Names of version 0.1 in gin files and bindings mean what today's mean, and are listed."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

from calrec_jax.configs import gin_config
from calrec_jax.decode.sampling import SamplingConfig
from calrec_jax.errors import CalrecError
from calrec_jax.eval.evaluation import EvaluationConfig
from calrec_jax.retrieval.bm25 import BM25Config

Read = Callable[..., EvaluationConfig]

BEGINNING = "from __gin__ import dynamic_registration\n"
OLD_IMPORT = "from calrec_jax.eval import evaluator\n"
NEW_IMPORTS = """\
from calrec_jax.decode import sampling
from calrec_jax.eval import evaluation
from calrec_jax.retrieval import bm25
"""
NEW = f"""{BEGINNING}{NEW_IMPORTS}
evaluation.EvaluationConfig.domains = "toys"
evaluation.EvaluationConfig.sampling = @sampling.SamplingConfig()
evaluation.EvaluationConfig.bm25 = @bm25.BM25Config()
"""
# {parameter of version 0.1: (a value, today's parameter)}
PARAMETERS = {
    "domain": ("['toys', 'games']", "evaluation.EvaluationConfig.domains"),
    "num_samples": ("3", "sampling.SamplingConfig.num_samples"),
    "temperature": ("0.7", "sampling.SamplingConfig.temperature"),
    "max_new_tokens": ("60", "sampling.SamplingConfig.max_new_tokens"),
    "decoding": ("'beam'", "sampling.SamplingConfig.method"),
    "sampling_top_k": ("5", "sampling.SamplingConfig.top_k"),
    "sampling_top_p": ("0.9", "sampling.SamplingConfig.top_p"),
    "k1": ("1.2", "bm25.BM25Config.k1"),
    "b": ("0.5", "bm25.BM25Config.b"),
}


@pytest.fixture
def read(tmp_path: pathlib.Path) -> Read:
    """(text of a gin file, bindings) -> the evaluation that they configure."""

    def read(text: str, bindings: Sequence[str] = ()) -> EvaluationConfig:
        (tmp_path / "run.gin").write_text(text)
        gin_config.parse([str(tmp_path / "run.gin")], bindings)
        return gin_config.configured(EvaluationConfig)

    return read


def line_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_in_a_file(name: str, read: Read, capsys: pytest.CaptureFixture[str]) -> None:
    value, today = PARAMETERS[name]
    expected = read(f"{NEW}{today} = {value}\n")
    assert expected != read(NEW)
    assert capsys.readouterr().err == ""
    first = "" if name == "domain" else 'evaluator.EvaluationConfig.domain = "toys"\n'
    old = f"{BEGINNING}{OLD_IMPORT}{first}evaluator.EvaluationConfig.{name} = {value}\n"
    assert read(old) == expected
    line = line_of(capsys)
    assert f"evaluator.EvaluationConfig.{name} is now {today}" in line
    assert "calrec_jax.eval.evaluator is now calrec_jax.eval.evaluation" in line


@pytest.mark.parametrize("selector", ["evaluator.EvaluationConfig", "EvaluationConfig"])
@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_in_a_binding(
    name: str, selector: str, read: Read, capsys: pytest.CaptureFixture[str]
) -> None:
    value, today = PARAMETERS[name]
    expected = read(NEW, [f"{today}={value}"])
    assert capsys.readouterr().err == ""
    assert read(NEW, [f"{selector}.{name}={value}"]) == expected
    (renamed,) = [part for part in line_of(capsys).split(", ") if f".{name} is" in part]
    found = renamed.removeprefix("calrec: names in gin have changed: ").strip()
    assert found == f"{selector}.{name} is now {today}"


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_binding_after_a_file_that_has_no_nested_configurations(name: str, read: Read) -> None:
    value, today = PARAMETERS[name]
    alone = f"{BEGINNING}from calrec_jax.eval import evaluation\n"
    alone += "evaluation.EvaluationConfig.domains = 'toys'\n"
    for selector in ("EvaluationConfig", "evaluator.EvaluationConfig"):
        bindings = [f"{selector}.{name}={value}"]
        assert read(alone, bindings) == read(NEW, [f"{today}={value}"])


@pytest.mark.parametrize("selector", ["evaluator.EvaluationConfig", "EvaluationConfig"])
def test_a_binding_in_a_process_that_knows_no_nested_configuration_yet(
    selector: str, tmp_path: pathlib.Path
) -> None:
    # Gin keeps the classes that it has met, whatever is parsed afterwards.
    (tmp_path / "run.gin").write_text(
        f"{BEGINNING}from calrec_jax.eval import evaluation\n"
        "evaluation.EvaluationConfig.domains = 'toys'\n"
    )
    bindings = [f"{selector}.k1=1.2", f"{selector}.b=0.5", f"{selector}.num_samples=3"]
    code = f"""
from calrec_jax.configs import gin_config
from calrec_jax.eval.evaluation import EvaluationConfig
gin_config.parse(["run.gin"], {bindings})
print(gin_config.configured(EvaluationConfig).flat())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    expected = EvaluationConfig("toys", sampling=SamplingConfig(3), bm25=BM25Config(1.2, 0.5))
    assert done.stdout.strip() == str(expected.flat())


def test_other_parameters_and_references_have_todays_class(
    read: Read, capsys: pytest.CaptureFixture[str]
) -> None:
    new = f"{NEW}evaluation.EvaluationConfig.seed = 3\n"
    old = f"""{BEGINNING}{OLD_IMPORT}
evaluator.EvaluationConfig.domain = "toys"
evaluator.EvaluationConfig.seed = 3
"""
    assert read(old) == read(new)
    line = line_of(capsys)
    assert "evaluator.EvaluationConfig is now evaluation.EvaluationConfig" in line
    assert "seed" not in line


def test_a_file_of_blocks_and_of_other_ways_to_import(read: Read) -> None:
    expected = read(NEW, ["bm25.BM25Config.k1=1.2", "EvaluationConfig.seed=3"])
    block = "{}EvaluationConfig:\n  domain = 'toys'\n  k1 = 1.2\n  seed = 3\n"
    for imported, module in (
        ("from calrec_jax.eval import evaluator", "evaluator."),
        ("from calrec_jax.eval import evaluator as e", "e."),
        ("import calrec_jax.eval.evaluator", "calrec_jax.eval.evaluator."),
    ):
        assert read(f"{BEGINNING}{imported}\n{block.format(module)}") == expected


def test_a_value_of_a_macro(read: Read) -> None:
    old = f"""{BEGINNING}{OLD_IMPORT}
K1 = 1.2
DOMAIN = "toys"
evaluator.EvaluationConfig.domain = %DOMAIN
evaluator.EvaluationConfig.k1 = %K1
"""
    assert read(old) == EvaluationConfig("toys", bm25=BM25Config(k1=1.2))
    assert read(old, ["K1=0.9"]) == EvaluationConfig("toys", bm25=BM25Config(k1=0.9))
    assert read(NEW + "K1 = 0.8\n", ["EvaluationConfig.k1=%K1"]).bm25 == BM25Config(k1=0.8)


TWO_EVALUATIONS = """
import dataclasses
from collections.abc import Sequence
from calrec_jax.eval.evaluation import EvaluationConfig

@dataclasses.dataclass
class TwoEvaluations:
    parts: Sequence[EvaluationConfig]
"""


def test_a_scope_stays_that_parameters_own(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "two_evaluations.py").write_text(TWO_EVALUATIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import two_evaluations

    (tmp_path / "run.gin").write_text(f"""{BEGINNING}{OLD_IMPORT}import two_evaluations
two_evaluations.TwoEvaluations.parts = [
    @x/evaluator.EvaluationConfig(), @y/evaluator.EvaluationConfig()
]
evaluator.EvaluationConfig.domain = "toys"
evaluator.EvaluationConfig.num_samples = 4
x/evaluator.EvaluationConfig.k1 = 1.2
x/evaluator.EvaluationConfig.num_samples = 3
y/evaluator.EvaluationConfig.domain = "games"
""")
    gin_config.parse([str(tmp_path / "run.gin")], ["y/evaluator.EvaluationConfig.b=0.5"])
    assert gin_config.configured(two_evaluations.TwoEvaluations).parts == [
        EvaluationConfig("toys", sampling=SamplingConfig(3), bm25=BM25Config(k1=1.2)),
        EvaluationConfig("games", sampling=SamplingConfig(4), bm25=BM25Config(b=0.5)),
    ]


def test_a_nested_configuration_that_is_bound_stays_the_one(read: Read) -> None:
    mine = NEW.replace("@bm25.BM25Config()", "@mine/bm25.BM25Config()")
    made = read(f"{mine}mine/bm25.BM25Config.b = 0.5\n", ["evaluator.EvaluationConfig.k1=1.2"])
    assert made.bm25 == BM25Config(k1=1.2, b=0.5)


def test_config_gin_that_is_written_has_todays_names_alone(
    read: Read, capsys: pytest.CaptureFixture[str]
) -> None:
    old = f"""{BEGINNING}{OLD_IMPORT}
evaluator.EvaluationConfig.domain = "toys"
evaluator.EvaluationConfig.k1 = 1.2
evaluator.EvaluationConfig.decoding = "beam"
"""
    made, text = read(old), gin_config.operative_config()
    capsys.readouterr()
    assert "evaluator" not in text
    assert read(text) == made
    assert capsys.readouterr().err == ""


def test_a_value_that_is_refused_is_named_with_todays_name(read: Read) -> None:
    with pytest.raises(CalrecError, match=r"^SamplingConfig.num_samples is 0: it must be at"):
        read(NEW, ["EvaluationConfig.num_samples=0"])
    with pytest.raises(CalrecError, match=r"^BM25Config.k1 is 'a', which is not of type float"):
        read(NEW, ["EvaluationConfig.k1='a'"])
