"""Latency of many artifacts: everything that shares a runtime and its threads is timed in alternating processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from edgekiln.console import Console
from edgekiln.errors import EdgekilnError
from edgekiln.process import Limits
from edgekiln.validators import RUNTIME_NAMES
from edgekiln.validators.base import MeasurementProtocol
from edgekiln.validators.latency import Latency, LatencySample, aggregate
from edgekiln.validators.validate import Reference, sample_latency


@dataclass(frozen=True)
class Subject:
    """Something to time.

    Attributes:
        runtime: Key of `RUNTIMES`: an artifact's format, or `reference`.
        path: What that runtime loads.
        log: Gets the chatter of the runtime.
    """

    runtime: str
    path: Path
    log: Path


#: What was measured of a subject, or why it could not be.
Timing: TypeAlias = Latency | EdgekilnError


def time_alternating(
    subjects: Mapping[str, Subject],
    reference: Reference,
    protocol: MeasurementProtocol,
    *,
    group: str,
    limits: Limits,
    console: Console,
) -> dict[str, Timing]:
    """Time subjects in turn, `protocol.processes` times each in a fresh process.

    Alternating makes a machine that drifts hit artifact and baseline alike. A subject that fails is left out of
    the later rounds; the others go on.
    """
    samples: dict[str, list[LatencySample]] = {name: [] for name in subjects}
    failed: dict[str, EdgekilnError] = {}
    for number in range(protocol.processes):
        with console.step(group, f"latency, round {number + 1} of {protocol.processes}, {len(subjects)} in turn"):
            for name, subject in subjects.items():
                if name in failed:
                    continue
                try:
                    samples[name].append(
                        sample_latency(
                            subject.runtime, subject.path, reference, protocol, log=subject.log, limits=limits
                        )
                    )
                except EdgekilnError as error:
                    failed[name] = error
    return {
        name: failed[name] if name in failed else aggregate(samples[name], RUNTIME_NAMES[subject.runtime])
        for name, subject in subjects.items()
    }
