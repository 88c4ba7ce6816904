"""Steps: values that say what is done, from what, with what, and what it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from edgekiln.engine.record import Ingredients, Record
from edgekiln.errors import EdgekilnError
from edgekiln.process import Limits


@dataclass(frozen=True)
class Needs:
    """What a step takes while it runs.

    Attributes:
        memory_bytes: Peak resident memory of its processes.
        cores: Processors that it keeps busy.
        alone: Nothing may run beside it: it measures.
        seconds: Time limit of the whole step; None where its processes have limits of their own.
    """

    memory_bytes: int = 0
    cores: int = 1
    alone: bool = False
    seconds: float | None = None


@dataclass(eq=False)
class Work:
    """What a running step is given, and what it may tell.

    Attributes:
        step: The step.
        directory: Gets its files; empty, or what an earlier attempt of a resumable step left.
        journal: A file beside it, for a resumable step.
        inputs: Directory of each input's files; they may not be changed.
        log: Gets what its processes print.
        limits: For every process that it starts.
        hashes: To be filled with the sha256 by path of files whose hash is known already.
        place: Where the result lies, set by a step whose results are kept outside of the store.
        volatile: Why the result serves this run only and is not kept; set by the step.
        share: How much of it is done, 0 to 1, where the step says so.
        records: Record of each input.
        done_before: Pieces that earlier attempts had done, set by a step that resumes.
        done_now: Pieces that this attempt did.
    """

    step: Step
    directory: Path
    journal: Path
    inputs: Mapping[str, Path]
    log: Path
    limits: Limits
    hashes: dict[str, str] = field(default_factory=dict)
    place: Path | None = None
    volatile: str | None = None
    share: float | None = None
    records: Mapping[str, Record] = field(default_factory=dict)
    done_before: int = 0
    done_now: int = 0


#: Does the work of several steps at once and returns what stopped some of them.
RunTogether: TypeAlias = Callable[[Sequence[Work]], Mapping[Work, EdgekilnError]]


@dataclass(frozen=True, eq=False)
class Batch:
    """Steps that are made together, such as measurements that take turns; each keeps a result of its own.

    None of them may depend on another.

    Attributes:
        name: For progress.
        run: Makes all that are missing.
    """

    name: str
    run: RunTogether


@dataclass(frozen=True, eq=False)
class Step:
    """One unit of work with one output directory. What it does depends on nothing but what its key covers.

    Attributes:
        name: Unique in a run, and a safe file name: `onnx-cpu-int4.export`.
        kind: What it does: `reference`, `export`, `publish`, `validate`, `latency`.
        action: The same for people: `exporting Q4_0`.
        inputs: Steps whose files it reads, by role.
        optional: Roles of inputs that it can do without where they fail; its result is not kept then.
        sources: Digests of what else it reads, by role.
        parameters: All else that decides its result, JSON-serializable.
        code: See `edgekiln.engine.code_version`.
        tools: See `edgekiln.engine.tool_versions`.
        needs: What it takes.
        run: Does it; None for a step of a batch.
        batch: The batch that it belongs to.
        resumable: An attempt goes on where an earlier one was interrupted.
        outside: For a step whose result lies outside of the store: returns where, given the records of its inputs, if
            it is there already. Its content is that of its one input.
        skip: Given its inputs' directories, says why it is not to be made after all.
        progress: Returns how far it is, 0 to 1, where the step does not say so itself; called about ten times a second.
    """

    name: str
    kind: str
    action: str
    inputs: Mapping[str, Step] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    sources: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, object] = field(default_factory=dict)
    code: str = ""
    tools: Mapping[str, str] = field(default_factory=dict)
    needs: Needs = Needs()
    run: Callable[[Work], None] | None = None
    batch: Batch | None = None
    resumable: bool = False
    outside: Callable[[Mapping[str, Record]], Path | None] | None = None
    skip: Callable[[Mapping[str, Path]], str | None] | None = None
    progress: Callable[[Work], float | None] | None = None

    def ingredients(self, digests: Mapping[str, str]) -> Ingredients:
        """Return what decides its result.

        Args:
            digests: Content of each of its inputs.
        """
        return Ingredients(
            kind=self.kind,
            code=self.code,
            tools=dict(self.tools),
            inputs={**self.sources, **digests},
            parameters=dict(self.parameters),
        )
