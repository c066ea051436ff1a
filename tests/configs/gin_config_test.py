"""Gin as its users see it: which files and names are found, and the line of each error."""

import dataclasses
import shutil
import subprocess
import sys

import pytest

from calrec_jax.configs import gin_config, type_checks
from calrec_jax.errors import CalrecError

TOY = """
from __future__ import annotations
import dataclasses
from collections.abc import Mapping, Sequence
from calrec_jax.errors import CalrecError

@dataclasses.dataclass(frozen=True)
class Inner:
    size: int = 1
    rate: float | None = None
    def __post_init__(self):
        if self.size == 13:
            raise CalrecError("size 13 brings bad luck: take 12")

@dataclasses.dataclass(frozen=True)
class Outer:
    directory: str
    steps: int
    parts: Sequence[Inner] = ()
    lengths: Mapping[str, int] | None = None

@dataclasses.dataclass(frozen=True)
class Unnamed(Inner):
    size: int = 2

def never(): ...
"""

BASE = """
from __gin__ import dynamic_registration
import toymodule

MODEL_DIR = %gin.REQUIRED
TRAIN_STEPS = %gin.REQUIRED
STEPS = %TRAIN_STEPS
SIZE = 3
PARTS = [@first/toymodule.Inner(), @second/toymodule.Inner()]

toymodule.Outer.directory = %MODEL_DIR
toymodule.Outer.steps = %STEPS
toymodule.Outer.parts = %PARTS
first/toymodule.Inner.size = %SIZE
second/toymodule.Inner.size = 4
"""

GIVEN = ("MODEL_DIR='a'", "TRAIN_STEPS=5")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toymodule.py").write_text(TOY)
    sys.path.insert(0, str(folder))
    import toymodule

    yield toymodule
    sys.path.remove(str(folder))


