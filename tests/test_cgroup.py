import pytest

from edgekiln.cgroup import CgroupLimits, cgroup_limits


def tree(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root / "cgroup"


CASES = {
    "version 2": (
        "0::/user/job\n",
        {"user/job/memory.max": "max\n", "user/memory.max": "2147483648\n", "user/job/cpu.max": "150000 100000\n"},
        CgroupLimits(2147483648, 1.5),
    ),
    "the smallest of all groups": (
        "0::/a/b\n",
        {"a/b/memory.max": "300", "a/memory.max": "200", "a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"},
        CgroupLimits(200, 0.5),
    ),
    "a container that sees its own group as the root": (
        "0::/docker/1234\n",
        {"memory.max": "1000", "cpu.max": "400000 100000"},
        CgroupLimits(1000, 4),
    ),
    "version 1": (
        "4:memory:/job\n3:cpu,cpuacct:/job\n0::/\n",
        {
            "memory/job/memory.limit_in_bytes": "1073741824",
            "cpu/job/cpu.cfs_quota_us": "200000",
            "cpu/job/cpu.cfs_period_us": "100000",
        },
        CgroupLimits(1073741824, 2),
    ),
    "version 1 without limits": (
        "4:memory:/\n",
        {
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "cpu/cpu.cfs_quota_us": "-1",
            "cpu/cpu.cfs_period_us": "100000",
        },
        CgroupLimits(None, None),
    ),
    "elsewhere than on Linux": (None, {}, CgroupLimits(None, None)),
    "nonsense": ("\x00\n:::", {"memory.max": "a lot", "cpu.max": "1"}, CgroupLimits(None, None)),
}


@pytest.mark.parametrize(("membership", "files", "limits"), CASES.values(), ids=CASES)
def test_limits(tmp_path, membership, files, limits):
    path = tree(tmp_path / "fs", files)
    if membership is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(membership)
    assert cgroup_limits(tmp_path / "fs", path) == limits


def test_this_machine_can_be_asked():
    assert cgroup_limits().memory_bytes is None or cgroup_limits().memory_bytes > 1 << 28
