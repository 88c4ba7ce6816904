"""The plan: a pipeline's matrix, expanded to builds from configuration alone.

Nothing is imported, read or written for it but the two YAML files; that a checkpoint exists, fits and divides is
found out by the steps that follow.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeAlias

from edgekiln.device import Device
from edgekiln.errors import UsageError, nearest
from edgekiln.host import physical_cores
from edgekiln.pipelines.settings import (
    DEFAULT,
    EffectiveSettings,
    Layer,
    assignments_layer,
    environment_layer,
    file_layer,
    flags_layer,
    resolve_settings,
)
from edgekiln.pipelines.spec import BuildSpec, PipelineFile, load_pipeline
from edgekiln.pipelines.targets import Meaning, Target, TargetsFile, load_targets
from edgekiln.scheme import GENERIC_PRECISIONS, OPTIONS, Scheme
from edgekiln.validators.gates import BASELINES, Gate, combine, default_gates
from edgekiln.yamlfile import Loc


class Container(Protocol):
    """What planning needs to know of an exporter; see `edgekiln.exporters.base.Exporter`."""

    @property
    def precisions(self) -> Mapping[str, str]:
        """Precisions that it holds."""
        ...

    @property
    def providers(self) -> Mapping[str, str]:
        """Execution providers that its artifacts run on."""
        ...

    @property
    def asymmetric(self) -> Mapping[str, str]:
        """For a precision, the name of its form with an offset, where that is a precision of its own."""
        ...

    def unsupported(self, scheme: Scheme, device: Device) -> str | None:
        """Return why it cannot hold a scheme for a device, with the way out; None when it can."""
        ...


#: By format: `edgekiln.exporters.EXPORTERS`.
Formats: TypeAlias = Mapping[str, Container]

_HASH_LENGTH: Final = 8


@dataclass(frozen=True)
class Build:
    """One cell of the matrix.

    Attributes:
        id: Unique in the plan, stable when files are reordered, and a safe file name everywhere.
        target: The device profile.
        requested: Precision as asked for.
        scheme: What is asked of the exporter; its precision is the container's.
        gates: The limits that hold.
        allow_unsupported: An unsupported build does not fail the run.
        keep: Its artifact stays; else it is built and judged only.
        allow_not_measured: Metrics whose gates may stay unmeasured.
        threads: Threads of the runtimes.
        context_length: Tokens of context to plan for; None for the model's own.
        unsupported: Why the build cannot be made; None when it can.
        origins: Where each property came from, by name: `file:line:column`, `target NAME (file:line:column)`,
            `default`, a variable or a flag. Gates have an origin of their own.
        gate_origins: The same of each gate, in their order.
    """

    id: str
    target: Target
    requested: str
    scheme: Scheme
    gates: tuple[Gate, ...]
    allow_unsupported: bool
    allow_not_measured: frozenset[str]
    threads: int
    context_length: int | None
    unsupported: str | None
    origins: Mapping[str, str]
    gate_origins: tuple[str, ...] = ()
    keep: bool = True

    @property
    def device(self) -> Device:
        """Where the artifact is to run, as far as that decides what is written."""
        return Device(self.target.execution_provider, self.context_length)

    @property
    def format(self) -> str:
        """The container's format."""
        return self.target.format

    @property
    def precision(self) -> str:
        """The precision that the container holds."""
        return self.scheme.precision


@dataclass(frozen=True)
class Plan:
    """What a run is going to do.

    Attributes:
        pipeline: The pipeline file.
        targets: The targets file.
        settings: The effective settings with their origins.
        builds: In the order of the pipeline file.
    """

    pipeline: PipelineFile
    targets: TargetsFile
    settings: EffectiveSettings
    builds: tuple[Build, ...]


@dataclass(frozen=True)
class _Cell:
    """One precision of one line of the pipeline file."""

    spec: BuildSpec
    precision: str
    loc: Loc
    precision_loc: Loc


#: Gates of a build, and where each comes from.
_Limits: TypeAlias = tuple[tuple[Gate, ...], tuple[str, ...]]


