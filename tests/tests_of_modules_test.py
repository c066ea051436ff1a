"""The map of tests: where each module is tested.

The module calrec_jax/a/b.py is tested by tests/a/b_test.py. A module without such a file is in
TESTED_BY. Each test there, or a helper that it imports, must mention the module or a module that
imports it: by an import of it or of its public names, or by its name in a string.
"""

from __future__ import annotations

import ast
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"

# One line an entry, sorted: a module of calrec_jax, and its tests in tests/, without "_test.py".
TESTED_BY = {
    "checkpoints.hf_rope": "checkpoints/hf_families",
    "cli.eval": "cli/chain cli/without_evaluation",
    "cli.main": "cli/command",
    "cli.prepare": "cli/data_commands cli/raw_dumps cli/raw_files",
    "cli.processes": "launch/local",
    "cli.progress": "cli/chain",
    "cli.report": "cli/report_command",
    "cli.synthetic": "cli/data_commands",
    "cli.train": "cli/begun_run cli/chain",
    "cli.vocab": "cli/data_commands",
    "configs.gin_errors": "configs/gin_config configs/gin_files",
    "configs.load": "configs/gin_files",
    "data.domains": "data/registry data/store/arrays",
    "data.preparation.beam_scratch": "data/preparation/beam_engine",
    "data.preparation.beam_transforms": "data/preparation/beam_engine",
    "data.preparation.duckdb_queries": "data/preparation/duckdb_engine",
    "data.preparation.engine": "data/preparation/beam_engine data/preparation/duckdb_engine",
    "data.preparation.quiet_beam": "data/preparation/beam_engine",
    "data.seqio_tasks.tasks": "data/registry",
    "data.sources.rows": "data/sources/csv_tables data/sources/parquet_tables",
    "data.sources.source": "data/sources/files data/sources/tables",
    "data.specs": "data/registry",
    "data.store.checksums": "data/store/datasets",
    "data.store.quiet_tensorflow": "data/store/datasets",
    "data.store.reader": "data/store/datasets",
    "decode.generate": "decode/beam decode/sample decode/trie",
    "decode.sampling": "decode/sampling_config",
    "errors": "cli/command",
    "eval.evaluated_domain": "eval/evaluator_resume eval/evaluator_slices",
    "eval.evaluation": "eval/evaluation_config",
    "eval.evaluator": "eval/evaluator_files eval/evaluator_resume eval/evaluator_slices",
    "eval.examples": "eval/evaluator_files",
    "eval.measure": "eval/evaluator_files",
    "eval.outcomes": "eval/baselines eval/retrievers",
    "eval.results": "eval/evaluator_files",
    "eval.users": "eval/evaluator_slices",
    "files": "whole_files",
    "models.attention": "models/decoder models/kv_cache",
    "models.layers": "models/decoder",
    "models.params": "models/decoder",
    "ranges": "decode/sampling_config eval/evaluation_config",
    "report.browser": "report/report_browser",
    "report.comparison_page": "report/compare report/report_browser",
    "report.evaluation": "report/report",
    "report.files": "report/report",
    "report.page": "report/report",
    "report.plain": "report/report",
    "report.run_page": "report/report_browser report/report",
    "report.training_data": "cli/begun_run",
    "runs.baseline": "cli/baseline",
    "runs.run": "runs/checks runs/config_text",
    "runs.stage_data": "runs/saved_arrays",
    "runs.train": "cli/begun_run cli/chain",
    "tasks.amazon": "configs/gin_files",
    "tasks.mixtures": "data/registry",
    "tasks.synthetic": "data/registry",
    "text.generated": "decode/texts",
    "training.conversion": "cli/convert",
    "training.merged": "training/lora_stages",
    "training.pretrained": "training/stages cli/convert",
    "training.state": "training/optimizer training/step",
    "training.weights": "training/lora_stages training/stages",
}


def modules() -> dict[str, pathlib.Path]:
    """{module, without "calrec_jax.": its file}; tasks/ installs as calrec_jax.tasks."""
    files = {}
    for top, prefix in ((ROOT / "calrec_jax", ()), (ROOT / "tasks", ("tasks",))):
        for path in sorted(top.rglob("*.py")):
            parts = (*prefix, *path.relative_to(top).with_suffix("").parts)
            if parts[-1] != "__init__":
                files[".".join(parts)] = path
    return files


