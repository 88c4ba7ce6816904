import pytest
from packaging.requirements import Requirement

from edgekiln.requirements import (
    Conflict,
    closure,
    conflicts,
    fulfils,
    installed_version,
    read_constraints,
    requirements_of,
)


def install(site, name, version, requires=()):
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    (folder / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {line}" for line in requires), ""]))


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_conflicts_reach_through_what_is_required(site):
    install(site, "ek-top", "1.0", ["ek_middle>=2", "ek-absent; extra == 'dev'", "ek-none; python_version<'3'"])
    install(site, "ek-middle", "2.5", ["ek-leaf<3", "ek-top"])
    install(site, "ek-leaf", "3.1")
    assert list(conflicts("ek-top")) == [Conflict("ek-middle", "ek-leaf<3", "3.1")]
    assert set(closure("ek-top")) == {"ek-top", "ek-middle", "ek-leaf"}


def test_what_is_missing_is_a_conflict_without_a_version(site):
    install(site, "ek-top", "1.0", ["ek-gone>=1"])
    assert list(conflicts("ek-top")) == [Conflict("ek-top", "ek-gone>=1", None)]
    assert installed_version("ek-gone") is None
    assert requirements_of("ek-gone") == ()


@pytest.mark.parametrize(
    ("found", "wanted", "fits"),
    [("2.0rc1", "a>=1", True), ("2.13.0+cpu", "a==2.13.0", True), ("1.0", "a>=2", False), (None, "a", False),
     ("unknown", "a>=1", False)],
)  # fmt: skip
def test_versions(found, wanted, fits):
    assert fulfils(found, Requirement(wanted)) is fits


def test_constraints_are_read_by_canonical_name(tmp_path):
    (tmp_path / "c.txt").write_text("# tried together\nRuamel_Yaml==0.19.1  # note\n\n-r other.txt\nnumpy==2.4.6\n")
    pins = read_constraints(tmp_path / "c.txt")
    assert {name: str(pin.specifier) for name, pin in pins.items()} == {"ruamel-yaml": "==0.19.1", "numpy": "==2.4.6"}


def test_this_installation_fits_itself():
    assert not [entry for entry in conflicts("edgekiln") if entry.package == "edgekiln"]
