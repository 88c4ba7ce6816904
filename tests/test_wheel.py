"""What ships is what is here: the same modules, and every file that they need at run time."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("src", "exporters", "pipelines", "quantizers", "validators")
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "targets.yaml")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel from a copy, so that nothing is left in the tree."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(out), str(copy)], check=True, capture_output=True, text=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the wheel, as an installation does."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def modules(package: str, folder: Path) -> set[str]:
    """Return every module file below a package's folder, named as it is imported."""
    names = [path.relative_to(folder).with_suffix("").parts for path in folder.rglob("*.py")]
    return {".".join((package, *parts)) for parts in names}


def test_the_wheel_has_exactly_the_modules_of_the_tree(installed: Path) -> None:
    here: set[str] = set()
    for package in ("edgekiln", *(f"edgekiln.{name}" for name in SOURCES[1:])):
        (folder,) = importlib.import_module(package).__path__
        here |= modules(package, Path(folder))
    assert {
        "edgekiln.errors",
        "edgekiln.pipelines.plan",
        "edgekiln.validators.gates",
        "edgekiln.exporters.gguf",
    } <= here
    assert modules("edgekiln", installed / "edgekiln") == here


def test_only_edgekiln_is_installed(installed: Path) -> None:
    top = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"edgekiln"}


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ("py.typed", "src/edgekiln/py.typed"),
        ("data/targets.yaml", "targets.yaml"),
        ("pipelines/default.yaml", "pipelines/default.yaml"),
    ],
)
def test_the_wheel_has_the_shipped_files(installed: Path, inside: str, outside: str) -> None:
    assert (installed / "edgekiln" / inside).read_bytes() == (ROOT / outside).read_bytes()


@pytest.mark.parametrize(
    ("inside", "outside"),
    [("data", "src/edgekiln/data"), ("pipelines", "pipelines"), ("validators/data", "validators/data")],
)
def test_the_wheel_has_every_data_file_byte_for_byte(installed: Path, inside: str, outside: str) -> None:
    data = [
        path.relative_to(ROOT / outside)
        for path in (ROOT / outside).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    ]
    assert data
    for path in data:
        assert (installed / "edgekiln" / inside / path).read_bytes() == (ROOT / outside / path).read_bytes(), path


def test_an_installed_edgekiln_plans_from_any_folder(installed: Path, tmp_path: Path) -> None:
    program = (
        "import edgekiln; from edgekiln.exporters import EXPORTERS; from edgekiln.pipelines.plan import make_plan;"
        "from edgekiln.checkpoint import open_checkpoint;"
        "plan = make_plan(formats=EXPORTERS);"
        "open_checkpoint(plan.settings.values.checkpoint);"
        "print(edgekiln.__file__, plan.targets.name, len(plan.builds), sep='|')"
    )
    environment = {"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1", "SYSTEMROOT": "C:\\Windows"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    place, targets, builds = done.stdout.strip().split("|")
    assert Path(place) == installed / "edgekiln" / "__init__.py"
    assert targets == "targets.yaml (shipped)"
    assert int(builds) == 7
    assert list(tmp_path.iterdir()) == []