@dataclass(frozen=True)
class _Context:
    """What every cell is expanded with."""

    pipeline: PipelineFile
    targets: TargetsFile
    settings: EffectiveSettings
    formats: Formats
    known: frozenset[str]
    cores: int
    places: dict[tuple[object, ...], str] = field(default_factory=dict)
    limits: dict[tuple[str, str], _Limits] = field(default_factory=dict)
    schemes: dict[Scheme, Scheme] = field(default_factory=dict)

    def where(self, loc: Loc, *, key: bool = False) -> str:
        """Return the place of something in the pipeline file."""
        return self.pipeline.document.where(loc, key=key)

    def at_target(self, target: Target, *loc: str | int, key: bool = True) -> str:
        """Return the place of something in a target's profile; builds for one target share the text."""
        asked = (target.name, key, *loc)
        if asked not in self.places:
            where = self.targets.where(("targets", target.name, *loc), key=key)
            self.places[asked] = f"target {target.name} ({where})"
        return self.places[asked]

    def shared(self, scheme: Scheme) -> Scheme:
        """Return the one scheme that all builds with an equal one have."""
        return self.schemes.setdefault(scheme, scheme)


def _cells(pipeline: PipelineFile) -> Iterator[_Cell]:
    for index, spec in enumerate(pipeline.spec.builds):
        loc: Loc = ("builds", index)
        if spec.precision is not None:
            yield _Cell(spec, spec.precision, loc, (*loc, "precision"))
        for position, precision in enumerate(spec.precisions):
            yield _Cell(spec, precision, loc, (*loc, "precisions", position))


_Options: TypeAlias = Mapping[str, Any]


def _check_names(context: _Context, cell: _Cell) -> None:
    """Refuse a target or precision that no file and no format knows."""
    targets = context.targets
    if cell.spec.target not in targets.targets:
        raise UsageError(
            f"{context.where((*cell.loc, 'target'))}: unknown target {cell.spec.target!r}; "
            f"{nearest(cell.spec.target, targets.targets)} (from {targets.name})"
        )
    named = (
        (cell.precision, cell.precision_loc),
        (cell.spec.embedding_precision, (*cell.loc, "embedding_precision")),
        (cell.spec.head_precision, (*cell.loc, "head_precision")),
        *((precision, (*cell.loc, "overrides", name)) for name, precision in (cell.spec.overrides or {}).items()),
    )
    for precision, loc in named:
        if precision is not None and precision not in context.known:
            choices = nearest(precision, context.known)
            raise UsageError(f"{context.where(loc)}: unknown precision {precision!r}; {choices}")


def _check_meanings(context: _Context) -> None:
    """Refuse a container precision in the targets file that no format knows."""
    for name, target in context.targets.targets.items():
        for generic, meaning in target.precisions.items():
            named: dict[Loc, str | None] = {
                (key,): getattr(meaning, key) for key in ("container", "embedding_precision", "head_precision")
            }
            named |= {("overrides", pattern): value for pattern, value in (meaning.overrides or {}).items()}
            for loc, value in named.items():
                if value is not None and value not in context.known:
                    where = context.targets.document.where(("targets", name, "precisions", generic, *loc))
                    raise UsageError(f"{where}: unknown precision {value!r}; {nearest(value, context.known)}")


def _scheme(container: Container | None, precision: str, meaning: Meaning | None, options: _Options) -> Scheme:
    """Return the effective scheme: the build's options over the target's meaning over the defaults."""
    name = meaning.container if meaning and meaning.container else precision
    scheme = replace(Scheme(name), **{**(meaning.given() if meaning else {}), **options})
    if scheme.symmetric or name == precision or container is None:
        return scheme
    return replace(scheme, precision=container.asymmetric.get(name, name))


def _build_id(target: str, precision: str, scheme: Scheme, plain: Scheme) -> str:
    """Return the name of a cell: target and precision, and a hash of the options where they are not the plain ones."""
    name = re.sub(r"[^a-z0-9.-]", "-", f"{target}-{precision}")
    options = {key: getattr(scheme, key) for key in OPTIONS if getattr(scheme, key) != getattr(plain, key)}
    if not options:
        return name
    text = json.dumps(options, sort_keys=True, separators=(",", ":"))
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:_HASH_LENGTH]}"


def _unsupported(target: Target, requested: str, scheme: Scheme, formats: Formats) -> str | None:
    """Return why a cell cannot be built, or None."""
    meaning = target.meaning(requested)
    if target.unsupported is not None:
        return target.unsupported
    if meaning is not None and meaning.unsupported is not None:
        return meaning.unsupported
    container = formats.get(target.format)
    if container is None:
        return f"no exporter writes {target.format}; {nearest(target.format, formats)}"
    reason = container.unsupported(scheme, target.device)
    if reason is None or scheme.precision == requested:
        return reason
    return f"{reason} ({target.name} makes {scheme.precision} of {requested})"


