"""Latency, in a fresh process per sample; `pp` and `tg` mean what they mean in llama-bench.

`measure` is one process; whoever orchestrates alternates processes of the artifact and its baselines, so that a
drifting machine hits all of them, and gives their samples to `aggregate`.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgekiln.errors import ArtifactError
from edgekiln.memory import peak_rss_bytes
from edgekiln.validators.base import MeasurementProtocol, Runtime

#: What is measured, in the report's names; `load_seconds` and `peak_rss_bytes` have one sample per process.
METRICS: Final = (
    "load_seconds",
    "time_to_first_token_seconds",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "peak_rss_bytes",
)


@dataclass(frozen=True)
class LatencySample:
    """What one process measured; one value per repeat, in the order of measurement.

    Attributes:
        load_seconds: From the artifact's path to a runtime that is ready; imports of Python modules are not counted.
        time_to_first_token_seconds: From a prompt of `prefill_tokens` to the first token, by the runtime's own call.
        peak_rss_bytes: Highest resident memory of the process.
    """

    load_seconds: float
    time_to_first_token_seconds: tuple[float, ...]
    prefill_tokens_per_second: tuple[float, ...]
    decode_tokens_per_second: tuple[float, ...]
    peak_rss_bytes: int


@dataclass(frozen=True)
class Latency:
    """Medians over all samples, with everything they are made of.

    Attributes:
        spread: (largest - smallest) / median per metric: 0 when all samples are equal.
        samples: The raw values per metric, in the order of measurement.
        runtime: What was timed, e.g. `llama.cpp`, and what of it by other means.
    """

    load_seconds: float
    time_to_first_token_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    peak_rss_bytes: int
    spread: dict[str, float]
    samples: dict[str, tuple[float, ...]]
    runtime: str


def _timed(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def measure(runtime: Runtime, path: Path, prompt: Sequence[int], protocol: MeasurementProtocol) -> LatencySample:
    """Load and time an artifact; call it once per process, before anything else has run there.

    Args:
        runtime: Not yet loaded.
        path: The artifact.
        prompt: `protocol.prefill_tokens` token ids.
        protocol: Lengths, warm-ups, repeats, threads.
    """
    if len(prompt) != protocol.prefill_tokens:
        raise ArtifactError(f"the latency prompt has {len(prompt)} tokens instead of {protocol.prefill_tokens}")
    for library in runtime.libraries:
        importlib.import_module(library)
    try:
        load = _timed(lambda: runtime.load(path, protocol.threads, protocol.context))
        for _ in range(protocol.warmups):
            runtime.first_token(prompt)
            runtime.decode(1)
        first, prefill, decode = [], [], []
        for _ in range(protocol.repeats):
            first.append(_timed(lambda: runtime.first_token(prompt)))
            prefill.append(len(prompt) / _timed(lambda: runtime.prefill(prompt)))
            decode.append(protocol.decode_tokens / _timed(lambda: runtime.decode(protocol.decode_tokens)))
        return LatencySample(load, tuple(first), tuple(prefill), tuple(decode), peak_rss_bytes())
    finally:
        runtime.end()


def _spread(values: Sequence[float]) -> float:
    middle = statistics.median(values)
    return (max(values) - min(values)) / middle if middle else 0.0


def aggregate(samples: Iterable[LatencySample], runtime: str) -> Latency:
    """Return the medians over the samples of several processes.

    Raises:
        ArtifactError: There is no sample.
    """
    measured = list(samples)
    if not measured:
        raise ArtifactError(f"latency in {runtime} has no sample")
    values: dict[str, tuple[float, ...]] = {
        "load_seconds": tuple(sample.load_seconds for sample in measured),
        "time_to_first_token_seconds": tuple(v for s in measured for v in s.time_to_first_token_seconds),
        "prefill_tokens_per_second": tuple(v for s in measured for v in s.prefill_tokens_per_second),
        "decode_tokens_per_second": tuple(v for s in measured for v in s.decode_tokens_per_second),
        "peak_rss_bytes": tuple(sample.peak_rss_bytes for sample in measured),
    }
    median = {metric: statistics.median(values[metric]) for metric in METRICS}
    return Latency(
        load_seconds=median["load_seconds"],
        time_to_first_token_seconds=median["time_to_first_token_seconds"],
        prefill_tokens_per_second=median["prefill_tokens_per_second"],
        decode_tokens_per_second=median["decode_tokens_per_second"],
        peak_rss_bytes=int(median["peak_rss_bytes"]),
        spread={metric: _spread(values[metric]) for metric in METRICS},
        samples=values,
        runtime=runtime,
    )
