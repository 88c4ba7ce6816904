"""Feeding damaged files to every parser of ours: `python tests/fuzz.py --inputs 20000 --seed 1`.

Each parser gets mutations of sound inputs. It may accept them or refuse them with an error of ours; anything else is
found and written down: another exception, more than a second of processor time, more memory than its bound. The same
seed gives the same inputs. Every parser runs in a process of its own with a limit on its memory, so that what it takes
is counted and a crash costs only its parser.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Seconds of processor time that one input may take; the largest seed takes a twentieth.
MAX_SECONDS = 2.0
#: Memory beyond what importing took that a parser may take for its seeds and mutations, all of which are below 4 MB.
MAX_GROWTH_BYTES = 400 << 20
#: Kept of each seed: what comes later is data, which parsers of headers never see.
_MAX_SEED_BYTES = 1 << 19
_NUMBERS = (
    0,
    1,
    2,
    7,
    8,
    0x7F,
    0x80,
    0xFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
)
_TOKENS = (
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"null", b"true", b"-1", b"1e999", b"NaN", b"9" * 40, b"\x00",
    b"\xff\xfe",
    b"\\ud800", b"../", b"/etc/passwd", b"&a", b"*a", b"<<: *a", b"!!python/object:os.system", b"{{", b"}}",
    b"{% for i in range(999999999) %}",
    b"__class__", b"[" * 300, b'{"a":' * 300, b"\n- ", b"\t", b"\r\n", b"'", b"%", b"\xf0\x9f\x98\x80", b"\xc2\xa0",
)  # fmt: skip

Parse = Callable[[Path], object]


@dataclass(frozen=True)
class Parser:
    """One parser.

    Attributes:
        name: What it is called; the file that is damaged.
        seeds: Returns sound inputs.
        parse: Reads the damaged file; raises an EdgekilnError where it refuses it.
        place: Puts the damaged bytes where the parser looks for them and returns what it is given.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    parse: Parse
    place: Callable[[Path, bytes], Path]


@dataclass(frozen=True)
class Fault:
    """What a parser did that it must not do."""

    parser: str
    number: int
    what: str
    data: bytes


