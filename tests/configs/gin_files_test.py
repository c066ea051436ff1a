"""The packaged gin files: each describes a run, and says in its header how to change it."""

import dataclasses
import inspect
import json
import re

import pytest

from calrec_jax.configs import gin_config, load
from calrec_jax.decode.sampling import SamplingConfig
from calrec_jax.errors import CalrecError
from calrec_jax.eval.evaluation import EvaluationConfig
from calrec_jax.losses import LossConfig
from calrec_jax.retrieval.bm25 import BM25Config
from calrec_jax.sweeps import sweep_file

GIN = gin_config.search_root() / "gin"
# pretrained.gin has a test of its own: it needs weights.
RUNS = sorted(
    f"gin/runs/{path.name}"
    for path in (GIN / "runs").glob("*.gin")
    if path.name != "pretrained.gin"
)
BYTES = "VOCABULARY=@vocabularies.byte()"  # no file is needed
REQUIRED = [
    "MODEL_DIR='runs/a'",
    "DATA_DIR='store'",
    "MIXTURE_OR_TASK_MODULE='calrec_jax.tasks.synthetic'",
    "MIXTURE_OR_TASK_NAME='synthetic_all'",
    "TARGET_DOMAIN='synthetic_sports'",
    "TRAIN_STEPS=7",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Gin files are found from any working directory."""
    monkeypatch.chdir(tmp_path)


def make(file, *bindings):
    return load.from_gin([*file] if isinstance(file, list) else [file], [BYTES, *bindings])


QUICKSTART = "gin/runs/quickstart.gin"


@pytest.mark.parametrize("file", RUNS)
def test_a_run_trains_two_stages_and_evaluates_the_second(file):
    made = make(file, *REQUIRED)
    first, second = made.stages
    assert (first.name, second.name) == ("stage1", "stage2")
    assert (first.mixture, second.mixture) == ("synthetic_all", "synthetic_sports")
    assert (first.init_from, second.init_from) == (None, "stage1:best")
    assert first.train_steps == 7
    assert made.evaluation.domains == ("synthetic_sports",)
    assert made.evaluation.checkpoint == "stage2:best"
    for stage in made.stages:
        stage.spec()
        assert stage.losses == LossConfig(
            alpha=0.125, beta=0.025, temperature=0.5, direction="users"
        )


@pytest.mark.parametrize("file", RUNS)
def test_config_gin_gives_the_same_run(file, tmp_path):
    made = make(file, *REQUIRED, "stage2/losses.LossConfig.alpha=0.5")
    (tmp_path / "config.gin").write_text(gin_config.operative_config())
    again = load.load_run(tmp_path)
    assert again.model_dir == str(tmp_path)  # where it is now
    data = dataclasses.replace(again.data, vocabulary=made.data.vocabulary)
    assert dataclasses.replace(again, model_dir=made.model_dir, data=data) == made


@pytest.mark.parametrize("file", [file for file in RUNS if "two_stage" not in file])
def test_runs_that_require_nothing(file):
    make(file)


def test_pretrained_takes_model_and_start_from_the_weights(tmp_path):
    model = make(QUICKSTART).model
    described = {"model": dataclasses.asdict(model) | {"vocab_size": 300}, "pretrained": {}}
    described |= {"versions": {}, "vocabulary": "any", "stages": {}}
    (tmp_path / "gemma2").mkdir()
    (tmp_path / "gemma2" / "manifest.json").write_text(json.dumps(described))
    made = make("gin/runs/pretrained.gin", *REQUIRED, "PRETRAINED='gemma2'")
    assert made.model == dataclasses.replace(model, vocab_size=300, dtype="bfloat16", remat="full")
    starts = [stage.init_from for stage in made.stages]
    assert starts == [f"{tmp_path}/gemma2/pretrained:latest", "stage1:best"]


def test_two_stage_says_what_it_requires():
    with pytest.raises(
        CalrecError, match="no value for DATA_DIR, .*MODEL_DIR, TARGET_DOMAIN, TRAIN_STEPS:"
    ):
        make("gin/runs/two_stage.gin")


def test_a_later_model_file_replaces_the_model_whole():
    files = ["gin/runs/two_stage.gin", "gin/models/tiny.gin"]
    assert make(files, *REQUIRED).model == make(QUICKSTART).model
    back = ["gin/runs/quickstart.gin", "gin/models/small.gin"]
    assert make(back).model == make("gin/runs/two_stage.gin", *REQUIRED).model


@pytest.mark.parametrize("file", ["gin/models/tiny.gin", "gin/models/small.gin"])
def test_size_of_the_models(file):
    c = make([QUICKSTART, file]).model
    attention = 2 * c.d_model * (c.num_heads + c.num_kv_heads) * c.head_dim
    parameters = c.num_layers * (attention + 3 * c.d_model * c.d_ff)
    assert (
        {"tiny": 0.7e6, "small": 23e6}[file[11:-4]]
        < parameters
        < {"tiny": 1e6, "small": 27e6}[file[11:-4]]
    )


def test_one_stage_alone():
    made = make(QUICKSTART, "STAGES=[@stage1/stages.Stage()]", "CHECKPOINT='stage1:best'")
    assert [stage.name for stage in made.stages] == ["stage1"]
    assert made.evaluation.checkpoint == "stage1:best"
    made = make(QUICKSTART, "Run.stages=[@stage2/stages.Stage()]", "stage2/Stage.init_from=None")
    assert [(stage.name, stage.init_from) for stage in made.stages] == [("stage2", None)]


def test_a_stages_own_values():
    made = make(
        QUICKSTART,
        "TRAIN_STEPS=3",
        "STAGE2_STEPS=4",
        "BATCH_SIZE=2",
        "stage2/Stage.batch_size=6",
        "losses.LossConfig.alpha=0.5",
        "stage1/losses.LossConfig.beta=-0.025",
        "stage1/optimizer.OptimizerConfig.name='adafactor'",
        "INITIAL_CHECKPOINT_PATH='/other/stage1:best'",
    )
    first, second = made.stages
    assert (first.train_steps, second.train_steps) == (3, 4)
    assert (first.batch_size, second.batch_size) == (2, 6)
    assert (first.losses.alpha, second.losses.alpha) == (0.5, 0.5)
    assert (first.losses.beta, second.losses.beta) == (-0.025, 0.025)
    assert (first.optimizer.name, second.optimizer.name) == ("adafactor", "adamw")
    assert (first.init_from, second.init_from) == ("/other/stage1:best", "stage1:best")


def test_what_runs_share_can_be_bound(tmp_path):
    made = make(
        QUICKSTART,
        "mesh.MeshConfig.model=2",
        "templates.Template.fields=('title', 'brand')",
        "RANDOM_SEED=5",
        "evaluation.EvaluationConfig.split='validation'",
        "MIXTURE_OR_TASK_MODULE=['calrec_jax.tasks.synthetic', 'calrec_jax.tasks.amazon']",
    )
    assert made.mesh.model == 2 and made.seed == 5
    assert made.data.template.fields == ("title", "brand")
    assert made.evaluation.split == "validation"
    assert made.data.data_dir == str(tmp_path / "runs/quickstart/store")


@pytest.mark.parametrize(
    ("binding", "line"),
    [
        ("TRAIN_STEPSS=5", "unknown gin macro TRAIN_STEPSS: did you mean TRAIN_STEPS?"),
        ("stage3/Stage.train_steps=5", "unknown gin scope stage3: did you mean stage"),
        ("losses.LossConfig.alhpa=5", "losses.LossConfig has no parameter alhpa"),
        ("loses.LossConfig.alpha=5", "did you mean losses.LossConfig?"),
        ("BATCH_SIZE='8'", "Stage.batch_size is '8', which is not of type int"),
        ("TASK_FEATURE_LENGTHS={'input': 9, 'targets': 9}", "must be of inputs and targets"),
        ("MIXTURE_OR_TASK_MODULE='no.such'", "MIXTURE_OR_TASK_MODULE 'no.such' cannot be imported"),
        ("VOCABULARY=@vocabularies.sentencepiece()", "no SentencePiece model at"),
        ("losses.LossConfig.direction='up'", "LossConfig.direction 'up' is none of"),
    ],
)
def test_a_wrong_binding_is_one_line(binding, line):
    with pytest.raises(CalrecError) as error:
        make(QUICKSTART, binding).mixture("synthetic_all")
    assert line in str(error.value) and "\n" not in str(error.value)


def test_no_model_dir(tmp_path):
    with pytest.raises(
        CalrecError, match="is no MODEL_DIR of `calrec train`: it has no config.gin"
    ):
        load.load_run(tmp_path)


def test_every_trial_of_the_ablation_is_a_run():
    sweep = sweep_file.read(GIN / "sweeps" / "ablation.yaml")
    file, *shared = [re.sub(r"^--gin(_file=|\.)", "", arg) for arg in sweep.base_args]
    updates = sum(stage.train_steps for stage in make(file, *shared).stages)
    kinds = set()
    for trial in sweep.trials:
        made = make(file, *shared, *(f"{name}={value}" for name, value in trial.overrides.items()))
        stages = tuple(stage.name for stage in made.stages)
        (losses,) = {stage.losses for stage in made.stages}
        kinds.add((stages, losses.alpha, losses.beta))
        assert made.evaluation.checkpoint == f"{stages[-1]}:best"
        assert made.stages[0].init_from is None
        assert sum(stage.train_steps for stage in made.stages) == updates
    chains = (("stage1",), ("stage2",), ("stage1", "stage2"))
    assert kinds == {(c, a, b) for c in chains for a in (0.0, 0.125) for b in (0.0, 0.025)}


@pytest.mark.parametrize("path", sorted(GIN.rglob("*.gin")), ids=lambda path: path.name)
def test_the_header_says_what_is_overridden(path):
    header = re.match(r"(#.*\n)+", path.read_text())
    assert header and "Commonly overridden" in header[0]


UNVERIFIED = {
    LossConfig: "alpha beta temperature direction",
    SamplingConfig: "num_samples temperature max_new_tokens",
    EvaluationConfig: "epsilon",
    BM25Config: "k1 b",
}


def test_unverified_values_say_so_where_they_stand_and_stand_nowhere_else():
    text = (GIN / "stages" / "two_stage.gin").read_text()
    for cls, names in UNVERIFIED.items():
        for name in names.split():
            pattern = rf"^    {name}: \w+ = .+  # unverified"
            assert re.search(pattern, inspect.getsource(cls), re.MULTILINE), (cls, name)
            assert f"{cls.__name__}.{name} =" not in text


def test_two_stage_has_the_constants_of_the_classes():
    made = make("gin/runs/two_stage.gin", *REQUIRED).evaluation
    assert made == EvaluationConfig("synthetic_sports")
    assert (made.sampling, made.bm25) == (SamplingConfig(32, 0.5, 80), BM25Config(1.5, 0.75))
    assert made.epsilon == 0.0002


def test_parameters_of_an_evaluations_parts_can_be_bound():
    made = make(
        QUICKSTART,
        "sampling.SamplingConfig.method='beam'",
        "SamplingConfig.num_samples=4",
        "bm25.BM25Config.k1=1.2",
    )
    assert made.evaluation.sampling == SamplingConfig(4, max_new_tokens=32, method="beam")
    assert made.evaluation.bm25 == BM25Config(k1=1.2)
