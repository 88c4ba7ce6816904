"""What the engine costs: per step, for a run with nothing to make, for planning, for hashing, for a whole build.

    python benchmarks/engine.py [overhead] [noop] [plan] [hash] [jobs] --json engine.json

Prints Markdown tables: medians, and the least and the most in brackets. Without parts named, all but `jobs` are
measured, which builds the default pipeline several times and takes a quarter of an hour. Nothing of the user's cache is
read or written. Run it on a quiet machine: it says how busy the machine was.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from common import Part, load, machine
from engine_files import default_pipeline, hashing
from engine_matrix import noop, planning
from engine_steps import many, overhead, where_it_goes

SCHEMA = "edgekiln.benchmark-engine/1"
Arguments = argparse.Namespace


def _overhead(given: Arguments, scratch: Path) -> Iterator[Part]:
    yield overhead(scratch, steps=given.steps, children=given.children, runs=given.runs)
    yield where_it_goes(scratch, steps=given.steps, runs=given.runs)
    yield many(scratch, counts=given.many)


def _noop(given: Arguments, scratch: Path) -> Iterator[Part]:
    yield noop(scratch, builds=given.builds, runs=given.runs)


def _plan(given: Arguments, scratch: Path) -> Iterator[Part]:
    yield planning(scratch, counts=given.plans, runs=given.runs)


def _hash(given: Arguments, scratch: Path) -> Iterator[Part]:
    yield hashing(scratch, megabytes=given.megabytes, runs=given.runs)


def _jobs(given: Arguments, scratch: Path) -> Iterator[Part]:
    yield default_pipeline(scratch, jobs=(1, 2), runs=given.builds_from_nothing)


PARTS: Mapping[str, Callable[[Arguments, Path], Iterator[Part]]] = {
    "overhead": _overhead,
    "noop": _noop,
    "plan": _plan,
    "hash": _hash,
    "jobs": _jobs,
}


def parse(arguments: list[str] | None = None) -> Arguments:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="|".join(PARTS), help="without any, all but jobs")
    parser.add_argument("--runs", type=int, default=5, help="of everything but jobs (%(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="trivial steps (%(default)s)")
    parser.add_argument("--children", type=int, default=20, help="trivial steps with a process each (%(default)s)")
    parser.add_argument("--many", type=int, nargs="+", default=[500, 1000, 2000], help="trivial steps, ever more")
    parser.add_argument("--builds", type=int, default=500, help="of the matrix with nothing to make (%(default)s)")
    parser.add_argument("--plans", type=int, nargs="+", default=[2500, 5000, 10000], help="builds that are planned")
    parser.add_argument("--megabytes", type=int, default=1000, help="that are hashed (%(default)s)")
    parser.add_argument("--builds-from-nothing", type=int, default=3, help="runs of jobs (%(default)s)")
    parser.add_argument("--scratch", type=Path, help="where files lie meanwhile; it decides what fsync costs")
    parser.add_argument("--json", type=Path, help="write all samples here")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.parts if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; choose of {', '.join(PARTS)}")
    return given


def main() -> None:
    """Measure, print, write."""
    given = parse()
    about = machine()
    print(f"{about['processor']}, {about['logical_cores']} cores, {about['system']}, Python {about['python']}\n")
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="edgekiln-engine-", dir=given.scratch) as scratch:
        for name in given.parts or [name for name in PARTS if name != "jobs"]:
            for part in PARTS[name](given, Path(scratch)):
                found[part.title] = part.data
                print(part.markdown(), flush=True)
    about["load_at_end"] = load()
    print(f"Load of the machine: {about['load_at_begin']} at the beginning, {about['load_at_end']} at the end.")
    if given.json:
        document = {"schema": SCHEMA, "machine": about, "parts": found}
        given.json.write_text(json.dumps(document, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
