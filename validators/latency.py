"""Latency, in a fresh process per sample; `pp` and `tg` mean what they mean in llama-bench.

`measure` is one process; whoever orchestrates alternates processes of the artifact and its baselines, so that a
drifting machine hits all of them, and gives their samples to `aggregate`.
"""

from __future__ import annotations

import importlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from edgekiln.affinity import pin
from edgekiln.errors import ArtifactError
from edgekiln.memory import current_rss_bytes, peak_rss_bytes, uncollected
from edgekiln.validators.base import MeasurementProtocol, Runtime
from edgekiln.validators.energy import EnergyMeter
from edgekiln.validators.spread import relative_spread

#: A run that is over in no time is repeated, so that the clock's and the scheduler's grain do not decide.
_LEAST_SECONDS: Final = 0.3
_MOST_RUNS: Final = 20


@dataclass(frozen=True)
class LatencySample:
    """What one process measured; each figure of a run is the median over the runs of that process.

    Attributes:
        values: By metric of `gates.TIMED`, and by the names below for each length. `load_seconds` goes from the path
            of the artifact to a runtime that is ready, imports of Python modules not counted.
        contention: Share of the processors' time that others used meanwhile, 0 to 1.
        cpus: The logical processors that the process was bound to; None where that cannot be done.
    """

    values: Mapping[str, float]
    contention: float
    cpus: tuple[int, ...] | None


@dataclass(frozen=True)
class Latency:
    """Medians over all processes, with everything they are made of.

    Attributes:
        values: Medians by metric, `ppN`, `tgN`, `tgN @ dM` (a cache of M tokens) and `tgN × M` (M sequences).
        spread: Interquartile range over median of each: 0 when all samples are equal.
        samples: One value per process, in the order of measurement.
        contention: Median of the processes' contention.
        cpus: The logical processors that the processes were bound to; None where that cannot be done.
        no_cold_load: Why no load was a cold one; None where it was measured.
        runtime: What was timed, e.g. `llama.cpp`, and what of it by other means.
    """

    values: Mapping[str, float]
    spread: Mapping[str, float]
    samples: Mapping[str, tuple[float, ...]]
    contention: float
    cpus: tuple[int, ...] | None
    no_cold_load: str | None
    runtime: str


def _timed(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def _settled(action: Callable[[], object], repeats: int) -> float:
    """Return the median time of enough runs: at least `repeats`, and more while they are short."""
    times: list[float] = []
    while len(times) < repeats or (sum(times) < _LEAST_SECONDS and len(times) < _MOST_RUNS):
        times.append(_timed(action))
    return statistics.median(times)


class _Contention:
    """How busy others keep the processors, from its making on."""

    def __init__(self) -> None:
        self._begin = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float]:
        """Return (processors' time, idle processors' time, our time), in seconds."""
        import psutil

        all_of_them, own = psutil.cpu_times(), psutil.Process().cpu_times()
        idle = all_of_them.idle + getattr(all_of_them, "iowait", 0.0)
        guests = getattr(all_of_them, "guest", 0.0) + getattr(all_of_them, "guest_nice", 0.0)  # counted in user
        return sum(all_of_them) - guests, idle, own.user + own.system

    def share(self) -> float:
        total, idle, own = (now - then for now, then in zip(self._read(), self._begin, strict=True))
        return min(1.0, max(0.0, (total - idle - own) / total)) if total > 0 else 0.0


def _import(libraries: Iterable[str]) -> None:
    """Import what a load is not timed with. Nothing of thousands of modules goes away, so nothing looks for it."""
    with uncollected():
        for library in libraries:
            importlib.import_module(library)


def load_once(runtime: Runtime, path: Path, protocol: MeasurementProtocol) -> float:
    """Return the seconds of one load; call it once per process. Whether it is a cold one is the caller's business."""
    pin(protocol.threads)
    _import(runtime.libraries)
    try:
        return _timed(lambda: runtime.load(path, protocol.threads, protocol.context))
    finally:
        runtime.end()