# --- mutations ----------------------------------------------------------------------------------------------------


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return a damaged copy."""
    buffer = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        rng.choice(_MUTATIONS)(buffer, rng)
    return bytes(buffer)


def _position(buffer: bytearray, rng: random.Random) -> int:
    """Return a place, often near the beginning, where headers have their counts."""
    return rng.randrange(min(len(buffer), rng.choice((64, 1024, len(buffer)))) or 1) if buffer else 0


def _flip(buffer: bytearray, rng: random.Random) -> None:
    if buffer:
        buffer[_position(buffer, rng)] ^= 1 << rng.randrange(8)


def _number(buffer: bytearray, rng: random.Random) -> None:
    at, width = _position(buffer, rng), rng.choice((1, 2, 4, 8))
    value = rng.choice(_NUMBERS) & ((1 << 8 * width) - 1)
    buffer[at : at + width] = value.to_bytes(width, "little")


def _token(buffer: bytearray, rng: random.Random) -> None:
    at = _position(buffer, rng)
    buffer[at : at + rng.choice((0, 0, 1, 8))] = rng.choice(_TOKENS)


def _cut(buffer: bytearray, rng: random.Random) -> None:
    at = _position(buffer, rng)
    del buffer[at : at + rng.choice((1, 4, 16, 256))]


def _truncate(buffer: bytearray, rng: random.Random) -> None:
    del buffer[_position(buffer, rng) :]


def _double(buffer: bytearray, rng: random.Random) -> None:
    at, count = _position(buffer, rng), rng.choice((1, 8, 64, 1024))
    buffer[at:at] = buffer[at : at + count] * rng.choice((1, 2, 50))


def _digits(buffer: bytearray, rng: random.Random) -> None:
    """Put another number where the text has one."""
    places = [index for index in range(min(len(buffer), 1 << 16)) if 48 <= buffer[index] <= 57]
    if places:
        at = rng.choice(places)
        buffer[at : at + 1] = rng.choice((b"-1", b"0", b"1e400", b"99999999999999999999", b"1.5", b"true", b'"7"'))


def _swap(buffer: bytearray, rng: random.Random) -> None:
    one, other, count = _position(buffer, rng), _position(buffer, rng), rng.choice((4, 8, 32))
    first, second = bytes(buffer[one : one + count]), bytes(buffer[other : other + count])
    buffer[one : one + len(second)] = second
    buffer[other : other + len(first)] = first


_MUTATIONS: Sequence[Callable[[bytearray, random.Random], None]] = (
    _flip, _number, _number, _token, _cut, _truncate, _double, _digits, _swap,
)  # fmt: skip


# --- the parsers ----------------------------------------------------------------------------------------------------


def file_named(name: str) -> Callable[[Path, bytes], Path]:
    """Return what writes a file of that name and gives its path."""

    def place(directory: Path, data: bytes) -> Path:
        path = directory / name
        path.write_bytes(data)
        return path

    return place


def beside(name: str, files: Callable[[], Mapping[str, bytes]]) -> Callable[[Path, bytes], Path]:
    """Return what writes a file beside others and gives their folder."""

    def place(directory: Path, data: bytes) -> Path:
        for other, content in files().items():
            if not (directory / other).exists():
                (directory / other).parent.mkdir(parents=True, exist_ok=True)
                (directory / other).write_bytes(content)
        (directory / name).write_bytes(data)
        return directory

    return place


def parsers() -> tuple[Parser, ...]:
    from fuzz_parsers import PARSERS

    return tuple(Parser(*entry) for entry in PARSERS)


# --- running ----------------------------------------------------------------------------------------------------


def fuzz(parser: Parser, inputs: int, seed: int) -> tuple[list[Fault], float]:
    """Feed a parser; return its faults, at most twenty, and the longest time that one input took."""
    from edgekiln.errors import EdgekilnError

    rng = random.Random(f"{seed}-{parser.name}")  # noqa: S311 - the same inputs for the same seed
    seeds = [data[:_MAX_SEED_BYTES] for data in parser.seeds()]
    faults: list[Fault] = []
    longest = 0.0
    with tempfile.TemporaryDirectory(prefix="edgekiln-fuzz-") as scratch:
        for number in range(inputs):
            data = rng.choice(seeds) if number < len(seeds) else mutate(rng.choice(seeds), rng)
            given = parser.place(Path(scratch), data)
            begin, what = time.process_time(), None
            try:
                parser.parse(given)
            except EdgekilnError:
                pass
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what we look for
                what = f"{type(error).__name__}: {str(error)[:200]}"
            seconds = time.process_time() - begin
            longest = max(longest, seconds)
            if what is None and seconds > MAX_SECONDS:
                what = f"{seconds:.1f} s"
            if what is not None:
                faults.append(Fault(parser.name, number, what, data))
                if len(faults) == 20:
                    break
    return faults, longest


def _child(name: str, inputs: int, seed: int, into: Path) -> None:
    """Fuzz one parser in this process and write down what came of it."""
    parser = next(parser for parser in parsers() if parser.name == name)
    with tempfile.TemporaryDirectory() as scratch:  # the first run imports what the parser needs
        parser.parse(parser.place(Path(scratch), parser.seeds()[0]))
    _limit_memory()
    faults, longest = fuzz(parser, inputs, seed)
    found = [{"number": fault.number, "what": fault.what, "data": fault.data.hex()} for fault in faults]
    into.write_text(json.dumps({"faults": found, "longest": longest}))


def _limit_memory() -> None:
    """Let this process grow by a bounded amount; what wants more gets a MemoryError, which is a fault."""
    try:
        import resource
    except ImportError:  # Windows
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        limit = pages * resource.getpagesize() + MAX_GROWTH_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def run(name: str, inputs: int, seed: int) -> dict[str, Any]:
    """Fuzz one parser in a process of its own and return what came of it."""
    with tempfile.TemporaryDirectory() as scratch:
        into = Path(scratch) / "found.json"
        command = [
            sys.executable,
            __file__,
            "--child",
            name,
            "--inputs",
            str(inputs),
            "--seed",
            str(seed),
            "--into",
            into,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not into.exists():
            what = f"ended with {done.returncode}: {done.stderr[-500:]}"
            return {"faults": [{"number": -1, "what": what, "data": ""}], "longest": 0.0}
        answer: dict[str, Any] = json.loads(into.read_text())
        return answer


def names() -> list[str]:
    """Return the names of all parsers."""
    return [parser.name for parser in parsers()]


def main() -> int:
    """Fuzz and print a line for each parser."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--inputs", type=int, default=2000, help="for each parser")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--parser", action="append", help="one parser only; repeatable")
    arguments.add_argument("--keep", type=Path, help="write inputs that were found there")
    arguments.add_argument("--child", help=argparse.SUPPRESS)
    arguments.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.child:
        _child(given.child, given.inputs, given.seed, given.into)
        return 0
    failed = 0
    for name in given.parser or names():
        found = run(name, given.inputs, given.seed)
        print(f"{name}: {given.inputs} inputs, {len(found['faults'])} faults, longest {found['longest'] * 1000:.0f} ms")
        for fault in found["faults"]:
            failed += 1
            print(f"  input {fault['number']}: {fault['what']}")
            if given.keep:
                given.keep.mkdir(parents=True, exist_ok=True)
                (given.keep / f"{name}-{fault['number']}").write_bytes(bytes.fromhex(fault["data"]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
