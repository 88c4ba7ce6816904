"""Hashing a checkpoint against `sha256sum`, and the default pipeline with one and two jobs."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from engine_common import Figure, Part, alternate, command, load, samples

from edgekiln.engine.hash_memory import HashMemory

_BLOCK_BYTES = 1 << 20


def hashing(scratch: Path, *, megabytes: int, runs: int) -> Part:
    """Hash one file, and four of a quarter its size, all in the page cache; then ask again."""
    rows, data = [], {}
    for count in (1, 4):
        folder = scratch / "hashing"
        files = _write_files(folder, count, megabytes // count)
        figures = _hash(folder, files, runs)
        shutil.rmtree(folder)
        total = count * (megabytes // count)
        data[f"{count} x {megabytes // count} MB"] = {"megabytes": total, "seconds": samples(figures), "load": load()}
        speeds = [f"{figures[name].text(1, 2)} ({total / figures[name].median:,.0f} MB/s)" for name in TOOLS[:2]]
        rows.append([f"{count} × {megabytes // count} MB", *speeds, figures[TOOLS[2]].text(1000, 2)])
    columns = ("files", "`sha256sum`, seconds", "Edgekiln, seconds", "remembered, milliseconds")
    return Part("Hashing a checkpoint, files in the page cache", columns, rows, data)


TOOLS = ("sha256sum", "edgekiln", "remembered")


def _hash(folder: Path, files: list[Path], runs: int) -> dict[str, Figure]:
    tool = shutil.which("sha256sum") or shutil.which("shasum")
    if tool is None:
        raise FileNotFoundError("neither sha256sum nor shasum is on the path")
    options = ["-a", "256"] if Path(tool).name == "shasum" else []

    def outside() -> list[str]:
        done = subprocess.run([tool, *options, *map(str, files)], capture_output=True, text=True, check=True)
        return [line.split()[0] for line in done.stdout.splitlines()]

    def ours() -> list[str]:
        (folder / "memory.sqlite").unlink(missing_ok=True)
        return remembered()

    def remembered() -> list[str]:
        memory = HashMemory(folder / "memory.sqlite")
        found = memory.digests(files)
        memory.close()
        return found

    if not outside() == ours() == remembered():
        raise RuntimeError(f"{tool} and Edgekiln disagree about {files}")
    return alternate(dict(zip(TOOLS, (outside, ours, remembered), strict=True)), runs)


def _write_files(folder: Path, count: int, megabytes: int) -> list[Path]:
    """Write files of different content, and wait until a change of them would show."""
    folder.mkdir(parents=True)
    paths = [folder / f"model-{number}.safetensors" for number in range(count)]
    for number, path in enumerate(paths):
        with path.open("wb") as file:
            for block in range(megabytes):
                file.write(f"{number} {block} ".encode().ljust(_BLOCK_BYTES, b"."))
    time.sleep(0.1)
    return paths


def default_pipeline(scratch: Path, *, jobs: tuple[int, ...], runs: int) -> Part:
    """Build the default pipeline from nothing, with one job and with several in turn."""
    figures = {f"--jobs {count}": Figure() for count in jobs}
    for _ in range(runs):
        for count in jobs:
            place = scratch / "default"
            arguments = ["build", "default", "--out", str(place / "out"), "--jobs", str(count)]
            place.mkdir()
            begin = time.perf_counter()
            command(arguments, scratch, place / "cache", allowed=(0, 1))
            figures[f"--jobs {count}"].samples.append(time.perf_counter() - begin)
            shutil.rmtree(place)
    rows = [[f"`edgekiln build default {name}`", figure.text(1, 1)] for name, figure in figures.items()]
    data = {"seconds": samples(figures), "load": load()}
    return Part("The default pipeline from nothing", ("command", "seconds"), rows, data)