def measure(runtime: Runtime, path: Path, prompt: Sequence[int], protocol: MeasurementProtocol) -> LatencySample:
    """Load and time an artifact; call it once per process, before anything else has run there.

    Args:
        runtime: Not yet loaded.
        path: The artifact.
        prompt: As many token ids as the longest prefill has.
        protocol: Lengths, warm-ups, repeats, threads.
    """
    if len(prompt) != max(protocol.prefill_tokens):
        raise ArtifactError(f"the latency prompt has {len(prompt)} tokens instead of {max(protocol.prefill_tokens)}")
    cpus = pin(protocol.threads)  # before the libraries make their threads
    _import(runtime.libraries)
    first = prompt[: protocol.prefill_tokens[0]]
    try:
        values = {"load_seconds": _timed(lambda: runtime.load(path, protocol.threads, protocol.context))}
        for _ in range(protocol.warmups):
            runtime.first_token(first)
            runtime.decode(1)
        contention = _Contention()
        values["time_to_first_token_seconds"] = _settled(lambda: runtime.first_token(first), protocol.repeats)
        values |= _speeds(runtime, prompt, protocol)
        steady = current_rss_bytes()
        values |= {"steady_rss_bytes": steady, "peak_rss_bytes": max(steady, peak_rss_bytes())}
        values |= _energy(runtime, protocol) | _at_depths(runtime, prompt, protocol)
        if protocol.batches:
            runtime.end()
            values |= _in_batches(runtime, path, protocol)
        return LatencySample(values, contention.share(), cpus)
    finally:
        runtime.end()


def _speeds(runtime: Runtime, prompt: Sequence[int], protocol: MeasurementProtocol) -> dict[str, float]:
    """Return tokens per second at every length; the first length of each kind is the headline figure as well."""
    speeds: dict[str, float] = {}
    for length in protocol.prefill_tokens:
        part = prompt[:length]
        speeds[f"pp{length}"] = length / _settled(lambda part=part: runtime.prefill(part), protocol.repeats)  # type: ignore[misc]  # mypy cannot infer a lambda's default
    for length in protocol.decode_tokens:
        speeds[f"tg{length}"] = length / _settled(lambda length=length: runtime.decode(length), protocol.repeats)  # type: ignore[misc]  # the same
    speeds["prefill_tokens_per_second"] = speeds[f"pp{protocol.prefill_tokens[0]}"]
    speeds["decode_tokens_per_second"] = speeds[f"tg{protocol.decode_tokens[0]}"]
    return speeds


def _energy(runtime: Runtime, protocol: MeasurementProtocol) -> dict[str, float]:
    """Return the energy of a generated token, where the machine tells it; what else runs is counted in."""
    if (meter := EnergyMeter()).missing is not None:
        return {}
    generated, begin = 0, time.perf_counter()
    while generated == 0 or time.perf_counter() - begin < _LEAST_SECONDS:
        runtime.decode(protocol.decode_tokens[0])
        generated += protocol.decode_tokens[0]
    joules = meter.joules()
    return {} if joules is None else {"joules_per_token": joules / generated}


def _at_depths(runtime: Runtime, prompt: Sequence[int], protocol: MeasurementProtocol) -> dict[str, float]:
    """Return tokens generated per second with so many tokens in the cache; the prompt is repeated to get there."""
    count = min(protocol.decode_tokens)
    speeds: dict[str, float] = {}
    for depth in protocol.depths:
        filling = list(itertools.islice(itertools.cycle(prompt), depth))
        speeds[f"tg{count} @ d{depth}"] = count / runtime.decode_after(filling, count)
    return speeds


def _in_batches(runtime: Runtime, path: Path, protocol: MeasurementProtocol) -> dict[str, float]:
    """Return tokens per second of all sequences together, for each number of sequences."""
    count = min(protocol.decode_tokens)
    runtime.load(path, protocol.threads, protocol.context, max(protocol.batches))
    runtime.decode_together(max(protocol.batches), 1)
    speeds: dict[str, float] = {}
    for sequences in protocol.batches:
        seconds = _settled(lambda n=sequences: runtime.decode_together(n, count), protocol.repeats)  # type: ignore[misc]  # mypy cannot infer a lambda's default
        speeds[f"tg{count} × {sequences}"] = count * sequences / seconds
    return speeds


def aggregate(
    samples: Sequence[LatencySample],
    runtime: str,
    *,
    cold_loads: Sequence[float] = (),
    no_cold_load: str | None = None,
) -> Latency:
    """Return the medians over the samples of several processes.

    Args:
        samples: One per process.
        runtime: What was timed.
        cold_loads: Seconds of loads from the disk.
        no_cold_load: Why they do not count; None where they do.

    Raises:
        ArtifactError: There is no sample.
    """
    if not samples:
        raise ArtifactError(f"latency in {runtime} has no sample")
    gathered = {name: tuple(sample.values[name] for sample in samples) for name in samples[0].values}
    if cold_loads and no_cold_load is None:
        gathered["cold_load_seconds"] = tuple(cold_loads)
    return Latency(
        values=MappingProxyType({name: statistics.median(values) for name, values in gathered.items()}),
        spread=MappingProxyType({name: relative_spread(values) for name, values in gathered.items()}),
        samples=MappingProxyType(gathered),
        contention=statistics.median(sample.contention for sample in samples),
        cpus=samples[0].cpus,
        no_cold_load=no_cold_load,
        runtime=runtime,
    )