def own_test(module: str) -> pathlib.Path:
    """The test file of the module's name, which may not exist."""
    *folders, name = module.split(".")
    return TESTS.joinpath(*folders, f"{name}_test.py")


@functools.cache
def parsed(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imported(tree: ast.Module) -> set[str]:
    """Full names of all that is imported from calrec_jax, without "calrec_jax."."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.partition(".")[2] for name in names if name.startswith("calrec_jax.")}


def imports(tree: ast.Module, module: str) -> bool:
    """Whether a file imports a module, or names from it."""
    return any(name == module or name.startswith(f"{module}.") for name in imported(tree))


def public_names(module: str) -> set[str]:
    """The functions, classes and constants of a module whose names begin with no underscore."""
    names = set()
    for node in parsed(modules()[module]).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return {name for name in names if not name.startswith("_")}


def mentions(tree: ast.Module, module: str, names: set[str]) -> bool:
    """Whether a test imports a module or its public `names`, or names the module in a string.

    Names may be imported from another module that has them, too. In a string a module is named by
    its name alone, by "folder.name" or "folder/name" in a text, or, if it has an underscore, by its
    name in a text.
    """
    if imports(tree, module) or any(name.split(".")[-1] in names for name in imported(tree)):
        return True
    folder, _, stem = f"calrec_jax.{module}".rpartition(".")
    folder = folder.rpartition(".")[2]
    in_text = re.compile(rf"\b{stem}\b" if "_" in stem else rf"\b{folder}[./]{stem}\b")
    texts = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    return any(text == stem or in_text.search(text) for text in texts)


def listed_tests(module: str) -> list[pathlib.Path]:
    return [TESTS / f"{name}_test.py" for name in TESTED_BY[module].split()]


def with_helpers(test: pathlib.Path) -> list[ast.Module]:
    """A test and the helpers in tests/ that it imports."""
    names = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(parsed(test))
        if isinstance(node, ast.ImportFrom | ast.Import)
    }
    helpers = {folder / f"{name}.py" for name in names for folder in (test.parent, TESTS)}
    return [parsed(path) for path in (test, *helpers) if path.exists()]


@pytest.mark.parametrize("module", modules())
def test_every_module_has_a_test(module):
    expected = own_test(module)
    assert expected.exists() or module in TESTED_BY, (
        f"{module} has no test: add {expected.relative_to(ROOT)}, or an entry in TESTED_BY"
    )


@pytest.mark.parametrize("module", TESTED_BY)
def test_no_entry_is_stale(module):
    assert module in modules(), f"there is no module {module}"
    assert not own_test(module).exists(), f"{module} has a test of its name and needs no entry"
    assert listed_tests(module), f"{module} has an empty entry"
    around = [other for other, path in modules().items() if imports(parsed(path), module)]
    for test in listed_tests(module):
        assert test.exists(), f"there is no test {test.relative_to(ROOT)}"
        assert any(
            mentions(tree, m, public_names(m))
            for tree in with_helpers(test)
            for m in (module, *around)
        ), f"{test.relative_to(ROOT)} mentions neither {module} nor a module that imports it"


def test_entries_are_sorted():
    assert list(TESTED_BY) == sorted(TESTED_BY)


@pytest.mark.parametrize(
    ("test", "mentioned"),
    [
        ("import calrec_jax.data.reader", True),
        ("from calrec_jax.data import reader", True),
        ("from calrec_jax.data.reader import _private", True),
        ("from calrec_jax.data import read", True),
        ("def f():\n    from calrec_jax.data import reader as r", True),
        ("run('reader')", True),
        ('"""The tests of data/reader."""', True),
        ("from calrec_jax.data import readers, write", False),
        ("from other.data import read", False),
        ("reader = 'a reader'", False),
    ],
)
def test_mentions_are_found(test, mentioned):
    assert mentions(ast.parse(test), "data.reader", {"read"}) == mentioned


def test_a_name_with_an_underscore_is_found_in_any_text():
    assert mentions(ast.parse("'as data_reader does'"), "data.data_reader", set())
    assert not mentions(ast.parse("'as data_readers do'"), "data.data_reader", set())
