"""Doctor: processor, memory, disks, caches, and whether anything can be timed here."""

from __future__ import annotations

import contextlib
import locale
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from edgekiln.cgroup import cgroup_limits
from edgekiln.cpu_features import cpu_features
from edgekiln.host import hardware_names, logical_cores, memory_bytes, physical_cores
from edgekiln.pagecache import evict
from edgekiln.pipelines.findings import Finding, Status
from edgekiln.process import network_isolation

_GIB: Final = 1 << 30
#: The reference of a 0.5 B checkpoint, in float32, and what Python and the libraries take beside it.
_LITTLE_MEMORY: Final = 4 * _GIB
#: The default pipeline on a 0.5 B checkpoint leaves about 3 GB; with its scratch files it passes through 5.
_LITTLE_DISK: Final = 5 * _GIB
_SCAN_ENTRIES: Final = 50_000
_SCAN_SECONDS: Final = 1.0
_CPU_FOLDER: Final = Path("/sys/devices/system/cpu")
#: A share of the processors that others may use without disturbing a measurement much.
_QUIET_SHARE: Final = 0.15


def cpu_findings() -> Iterator[Finding]:
    """Describe the processor and what this process may use of it."""
    cores, allowed, limit = physical_cores(), logical_cores(), cgroup_limits().cpus
    total = os.cpu_count() or allowed
    facts: dict[str, Any] = {
        "name": hardware_names(),
        "machine": platform.machine(),
        "physical": cores,
        "logical": total,
        "allowed": allowed,
        "cgroup_cpus": limit,
    }
    line = f"{facts['name']} ({facts['machine']}), {cores} physical and {allowed} of {total} logical cores usable"
    if limit is not None and limit < allowed:
        line += f", and a control group allows {limit:g} cores' worth of time"
        fix = f"give the container more, or measure with --set threads={max(1, int(limit))}: throttled threads stall"
        yield Finding(id="cpu/cores", status="warning", summary=line, fix=fix, facts=facts)
    else:
        yield Finding(id="cpu/cores", status="ok", summary=line, facts=facts)
    features = cpu_features()
    has = tuple(name for name, value in features.items() if value)
    line = ", ".join(has) if has else "this system does not tell the instruction sets"
    yield Finding(id="cpu/instructions", status="info", summary=line, facts={name: features[name] for name in features})


def memory_findings() -> Iterator[Finding]:
    """Judge the memory that builds may use."""
    import psutil

    total, available, limit = memory_bytes(), int(psutil.virtual_memory().available), cgroup_limits().memory_bytes
    usable = min(available, total)
    facts: dict[str, Any] = {"total_bytes": total, "available_bytes": available, "cgroup_bytes": limit}
    line = f"{usable / _GIB:.1f} of {total / _GIB:.1f} GiB available"
    if limit is not None:
        line += f", limited to {limit / _GIB:.1f} GiB by a control group"
    if usable < _LITTLE_MEMORY:
        fix = "close other programs or use a larger machine: the reference keeps the checkpoint in float32"
        yield Finding(id="memory/ram", status="warning", summary=line, fix=fix, facts=facts)
    else:
        yield Finding(id="memory/ram", status="ok", summary=line, facts=facts)


def _existing(path: Path) -> Path:
    """Return the path or the nearest folder above it that exists."""
    path = path.absolute()
    return next((part for part in (path, *path.parents) if part.is_dir()), Path(path.anchor))


def _write_error(folder: Path) -> str | None:
    """Return why nothing can be written into a folder, or None; what is written is removed at once."""
    try:
        with tempfile.NamedTemporaryFile(prefix=".edgekiln-doctor-", dir=folder):
            return None
    except OSError as error:
        return error.strerror or type(error).__name__


def _folder(identifier: str, title: str, path: Path, *, needed: bool, little: int, fix: str) -> Finding:
    """Judge a folder that will be written into."""
    folder = _existing(path)
    free, wrong = shutil.disk_usage(folder).free, _write_error(folder)
    facts: dict[str, Any] = {"path": str(path.absolute()), "free_bytes": free, "writable": wrong is None}
    line = f"{title} {path.absolute()}: {free / _GIB:.1f} GiB free"
    if wrong is not None:
        line = f"{line}, cannot be written: {wrong}"
        status: Status = "problem" if needed else "warning"
        return Finding(id=identifier, status=status, summary=line, fix=fix, facts=facts)
    if free < little:
        return Finding(id=identifier, status="warning", summary=f"{line}, which is little", fix=fix, facts=facts)
    return Finding(id=identifier, status="ok", summary=line, facts=facts)


