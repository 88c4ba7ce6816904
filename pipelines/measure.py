"""Latency of many artifacts: everything that shares a runtime and its threads is timed in alternating processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from edgekiln.errors import EdgekilnError, MachineError
from edgekiln.pagecache import evict, files_below, warm
from edgekiln.process import Limits
from edgekiln.validators import RUNTIME_NAMES
from edgekiln.validators.base import MeasurementProtocol
from edgekiln.validators.latency import Latency, LatencySample, aggregate
from edgekiln.validators.validate import Reference, sample_latency, sample_load

#: Figures whose scatter asks for more rounds: those that gates compare.
_WATCHED: Final = ("prefill_tokens_per_second", "decode_tokens_per_second")
_NOT_ASKED: Final = "it is measured for artifacts only"


@dataclass(frozen=True)
class Subject:
    """Something to time.

    Attributes:
        runtime: Key of `RUNTIMES`: an artifact's format, or `reference`.
        path: What that runtime loads.
        log: Gets the chatter of the runtime.
        cold_load: Time loads from the disk as well.
    """

    runtime: str
    path: Path
    log: Path
    cold_load: bool = True


@dataclass(frozen=True)
class Rounds:
    """How often everything is timed.

    Attributes:
        least: Rounds in any case.
        most: Rounds at most.
        max_spread: Scatter of a speed (interquartile range over median) beyond which there is another round.
    """

    least: int
    most: int
    max_spread: float


#: What was measured of a subject, or why it could not be.
Timing: TypeAlias = Latency | EdgekilnError


@dataclass
class _Samples:
    """What was found out about one subject so far."""

    subject: Subject
    taken: list[LatencySample] = field(default_factory=list)
    cold_loads: list[float] = field(default_factory=list)
    no_cold_load: str | None = None
    error: EdgekilnError | None = None

    def __post_init__(self) -> None:
        if not self.subject.cold_load:
            self.no_cold_load = _NOT_ASKED

    def take(self, reference: Reference, protocol: MeasurementProtocol, limits: Limits) -> None:
        """Start the processes of one round: one that loads from the disk, one that does all the rest."""
        subject, files = self.subject, files_below(self.subject.path)
        try:
            if self.no_cold_load is None:
                self.no_cold_load = evict(files)
            if self.no_cold_load is None:
                seconds = sample_load(subject.runtime, subject.path, protocol, log=subject.log, limits=limits)
                self.cold_loads.append(seconds)
            warm(files)
            self.taken.append(
                sample_latency(subject.runtime, subject.path, reference, protocol, log=subject.log, limits=limits)
            )
        except EdgekilnError as error:
            self.error = error
        except OSError as error:
            self.error = MachineError(f"{subject.path.name} could not be timed: {error}")

    def result(self) -> Timing:
        if self.error is not None:
            return self.error
        name = RUNTIME_NAMES[self.subject.runtime]
        return aggregate(self.taken, name, cold_loads=self.cold_loads, no_cold_load=self.no_cold_load)

    def is_noisy(self, max_spread: float) -> bool:
        found = self.result()
        return isinstance(found, Latency) and any(found.spread[name] > max_spread for name in _WATCHED)


def time_alternating(
    subjects: Mapping[str, Subject],
    reference: Reference,
    protocol: MeasurementProtocol,
    rounds: Rounds,
    *,
    limits: Limits,
    advance: Callable[[float], None],
) -> dict[str, Timing]:
    """Time subjects in turn, once a round, each in fresh processes.

    Alternating makes a machine that drifts hit artifact and baseline alike. A subject that fails is left out of
    the later rounds; the others go on. While a speed scatters too much there are more rounds, of all subjects, so that
    what is compared was measured side by side.

    Args:
        subjects: By name.
        reference: Gives the prompt.
        protocol: Lengths, warm-ups, threads.
        rounds: How many.
        limits: Of every process.
        advance: Is told which share of the rounds that are sure to come is over.
    """
    samples = {name: _Samples(subject) for name, subject in subjects.items()}
    for number in range(1, rounds.most + 1):
        noisy = [name for name, found in samples.items() if number > 1 and found.is_noisy(rounds.max_spread)]
        if number > rounds.least and not noisy:
            break
        for turn, found in enumerate(samples.values()):
            if found.error is None:
                found.take(reference, protocol, limits)
            over = number - 1 + (turn + 1) / len(samples)
            advance(min(1.0, over / max(rounds.least, number)))
    return {name: found.result() for name, found in samples.items()}