def _origins(context: _Context, cell: _Cell, target: Target) -> Mapping[str, str]:
    """Return where the properties of a build come from."""
    meaning, values, origins = target.meaning(cell.precision), context.settings.values, context.settings.origins
    meant = ("precisions", cell.precision)
    found = {"requested": context.where(cell.precision_loc), "target": context.where((*cell.loc, "target"))}
    found["precision"] = found["requested"]
    if meaning and meaning.container:
        found["precision"] = context.at_target(target, *meant, "container")
    for option in OPTIONS:
        if getattr(cell.spec, option) is not None:
            found[option] = context.where((*cell.loc, option), key=True)
        elif meaning and getattr(meaning, option) is not None:
            found[option] = context.at_target(target, *meant, option)
        else:
            found[option] = DEFAULT
    for key in ("format", "runtime", "memory", "execution_provider"):
        found[key] = context.at_target(target, key) if key in target.model_fields_set else DEFAULT
    found["threads"] = context.at_target(target, "threads") if target.threads else "physical cores of this machine"
    if values.threads is not None:
        found["threads"] = origins["threads"]
    found["context_length"] = context.at_target(target, "context_length") if target.context_length else "the model"
    for key in ("allow_unsupported", "allow_not_measured", "keep"):
        found[key] = context.where((*cell.loc, key), key=True) if key in cell.spec.model_fields_set else DEFAULT
    return MappingProxyType(found)


def _gates(context: _Context, cell: _Cell, target: Target, container: str) -> _Limits:
    """Return the gates of a build and where each comes from; builds without gates of their own share them."""
    if cell.spec.gates:
        return _combined(context, cell, target, container)
    key = target.name, container
    if key not in context.limits:
        context.limits[key] = _combined(context, cell, target, container)
    return context.limits[key]


def _combined(context: _Context, cell: _Cell, target: Target, container: str) -> _Limits:
    """Return the gates of a build: the target's replace the precision's defaults, and the build's those."""
    origins: dict[Gate, str] = {}
    of_target = [replace(gate, why=f"limit of target {target.name}") for gate in target.gates]
    for index, gate in enumerate(of_target):
        origins[gate] = context.at_target(target, "gates", index, key=False)
    of_build = []
    for index, gate in enumerate(cell.spec.gates):
        where = context.where((*cell.loc, "gates", index))
        of_build.append(replace(gate, why=f"limit in {where}"))
        origins[gate] = where
    gates = combine(default_gates(container), of_target, of_build)
    return gates, tuple(origins.get(gate, f"{DEFAULT} of {container}") for gate in gates)


def _expand_cell(context: _Context, cell: _Cell) -> Build:
    target = context.targets.targets[cell.spec.target]
    meaning = target.meaning(cell.precision)
    options = cell.spec.given()
    container = context.formats.get(target.format)
    plain = _scheme(container, cell.precision, meaning, {})
    scheme = context.shared(_scheme(container, cell.precision, meaning, options))
    gates, gate_origins = _gates(context, cell, target, scheme.precision)
    return Build(
        id=_build_id(target.name, cell.precision, scheme, plain),
        target=target,
        requested=cell.precision,
        scheme=scheme,
        gates=gates,
        allow_unsupported=cell.spec.allow_unsupported,
        allow_not_measured=frozenset(cell.spec.allow_not_measured),
        threads=context.settings.values.threads or target.threads or context.cores,
        context_length=target.context_length,
        unsupported=_unsupported(target, cell.precision, scheme, context.formats),
        origins=_origins(context, cell, target),
        gate_origins=gate_origins,
        keep=cell.spec.keep,
    )


def _check_selection(only: Collection[str], pipeline: PipelineFile, targets: TargetsFile) -> None:
    """Refuse a `--target` that does not exist or for which the pipeline has no build."""
    used = {spec.target for spec in pipeline.spec.builds}
    for name in only:
        if name not in targets.targets:
            raise UsageError(f"--target {name!r} is no target of {targets.name}; {nearest(name, targets.targets)}")
        if name not in used:
            raise UsageError(
                f"--target {name!r}: the pipeline {pipeline.document.name} has no build for it; "
                f"choose one of {', '.join(sorted(used))}"
            )