def _scanned_size(folder: Path) -> tuple[int, bool]:
    """Return the bytes of the files below a folder, and whether all of them were seen."""
    size, count, deadline = 0, 0, time.monotonic() + _SCAN_SECONDS
    for directory, _, names in os.walk(folder):
        for name in names:
            count += 1
            try:
                size += os.lstat(os.path.join(directory, name)).st_size  # noqa: PTH118 - half the time of pathlib's
            except OSError:
                continue
        if count > _SCAN_ENTRIES or time.monotonic() > deadline:
            return size, False
    return size, True


def hub_cache() -> Path:
    """Return where huggingface_hub keeps snapshots, without importing it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    home = os.environ.get("HF_HOME")
    if home:
        return Path(home).expanduser() / "hub"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache).expanduser() if cache else Path.home() / ".cache") / "huggingface" / "hub"


def disk_findings(out: Path) -> Iterator[Finding]:
    """Judge the folders that builds write into.

    Args:
        out: Folder for artifacts.
    """
    fix = "free space, or choose another folder with --out"
    yield _folder("disk/out", "artifacts go to", out, needed=True, little=_LITTLE_DISK, fix=fix)
    fix = "free space, or set TMPDIR (on Windows TEMP) to another folder"
    yield _folder("disk/temp", "temporary files go to", Path(tempfile.gettempdir()), needed=True, little=_GIB, fix=fix)
    try:
        home = Path.home()
    except RuntimeError:
        fix = "set HOME (on Windows USERPROFILE), or HF_HOME for the Hub's cache"
        yield Finding(id="disk/home", status="warning", summary="there is no home directory", fix=fix)
    else:
        fix = "set HF_HOME to a folder that can be written"
        yield _folder("disk/home", "the home directory is", home, needed=False, little=0, fix=fix)
    yield from _cache_findings()


def _cache_findings() -> Iterator[Finding]:
    try:
        caches = {"huggingface": (hub_cache(), "HF_HOME")}
    except RuntimeError:
        caches = {}
    if os.environ.get("EDGEKILN_CACHE"):
        caches["edgekiln"] = (Path(os.environ["EDGEKILN_CACHE"]).absolute(), "EDGEKILN_CACHE")
    for name, (path, variable) in caches.items():
        fix = f"make it writable, or set {variable} to another folder"
        found = _folder(f"cache/{name}", "cache", path, needed=False, little=_GIB, fix=fix)
        size, whole = _scanned_size(path) if path.is_dir() else (0, True)
        held = f"{'' if whole else 'more than '}{size / _GIB:.2f} GiB in it" if path.is_dir() else "not made yet"
        yield found.model_copy(
            update={"summary": f"{found.summary}, {held}", "facts": found.facts | {"size_bytes": size, "whole": whole}}
        )


def _can_link(folder: Path) -> bool:
    """Tell whether this user may make symbolic links (on Windows a right that few have)."""
    try:
        with tempfile.TemporaryDirectory(prefix=".edgekiln-doctor-", dir=folder) as inside:
            Path(inside, "link").symlink_to("target", target_is_directory=True)
    except (OSError, NotImplementedError):
        return False
    return True


def _long_paths() -> bool | None:
    """Tell whether Windows takes paths beyond 260 characters; None elsewhere."""
    enabled: bool | None = None
    if sys.platform == "win32":
        import winreg

        enabled = False
        name = r"SYSTEM\CurrentControlSet\Control\FileSystem"
        with contextlib.suppress(OSError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, name) as key:
            enabled = bool(winreg.QueryValueEx(key, "LongPathsEnabled")[0])
    return enabled


def file_system_findings() -> Iterator[Finding]:
    """Judge what differs between systems in names, links and texts."""
    linked, long_paths = _can_link(Path(tempfile.gettempdir())), _long_paths()
    if linked:
        yield Finding(id="files/links", status="ok", summary="symbolic links can be made")
    else:
        line = "no symbolic links: a file latest.txt names the newest artifact instead of the link latest"
        yield Finding(id="files/links", status="info", summary=line, fix="on Windows, turn on the developer mode")
    if long_paths is False:
        line = "paths end at 260 characters: deep output folders may fail"
        yield Finding(id="files/paths", status="warning", summary=line, fix="turn on LongPathsEnabled in Windows")
    encoding = getattr(sys.stdout, "encoding", None) or locale.getpreferredencoding(do_setlocale=False)
    if encoding.lower().replace("-", "") != "utf8":
        line = f"output is written as {encoding}: what it lacks is shown as an escape"
        yield Finding(id="files/encoding", status="info", summary=line, fix="set PYTHONUTF8=1")


def _isolation() -> Finding:
    if network_isolation():
        line = "runtimes run without a network (unshare)"
        return Finding(id="timing/isolation", status="ok", summary=line)
    line = "runtimes cannot be kept from the network here; their telemetry is switched off by their own settings"
    return Finding(id="timing/isolation", status="info", summary=line)


def _pinning() -> Finding:
    import psutil

    process = psutil.Process()
    try:
        process.cpu_affinity(process.cpu_affinity())  # sets what is set: only whether it may be
    except (AttributeError, OSError, psutil.Error):
        line = "threads cannot be pinned to cores: latency will spread more"
        return Finding(id="timing/pinning", status="info", summary=line)
    return Finding(id="timing/pinning", status="ok", summary="threads can be pinned to cores")


def _page_cache(folder: Path) -> Finding:
    with tempfile.TemporaryDirectory(prefix=".edgekiln-doctor-", dir=_existing(folder)) as inside:
        path = Path(inside, "page")
        path.write_bytes(bytes(4 << 20))
        # A page that the kernel has just made may wait in a batch of its own for a moment; a second try finds it.
        reason = evict([path]) and evict([path])
    if reason is None:
        line = "files can be dropped from the page cache: cold loads are measured"
        return Finding(id="timing/page-cache", status="ok", summary=line)
    return Finding(id="timing/page-cache", status="info", summary=f"{reason}: cold loads are not measured")


def _load(busy: float) -> Finding:
    """Judge whether the machine is quiet.

    Args:
        busy: Share of all processors that was in use while nothing of ours ran, from 0 to 1.
    """
    cores = os.cpu_count() or logical_cores()  # the load average is of the whole machine
    average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    facts: dict[str, Any] = {"busy_share": round(busy, 3), "load_average": average, "cores": cores}
    line = f"processors {busy:.0%} busy"
    line += f", load average {average:.2f} on {cores} cores" if average is not None else ""
    # The load average is of the last minute: alone it tells of a machine that is never free.
    if busy > _QUIET_SHARE or (average is not None and average > cores):
        fix = "wait until it is quiet, or time on another machine; parity and structure do not suffer"
        line = f"not quiet enough to time: {line}"
        return Finding(id="timing/load", status="warning", summary=line, fix=fix, facts=facts)
    return Finding(id="timing/load", status="ok", summary=f"quiet enough to time: {line}", facts=facts)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def clock_findings(folder: Path = _CPU_FOLDER) -> Iterator[Finding]:
    """Judge what moves the processor's clock, as far as the system tells.

    Args:
        folder: The kernel's description of the processors.
    """
    governors = sorted({text for path in folder.glob("cpu*/cpufreq/scaling_governor") if (text := _text(path))})
    no_turbo, boost = _text(folder / "intel_pstate/no_turbo"), _text(folder / "cpufreq/boost")
    turbo = None if no_turbo is boost is None else no_turbo == "0" or boost == "1"
    facts: dict[str, Any] = {"governors": tuple(governors), "turbo": turbo}
    boosts = {None: "unknown", True: "on", False: "off"}[turbo]
    if not governors and turbo is None:
        line = "the system does not tell how it sets the clock (usual in virtual machines)"
        yield Finding(id="timing/clock", status="info", summary=line, facts=facts)
    elif governors in ([], ["performance"]):
        line = f"governor {', '.join(governors) or 'unknown'}, turbo {boosts}"
        yield Finding(id="timing/clock", status="ok", summary=line, facts=facts)
    else:
        line = f"governor {', '.join(governors)}, turbo {boosts}: the clock follows the load, so latency spreads more"
        fix = "sudo cpupower frequency-set --governor performance"
        yield Finding(id="timing/clock", status="warning", summary=line, fix=fix, facts=facts)


def _power() -> Iterator[Finding]:
    import psutil

    try:
        battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    except OSError:  # a container without /sys
        battery = None
    if battery is not None and battery.power_plugged is False:
        line = f"on battery ({battery.percent:.0f} %): the system saves power and latency suffers"
        yield Finding(id="timing/power", status="warning", summary=line, fix="plug it in before timing")


def busy_share(seconds: float = 0.3) -> float:
    """Return the share of all processors that is in use, from 0 to 1; it takes `seconds`."""
    import psutil

    return float(psutil.cpu_percent(interval=seconds)) / 100


def timing_findings(out: Path, busy: Callable[[], float]) -> Iterator[Finding]:
    """Judge whether latency measured here would mean something.

    Args:
        out: Folder for artifacts.
        busy: Returns the share of the processors that others use.
    """
    yield _load(busy())
    yield _isolation()
    yield _pinning()
    yield _page_cache(out)
    yield from clock_findings()
    yield from _power()
