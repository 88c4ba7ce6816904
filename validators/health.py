"""One word on a build, healthy, degraded or unhealthy, and what to do about each thing found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from edgekiln.validators.report import BuildReport, GateReport, HealthReport

#: A passed limit on quality that is nearer than this share of it is worth a word.
_MARGIN: Final = 0.1
#: Above this share of the processors' time used by others, speeds say little.
_BUSY: Final = 0.15

#: Figures whose scatter is worth a word: those that gates compare.
_SPEEDS: Final = frozenset({"latency.prefill_tokens_per_second", "latency.decode_tokens_per_second"})
_MORE_BITS: Final = "use smaller groups, zero points (symmetric: false) or a precision with more bits"
_DECODE: Final = (
    "where mean_kld is good, look at the cache (positions, its type) in the runtime and the artifact; else "
    + _MORE_BITS
)
_BEST_AT_1: Final = frozenset({"top1_agreement", "top1_agreement_clear", "perplexity_ratio"})
#: What to do where a gate on this metric fails or nearly does.
_CURES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "mean_kld": _MORE_BITS,
        "median_kld": _MORE_BITS,
        "p95_kld": _MORE_BITS,
        "p99_kld": _MORE_BITS,
        "p999_kld": _MORE_BITS,
        "max_kld": _MORE_BITS,
        "top1_agreement": _MORE_BITS,
        "top1_agreement_clear": _MORE_BITS,
        "rms_delta_p": _MORE_BITS,
        "decode_mean_kld": _DECODE,
        "long_context_mean_kld": _MORE_BITS,
        "weights_relative_error": _MORE_BITS,
        "perplexity": _MORE_BITS,
        "perplexity_ratio": _MORE_BITS,
        "greedy_agreement_tokens": _MORE_BITS,
        "size_bytes": "use larger groups or a precision with fewer bits",
        "weights_bytes": "use larger groups or a precision with fewer bits",
        "bits_per_weight": "use larger groups, or fewer bits for embeddings and head",
        "peak_rss_bytes": "use a precision with fewer bits or a shorter context",
        "steady_rss_bytes": "use a precision with fewer bits or a shorter context",
        "load_seconds": "use a precision with fewer bits",
        "cold_load_seconds": "use a precision with fewer bits or a faster disk",
        "time_to_first_token_seconds": "use another precision or more threads",
        "prefill_tokens_per_second": "use another precision or more threads",
        "joules_per_token": "use a precision with fewer bits or fewer threads",
        "decode_tokens_per_second": "use a precision whose kernels are fast here, or set the gate to what you need",
    }
)


def _failures(build: BuildReport) -> Iterator[str]:
    if build.status == "error":
        log = f"; see {build.log}" if build.log else ""
        yield f"{build.reason}{log}"
    for check in build.structure:
        if check.outcome == "fail":
            yield f"{check.check} failed: {check.detail}; export it again, and do not ship this artifact"
    for gate in build.gates:
        if gate.outcome == "fail":
            yield f"{gate.metric} {gate.reason}; {_CURES.get(gate.metric, 'look into the report')}"
        elif gate.outcome == "not_measured" and gate.binding and build.status == "failed":
            yield f"{gate.metric} was not measured: {gate.reason}; measure again, or allow it with allow_not_measured"


def _is_close(gate: GateReport) -> bool:
    """Tell whether an absolute limit on quality was only just kept."""
    operator, _, limit = gate.limit.partition(" ")
    try:
        number = float(limit)
    except ValueError:
        return False  # a size, or relative to a baseline
    if gate.value is None or gate.outcome != "pass" or not number or _CURES.get(gate.metric) != _MORE_BITS:
        return False
    room = (number - gate.value) if operator.startswith("<") else (gate.value - number)
    # What is best at 1 has its room towards 1: a ratio of 1.02 under a limit of 1.3 is far from it.
    whole = abs(1 - number) if gate.metric in _BEST_AT_1 else number
    return room < _MARGIN * whole


def _warnings(build: BuildReport) -> Iterator[str]:
    for gate in build.gates:
        if _is_close(gate):
            yield (
                f"{gate.metric} {gate.value:.4g} is close to its limit ({gate.limit}): another checkpoint may fail; "
                f"{_CURES[gate.metric]}"
            )
    yield from _slowness(build)
    for name, reason in build.not_measured.items():
        if name in _SPEEDS and "too noisy" in reason:
            yield f"{name.removeprefix('latency.')} is {reason}; {_against_noise(build)}"
    if build.latency is not None and (build.latency.contention or 0) > _BUSY:
        yield (
            f"other processes used {build.latency.contention:.0%} of the processors meanwhile: speeds are lower than "
            "they could be; measure again on a quiet machine"
        )
    if build.notes:
        yield f"{build.notes[0]}{f' (and {len(build.notes) - 1} more)' if len(build.notes) > 1 else ''}; see notes"
    if build.stand_in is not None:
        missing = ", ".join(build.stand_in.not_measured)
        yield f"{build.stand_in.what}, which does not show {missing}; run the artifact once on the device"


def _against_noise(build: BuildReport) -> str:
    busy = build.latency is not None and (build.latency.contention or 0) > _BUSY
    if busy:
        return "measure again on a quiet machine"
    return "nothing else ran, so allow more rounds (max_repeats), or judge the speed of a larger model"


def _slowness(build: BuildReport) -> Iterator[str]:
    if build.latency is None or build.latency.fp16_artifact is None or build.precision in {"fp16", "f16", "bf16"}:
        return
    own, base = build.latency.decode_tokens_per_second, build.latency.fp16_artifact.decode_tokens_per_second
    if own and base and own < base:
        yield (
            f"it decodes at {own / base:.2f} times the speed of the fp16 artifact; use another precision here if speed "
            "matters"
        )


def health_report(build: BuildReport) -> HealthReport | None:
    """Return the health of a judged build: unhealthy when it did not pass, degraded when something is worth a word.

    Args:
        build: Everything but `health` is filled in.

    Returns:
        None for an unsupported build, which is no artifact at all.
    """
    if build.status == "unsupported":
        return None
    if build.status in {"failed", "error"}:
        return HealthReport(status="unhealthy", findings=tuple(_failures(build)))
    warnings = tuple(_warnings(build))
    return HealthReport(status="degraded" if warnings else "healthy", findings=warnings)
