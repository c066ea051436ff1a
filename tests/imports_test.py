"""Imports go down only (docs/design.md, Layers), never in circles, and not to the command line.

Imports inside functions count too: they make a module depend on another just the same.
"""

from __future__ import annotations

import ast
import graphlib
import pathlib
from collections.abc import Mapping

import pytest

from calrec_jax import _MODULES as FACE

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAYERS = [
    {"errors", "locks"},
    {"text", "retrieval", "metrics", "batch", "files", "model_dir", "ranges"},
    {"data", "models", "losses", "parallel", "checkpoints"},
    {"decode"},
    {"tasks", "training"},
    {"eval", "report"},
    {"runs"},
    {"configs"},
    {"recommender", "sweeps", "t5x_bridge"},  # without t5x nothing may need the bridge
    {"cli"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
DATA = {"data", "tasks"}
MODEL = {"models", "losses", "parallel", "checkpoints", "training", "decode"}
ONLY_IN = {
    "tensorflow": {"data"},
    "tensorflow_datasets": {"data"},
    "seqio": {"data"},
    "gin": {"configs"},
    "torch": set(),
    "transformers": set(),
    "t5x": {"t5x_bridge"},
    "clu": {"t5x_bridge"},
}


def modules() -> dict[str, pathlib.Path]:
    """{module of calrec_jax, without that name: its file}; tasks/ installs as calrec_jax.tasks."""
    found = {}
    for top, prefix in ((ROOT / "calrec_jax", ()), (ROOT / "tasks", ("tasks",))):
        for path in sorted(top.rglob("*.py")):
            parts = (*prefix, *path.relative_to(top).with_suffix("").parts)
            found[".".join(part for part in parts if part != "__init__")] = path
    return {name: path for name, path in found.items() if name}  # the face may show anything


MODULES = modules()


def imported(path: pathlib.Path) -> set[str]:
    """Full names of all that a file imports: `from a import b` is "a.b".

    What calrec_jax itself shows has the name of its module: "calrec_jax.runs.run" is that of Run.
    """
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {_shown_by_the_face(name) for name in names}


def _shown_by_the_face(name: str) -> str:
    package, _, shown = name.partition(".")
    return f"calrec_jax.{FACE[shown]}" if package == "calrec_jax" and shown in FACE else name


def parts(path: pathlib.Path) -> set[str]:
    """The parts of calrec_jax that a file imports."""
    names = {name.split(".")[1] for name in imported(path) if name.startswith("calrec_jax.")}
    return names & LEVEL.keys()


def graph(files: Mapping[str, pathlib.Path]) -> dict[str, set[str]]:
    """{module: the other modules among `files` that it imports}."""
    return {
        module: {_module_of(name, files) for name in imported(path)} - {module, ""}
        for module, path in files.items()
    }


def _module_of(name: str, files: Mapping[str, pathlib.Path]) -> str:
    """The module that an imported name is, or is in; "" if it is none of `files`."""
    package, _, name = name.partition(".")
    while package == "calrec_jax" and name and name not in files:
        name = name.rpartition(".")[0]
    return name if package == "calrec_jax" else ""


def circle(files: Mapping[str, pathlib.Path]) -> list[str]:
    """Modules that import each other in a circle, the first one again at the end; [] if none do."""
    try:
        graphlib.TopologicalSorter(graph(files)).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def part_of(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module):
    upwards = [o for o in parts(MODULES[module]) if LEVEL[o] > LEVEL[part_of(module)]]
    assert not upwards, f"{module} imports {upwards}"


@pytest.mark.parametrize("module", MODULES)
def test_data_and_model_meet_in_the_batch_alone(module):
    part, others = part_of(module), parts(MODULES[module])
    assert not (part in DATA and others & MODEL), f"{module} imports {others & MODEL}"
    assert not (part in MODEL and others & DATA), f"{module} imports {others & DATA}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_heavy_libraries_stay_where_they_belong(library):
    users = {
        part_of(name)
        for name, path in MODULES.items()
        if library in {other.split(".")[0] for other in imported(path)}
    }
    assert users <= ONLY_IN[library]


def test_below_the_model_nothing_needs_jax():
    without = {part for level in LAYERS[:2] for part in level} | {"data", "tasks", "sweeps"}
    for name, path in MODULES.items():
        if part_of(name) in without:
            assert not {"jax", "flax", "optax"} & {n.split(".")[0] for n in imported(path)}, name


def test_every_part_has_a_layer():
    assert {part_of(name) for name in MODULES} == LEVEL.keys()


@pytest.mark.parametrize("module", [name for name in MODULES if part_of(name) != "cli"])
def test_nothing_imports_the_command_line(module):
    assert "cli" not in parts(MODULES[module])


def test_no_modules_import_each_other_in_a_circle():
    assert circle(MODULES) == []


@pytest.mark.parametrize(
    "source",
    [
        "from calrec_jax.cli import main",
        "from calrec_jax.cli.main import EXIT_CODES as codes",
        "import calrec_jax.cli.main as m",
        "from calrec_jax import cli",
        "def f():\n    from calrec_jax.cli import main",
        "class A:\n    def f(self):\n        import calrec_jax.cli.main",
        "if TYPE_CHECKING:\n    from calrec_jax.cli.main import main",
    ],
)
def test_an_import_of_the_command_line_would_be_seen(tmp_path, source):
    file = tmp_path / "module.py"
    file.write_text(source)
    assert parts(file) == {"cli"}


def test_an_import_of_a_heavy_library_would_be_seen(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("def f():\n    import seqio.utils\n    from gin import config\n")
    assert imported(file) == {"seqio.utils", "gin.config"}


def test_an_import_through_the_face_is_one_of_the_module_behind_it(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("from calrec_jax import Run, Recommender, register_domain\n")
    assert parts(file) == {"runs", "recommender", "data"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f():\n    from calrec_jax.data import first", ["first", "second", "third", "first"]),
        ("import calrec_jax.data.first", ["first", "second", "third", "first"]),
        ("from calrec_jax.data.second import name", ["second", "third", "second"]),
        ("from calrec_jax.data import Run\nimport jax", []),
    ],
)
def test_a_circle_would_be_seen(tmp_path, source, expected):
    sources = {
        "first": "from calrec_jax.data import second",
        "second": "def f():\n    from calrec_jax.data.third import name",
        "third": source,
    }
    for name, text in sources.items():
        (tmp_path / f"{name}.py").write_text(text)
    files = {f"data.{name}": tmp_path / f"{name}.py" for name in sources}
    found = [name.removeprefix("data.") for name in circle(files)]
    assert set(found) == set(expected) and len(found) == len(expected)
