"""Imports go down only (docs/design.md, Layers), and heavy libraries stay where they belong.

Imports inside functions count too: they make a layer depend on another just the same.
"""

from __future__ import annotations

import ast
import pathlib

import pytest

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
    {"cli"},  # which nothing may import
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


def imported(path: pathlib.Path) -> set[str]:
    """Full names of all that a file imports, `from a import b` as "a.b"."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(path: pathlib.Path) -> set[str]:
    """The parts of calrec_jax that a file imports."""
    names = {name.split(".")[1] for name in imported(path) if name.startswith("calrec_jax.")}
    return {"recommender" if name == "Recommender" else name for name in names} & LEVEL.keys()


def part_of(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("module", modules())
def test_imports_go_down_only(module):
    upwards = [o for o in ours(modules()[module]) if LEVEL[o] > LEVEL[part_of(module)]]
    assert not upwards, f"{module} imports {upwards}"


@pytest.mark.parametrize("module", modules())
def test_data_and_model_meet_in_the_batch_alone(module):
    part, others = part_of(module), ours(modules()[module])
    assert not (part in DATA and others & MODEL), f"{module} imports {others & MODEL}"
    assert not (part in MODEL and others & DATA), f"{module} imports {others & DATA}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_heavy_libraries_stay_where_they_belong(library):
    users = {
        part_of(name)
        for name, path in modules().items()
        if library in {other.split(".")[0] for other in imported(path)}
    }
    assert users <= ONLY_IN[library]


def test_below_the_model_nothing_needs_jax():
    for name, path in modules().items():
        if part_of(name) in {"text", "retrieval", "metrics", "batch", "data", "tasks", "errors"}:
            assert not {"jax", "flax", "optax"} & {n.split(".")[0] for n in imported(path)}, name


def test_every_part_has_a_layer():
    assert {part_of(name) for name in modules()} == LEVEL.keys()


def test_an_import_upwards_would_be_seen(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("def f():\n    from calrec_jax.cli import main\n    import seqio.utils\n")
    assert ours(file) == {"cli"} and imported(file) == {"calrec_jax.cli.main", "seqio.utils"}
