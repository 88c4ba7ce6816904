"""Validation of one artifact, from its content alone: structure, tokenizer, parity and latency, each in a process."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from edgekiln.checkpoint import Checkpoint
from edgekiln.errors import ArtifactError, CheckpointError, ChildError, StepError
from edgekiln.process import Json, Limits, run_task
from edgekiln.validators.base import CheckResult, Finding, MeasurementProtocol
from edgekiln.validators.compare import read_reference
from edgekiln.validators.conservation import Conservation
from edgekiln.validators.kinds import ArtifactKind, identify
from edgekiln.validators.latency import LatencySample
from edgekiln.validators.parity import Parity
from edgekiln.validators.precision import Precision
from edgekiln.validators.runtime_fit import Requirement
from edgekiln.validators.template_tasks import check_templates, make_golden

_TASKS: Final = "edgekiln.validators.tasks"
#: What Hugging Face renders of the built-in conversations, or why it does not; beside the reference.
GOLDEN: Final = "golden.json"
_FIX: Final = "export it again; where that does not help, the log says what the runtime said"
_CHECKS: Final = TypeAdapter(tuple[CheckResult, ...])
_CONSERVATION: Final = TypeAdapter(Conservation | None)
_PRECISION: Final = TypeAdapter(Precision | None)
_REQUIREMENTS: Final = TypeAdapter(tuple[Requirement, ...])
_PARITY: Final = TypeAdapter(Parity)


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
class Expected:
    """What an artifact is held against, beside the reference.

    Attributes:
        precision: What was asked for, as the container names it; None where nobody asked.
        runtime: The runtime that is to load it, as targets name them; None for the one of this machine.
        versions: Its versions, as a PEP 440 range; empty for any.
        provider: Where it computes there.
        sampled: Compare some rows of each tensor instead of all.
    """

    precision: str | None = None
    runtime: str | None = None
    versions: str = ""
    provider: str = "cpu"
    sampled: bool = False


@dataclass(frozen=True)
class ArtifactMetrics:
    """All that validation found out about an artifact; gates turn it into a verdict.

    Attributes:
        format: `gguf`, `onnx` or `foundry-local`.
        structure: All checks, in the order in which they ran.
        parity: None where the structure did not let the artifact run, or its runtime refused it.
        size_bytes: All files of the artifact.
        weights_bytes: All its tensors, shared ones once; None where it cannot be read so far.
        bits_per_weight: 8 · weights_bytes / weights of the reference.
        weights_by_type: How many weights lie in each type; empty where the artifact is not sound.
        not_measured: Metric group to the reason why it is missing.
        conservation: Whether it holds the checkpoint's weights; None where they cannot be read.
        precision: What they lie in; None likewise.
        requirements: What it asks of each runtime that reads its kind.
    """

    format: str
    structure: tuple[CheckResult, ...]
    parity: Parity | None
    size_bytes: int
    weights_bytes: int | None
    bits_per_weight: float | None
    weights_by_type: Mapping[str, int]
    not_measured: Mapping[str, str]
    conservation: Conservation | None = None
    precision: Precision | None = None
    requirements: tuple[Requirement, ...] = ()


def make_reference(
    checkpoint: Checkpoint,
    protocol: MeasurementProtocol,
    directory: Path,
    *,
    log: Path,
    memory_bytes: int,
    corpus: Path | None = None,
    limits: Limits | None = None,
) -> Reference:
    """Run the reference once on a corpus and keep its results in `directory`, for all artifacts.

    Args:
        checkpoint: The reference.
        protocol: Windows and lengths; artifacts must be compared under the same one.
        directory: Made if need be.
        log: Gets the chatter of the libraries.
        memory_bytes: For weights and states; see `edgekiln.validators.layered`.
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
        "memory_bytes": memory_bytes,
    }
    with ThreadPoolExecutor(1) as beside:  # it is over before the reference has read its weights
        golden = beside.submit(_golden, checkpoint, log.with_suffix(".template.log"), limits)
        _run("reference", request, log=log, limits=limits)
        (directory / GOLDEN).write_text(json.dumps(golden.result()), encoding="utf-8")
    return open_reference(directory, checkpoint)


def _golden(checkpoint: Checkpoint, log: Path, limits: Limits | None) -> Json:
    """Return what Hugging Face renders, or `{"error": …}`: a checkpoint with a bad template may be judged otherwise."""
    try:
        return make_golden(checkpoint.directory, log=log, limits=limits)
    except (ChildError, CheckpointError) as error:
        return {"error": str(error)}


