"""The figures of a build's report under the names that gates know; `edgekiln.validators.gates` says what each is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from edgekiln.validators.gates import METRICS, Evidence
from edgekiln.validators.report import BuildReport, Speeds


def _named(part: object) -> dict[str, float]:
    """Return the fields of a part of a report that have the name of a metric and a value."""
    found = ((name, getattr(part, name, None)) for name in METRICS)
    return {name: value for name, value in found if isinstance(value, int | float)}


def figures(build: BuildReport) -> dict[str, float]:
    """Return every measured figure of a build by its metric, in the metric's unit."""
    found = _named(build) | _named(build.parity) | _named(build.latency)
    if build.conservation is not None:
        found["weights_relative_error"] = build.conservation.relative_error
    if (parity := build.parity) is not None:
        if parity.reference_perplexity:
            found["perplexity_ratio"] = parity.perplexity / parity.reference_perplexity
        for name, path in (("decode_mean_kld", parity.decode), ("long_context_mean_kld", parity.long_context)):
            if path is not None:
                found[name] = path.mean_kld
    return found


def baseline_figures(build: BuildReport) -> dict[str, Mapping[str, float]]:
    """Return the figures of what a build is compared with in its own report, by `gates.BASELINES`."""
    latency, parity = build.latency, build.parity
    reference = _named(latency.reference if latency else None)
    if parity is not None:
        reference["perplexity"] = parity.reference_perplexity
    return {"fp16_artifact": _named(latency.fp16_artifact if latency else None), "reference": reference}


def samples(speeds: Speeds | None) -> Mapping[str, Sequence[float]]:
    """Return one value per round for each figure that was timed."""
    return speeds.samples if speeds is not None else MappingProxyType({})


def evidence(build: BuildReport, max_spread: float, others: Mapping[str, BuildReport]) -> Evidence:
    """Return the samples behind a build's figures and those of what it is compared with.

    Args:
        build: The build.
        max_spread: Scatter beyond which rounds on both sides of a limit decide nothing.
        others: Further baselines, by name: other builds, or the same one in an older report.
    """
    latency = build.latency
    # The reference is timed on its own, so only the fp16 artifact's rounds pair up with the artifact's.
    baselines = {"fp16_artifact": samples(latency.fp16_artifact if latency else None)}
    return Evidence(
        samples(latency),
        baselines | {name: samples(other.latency) for name, other in others.items()},
        max_spread=max_spread,
    )
