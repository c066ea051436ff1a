"""Whose MODEL_DIR it is, and what may differ when a run comes back to it."""

import copy
import json

import pytest

from calrec_jax.errors import CalrecError
from calrec_jax.training import manifest

MADE = {
    "versions": {"jax": "1", "calrec_jax": "0.1"},
    "model": {"d_model": 16, "activation": "gelu"},
    "vocabulary": "byte-01",
    "data": {"template": {"fields": ("title", "brand")}, "seed": 0},
    "stages": {"stage1": {"train_steps": 10, "optimizer": {"learning_rate": 0.1}}},
}


def changed(path: str, value):
    """MADE with one value, at "a.b.c", replaced."""
    other = copy.deepcopy(MADE)
    *parents, last = path.split(".")
    at = other
    for name in parents:
        at = at[name]
    at[last] = value
    return other


def has_saved(model_dir, stage="stage1"):
    (model_dir / stage / "checkpoints" / "checkpoint_5").mkdir(parents=True)


@pytest.fixture
def claimed(tmp_path):
    """A MODEL_DIR whose stage1 has a checkpoint."""
    manifest.claim(tmp_path, MADE)
    has_saved(tmp_path)
    return tmp_path


def test_weights_share_what_a_run_needs_of_them(claimed):
    manifest.require(claimed, {"vocabulary": "byte-01", "model": {"d_model": 16}}, "stage1:best")
    # As it is read back: lists for tuples.
    manifest.require(claimed, {"data": {"template": {"fields": ("title", "brand")}}}, "x")


@pytest.mark.parametrize(
    ("needs", "line"),
    [
        ({"vocabulary": "other"}, "vocabulary = 'byte-01', this run has 'other'"),
        ({"model": {"d_model": 16, "heads": 2}}, "model.heads = None, this run has 2"),
        ({"data": {"template": {"fields": ["brand"]}}}, r"data.template.fields = \['title', 'br"),
    ],
)
def test_weights_that_do_not_are_refused_with_the_first_difference(claimed, needs, line):
    with pytest.raises(CalrecError, match=f"'a/stage1:best' was trained with {line}"):
        manifest.require(claimed, needs, "a/stage1:best")


def test_weights_without_a_manifest_are_refused(tmp_path):
    with pytest.raises(CalrecError, match=f"'s:best': {tmp_path} has no manifest.json"):
        manifest.require(tmp_path, {}, "s:best")


def test_what_is_claimed_is_what_is_read(tmp_path):
    model_dir = tmp_path / "new" / "run"
    assert manifest.read(model_dir) is None
    manifest.claim(model_dir, MADE)
    assert manifest.read(model_dir) == json.loads(json.dumps(MADE))
    assert [path.name for path in model_dir.iterdir()] == ["manifest.json"]


def test_the_same_configuration_may_come_back(claimed):
    manifest.claim(claimed, MADE)


def test_versions_may_differ_and_the_newest_stand_there(claimed):
    manifest.claim(claimed, changed("versions.jax", "2"))
    assert manifest.read(claimed)["versions"]["jax"] == "2"


def test_stages_may_be_added_and_none_is_forgotten(claimed):
    manifest.claim(claimed, changed("stages", {"stage2": {"train_steps": 5}}))
    assert manifest.read(claimed)["stages"].keys() == {"stage1", "stage2"}


@pytest.mark.parametrize(
    "path, value, line",
    [
        ("model.d_model", 32, "model.d_model = 16, this run has 32"),
        ("model.extra", 1, "model.extra = None, this run has 1"),
        ("vocabulary", "byte-02", "vocabulary = 'byte-01', this run has 'byte-02'"),
        ("data.seed", 1, "data.seed = 0, this run has 1"),
        ("data.template.fields", ("title",), "data.template.fields = ['title', 'brand'], this run"),
        ("stages.stage1.train_steps", 11, "stage1.train_steps = 10, this run has 11"),
        ("stages.stage1.optimizer.learning_rate", 0.2, "stage1.optimizer.learning_rate = 0.1,"),
    ],
)
def test_another_configuration_is_refused_with_the_first_difference(claimed, path, value, line):
    before = (claimed / "manifest.json").read_bytes()
    with pytest.raises(CalrecError) as error:
        manifest.claim(claimed, changed(path, value))
    assert line in str(error.value) and str(claimed) in str(error.value)
    assert "\n" not in str(error.value)
    assert (claimed / "manifest.json").read_bytes() == before


def test_the_first_difference_alone_is_named(claimed):
    other = changed("model.d_model", 32)
    other["vocabulary"] = "byte-02"
    with pytest.raises(CalrecError) as error:
        manifest.claim(claimed, other)
    assert "d_model" in str(error.value) and "vocabulary" not in str(error.value)


def test_a_mistake_that_ended_the_run_before_anything_was_saved_can_be_mended(tmp_path):
    manifest.claim(tmp_path, MADE)
    manifest.claim(tmp_path, changed("model.d_model", 32))
    assert manifest.read(tmp_path)["model"]["d_model"] == 32


def test_a_half_written_checkpoint_is_nothing_saved(tmp_path):
    manifest.claim(tmp_path, MADE)
    half = tmp_path / "stage1" / "checkpoints" / "checkpoint_5.orbax-checkpoint-tmp"
    half.mkdir(parents=True)
    manifest.claim(tmp_path, changed("stages.stage1.train_steps", 11))


def test_a_stage_that_has_saved_nothing_may_change_and_the_others_may_not(claimed):
    two = changed("stages.stage2", {"init_from": "stage1:bets"})
    manifest.claim(claimed, two)
    two["stages"]["stage2"]["init_from"] = "stage1:best"
    manifest.claim(claimed, two)
    assert manifest.read(claimed)["stages"]["stage2"] == {"init_from": "stage1:best"}
    has_saved(claimed, "stage2")
    two["stages"]["stage2"]["init_from"] = None
    with pytest.raises(CalrecError, match="stage2.init_from = 'stage1:best', this run has None"):
        manifest.claim(claimed, two)


def test_what_adapters_are_trained_on_is_noted_and_stays(claimed):
    base = {"checkpoint": "stage0:4", "fingerprint": "1f"}
    manifest.note_base(claimed, "stage1", base)
    assert manifest.read(claimed)["stages"]["stage1"]["base"] == base
    manifest.claim(claimed, MADE)  # which knows nothing of it
    assert manifest.read(claimed)["stages"]["stage1"]["base"] == base
    assert manifest.read(claimed) == json.loads(json.dumps(changed("stages.stage1.base", base)))


def test_what_was_noted_of_a_stage_that_saved_nothing_is_forgotten(tmp_path):
    """It may start from something else now."""
    manifest.claim(tmp_path, MADE)
    manifest.note_base(tmp_path, "stage1", {"seed": 0})
    manifest.claim(tmp_path, MADE)
    assert manifest.read(tmp_path) == json.loads(json.dumps(MADE))


_OF_NO_STAGES = [
    json.dumps(MADE | {"stages": stages}) for stages in ([], 3, None, {"stage1": None})
]


@pytest.mark.parametrize(
    "text",
    ["", '{"model": ', "[]", "7", '{"model": {}}', "[" * 9999, *_OF_NO_STAGES],
    ids=lambda text: repr(text[-20:]),
)
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CalrecError, match=r"manifest\.json is damaged") as error:
        manifest.read(tmp_path)
    assert "\n" not in str(error.value)
