"""The version of a step's code is that of all modules it may run, wherever they are installed."""

import ast
import shutil
import subprocess
import sys
from functools import cache

import pytest

from edgekiln.engine.code_version import code_version, modules_of
from test_imports import MODULES, ROOT, imported

ROOMS = ("exporters", "pipelines", "quantizers", "validators")


@cache
def imports_of(module):
    """Return what Python's own parser finds, modules only, with the packages above."""
    path = MODULES[module]
    names = {name for name, _ in imported(ast.parse(path.read_text(encoding="utf-8")), module)}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module)
    names |= {name.rpartition(".")[0] for name in names} | {module.rpartition(".")[0]}
    return frozenset(name for name in names if name in MODULES)


def closure(module):
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += imports_of(name)
    return seen


@pytest.mark.parametrize("module", MODULES)
def test_it_follows_exactly_the_imports_that_python_sees(module):
    assert modules_of(module) == closure(module)


def test_every_module_in_the_tree_is_found():
    assert {"edgekiln.engine.step", "edgekiln.exporters.gguf", "edgekiln.pipelines.graph"} <= set(MODULES)
    assert "edgekiln.exporters.gguf" in modules_of("edgekiln.exporters")


def test_an_unknown_module_is_an_error():
    for arguments in (("edgekiln.nonesuch",), ("edgekiln.nonesuch.x",), ("edgekiln.steps.x.y",)):
        with pytest.raises(ModuleNotFoundError):
            code_version(*arguments)


def copy_of_the_package(folder):
    """Lay the package out as a wheel does."""
    ignored = shutil.ignore_patterns("__pycache__", "data", "*.egg-info")
    shutil.copytree(ROOT / "src" / "edgekiln", folder / "edgekiln", ignore=ignored)
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / "edgekiln" / room, ignore=ignored)
    return folder


def version_in(folder, *modules):
    program = (
        "import sys\nfrom edgekiln.engine import code_version as v\n"
        "assert v.__file__.startswith(sys.argv[1]), v.__file__\nprint(v.code_version(*sys.argv[2:]))"
    )
    command = [sys.executable, "-c", program, str(folder), *modules]
    shown = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "SYSTEMROOT": "C:\\Windows"},
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout.strip()


def test_an_installed_package_has_the_version_of_the_tree_and_each_change_counts_where_it_matters(tmp_path):
    folder = copy_of_the_package(tmp_path)
    steps = ("edgekiln.pipelines.export_task", "edgekiln.validators.tasks")
    before = [version_in(folder, step) for step in steps]
    assert before == [code_version(step) for step in steps]
    gguf = folder / "edgekiln" / "exporters" / "gguf.py"
    gguf.write_bytes(gguf.read_bytes().replace(b"\n", b"\r\n"))
    assert version_in(folder, steps[0]) == before[0]
    gguf.write_bytes(gguf.read_bytes() + b"# another\n")
    cli = folder / "edgekiln" / "cli.py"
    cli.write_bytes(cli.read_bytes() + b"# another\n")
    after = [version_in(folder, step) for step in steps]
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_a_module_that_counts_by_itself_brings_nothing_along(tmp_path):
    one, other = "edgekiln.errors", "edgekiln.pipelines.graph"
    versions = {code_version(one), code_version(one, own=other), code_version(one, other)}
    assert len(versions) == 3
