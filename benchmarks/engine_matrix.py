"""Matrices of any size: how long a run takes that has nothing to make, and how long planning takes.

Run as a program, this module fills a cache and an output folder: the real command, but artifacts are real ones cut
short, and what is measured is measured once for each format and taken for all artifacts of it.

    python benchmarks/engine_matrix.py PIPELINE TARGETS OUT
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import Part, cost_of, environment, load, mib, samples

PER_TARGET = 10
COLUMNS = ("seconds", "processor time, seconds", "peak memory, MiB")
#: Files of canned artifacts have no more.
LARGE_BYTES = 16384
SETTINGS = {
    "window": 16,
    "windows": 1,
    "greedy_tokens": 4,
    "prefill_tokens": [16, 8],
    "decode_tokens": [8, 4],
    "max_repeats": 3,
    "max_spread": 10,
    "threads": 1,
}
GGUF = (
    *("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "q4_k_m", "q5_k_m", "q6_k"),
    *("q3_k_m", "q2_k", "q3_k_s", "q3_k_l", "q4_k_s", "q5_k_s", "iq4_xs", "fp16", "bf16"),
)


def _gguf_schemes() -> Iterator[dict[str, object]]:
    for embedding, precision in itertools.product((None, "q8_0", "fp16", "q4_0", "q5_0", "q6_k", "q4_1"), GGUF):
        yield {"precision": precision} | ({"embedding_precision": embedding} if embedding else {})


def _onnx_schemes() -> Iterator[dict[str, object]]:
    kinds = itertools.product((None, "int8", "fp16"), ("int4", "int8"), (32, 64, 128, 16, 256), (True, False))
    for (embedding, precision, group, symmetric), head in itertools.product(kinds, (None, "int8")):
        scheme = {"precision": precision, "group_size": group, "symmetric": symmetric, "head_precision": head}
        scheme["embedding_precision"] = embedding
        yield {key: value for key, value in scheme.items() if value is not None}


def write_matrix(folder: Path, builds: int, per_target: int = PER_TARGET) -> tuple[Path, Path]:
    """Write a pipeline with as many builds, and targets that extend two templates; return both files.

    Targets differ in the context that they plan for, so no two builds have an artifact in common.
    """
    rest = {"execution_provider": "cpu", "verified": "never"}
    templates = {
        "gguf": {"format": "gguf", "runtime": {"name": "llama.cpp", "version": ">=0.3"}, **rest},
        "onnx": {"format": "onnx", "runtime": {"name": "onnxruntime-genai", "version": ">=0.1"}, **rest},
    }
    targets: dict[str, object] = {}
    lines: list[dict[str, object]] = []
    for number in range(-(-builds // per_target)):
        container = ("gguf", "onnx")[number % 2]
        name = f"{container}-{number}"
        targets[name] = {"extends": container, "description": f"Device {number}", "context_length": 256 + number}
        schemes = _gguf_schemes() if container == "gguf" else _onnx_schemes()
        lines += [{"target": name, **scheme} for scheme in itertools.islice(schemes, per_target)]
    pipeline = {"schema": "edgekiln.pipeline/1", "name": "matrix", "settings": SETTINGS, "builds": lines[:builds]}
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "pipeline.yaml", folder / "targets.yaml"
    # YAML takes JSON; a line for each build, as in a file that was written by hand.
    paths[0].write_text(_lines(pipeline), encoding="utf-8")
    paths[1].write_text(_lines({"schema": "edgekiln.targets/1", "templates": templates, "targets": targets}))
    return paths


def _lines(document: Mapping[str, Any]) -> str:
    """Return a document as YAML, with a line for each entry of its parts."""
    text = ""
    for key, value in document.items():
        if isinstance(value, list):
            text += f"{key}:\n" + "".join(f"  - {json.dumps(each)}\n" for each in value)
        elif isinstance(value, dict):
            text += f"{key}:\n" + "".join(f"  {name}: {json.dumps(each)}\n" for name, each in value.items())
        else:
            text += f"{key}: {json.dumps(value)}\n"
    return text


# --- a run with nothing to make --------------------------------------------------------------------------------------


def noop(scratch: Path, *, builds: int, runs: int) -> Part:
    """Fill a cache with the results of a matrix, then time the command, which finds all of them."""
    folder, cache, out = scratch / "noop", scratch / "noop-cache", scratch / "noop" / "out"
    pipeline, targets = write_matrix(folder, builds)
    fill = [sys.executable, str(Path(__file__)), str(pipeline), str(targets), str(out)]
    filled = subprocess.run(fill, env=environment(scratch, cache), capture_output=True, text=True, check=False)
    if filled.returncode not in {0, 1}:
        sys.exit(f"the cache could not be filled:\n{filled.stderr[-2000:]}")
    arguments = ["build", str(pipeline), "--targets", str(targets), "--out", str(out)]
    build, peak = cost_of(arguments, scratch, cache, runs, allowed=(0, 1))
    nothing, least = cost_of(["--help"], scratch, cache, runs)
    events = _endings(out / "logs" / "run.jsonl")
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    steps = sum(1 for _ in (cache / "v1" / "entries").glob("*/*.json"))
    rows = [
        [f"`edgekiln build`, {builds} builds, nothing to make", build.wall.text(), build.processor.text(), mib(peak)],
        ["`edgekiln --help`", nothing.wall.text(), nothing.processor.text(), mib(least)],
    ]
    data = {
        "builds": len(report["builds"]),
        "results": steps,
        "began_again": events.count("begin"),
        "peak_memory_bytes": peak,
        "seconds": samples({"build": build.wall, "--help": nothing.wall}),
        "processor_seconds": samples({"build": build.processor, "--help": nothing.processor}),
        "load": load(),
    }
    notes = [f"{steps:,} results in the cache; {events.count('begin')} steps began in all timed runs together."]
    return Part("A run with nothing to make", ("command", *COLUMNS), rows, data, notes)


def _endings(run_log: Path) -> list[str]:
    """Return the events of all runs but the first, which filled the cache."""
    events = [json.loads(line) for line in run_log.read_text(encoding="utf-8").splitlines()]
    return [event["event"] for event in events if event["run"] != events[0]["run"]]


# --- planning --------------------------------------------------------------------------------------------------------


def planning(scratch: Path, *, counts: Sequence[int], runs: int) -> Part:
    """Time `edgekiln plan` of the shipped pipelines and of large ones."""
    rows, data = [], {}
    for name, arguments in _plans(scratch, counts):
        cost, peak = cost_of(arguments, scratch, scratch / "cache", runs)
        rows.append([name, cost.wall.text(), cost.processor.text(), mib(peak)])
        data[name] = {
            "seconds": cost.wall.samples,
            "processor_seconds": cost.processor.samples,
            "peak_memory_bytes": peak,
            "load": load(),
        }
    return Part("Planning", ("`edgekiln plan`", *COLUMNS), rows, data)


def _plans(scratch: Path, counts: Sequence[int]) -> Iterator[tuple[str, list[str]]]:
    for name in ("default", "devices"):
        yield name, ["plan", name]
    for count in counts:
        pipeline, targets = write_matrix(scratch / f"plan-{count}", count, per_target=100)
        for form in ("table", "json"):
            yield f"{count:,} builds, {form}", ["plan", str(pipeline), "--targets", str(targets), "--format", form]


# --- filling ---------------------------------------------------------------------------------------------------------


def fill(pipeline: str, targets: str, out: str) -> None:
    """Run `edgekiln build` with all that is slow done once for each format."""
    from edgekiln.__main__ import main
    from edgekiln.pipelines import graph

    with tempfile.TemporaryDirectory() as keep:
        canned = _Canned(graph, Path(keep))
        graph.export_in_child = canned.export
        graph.validate_artifact = canned.validate
        graph.time_alternating = canned.time
        os.fsync = lambda _descriptor: None  # a power loss costs this run alone
        main(["build", pipeline, "--targets", targets, "--out", out, "--jobs", "2"])


class _Canned:
    """Does the slow parts of steps for the first artifact of each format and says the same of the others."""

    def __init__(self, graph: Any, keep: Path) -> None:
        self._graph, self._keep = graph, keep
        self._export, self._validate, self._time = (
            graph.export_in_child,
            graph.validate_artifact,
            graph.time_alternating,
        )
        self._lock = threading.Lock()
        self._answers: dict[str, Any] = {}
        self._metrics: dict[str, Any] = {}
        self._latencies: dict[str, Any] = {}

    def export(self, checkpoint: Any, plan: Any, requested: str, directory: Path, journal: Path, **others: Any) -> Any:
        """Write the first artifact of a format; of the others the same files, the large ones cut short."""
        real = self._keep / plan.format
        with self._lock:
            if plan.format not in self._answers:
                self._answers[plan.format] = self._export(checkpoint, plan, requested, real, journal, **others)
        directory.mkdir(parents=True, exist_ok=True)
        for path in real.iterdir():
            content = path.read_bytes()
            if len(content) > LARGE_BYTES:
                content = content[:LARGE_BYTES] + repr((plan.scheme, plan.device)).encode()
            (directory / path.name).write_bytes(content)
        return replace(self._answers[plan.format], files=())

    def validate(self, path: Path, reference: Any, protocol: Any, expected: Any, **others: Any) -> Any:
        """Validate the first artifact of a format."""
        kind = self._graph.identify_artifact(path).format
        with self._lock:
            if kind not in self._metrics:
                self._metrics[kind] = self._validate(
                    self._keep / kind, reference, protocol, replace(expected, precision=None), **others
                )
            return self._metrics[kind]

    def time(self, subjects: Mapping[str, Any], *arguments: Any, **named: Any) -> dict[str, Any]:
        """Time the first artifact of a format; the reference, which takes a minute, gets the speeds of GGUF."""
        for subject in subjects.values():
            kind = _timed_as(subject.runtime)
            if kind not in self._latencies:
                real = replace(subject, runtime=kind, path=self._graph.identify_artifact(self._keep / kind).path)
                self._latencies |= self._time({kind: real}, *arguments, **named)
        return {name: self._latencies[_timed_as(subject.runtime)] for name, subject in subjects.items()}


def _timed_as(runtime: str) -> str:
    return "gguf" if runtime == "reference" else runtime


if __name__ == "__main__":
    fill(*sys.argv[1:])
