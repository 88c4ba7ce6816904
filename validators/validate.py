"""Validation of one artifact, from its content alone: structure, tokenizer, parity and latency, each in a process."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgekiln.checkpoint import Checkpoint
from edgekiln.errors import ArtifactError
from edgekiln.process import Json, Limits, run_task
from edgekiln.validators.base import CheckResult, MeasurementProtocol
from edgekiln.validators.kinds import ArtifactKind, identify
from edgekiln.validators.latency import LatencySample
from edgekiln.validators.parity import Parity

_TASKS: Final = "edgekiln.validators.tasks"


def _run(task: str, request: Json, *, log: Path, limits: Limits | None) -> Json:
    return run_task(_TASKS, task, request, log=log, limits=limits)


@dataclass(frozen=True)
class Reference:
    """The reference's results on one corpus, kept in a directory for all artifacts of a checkpoint.

    Attributes:
        directory: Where its logits and token ids lie; the maker removes it.
        checkpoint: What it was made from.
        corpus: `name`, `sha256` and `tokens` of the corpus, for the report.
        scored_tokens: Positions at which artifacts are compared.
        overflowed: Weights beyond fp16's range.
        underflowed: Weights that fp16 rounds to zero.
        latency_prompt: Token ids for latency measurements.
        greedy_prompts: Number of prompts that were answered greedily.
    """

    directory: Path
    checkpoint: Checkpoint
    corpus: Mapping[str, Any]
    scored_tokens: int
    overflowed: int
    underflowed: int
    latency_prompt: tuple[int, ...]
    greedy_prompts: int


@dataclass(frozen=True)
class ArtifactMetrics:
    """All that validation found out about an artifact; gates turn it into a verdict.

    Attributes:
        format: `gguf`, `onnx` or `foundry-local`.
        structure: The structural checks, tokenizer and chat included.
        parity: None where the structure did not let the artifact run, or its runtime refused it.
        size_bytes: All files of the artifact.
        weights_bytes: All its tensors, shared ones once; None where it cannot be read so far.
        bits_per_weight: 8 · weights_bytes / weights of the reference.
        weights_by_type: How many weights lie in each type; empty where the artifact is not sound.
        not_measured: Metric group to the reason why it is missing.
    """

    format: str
    structure: tuple[CheckResult, ...]
    parity: Parity | None
    size_bytes: int
    weights_bytes: int | None
    bits_per_weight: float | None
    weights_by_type: Mapping[str, int]
    not_measured: Mapping[str, str]


def make_reference(
    checkpoint: Checkpoint,
    protocol: MeasurementProtocol,
    directory: Path,
    *,
    log: Path,
    corpus: Path | None = None,
    limits: Limits | None = None,
) -> Reference:
    """Run the reference once on a corpus and keep its results in `directory`, for all artifacts.

    Args:
        checkpoint: The reference.
        protocol: Windows and lengths; artifacts must be compared under the same one.
        directory: Made if need be; `logits.f32` has 4 bytes per scored token and vocabulary entry.
        log: Gets the chatter of the libraries.
        corpus: A file of the user's instead of the built-in corpus.
        limits: Time and memory of the process.

    Raises:
        UsageError: The corpus is missing or empty.
        StepError: The reference cannot be run.
    """
    directory.mkdir(parents=True, exist_ok=True)
    request = {
        "checkpoint": str(checkpoint.directory.resolve()),
        "corpus": str(corpus.resolve()) if corpus else None,
        "directory": str(directory.resolve()),
        "protocol": dataclasses.asdict(protocol),
    }
    _run("reference", request, log=log, limits=limits)
    return open_reference(directory, checkpoint)


def open_reference(directory: Path, checkpoint: Checkpoint) -> Reference:
    """Return the reference that `make_reference` kept in `directory`.

    Raises:
        StepError: There is none, or it is of another version.
    """
    from edgekiln.validators.tasks import read_reference

    index = read_reference(directory)
    return Reference(
        directory,
        checkpoint,
        index["corpus"],
        sum(len(window["ids"]) - 1 for window in index["windows"]),
        index["rounding"]["overflowed"],
        index["rounding"]["underflowed"],
        tuple(index["latency_prompt"]),
        len(index["greedy"]),
    )


def sample_latency(
    kind: str,
    path: Path,
    reference: Reference,
    protocol: MeasurementProtocol,
    *,
    log: Path,
    limits: Limits | None = None,
) -> LatencySample:
    """Return what one fresh process measures.

    Args:
        kind: Key of `RUNTIMES`: an artifact's format, or `reference`.
        path: What that runtime loads.
        reference: Gives the prompt.
        protocol: Lengths, warm-ups, repeats, threads.
        log: Gets the chatter of the runtime.
        limits: Time and memory of the process.
    """
    request = {
        "format": kind,
        "path": str(path.resolve()),
        "prompt": list(reference.latency_prompt),
        "protocol": dataclasses.asdict(protocol),
    }
    answer = _run("latency", request, log=log, limits=limits)
    cpus = answer["cpus"]
    return LatencySample(answer["values"], answer["contention"], None if cpus is None else tuple(cpus))


def sample_load(
    kind: str, path: Path, protocol: MeasurementProtocol, *, log: Path, limits: Limits | None = None
) -> float:
    """Return the seconds that one fresh process takes to load an artifact."""
    request = {"format": kind, "path": str(path.resolve()), "protocol": dataclasses.asdict(protocol)}
    return float(_run("load", request, log=log, limits=limits)["seconds"])


def artifact_size(kind: ArtifactKind) -> int:
    """Return the bytes of all files of an artifact."""
    if kind.root.is_file():
        return kind.root.stat().st_size
    return sum(path.stat().st_size for path in kind.root.rglob("*") if path.is_file())


def _check_chat(kind: ArtifactKind, protocol: MeasurementProtocol, log: Path, limits: Limits | None) -> CheckResult:
    """Foundry Local must load the directory, chat, and reply greedily as ORT GenAI does on the same directory.

    What the runtimes refuse is a failed check; a crash or a missing runtime is raised.
    """
    check = "foundry/chat"
    request = {"path": str(kind.path.resolve()), "protocol": dataclasses.asdict(protocol)}
    try:
        actual = _run("foundry_chat", request, log=log, limits=limits)
        expected = _run("genai_chat", request, log=log, limits=limits)
    except ArtifactError as error:
        return CheckResult(check, "fail", str(error))
    for number, (ours, theirs) in enumerate(zip(actual["replies"], expected["replies"], strict=True), start=1):
        for key in ("prompt_tokens", "text"):
            if ours[key] != theirs[key]:
                detail = f"conversation {number}: {key} {ours[key]!r}, but ORT GenAI has {theirs[key]!r}"
                return CheckResult(check, "fail", detail)
    first = actual["replies"][0]["first_token_seconds"]
    detail = (
        f"{len(actual['replies'])} greedy replies equal those of ORT GenAI; "
        f"Foundry Local loaded in {actual['load_seconds']:.2f} s, first token after {first:.2f} s"
    )
    return CheckResult(check, "pass", detail)


def _structure(
    kind: ArtifactKind, reference: Reference, protocol: MeasurementProtocol, log: Path, limits: Limits | None
) -> tuple[list[CheckResult], int | None, dict[str, int]]:
    """Return all structural checks, the bytes of the weights, and the types that they lie in.

    A runtime is only started on a sound artifact.
    """
    checkpoint = str(reference.checkpoint.directory.resolve())
    judged = {"path": str(kind.root.resolve()), "checkpoint": checkpoint}
    answer = _run("structure", judged, log=log, limits=limits)
    checks = [CheckResult(**entry) for entry in answer["checks"]]
    if any(entry.outcome == "fail" for entry in checks):
        return checks, answer["weights_bytes"], answer["weights_by_type"]
    request = {"format": kind.format, "path": str(kind.path.resolve()), "checkpoint": checkpoint}
    try:
        found = _run("tokenizer", request, log=log, limits=limits)["checks"]
        checks += [CheckResult(**entry) for entry in found]
    except ArtifactError as error:
        checks.append(CheckResult("tokenizer/ids", "fail", str(error)))
    if kind.format == "foundry-local":
        checks.append(_check_chat(kind, protocol, log, limits))
    return checks, answer["weights_bytes"], answer["weights_by_type"]


def _parity(
    kind: ArtifactKind, reference: Reference, protocol: MeasurementProtocol, log: Path, limits: Limits | None
) -> Parity:
    request = {
        "format": kind.format,
        "path": str(kind.path.resolve()),
        "reference": str(reference.directory.resolve()),
        "protocol": dataclasses.asdict(protocol),
    }
    return Parity(**_run("parity", request, log=log, limits=limits))


def validate_artifact(
    path: Path,
    reference: Reference,
    protocol: MeasurementProtocol,
    *,
    log: Path,
    limits: Limits | None = None,
) -> ArtifactMetrics:
    """Measure one artifact of any origin against the reference, but for its latency; nothing is judged here.

    Args:
        path: A GGUF file, or a directory.
        reference: Made by `make_reference` under the same protocol.
        protocol: Windows, lengths, repeats, threads.
        log: Gets the chatter of the runtimes.
        limits: Time and memory of each process.

    Raises:
        ArtifactError: There is no artifact, or it cannot be told what it is.
        UnsupportedError: It is of no known kind.
        StepError: A process crashed, hung or grew beyond its limits, or the reference is unusable.
        MachineError: A runtime is missing.
    """
    kind = identify(path)
    checks, weights_bytes, types = _structure(kind, reference, protocol, log, limits)
    bits = None if weights_bytes is None else 8 * weights_bytes / reference.checkpoint.weight_count
    parity: Parity | None = None
    reason: str | None = None
    failed = [check.check for check in checks if check.outcome == "fail"]
    if broken := [name for name in failed if not name.startswith("tokenizer/")]:
        reason = f"the artifact was not run, because {broken[0]} failed"
    else:
        try:
            parity = _parity(kind, reference, protocol, log, limits)
        except ArtifactError as error:
            reason = str(error)
            checks.append(CheckResult("parity/run", "fail", reason))
    missing = {} if reason is None else {"parity": reason, "latency": reason}
    size = artifact_size(kind)
    return ArtifactMetrics(kind.format, tuple(checks), parity, size, weights_bytes, bits, types, missing)
