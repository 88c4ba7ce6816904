"""Hashing a checkpoint against `sha256sum`, and the default pipeline with one and two jobs."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from common import Figure, Part, alternate, command, load, samples

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
        data[f"{count} x {megabytes // count} MiB"] = {"mebibytes": total, "seconds": samples(figures), "load": load()}
        for name, figure in figures.items():
            speed = "" if name == REMEMBERED else f"{total / figure.median:,.0f}"
            rows.append([f"{count} × {megabytes // count} MiB", name, figure.text(1, 4), speed])
    columns = ("files", "by", "seconds", "MiB/s")
    return Part("Hashing a checkpoint, files in the page cache", columns, rows, data, NOTES)


OURS, REMEMBERED = "Edgekiln", "Edgekiln, remembered"
#: Programs that print lines which begin with the hash; systems without the first have the second, which is Perl.
PROGRAMS = {
    "`sha256sum`": ("sha256sum",),
    "`shasum`": ("shasum", "-a", "256"),
    "`openssl`": ("openssl", "dgst", "-sha256", "-r"),
}
NOTES = ("Some builds of `sha256sum` do without the processor's instructions for SHA-256, which OpenSSL uses.",)


def _hash(folder: Path, files: list[Path], runs: int) -> dict[str, Figure]:
    def outside(words: Sequence[str]) -> list[str]:
        done = subprocess.run([*words, *map(str, files)], capture_output=True, text=True, check=True)
        return [line.split()[0] for line in done.stdout.splitlines()]

    def ours() -> list[str]:
        (folder / "memory.sqlite").unlink(missing_ok=True)
        return remembered()

    def remembered() -> list[str]:
        memory = HashMemory(folder / "memory.sqlite")
        found = memory.digests(files)
        memory.close()
        return found

    programs = {name: words for name, words in PROGRAMS.items() if shutil.which(words[0])}
    if "`sha256sum`" in programs:
        programs.pop("`shasum`", None)
    ways: dict[str, Callable[[], list[str]]] = {name: partial(outside, words) for name, words in programs.items()}
    ways |= {OURS: ours, REMEMBERED: remembered}
    if len({tuple(hash_all()) for hash_all in ways.values()}) != 1:
        raise RuntimeError(f"{', '.join(ways)} disagree")
    return alternate(ways, runs)


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
