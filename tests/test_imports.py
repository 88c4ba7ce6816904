"""Imports flow one way: core <- {quantizers, exporters, validators} <- pipelines <- top."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MIDDLE = ("quantizers", "exporters", "validators")
TOP = {"cli", "__main__", "completion", "reference_docs", "reference_schema"}
RANK = {"core": 0, **dict.fromkeys(MIDDLE, 1), "pipelines": 2, "top": 3}


def modules() -> dict[str, Path]:
    """Return every module of the package by its name."""
    folders = {"edgekiln": ROOT / "src" / "edgekiln"}
    folders |= {f"edgekiln.{room}": ROOT / room for room in (*MIDDLE, "pipelines")}
    found = {}
    for package, folder in folders.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    first = f"{module}.".split(".")[1]
    return "top" if first in TOP else first if first in RANK else "core"


def imported(tree: ast.AST, module: str, *, package: bool = False) -> Iterator[tuple[str, int]]:
    """Yield the modules of ours that are imported anywhere, in functions and under TYPE_CHECKING too, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: len(module.split(".")) - node.level + package] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            names = [f"{source}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.partition(".")[0] == "edgekiln":
                yield name, node.lineno


def allowed(module: str, other: str) -> bool:
    return room(module) == room(other) or RANK[room(other)] < RANK[room(module)]


def test_every_room_has_modules():
    assert {room(module) for module in MODULES} == set(RANK)
    assert {module.partition(".")[2] for module in MODULES} >= TOP


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_its_room_and_from_below(module):
    path = MODULES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name, line in imported(tree, module, package=path.name == "__init__.py"):
        assert allowed(module, name), f"{path.relative_to(ROOT)}:{line}: {room(module)} imports {name}"


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("edgekiln.process", "import edgekiln.cli"),
        ("edgekiln.process", "from edgekiln import completion"),
        ("edgekiln.process", "from . import quantizers"),
        ("edgekiln.exporters.gguf", "def f():\n    from edgekiln.validators.kinds import find"),
        ("edgekiln.quantizers.ggml", "from ..exporters import gguf"),
        ("edgekiln.validators.health", "if TYPE_CHECKING:\n    from edgekiln.pipelines.plan import Plan"),
        ("edgekiln.pipelines.plan", "from edgekiln.reference_schema import plain"),
    ],
)
def test_a_wrong_import_is_seen(module, text):
    assert [allowed(module, name) for name, _ in imported(ast.parse(text), module)] == [False]