def open_reference(directory: Path, checkpoint: Checkpoint) -> Reference:
    """Return the reference that `make_reference` kept in `directory`.

    Raises:
        StepError: There is none, or it is of another version.
    """
    index = read_reference(directory)
    text = index.text
    return Reference(
        directory,
        checkpoint,
        text.corpus,
        sum(len(window.ids) - 1 for window in text.windows),
        index.rounding["overflowed"],
        index.rounding["underflowed"],
        text.latency_prompt,
        len(text.prompts),
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
        return _refused(check, error)
    for number, (ours, theirs) in enumerate(zip(actual["replies"], expected["replies"], strict=True), start=1):
        for key in ("prompt_tokens", "text"):
            if ours[key] != theirs[key]:
                detail = f"conversation {number}: {key} {ours[key]!r}, but ORT GenAI has {theirs[key]!r}"
                return CheckResult(
                    check, "fail", detail, (Finding(check, "error", f"conversation {number}", detail, _FIX),)
                )
    first = actual["replies"][0]["first_token_seconds"]
    detail = (
        f"{len(actual['replies'])} greedy replies equal those of ORT GenAI; "
        f"Foundry Local loaded in {actual['load_seconds']:.2f} s, first token after {first:.2f} s"
    )
    return CheckResult(check, "pass", detail)


@dataclass(frozen=True)
class _Judged:
    """What is asked of every process that looks at one artifact."""

    kind: ArtifactKind
    reference: Reference
    protocol: MeasurementProtocol
    log: Path
    limits: Limits | None

    @property
    def checkpoint(self) -> str:
        return str(self.reference.checkpoint.directory.resolve())

    def run(self, task: str, request: Json, *, root: bool = False) -> Json:
        """Run a task on what the runtime loads, or on the artifact as it was given."""
        path = self.kind.root if root else self.kind.path
        base = {"format": self.kind.format, "path": str(path.resolve()), "checkpoint": self.checkpoint}
        return _run(task, base | request, log=self.log, limits=self.limits)


def _refused(check: str, error: ArtifactError) -> CheckResult:
    """Return a check that fails because a runtime refuses the artifact."""
    return CheckResult(check, "fail", str(error), (Finding(check, "error", "artifact", str(error), _FIX),))


def _text_checks(judged: _Judged) -> list[CheckResult]:
    """Return the checks of tokenizer and chat template, which the artifact's runtime takes part in."""
    with ThreadPoolExecutor(1) as beside:  # each has one thread that works, and little memory
        templates = beside.submit(_template_checks, replace(judged, log=judged.log.with_suffix(".template.log")))
        checks: list[CheckResult] = []
        try:
            checks += _CHECKS.validate_python(judged.run("tokenizer", {})["checks"])
        except ArtifactError as error:
            checks.append(_refused("tokenizer/ids", error))
        try:
            checks += templates.result()
        except ArtifactError as error:
            checks.append(_refused("template/render", error))
    if judged.kind.format == "foundry-local":
        checks.append(_check_chat(judged.kind, judged.protocol, judged.log, judged.limits))
    return checks


def _template_checks(judged: _Judged) -> list[CheckResult]:
    """Compare chat templates with what Hugging Face rendered when the reference was made.

    Raises:
        StepError: That is gone or damaged.
    """
    try:
        made = json.loads((judged.reference.directory / GOLDEN).read_bytes())
    except (OSError, ValueError) as error:
        raise StepError(f"{judged.reference.directory} holds no usable {GOLDEN} ({error}); make it again") from None
    if "error" in made:
        return [CheckResult("template/render", "not_measured", f"there is nothing to compare with: {made['error']}")]
    kind = judged.kind
    return check_templates(kind.format, kind.path, made, log=judged.log, limits=judged.limits)


def validate_artifact(
    path: Path,
    reference: Reference,
    protocol: MeasurementProtocol,
    expected: Expected,
    *,
    log: Path,
    limits: Limits | None = None,
) -> ArtifactMetrics:
    """Measure one artifact of any origin against the reference, but for its latency; nothing is judged here.

    A runtime is only started on an artifact whose structure is sound.

    Args:
        path: A GGUF file, or a directory.
        reference: Made by `make_reference` under the same protocol.
        protocol: Windows, lengths, repeats, threads.
        expected: What else it is held against.
        log: Gets the chatter of the runtimes.
        limits: Time and memory of each process.

    Raises:
        ArtifactError: There is no artifact, or it cannot be told what it is.
        UnsupportedError: It is of no known kind.
        StepError: A process crashed, hung or grew beyond its limits, or the reference is unusable.
        MachineError: A runtime is missing.
    """
    judged = _Judged(identify(path), reference, protocol, log, limits)
    found = judged.run("structure", dataclasses.asdict(expected), root=True)
    checks = list(_CHECKS.validate_python(found["checks"]))
    parity: Parity | None = None
    missing: dict[str, str] = {}
    if not found["sound"]:
        broken = next(check.check for check in checks if check.outcome == "fail")
        missing = dict.fromkeys(("parity", "latency"), f"the artifact was not run, because {broken} failed")
    else:
        checks += _text_checks(judged)
        try:
            answer = judged.run(
                "parity", {"reference": str(reference.directory.resolve()), "protocol": dataclasses.asdict(protocol)}
            )
            parity = _PARITY.validate_python(answer["parity"])
            checks += _CHECKS.validate_python(answer["checks"])
        except ArtifactError as error:
            checks.append(_refused("parity/run", error))
            missing = dict.fromkeys(("parity", "latency"), str(error))
    weights_bytes = found["weights_bytes"]
    return ArtifactMetrics(
        format=judged.kind.format,
        structure=tuple(checks),
        parity=parity,
        size_bytes=artifact_size(judged.kind),
        weights_bytes=weights_bytes,
        bits_per_weight=None if weights_bytes is None else 8 * weights_bytes / reference.checkpoint.weight_count,
        weights_by_type=found["weights_by_type"],
        not_measured=missing | _unmeasured(checks),
        conservation=_CONSERVATION.validate_python(found["conservation"]),
        precision=_PRECISION.validate_python(found["precision"]),
        requirements=_REQUIREMENTS.validate_python(found["requirements"]),
    )


def _unmeasured(checks: Sequence[CheckResult]) -> dict[str, str]:
    """Return why the parts of parity are missing that their own checks speak of."""
    groups = {"parity/decode": "parity.decode", "parity/long_context": "parity.long_context"}
    open_ones = (check for check in checks if check.outcome == "not_measured")
    return {groups[check.check]: check.detail for check in open_ones if check.check in groups}
