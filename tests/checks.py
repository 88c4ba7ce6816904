"""The checks of an artifact, as tests of mutants and of good artifacts run them: all in this process where they can."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from edgekiln.checkpoint import Checkpoint
from edgekiln.validators import RUNTIMES
from edgekiln.validators.base import CheckResult, Runtime
from edgekiln.validators.conservation import audit
from edgekiln.validators.kinds import ArtifactKind, identify
from edgekiln.validators.parity_paths import compare_decode, judge_decode
from edgekiln.validators.reference_rows import RowReader, RowWriter
from edgekiln.validators.runtime_fit import check_fit
from edgekiln.validators.structure import check_structure
from edgekiln.validators.template_tasks import check_templates, make_golden
from edgekiln.validators.tokenizer import check_tokenizer

Check: TypeAlias = Callable[[Path, Checkpoint], Iterator[CheckResult]]


def structure(directory: Path, reference: Checkpoint) -> Iterator[CheckResult]:
    """Check files, metadata and graph."""
    family = reference.family
    yield from check_structure(
        identify(directory), reference.config, architecture=family.gguf_architecture, genai_type=family.genai_type
    ).checks


def conservation(directory: Path, reference: Checkpoint) -> Iterator[CheckResult]:
    """Compare all weights."""
    yield from audit(identify(directory), reference).checks


def runtime_of(kind: ArtifactKind) -> Runtime:
    """Return the runtime that runs an artifact."""
    return RUNTIMES[kind.format]()


def tokenizer(directory: Path, reference: Checkpoint) -> Iterator[CheckResult]:
    """Compare the artifact's own tokenizer with the checkpoint's."""
    kind = identify(directory)
    runtime = runtime_of(kind)
    runtime.load_tokenizer(kind.path)
    try:
        yield from check_tokenizer(runtime, reference.directory, ())
    finally:
        runtime.end()


def templates(directory: Path, reference: Checkpoint) -> Iterator[CheckResult]:
    """Render conversations in the artifact's own engine, in a process of its own."""
    kind, log = identify(directory), directory.parent / "template.log"
    yield from check_templates(kind.format, kind.path, golden_of(reference.directory), log=log)


def runtime_fit(directory: Path, _: Checkpoint) -> Iterator[CheckResult]:
    """Ask the table of runtimes what the installed release refuses."""
    kind = identify(directory)
    yield check_fit(kind, "llama.cpp" if kind.format == "gguf" else "onnxruntime-genai", None)


@functools.cache
def golden_of(checkpoint_directory: Path) -> dict[str, Any]:
    """Return what the conversations must look like."""
    with tempfile.TemporaryDirectory() as scratch:
        return make_golden(checkpoint_directory, log=Path(scratch) / "log")


def decoding(directory: Path, reference: Checkpoint) -> Iterator[CheckResult]:
    """Run tokens one by one and all at once; the rows that both are compared with are those of a sound artifact."""
    kind = identify(directory)
    runtime = runtime_of(kind)
    runtime.load(kind.path, 2, 256)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            writer = RowWriter(Path(scratch), "rows")
            with writer:
                for chunk in runtime.logits(TOKENS[:-1]):
                    writer.add(chunk, TOKENS[1 : 1 + len(chunk)])
            reader = RowReader(Path(scratch), "rows", reference.config.vocab_size)
            yield judge_decode(compare_decode(runtime, reader, [TOKENS], reference.config.vocab_size, 16))
    finally:
        runtime.end()


TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, 4000, 65)]
#: What runs for the findings of each group.
CHECKS: dict[str, Check] = dict.fromkeys(("files", "gguf", "onnx", "metadata"), structure) | {
    "conservation": conservation,
    "tokenizer": tokenizer,
    "template": templates,
    "parity": decoding,
    "runtime": runtime_fit,
}


def errors(directory: Path, reference: Checkpoint, check: Check) -> set[str]:
    """Return the ids of what is wrong; a failed check names at least one, and each has its fix."""
    ids = set()
    for result in check(directory, reference):
        wrong = [finding for finding in result.findings if finding.severity == "error"]
        assert bool(wrong) == (result.outcome == "fail"), result
        assert all(finding.fix and finding.subject and finding.detail for finding in result.findings)
        ids |= {finding.id for finding in wrong}
    return ids