@pytest.fixture
def outer(toy, tmp_path, monkeypatch):
    """(bindings, files beside base.gin) -> an Outer."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.gin").write_text(BASE)

    def make(*bindings, files=("base.gin",), **more):
        gin_config.parse(files, bindings, **more)
        return gin_config.configured(toy.Outer)

    return make


def refused(make, *args, **kwargs) -> str:
    with pytest.raises(CalrecError) as error:
        make(*args, **kwargs)
    line = str(error.value)
    assert "\n" not in line
    return line


def test_files_and_bindings_configure(outer, toy):
    made = outer(*GIVEN)
    assert made == toy.Outer("a", 5, [toy.Inner(3), toy.Inner(4)])


def test_the_last_binding_counts(outer):
    assert outer(*GIVEN, "TRAIN_STEPS=6", "Outer.steps=7").steps == 7
    assert outer(*GIVEN).steps == 5  # nothing is left of the parse before


def test_a_later_file_overrides_and_its_macros_count_as_known(outer, tmp_path):
    (tmp_path / "mine.gin").write_text(
        'from __gin__ import dynamic_registration\nimport toymodule\ninclude "base.gin"\n'
        "toymodule.Outer.steps = 8\nTRAIN_STEPS = 9\n"
    )
    assert outer("MODEL_DIR='a'", files=["mine.gin"]).steps == 8


def test_what_no_file_names_can_be_bound_if_its_module_is_imported(outer, toy):
    assert outer(*GIVEN, "PARTS=[@toymodule.Unnamed()]", "Unnamed.size=5").parts == [toy.Unnamed(5)]


@pytest.mark.parametrize(
    ("binding", "line"),
    [
        ("TRAIN_STEPSS=5", "unknown gin macro TRAIN_STEPSS: did you mean TRAIN_STEPS?"),
        ("frist/Inner.size=5", "unknown gin scope frist: did you mean first?"),
        ("Iner.size=5", "unknown gin configurable Iner (--gin.Iner.size=5): did you mean Inner?"),
        (
            "PARTS=[@toymodule.Iner()]",
            "unknown gin configurable toymodule.Iner (--gin.PARTS=[@toymodule.Iner()]): did you "
            "mean toymodule.Inner?",
        ),
        ("Inner.sise=5", "Inner has no parameter sise (--gin.Inner.sise=5): did you mean size?"),
        (
            "second/toymodule.Inner.sise=5",
            "toymodule.Inner has no parameter sise (--gin.second/toymodule.Inner.sise=5): did you "
            "mean size?",
        ),
        ("SIZE=%SIZES", "no value for SIZES (did you mean SIZE?): give --gin.SIZES=VALUE"),
        ("SIZE=13", "size 13 brings bad luck: take 12 (in gin's Inner)"),
        ("SIZE=1.5", "Inner.size is 1.5, which is not of type int"),
        ("SIZE=True", "Inner.size is True, which is not of type int"),
        ("Inner.rate='x'", "Inner.rate is 'x', which is not of type float | None"),
        ("MODEL_DIR=5", "Outer.directory is 5, which is not of type str"),
        ("PARTS=[5]", "Outer.parts is [5], which is not of type Sequence[Inner]"),
        (
            "Outer.lengths={'a': 'b'}",
            "Outer.lengths is {'a': 'b'}, which is not of type Mapping[str",
        ),
    ],
)
def test_a_wrong_binding_is_one_line_with_the_nearest_name(outer, binding, line):
    assert line in refused(outer, *GIVEN, binding)


@pytest.mark.parametrize(
    "binding", ["MODEL_DIR=runs/a", "MODEL_DIR='a", "SIZE=[1,", "SIZE=1=2", "-x=1"]
)
def test_no_literal(outer, binding):
    line = refused(outer, *GIVEN, binding)
    assert f"(--gin.{binding})" in line and "a string needs quotes" in line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("TRAIN_STEPSS = 5", "unknown gin macro TRAIN_STEPSS"),
        ("frist/toymodule.Inner.size = 5", "unknown gin scope frist: did you mean first?"),
        (
            "toymodule.Iner.size = 5",
            "unknown gin configurable toymodule.Iner (bad.gin, line 4): did you mean Inner?",
        ),
        (
            "toymodule.Inner.sise = 5",
            "toymodule.Inner has no parameter sise (bad.gin, line 4): did you mean size?",
        ),
        ("other.Inner.size = 5", "other is not imported (bad.gin, line 4)"),
        ("import nosuchmodule", "No module named 'nosuchmodule' (bad.gin, line 4)"),
        ("MODEL_DIR = runs/a", "(bad.gin, line 4)"),
        ('include "gin/none.gin"', "no gin file gin/none.gin (bad.gin, line 4); looked in"),
    ],
)
def test_a_wrong_file_is_one_line_with_the_place(outer, tmp_path, text, line):
    (tmp_path / "bad.gin").write_text(
        f'from __gin__ import dynamic_registration\nimport toymodule\ninclude "base.gin"\n{text}\n'
    )
    assert line in refused(outer, *GIVEN, files=["bad.gin"])


def test_required_macros_are_named_all_at_once(outer):
    line = refused(outer)
    assert line.startswith("no value for MODEL_DIR, TRAIN_STEPS: give --gin.MODEL_DIR=VALUE")


def test_what_is_not_used_is_not_required(outer, toy):
    made = outer("MODEL_DIR='a'", "STEPS=2", "SIZE=%gin.REQUIRED", "PARTS=[@second/Inner()]")
    assert made == toy.Outer("a", 2, [toy.Inner(4)])


def test_a_required_parameter_is_named(outer):
    line = refused(outer, *GIVEN, "first/Inner.size=%gin.REQUIRED")
    assert "no value for toymodule.Inner.size" in line


def test_what_no_file_binds_is_named(toy, tmp_path):
    (tmp_path / "part.gin").write_text(
        "from __gin__ import dynamic_registration\nimport toymodule\ntoymodule.Outer.steps = 1\n"
    )
    gin_config.parse([str(tmp_path / "part.gin")])
    assert "binds no directory of Outer" in refused(gin_config.configured, toy.Outer)


def test_a_class_that_no_file_mentions(tmp_path):
    @dataclasses.dataclass
    class Elsewhere:
        pass

    gin_config.parse([])
    assert "says nothing of Elsewhere" in refused(gin_config.configured, Elsewhere)


def test_a_missing_file_lists_the_folders_that_were_searched(outer, tmp_path):
    line = refused(outer, files=["none.gin"], search_paths="some/where,/else")
    root = str(gin_config.search_root())
    assert (
        line == f"no gin file none.gin; looked in the working directory, some/where, /else, {root}"
    )


def test_search_paths_find_files_and_their_includes(outer, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert outer(*GIVEN, search_paths=f"/nowhere,{tmp_path}").steps == 5


def test_operative_config_gives_the_same_again(outer, toy, tmp_path):
    made = outer(*GIVEN, "Outer.lengths={'a': 1}", "second/Inner.rate=2e-3")
    text = gin_config.operative_config()
    (tmp_path / "config.gin").write_text(text)
    gin_config.parse(["config.gin"])
    assert gin_config.configured(toy.Outer) == made
    assert "rate = None" in text  # defaults too: they may change with the library


def test_operative_config_can_be_overridden(outer, toy, tmp_path):
    outer(*GIVEN)
    (tmp_path / "config.gin").write_text(gin_config.operative_config())
    assert outer("MODEL_DIR='b'", files=["config.gin"]).directory == "b"


def test_relative_paths_are_made_absolute(outer, toy, tmp_path):
    gin_config.parse(["base.gin"], GIVEN)
    gin_config.make_absolute(["MODEL_DIR", "SIZE", "NONE"])
    assert gin_config.configured(toy.Outer).directory == str(tmp_path / "a")


def test_a_bucket_is_refused_and_not_made_a_folder_of_that_name(outer, toy):
    gin_config.parse(["base.gin"], ["MODEL_DIR='gs://bucket/a'", "STEPS=1"])
    with pytest.raises(CalrecError, match="MODEL_DIR is gs://bucket/a, and only paths"):
        gin_config.make_absolute(["MODEL_DIR"])


def test_parse_leaves_gins_own_readers_as_they_were(outer):
    from gin import config

    before = list(config._FILE_READERS), list(config._LOCATION_PREFIXES), config.ParserDelegate
    outer(*GIVEN)
    refused(outer, "X=(")
    after = list(config._FILE_READERS), list(config._LOCATION_PREFIXES), config.ParserDelegate
    assert before == after


def test_the_packaged_gin_folder_is_found_from_an_installed_package(tmp_path):
    package = gin_config.search_root() / "calrec_jax"
    installed = tmp_path / "site" / "calrec_jax"
    shutil.copytree(package / "configs", installed / "configs")
    for name in ("__init__.py", "errors.py", "files.py"):
        shutil.copy(package / name, installed)
    (installed / "gin" / "runs").mkdir(parents=True)
    (installed / "gin" / "runs" / "empty.gin").write_text("")
    code = (
        "from calrec_jax.configs import gin_config; gin_config.parse(['gin/runs/empty.gin']); "
        "print(gin_config.search_root())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(installed), done.stderr


def test_types_inside_containers(toy):
    type_checks.check(toy.Outer("a", 1, (toy.Inner(), toy.Inner(rate=1)), {"a": 1}))
    with pytest.raises(CalrecError, match=r"Inner.size is '1'"):
        type_checks.check(toy.Outer("a", 1, [toy.Inner(), toy.Inner(size="1")]))