def expand(
    pipeline: PipelineFile,
    targets: TargetsFile,
    settings: EffectiveSettings,
    *,
    formats: Formats,
    only: Collection[str] = (),
) -> Plan:
    """Expand a pipeline to its builds.

    Args:
        pipeline: The matrix.
        targets: The device profiles that it refers to.
        settings: The effective settings.
        formats: The exporters by format.
        only: Names of targets to build for; empty for all.

    Raises:
        UsageError: A target or precision is misspelt, a cell is given twice, or `only` selects nothing.
    """
    known = frozenset(GENERIC_PRECISIONS).union(*(container.precisions for container in formats.values()))
    cores = settings.values.threads or physical_cores()
    context = _Context(pipeline, targets, settings, formats, known, cores)
    _check_meanings(context)
    _check_selection(only, pipeline, targets)
    seen: dict[str, tuple[Build, _Cell]] = {}
    for cell in _cells(pipeline):
        _check_names(context, cell)
        build = _expand_cell(context, cell)
        if build.id in seen:
            raise _repeated(context, cell, build, *seen[build.id])
        seen[build.id] = build, cell
    builds = [build for build, _ in seen.values() if not only or build.target.name in only]
    _check_baselines(builds, seen)
    require_selected(builds)
    return Plan(pipeline, targets, settings, tuple(builds))


def _named_builds(build: Build) -> Iterator[tuple[Gate, str, str]]:
    """Yield the gates of a build that are relative to another one: gate, its origin, and that build's id."""
    for gate, origin in zip(build.gates, build.gate_origins, strict=True):
        if gate.relative_to is not None and gate.relative_to not in BASELINES:
            yield gate, origin, gate.relative_to


def _check_baselines(builds: Iterable[Build], known: Collection[str]) -> None:
    """Refuse a gate that is relative to a build which the pipeline does not have, or to its own."""
    for build in builds:
        for gate, origin, name in _named_builds(build):
            if name not in known:
                choices = nearest(name, {*known, *BASELINES} - {build.id})
                raise UsageError(f"{origin}: unknown baseline {name!r} in the gate '{gate}'; {choices}")
            if name == build.id:
                raise UsageError(
                    f"{origin}: the gate '{gate}' compares {name} with itself; write it in the builds that it is for"
                )


def require_selected(builds: Collection[Build]) -> None:
    """Refuse a selection whose gates compare with a build that is not in it, unless they may stay unmeasured.

    Raises:
        UsageError: The message says what to select as well.
    """
    selected = {build.id for build in builds}
    for build in builds:
        for gate, origin, name in _named_builds(build):
            if name not in selected and gate.metric not in build.allow_not_measured:
                raise UsageError(
                    f"{origin}: the gate '{gate}' of {build.id} compares with {name}, which is not selected; select "
                    f"{name} as well, or let the build have allow_not_measured: [{gate.metric}]"
                )


def _repeated(context: _Context, cell: _Cell, build: Build, first: Build, first_cell: _Cell) -> UsageError:
    where = context.where(cell.precision_loc)
    line = context.pipeline.document.position(first_cell.precision_loc).line
    if build.target.name == first.target.name:
        return UsageError(f"{where}: the build {build.id} is given twice, first in line {line}; remove one")
    return UsageError(
        f"{where}: the builds for {build.target.name} and {first.target.name} (line {line}) would both be named "
        f"{build.id}; rename a target"
    )


def make_plan(
    pipeline: str = "default",
    *,
    formats: Formats,
    flags: Mapping[str, object] = MappingProxyType({}),
    assignments: Iterable[str] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
    only: Collection[str] = (),
) -> Plan:
    """Read the files, put the layers of settings over each other, and expand the matrix.

    Args:
        pipeline: Path of a pipeline file or name of a shipped pipeline.
        formats: The exporters by format.
        flags: Settings given as flags; None for those that were not.
        assignments: `KEY=VALUE` texts of `--set`.
        environment: The process's environment.
        only: Names of targets to build for; empty for all.

    Raises:
        UsageError: A file, a setting or a name is wrong; the message says where and what to write instead.
    """
    file = load_pipeline(pipeline)
    given = (environment_layer(environment), assignments_layer(assignments), flags_layer(flags))
    targets, settings = settle(file.settings, *given)
    return expand(file, targets, settings, formats=formats, only=only)


def settle(*layers: Layer) -> tuple[TargetsFile, EffectiveSettings]:
    """Read the targets file that the layers name, and put them over its settings.

    Raises:
        UsageError: The file cannot be read or does not fit the schema.
    """
    targets = load_targets(resolve_settings(*layers).values.targets)
    return targets, resolve_settings(file_layer(targets.document, targets.settings), *layers)
