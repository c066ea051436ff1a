"""Names of version 0.1 in gin files and bindings mean what today's mean, and are listed."""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence

import pytest

from calrec_jax.configs import gin_config, load
from calrec_jax.decode.sampling import SamplingConfig
from calrec_jax.errors import CalrecError
from calrec_jax.eval.evaluation import EvaluationConfig
from calrec_jax.retrieval.bm25 import BM25Config
from calrec_jax.runs.baseline import BaselineRun
from calrec_jax.runs.run import Run

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
from calrec_jax.configs import gin_config, load
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


# Modules

# {module in the files below: (its name in version 0.1, today's)}
MODULES = {
    "run": ("calrec_jax.cli.run", "calrec_jax.runs.run"),
    "baseline": ("calrec_jax.cli.baseline_run", "calrec_jax.runs.baseline"),
    "stages": ("calrec_jax.train.stages", "calrec_jax.training.stages"),
    "optimizer": ("calrec_jax.train.optimizer", "calrec_jax.training.optimizer"),
    "evaluation": ("calrec_jax.eval.evaluator", "calrec_jax.eval.evaluation"),
}
RENAMED = [f"{old} is now {new}" for old, new in MODULES.values()]
RUN_AND_BASELINE = """
from calrec_jax.data import domains
from calrec_jax.data import vocabularies
from calrec_jax.eval import sasrec
from calrec_jax.models import config

{run}.Run.model_dir = "runs/a"
{run}.Run.model = @config.DecoderConfig()
{run}.Run.data = @domains.DataConfig()
{run}.Run.stages = [@one/{stages}.Stage()]
{run}.Run.evaluation = @{evaluation}.EvaluationConfig()
{run}.Run.seed = 3

config.DecoderConfig:
  vocab_size = 300
  num_layers = 1
  num_heads = 2
  num_kv_heads = 1
  head_dim = 8
  d_model = 16
  d_ff = 16
domains.DataConfig.data_dir = "store"
domains.DataConfig.vocabulary = @vocabularies.byte()

one/{stages}.Stage:
  name = "one"
  mixture = "toys"
  train_steps = 5
  batch_size = 4
  task_feature_lengths = {{"inputs": 9, "targets": 6}}
  optimizer = @one/{optimizer}.OptimizerConfig()
one/{optimizer}.OptimizerConfig.learning_rate = 0.5

{baseline}.BaselineRun.model_dir = "runs/b"
{baseline}.BaselineRun.data_dir = "store"
{baseline}.BaselineRun.model = @sasrec.SASRecConfig()
{baseline}.BaselineRun.evaluation = @{evaluation}.EvaluationConfig()

{evaluation}.EvaluationConfig.domains = "toys"
{evaluation}.EvaluationConfig.seen = "exclude"
"""


def file_of(names: dict[str, str], way: str) -> str:
    """A gin file with the modules of these names, {"run": "calrec_jax.runs.run"}.

    Args:
      way: how they are imported, "import", "from" or "as".
    """
    imports, used = [], {}
    for key, module in names.items():
        package, _, last = module.rpartition(".")
        line, used[key] = {
            "import": (f"import {module}", module),
            "from": (f"from {package} import {last}", last),
            "as": (f"from {package} import {last} as my_{key}", f"my_{key}"),
        }[way]
        imports.append(line)
    return "\n".join([BEGINNING, *imports, RUN_AND_BASELINE.format(**used)])


def read_both(folder: pathlib.Path, text: str, bindings: Sequence[str]) -> tuple[Run, BaselineRun]:
    """The run and the baseline's run that a gin file and bindings configure."""
    (folder / "run.gin").write_text(text)
    gin_config.parse([str(folder / "run.gin")], bindings)
    run = gin_config.configured(Run)
    data = dataclasses.replace(run.data, vocabulary=None)  # two vocabularies are never equal
    return dataclasses.replace(run, data=data), gin_config.configured(BaselineRun)


@pytest.mark.parametrize("way", ["import", "from", "as"])
def test_modules_in_a_file(
    way: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = ({key: names[i] for key, names in MODULES.items()} for i in (0, 1))
    expected = read_both(tmp_path, file_of(new, way), [])
    assert capsys.readouterr().err == ""
    assert expected[0].stages[0].optimizer.learning_rate == 0.5
    assert read_both(tmp_path, file_of(old, way), []) == expected
    line = line_of(capsys)
    assert all(renamed in line for renamed in RENAMED)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("baseline_run.BaselineRun.model_dir='runs/c'", "baseline.BaselineRun.model_dir='runs/c'"),
        ("calrec_jax.cli.run.Run.seed=4", "calrec_jax.runs.run.Run.seed=4"),
        (
            "one/calrec_jax.train.stages.Stage.name='two'",
            "one/calrec_jax.training.stages.Stage.name='two'",
        ),
    ],
)
def test_modules_in_a_binding(
    old: str, new: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = file_of({key: today for key, (_, today) in MODULES.items()}, "import")
    expected = read_both(tmp_path, text, [new])
    assert expected != read_both(tmp_path, text, [])
    assert capsys.readouterr().err == ""
    assert read_both(tmp_path, text, [old]) == expected
    old_class, new_class = (
        name.partition("=")[0].rpartition("/")[2].rpartition(".")[0] for name in (old, new)
    )
    assert f"{old_class} is now {new_class}" in line_of(capsys)


def test_a_module_of_a_name_that_only_begins_like_an_old_one_is_left_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "calrec_jax_train.py").write_text("class Model:\n    size = 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "run.gin").write_text(f"{BEGINNING}import calrec_jax_train\n")
    gin_config.parse([str(tmp_path / "run.gin")])
    assert capsys.readouterr().err == ""


# config.gin of a MODEL_DIR that version 0.1 made

ARCHIVE = pathlib.Path(__file__).parents[1] / "model_dirs" / "0.1.tar.xz"


@pytest.fixture
def old_model_dirs(tmp_path: pathlib.Path) -> pathlib.Path:
    """The folder of MODEL_DIRs `model` and `sasrec`, with config.gin alone."""
    with tarfile.open(ARCHIVE) as archive:
        for name in ("model/config.gin", "sasrec/config.gin"):
            archive.extract(name, tmp_path, filter="data")
    return tmp_path


def test_config_gin_of_a_run(
    old_model_dirs: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load.load_run(old_model_dirs / "model")
    assert [stage.name for stage in run.stages] == ["stage1", "stage2"]
    line = line_of(capsys)
    for key in ("run", "stages", "optimizer", "evaluation"):
        old, new = MODULES[key]
        assert f"{old} is now {new}" in line
    (old_model_dirs / "model" / "config.gin").write_text(gin_config.operative_config())
    again = load.load_run(old_model_dirs / "model")
    assert dataclasses.replace(again, data=run.data) == run
    assert capsys.readouterr().err == ""


def test_config_gin_of_a_baseline(
    old_model_dirs: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load.baseline_from_gin([str(old_model_dirs / "sasrec" / "config.gin")])
    assert run.evaluation.domains == ("shoes",)
    line = line_of(capsys)
    assert "calrec_jax.cli.baseline_run is now calrec_jax.runs.baseline" in line
    assert "baseline_run.BaselineRun is now baseline.BaselineRun" in line
