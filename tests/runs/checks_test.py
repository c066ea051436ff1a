"""What a run looks at before it trains: mistakes of later stages and of the evaluation, too."""

from __future__ import annotations

import pytest

from calrec_jax.configs import load
from calrec_jax.data import specs, vocabularies
from calrec_jax.errors import CalrecError
from calrec_jax.runs import checks

BYTES = "VOCABULARY=@vocabularies.byte()"


@pytest.fixture
def check(small_store, tmp_path, monkeypatch):
    """Looks at the quickstart with some bindings."""
    monkeypatch.chdir(tmp_path)

    def run(*bindings):
        made = load.from_gin(
            ["gin/runs/quickstart.gin"], [BYTES, f"DATA_DIR={str(small_store)!r}", *bindings]
        )
        checks.check(made)
        return made

    return run


def test_the_quickstart_is_good_and_so_is_one_of_its_stages_alone(check):
    assert [stage.name for stage in check().stages] == ["stage1", "stage2"]
    alone = check("STAGES=[@stage1/stages.Stage()]")
    assert [stage.name for stage in alone.stages] == ["stage1"]


def test_a_begun_stage_goes_on_without_what_it_started_from(check, tmp_path):
    gone = "INITIAL_CHECKPOINT_PATH='gone/stage1:best'"
    with pytest.raises(CalrecError, match="'gone/stage1:best': no checkpoints in"):
        check(gone)
    (tmp_path / "runs/quickstart/model/stage1/checkpoints/checkpoint_3").mkdir(parents=True)
    assert check(gone).stages[0].init_from == "gone/stage1:best"


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("stage2/stages.Stage.init_from='stage_1:best'", "'stage_1:best': no checkpoints in"),
        ("stage2/stages.Stage.init_from='stage2:best'", "'stage2:best': no checkpoints in"),
        ("stage1/stages.Stage.init_from='gs://b/m/stage1:best'", "and only paths of a file system"),
        ("INITIAL_CHECKPOINT_PATH='other/stage1:best'", "'other/stage1:best': no checkpoints in"),
        ("stage2/stages.Stage.task_feature_lengths={'inputs': 50, 'targets': 48}", "cannot hold o"),
        ("stage2/stages.Stage.mixture='synthetic_sport'", "did you mean 'synthetic_sports'?"),
        ("TARGET_DOMAIN='synthetic_all'", "no domain 'synthetic_all'"),
        ("templates.Template.fields=('title', 'colour')", "names 'colour', which no item of"),
        ("stage2/stages.Stage.validate_period=0", "Stage.validate_period is 0"),
        ("config.DecoderConfig.num_kv_heads=0", "DecoderConfig.num_kv_heads is 0"),
        ("config.DecoderConfig.dtype='bf16'", "dtype 'bf16' is none of"),
        ("optimizer.OptimizerConfig.clip_norm=0.0", "clip_norm 0.0 be positive"),
    ],
)
def test_mistakes_are_one_line(check, binding, message):
    with pytest.raises(CalrecError) as error:
        check(binding)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_domain_with_tokens_of_its_own_is_refused(check, monkeypatch):
    class Other(type(vocabularies.byte())):
        pass

    check()
    own = specs.DomainSpec("synthetic_sports", "synthetic_sports", vocabulary=Other())
    monkeypatch.setitem(specs.domains, "synthetic_sports", own)
    with pytest.raises(CalrecError, match="'synthetic_sports' is registered with vocabulary Other"):
        check()
