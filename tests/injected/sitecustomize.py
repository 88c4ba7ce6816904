"""Faults for whole processes: with this folder on PYTHONPATH, Python imports this first, in every process of a build.

The variables, all of them optional:

    INJECT_WRITE_SECONDS    every write of a tensor happens in two halves, with this pause between them
    INJECT_PLAYED           what is not measured but played, of `reference`, `validate` and `latency`
    INJECT_NOT_PLAYED       artifacts with this in their path are validated in earnest nevertheless
    INJECT_PLAYED_SECONDS   how long each of these takes
    INJECT_SPANS            a file that gets [what, begin, end] of all that was played, and of every export
    INJECT_CLOCK_SECONDS    what the clock goes wrong by
    INJECT_CODE             the version of the code of all steps
"""

from __future__ import annotations

import contextlib
import importlib.abc
import json
import os
import sys
import time
from pathlib import Path

_clock = time.time


@contextlib.contextmanager
def _span(what):
    begin = _clock()
    yield
    if path := os.environ.get("INJECT_SPANS"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps([what, begin, _clock()]) + "\n")


def _tensor_files(module):
    pause = float(os.environ.get("INJECT_WRITE_SECONDS", "0"))
    put, enter, leave = module.TensorFiles.put, module.TensorFiles.__enter__, module.TensorFiles.__exit__
    spans = []

    def put_in_halves(self, file, offset, data):
        data = memoryview(data).cast("B")
        half = len(data) // 2
        put(self, file, offset, data[:half])
        time.sleep(pause)
        put(self, file, offset + half, data[half:])

    def enter_noted(self):
        spans.append(_span("export"))
        spans[-1].__enter__()
        return enter(self)

    def leave_noted(self, *error):
        leave(self, *error)
        spans.pop().__exit__(None, None, None)

    if pause:
        module.TensorFiles.put = put_in_halves
    module.TensorFiles.__enter__, module.TensorFiles.__exit__ = enter_noted, leave_noted


def _graph(module):
    seconds = float(os.environ.get("INJECT_PLAYED_SECONDS", "0"))

    def make_reference(checkpoint, protocol, directory, *, corpus, **_):
        from edgekiln.validators.compare import INDEX, REFERENCE_SCHEMA

        found = module.read_corpus(corpus)
        index = {
            "schema": REFERENCE_SCHEMA,
            "vocabulary": 4096,
            "rounding": {"overflowed": 0, "underflowed": 0},
            "text": {
                "corpus": {"name": found.name, "sha256": found.sha256, "tokens": 3},
                "windows": [{"section": "text", "ids": [1, 2, 3]}],
                "long": [],
                "prompts": [],
                "stop": [],
                "latency_prompt": [1] * max(protocol.prefill_tokens),
            },
        }
        with _span("reference"):
            time.sleep(seconds)
            (directory / INDEX).write_text(json.dumps(index))

    validate = module.validate_artifact
    in_earnest = os.environ.get("INJECT_NOT_PLAYED")

    def validate_artifact(path, reference, protocol, expected, **options):
        from edgekiln.validators.parity import Parity

        if in_earnest and in_earnest in str(path):
            return validate(path, reference, protocol, expected, **options)
        with _span("validate"):
            time.sleep(seconds)
            parity = Parity(1e-4, 1e-4, 1e-4, 1e-4, 1.0, 9.0, 9.0, 2.0, protocol.greedy_tokens, 3)
            size = sum(file.stat().st_size for file in path.iterdir())
            return module.ArtifactMetrics("gguf", (), parity, size, size, 4.5, {"q4_0": 9}, {})

    if "reference" in os.environ.get("INJECT_PLAYED", ""):
        module.make_reference = make_reference
    if "validate" in os.environ.get("INJECT_PLAYED", ""):
        module.validate_artifact = validate_artifact


def _measure(module):
    seconds = float(os.environ.get("INJECT_PLAYED_SECONDS", "0"))
    speeds = ("prefill_tokens_per_second", "decode_tokens_per_second", "time_to_first_token_seconds", "load_seconds")

    def sample_latency(kind, path, reference, protocol, **_):
        names = [f"pp{count}" for count in protocol.prefill_tokens] + [f"tg{count}" for count in protocol.decode_tokens]
        with _span("latency"):
            time.sleep(seconds)
            values = dict.fromkeys([*speeds, *names, "steady_rss_bytes", "peak_rss_bytes"], 100.0)
            return module.LatencySample(values, 0.0, None)

    def sample_load(kind, path, protocol, **_):
        with _span("cold load"):
            return 0.1

    if "latency" in os.environ.get("INJECT_PLAYED", ""):
        module.sample_latency, module.sample_load = sample_latency, sample_load


def _code_version(module):
    if version := os.environ.get("INJECT_CODE"):
        module.code_version = lambda *_modules, **_own: version


_CHANGES = {
    "edgekiln.tensor_files": _tensor_files,
    "edgekiln.pipelines.graph": _graph,
    "edgekiln.pipelines.measure": _measure,
    "edgekiln.engine.code_version": _code_version,
}


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules as the others do, and has them changed after they were loaded."""

    def find_spec(self, name, path=None, target=None):
        if name not in _CHANGES:
            return None
        found = (other.find_spec(name, path, target) for other in sys.meta_path if other is not self)
        spec = next((each for each in found if each is not None), None)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            _CHANGES[name](module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder())
if wrong_by := float(os.environ.get("INJECT_CLOCK_SECONDS", "0")):
    _nanoseconds = time.time_ns
    time.time = lambda: _clock() + wrong_by
    time.time_ns = lambda: _nanoseconds() + int(wrong_by * 1e9)
