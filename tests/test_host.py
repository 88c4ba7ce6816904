import subprocess
import sys

from edgekiln.host import TOOL_PACKAGES, logical_cores, memory_bytes, processor_name, tool_versions
from edgekiln.memory import peak_rss_bytes


def test_every_tool_has_a_version():
    versions = tool_versions()
    assert set(versions) == {"python", *TOOL_PACKAGES}
    assert "missing" not in versions.values()


def test_the_machine_is_described():
    assert processor_name()
    assert logical_cores() >= 1
    assert memory_bytes() > 1 << 30


def test_peak_memory_grows_with_use_and_is_not_the_parents():
    program = (
        "from edgekiln.memory import peak_rss_bytes\nbefore = peak_rss_bytes()\ndata = b'x' * (200 << 20)\n"
        "print(before, peak_rss_bytes())"
    )
    ballast = b"x" * (300 << 20)
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, after = map(int, shown.stdout.split())
    assert before < 200 << 20 < after - before + (16 << 20)
    assert peak_rss_bytes() > len(ballast)
