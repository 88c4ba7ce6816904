"""A tool's version tells its native libraries apart, and finds out that one was replaced."""

import base64
import hashlib
import os
import time

import pytest

from edgekiln.engine import tool_versions as module
from edgekiln.engine.tool_versions import platform_version, tool_version, tool_versions

LIBRARY = "kiln_tool/lib/libkiln.so"


def entry(folder, path, *, listed=True):
    content = (folder / path).read_bytes()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{path},sha256={digest},{len(content)}\n" if listed else f"{path},,\n"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a distribution with a native library and a module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "kiln_tool" / "lib").mkdir(parents=True)
    information = tmp_path / "kiln_tool-1.2.dist-info"
    information.mkdir()

    def install(content=b"library", version="1.2", listed=True, record=True):
        tool_version.cache_clear()
        (tmp_path / LIBRARY).write_bytes(content)
        (tmp_path / "kiln_tool" / "a.py").write_text(version)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kiln-tool\nVersion: {version}\n")
        lines = [entry(tmp_path, LIBRARY, listed=listed), entry(tmp_path, "kiln_tool/a.py")]
        if record:
            (information / "RECORD").write_text("".join([*lines, "kiln_tool-1.2.dist-info/RECORD,,\n"]))
        return tool_version("kiln-tool")

    yield install
    tool_version.cache_clear()


def again():
    tool_version.cache_clear()
    return tool_version("kiln-tool")


def test_it_names_the_version_and_the_native_library(install):
    one = install()
    assert one.startswith("1.2+")
    assert again() == one
    assert install(b"library") == one
    assert install(version="1.3") != one
    assert install(b"another") != one


def test_an_untouched_library_is_not_read(install, monkeypatch):
    one = install()
    monkeypatch.setattr(module, "sha256_file", lambda _: pytest.fail("it was read"))
    assert again() == one


def test_a_replaced_library_is_another_tool_until_it_is_put_back(install, tmp_path):
    one = install()
    library = tmp_path / LIBRARY
    later = time.time() + 120
    library.write_bytes(b"LIBRARY")
    os.utime(library, (later, later))
    assert again() != one
    library.write_bytes(b"library")
    os.utime(library, (later, later))
    assert again() == one


def test_a_library_of_another_size_is_another_tool_whatever_its_time(install, tmp_path):
    one = install()
    status = (tmp_path / LIBRARY).stat()
    (tmp_path / LIBRARY).write_bytes(b"library of another size")
    os.utime(tmp_path / LIBRARY, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert again() != one


def test_a_library_replaced_long_after_with_an_old_time_is_another_tool(install, tmp_path, monkeypatch):
    one = install()
    (tmp_path / LIBRARY).write_bytes(b"LIBRARY")
    os.utime(tmp_path / LIBRARY, (1, 1))
    monkeypatch.setattr(module, "_COPY_SECONDS", -1.0)  # as if the list had been written an hour before
    assert again() != one


def test_a_missing_library_is_another_tool(install, tmp_path):
    one = install()
    (tmp_path / LIBRARY).unlink()
    assert again() != one


def test_a_library_without_a_listed_digest_is_hashed(install):
    assert install(listed=False) == install()
    assert install(b"another", listed=False) != install()


def test_a_missing_tool_is_said_to_be_missing():
    assert tool_version("no-such-tool") == "missing"


def test_versions_are_those_of_python_and_of_every_tool():
    found = tool_versions({"numpy", "no-such-tool"})
    assert list(found) == ["python", "no-such-tool", "numpy"]
    assert found["numpy"].partition("+")[2]
    assert tool_versions(["pluggy"])["pluggy"].count("+") == 0
    assert platform_version()
