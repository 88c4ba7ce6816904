"""How artifacts are measured under some settings, and how reports describe it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Final

from edgekiln.checkpoint import Checkpoint
from edgekiln.errors import ExitCode, UsageError
from edgekiln.host import hardware_names, logical_cores, memory_bytes, physical_cores
from edgekiln.pipelines.settings import Settings
from edgekiln.validators.base import MeasurementProtocol
from edgekiln.validators.report import CheckpointReport, HostReport, ProtocolReport, Report
from edgekiln.validators.validate import Reference

#: Room for a templated chat prompt before its greedy reply.
_PROMPT_TOKENS: Final = 480
_REFERENCE: Final = "Transformers on the fp16-rounded weights, computed in float32 on the CPU"


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    report: Report
    exit_code: ExitCode


def make_protocol(settings: Settings, threads: int) -> MeasurementProtocol:
    """Return how things are measured under these settings; each repeat of latency is a process of its own."""
    return MeasurementProtocol(
        window=settings.window,
        windows=settings.windows,
        greedy_tokens=settings.greedy_tokens,
        prefill_tokens=settings.prefill_tokens,
        decode_tokens=settings.decode_tokens,
        depths=settings.depths,
        decode_positions=settings.decode_positions,
        long_context=settings.long_context,
        warmups=settings.warmups,
        repeats=1,
        processes=settings.repeats,
        threads=threads,
        context=max(
            settings.window,
            max(settings.prefill_tokens) + 1,
            max(settings.decode_tokens) + 1,
            max(settings.depths, default=0) + min(settings.decode_tokens) + 1,
            settings.greedy_tokens + _PROMPT_TOKENS,
        ),
    )


def check_context(protocol: MeasurementProtocol, checkpoint: Checkpoint) -> None:
    """Refuse a measurement that is longer than the model's context.

    Raises:
        UsageError: Names the settings to lower.
    """
    limit = checkpoint.config.max_position_embeddings
    if protocol.context > limit:
        raise UsageError(
            f"the measurement needs a context of {protocol.context} tokens, but {checkpoint.source} has {limit}; "
            "lower window, prefill_tokens, decode_tokens, depths or greedy_tokens"
        )


def describe_host() -> HostReport:
    """Return this machine as reports name it."""
    return HostReport(
        system=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        processor=hardware_names(),
        logical_cores=logical_cores(),
        memory_bytes=memory_bytes(),
    )


def describe_checkpoint(checkpoint: Checkpoint, reference: Reference | None) -> CheckpointReport:
    """Return the checkpoint as reports name it."""
    return CheckpointReport(
        source=checkpoint.source,
        revision=checkpoint.revision,
        identity=checkpoint.identity,
        model_type=checkpoint.config.model_type,
        weights=checkpoint.weight_count,
        fp16_overflows=reference.overflowed if reference else None,
        fp16_underflows=reference.underflowed if reference else None,
    )


def describe_protocol(settings: Settings, reference: Reference, threads: set[int]) -> ProtocolReport:
    """Return how it was measured; `threads` are those of all builds."""
    protocol = make_protocol(settings, settings.threads or physical_cores())
    return ProtocolReport(
        window=protocol.window,
        scored_tokens=reference.scored_tokens,
        threads=threads.pop() if len(threads) == 1 else None,
        repeats=protocol.processes,
        warmups=protocol.warmups,
        prefill_tokens=protocol.prefill_tokens[0],
        decode_tokens=protocol.decode_tokens[0],
        prefill_lengths=protocol.prefill_tokens,
        decode_lengths=protocol.decode_tokens,
        max_spread=settings.max_spread,
        greedy_tokens=protocol.greedy_tokens,
        greedy_prompts=reference.greedy_prompts,
        reference=_REFERENCE,
    )
