"""Runtime fit: what releases refuse in an artifact, by the table of `runtime_support`.

Judged is the lowest release that a target admits: what it refuses is an error, what only later ones refuse is a
warning, and where nobody has looked, that is said. Without a target, the installed release is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Final

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from edgekiln.errors import ArtifactError, CheckpointError, UsageError, nearest
from edgekiln.validators.base import CheckResult, Finding, Severity
from edgekiln.validators.kinds import ArtifactKind
from edgekiln.validators.runtime_support import RuntimeSupport, SupportList, Verdict, What, runtime_support
from edgekiln.validators.runtime_traits import Trait, read_traits

CHECK: Final = "runtime/fit"
#: Runtimes as targets name them, and the entry of the table whose versions they mean.
RUNTIMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "llama.cpp": "llama-cpp-python",
        "openvino-genai": "openvino-genai",
        "onnxruntime-genai": "onnxruntime-genai",
        "onnxruntime-web": "onnxruntime",
        "foundry-local": "foundry-local-sdk",
    }
)
#: Packages that a package runs with here.
_BESIDE: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "onnxruntime-genai": ("onnxruntime",),
        "foundry-local-sdk": ("onnxruntime", "onnxruntime-genai"),
    }
)
_IDS: Final[Mapping[What, str]] = MappingProxyType(
    {
        "architecture": "runtime/architecture",
        "tensor_type": "runtime/tensor_type",
        "tokenizer": "runtime/tokenizer",
        "gguf_version": "runtime/gguf_version",
        "opset": "runtime/opset",
        "ir_version": "runtime/ir_version",
        "operator": "runtime/operator",
        "operator_on_cpu": "runtime/operator",
        "operator_attribute": "runtime/operator",
        "operator_inputs": "runtime/operator",
        "operator_form": "runtime/operator",
        "model_type": "runtime/model_type",
        "config_key": "runtime/config_key",
    }
)
#: What belongs to an operator, whose name comes first.
_OF_OPERATORS: Final = frozenset({"operator_on_cpu", "operator_attribute", "operator_inputs", "operator_form"})
#: A file that uses thousands of unknown names would fill the report.
_MOST_FINDINGS: Final = 50
_MOST_NAMES: Final = 8


@dataclass(frozen=True)
class Requirement:
    """What one thing in an artifact asks of one runtime.

    Attributes:
        what: The thing: `the architecture qwen3`.
        runtime: Name of the runtime, for people.
        since: First release that was seen to load it, as people write it; None where none was.
        not_in: Last release before it that was seen to refuse it; None where the first one looked at loads it, so that
            older ones may as well.
        source: Title and address of where this is from.
    """

    what: str
    runtime: str
    since: str | None
    not_in: str | None
    source: str


@dataclass(frozen=True)
class _Stack:
    """One release of a runtime, with the libraries that it brings."""

    label: str
    release: Version
    libraries: tuple[tuple[RuntimeSupport, Version], ...]

    def _list(self, what: What) -> tuple[SupportList, Version] | None:
        found = ((support.lists[what], release) for support, release in self.libraries if what in support.lists)
        return next(found, None)

    def verdict(self, what: What, name: str) -> Verdict:
        """Tell whether it takes a name."""
        if (found := self._list(what)) is None:
            return "unknown"
        listed, release = found
        if what == "operator_inputs":
            name = _roomiest(listed, name)
        return listed.verdict(name, release)


def _roomiest(listed: SupportList, name: str) -> str:
    """Return the listed number of inputs that has room for as many as `name` says; `name` where none has.

    The list has the numbers at which an operator's signature grew: MatMulNBits.4, then .5 and .6.
    """
    operator, _, count = name.rpartition(".")
    sizes = [int(entry.rpartition(".")[2]) for entry in listed.facts if entry.rpartition(".")[0] == operator]
    enough = [size for size in sizes if size >= int(count)]
    return f"{operator}.{min(enough)}" if enough else name


# --- which releases are judged ------------------------------------------------------------------------------------


def _support(name: str) -> RuntimeSupport:
    if name not in RUNTIMES:
        raise UsageError(f"no runtime is named {name!r}; {nearest(name, tuple(RUNTIMES))}")
    return runtime_support()[RUNTIMES[name]]


def _installed(package: str) -> Version | None:
    try:
        return Version(version(package))
    except (PackageNotFoundError, InvalidVersion):
        return None


def _admitted(support: RuntimeSupport, versions: SpecifierSet) -> tuple[Version, ...]:
    """Return the known releases in a range, sorted; where there is none, the versions that the range itself names."""
    known = tuple(release for release in support.releases if versions.contains(release, prereleases=True))
    if known:
        return known
    named = (Version(entry.version.removesuffix(".*")) for entry in versions if entry.operator != "===")
    return tuple(sorted({release for release in named if versions.contains(release, prereleases=True)}))


def _stack(support: RuntimeSupport, release: Version) -> _Stack:
    """Return a release with the lowest ONNX Runtime that it asks for, or the pair that it pins."""
    table = runtime_support()
    libraries = [(support, release)]
    label = support.named(release)
    if (need := support.needed(release)) is not None:
        libraries.append((table["onnxruntime"], need.onnxruntime))
        parts = [f"onnxruntime {need.onnxruntime}"]
        if need.genai is not None:
            libraries.append((table["onnxruntime-genai"], need.genai))
            parts.append(f"onnxruntime-genai {need.genai}")
        label += f" (with {' and '.join(parts)})"
    return _Stack(label, release, tuple(libraries))


def _installed_stack(support: RuntimeSupport) -> _Stack | None:
    """Return what is installed here, with the libraries that are installed beside it."""
    table = runtime_support()
    if (release := _installed(support.name)) is None:
        return None
    beside = ((table[name], _installed(name)) for name in _BESIDE.get(support.name, ()))
    libraries = [(support, release), *((entry, found) for entry, found in beside if found is not None)]
    names = " and ".join(f"{entry.name} {found}" for entry, found in libraries[1:])
    label = support.named(release) + (f" (with {names})" if names else "")
    return _Stack(label, release, tuple(libraries))


# --- judging ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judge:
    """Judges traits by the admitted releases of one runtime."""

    support: RuntimeSupport
    stacks: Sequence[_Stack]
    on_cpu: bool

    def findings(self, traits: Iterable[Trait]) -> Iterator[Finding]:
        """Yield what the releases refuse, then what is not known of them."""
        unknown: dict[What, list[Trait]] = {}
        for trait in traits:
            verdicts = [self._verdict(stack, trait) for stack in self.stacks]
            if "no" in verdicts:
                yield self._refused(trait, verdicts)
            elif verdicts[0] == "unknown" and not self._is_told(self.stacks[0], trait):
                unknown.setdefault(trait.what, []).append(trait)
        for what, found in unknown.items():
            yield self._not_known(what, found)

    def _verdict(self, stack: _Stack, trait: Trait) -> Verdict:
        if trait.what == "operator_on_cpu" and not self.on_cpu:
            return "yes"
        return "unknown" if self._is_told(stack, trait) else stack.verdict(trait.what, trait.name)

    def _is_told(self, stack: _Stack, trait: Trait) -> bool:
        """Tell whether the operator itself is not taken, of which nothing else is then worth saying."""
        operator = trait.name.partition(".")[0]
        return trait.what in _OF_OPERATORS and stack.verdict("operator", operator) != "yes"

    def _refused(self, trait: Trait, verdicts: Sequence[Verdict]) -> Finding:
        refusing = [stack for stack, verdict in zip(self.stacks, verdicts, strict=True) if verdict == "no"]
        # What a release refuses, those before it refused as well, unless it was dropped. An operator without a kernel
        # may still run, as the operators that its function is made of.
        dropped = verdicts[0] == "yes"
        severity: Severity = "warning" if dropped or trait.what == "operator_on_cpu" else "error"
        uses = f", which {trait.count} of its parts use" if trait.count > 1 else ""
        detail = f"{refusing[0].label} does not take {trait.text}{uses}"
        return Finding(_IDS[trait.what], severity, trait.subject, detail, self._fix(trait))

    def _fix(self, trait: Trait) -> str:
        """Say which releases load it; of all that the table knows, admitted or not."""
        stacks = [_stack(self.support, release) for release in self.support.releases]
        taking = [stack.release for stack in stacks if all(stack.verdict(*asked) == "yes" for asked in _asked(trait))]
        if not taking:
            return f"export without {trait.text}; no release of {self.support.title} that was looked at takes it"
        dropped = [stack.release for stack in stacks if stack.release > taking[-1]]
        if dropped:
            return f"require {self.support.name} < {self.support.prefix}{dropped[0]}"
        return f"require {self.support.name} >= {self.support.prefix}{taking[0]}"

    def _not_known(self, what: What, found: Sequence[Trait]) -> Finding:
        names = ", ".join(trait.text for trait in found[:_MOST_NAMES])
        more = f" and {len(found) - _MOST_NAMES} more" if len(found) > _MOST_NAMES else ""
        detail = f"whether {self.stacks[0].label} takes {names}{more} is not known"
        fix = f"load the artifact with {self.stacks[0].label}, or require a release that was looked at"
        return Finding(_IDS[what], "note", found[0].subject, detail, fix)


def _asked(trait: Trait) -> Iterator[tuple[What, str]]:
    yield trait.what, trait.name
    if trait.what in _OF_OPERATORS:
        yield "operator", trait.name.partition(".")[0]


def _pinned_pair(support: RuntimeSupport, stack: _Stack) -> Iterator[Finding]:
    """Say where the libraries installed here are not those that the release pins, or where its pins are not known."""
    if support.name != "foundry-local-sdk":
        return
    need = support.needed(stack.release)
    if need is None:
        detail = f"which onnxruntime and onnxruntime-genai {support.named(stack.release)} brings is not known"
        yield Finding("runtime/pinned_pair", "note", support.name, detail, "require a release whose pair is known")
        return
    for library, release in stack.libraries[1:]:
        pinned = need.onnxruntime if library.name == "onnxruntime" else need.genai
        if pinned is not None and release != pinned:
            detail = f"{support.named(stack.release)} pins {library.name} {pinned}, but {release} is installed"
            fix = f"install {library.name} {pinned}"
            yield Finding("runtime/pinned_pair", "warning", library.name, detail, fix)


def _result(stack: _Stack, findings: Sequence[Finding], count: int) -> CheckResult:
    order = {"error": 0, "warning": 1, "note": 2}
    kept = tuple(sorted(findings, key=lambda finding: order[finding.severity]))[:_MOST_FINDINGS]
    errors = [finding.detail for finding in kept if finding.severity == "error"]
    if errors:
        return CheckResult(CHECK, "fail", "; ".join(errors[:3]), kept)
    doubts = sum(finding.severity == "warning" for finding in kept)
    notes = sum(finding.severity == "note" for finding in kept)
    said = [f"{number} {word}" for number, word in ((doubts, "doubtful"), (notes, "not known")) if number]
    detail = f"{stack.label} takes what {count} names ask for" + (f", but {' and '.join(said)}" if said else "")
    return CheckResult(CHECK, "pass", detail, kept)


def _not_measured(detail: str, fix: str, subject: str) -> CheckResult:
    return CheckResult(CHECK, "not_measured", detail, (Finding(CHECK, "note", subject, detail, fix),))


def check_fit(
    kind: ArtifactKind, runtime: str, version_range: SpecifierSet | None, *, provider: str = "cpu"
) -> CheckResult:
    """Return what a runtime's releases refuse in an artifact.

    Args:
        kind: What `identify` said.
        runtime: As targets name it, a key of `RUNTIMES`.
        version_range: Releases that the target admits; None judges the installed one.
        provider: Where the target computes; kernels are looked for on `cpu` alone.

    Raises:
        UsageError: There is no such runtime, or it reads another kind of artifact.
    """
    support = _support(runtime)
    if support.reads != ("gguf" if kind.format == "gguf" else "onnx"):
        raise UsageError(f"{runtime} reads {support.reads}, but the artifact is {kind.format}; choose another target")
    stacks: Sequence[_Stack]
    if version_range is None:
        installed = _installed_stack(support)
        if installed is None:
            return _not_measured(f"{support.name} is not installed", f"install {support.name}", support.name)
        stacks = (installed,)
    else:
        stacks = tuple(_stack(support, release) for release in _admitted(support, version_range))
    if not stacks:
        detail = f"no release of {support.title} in {version_range} is known"
        return _not_measured(detail, "name a lowest version in the target's range", support.name)
    return _guarded(kind, lambda: _judged(kind, _Judge(support, stacks, provider == "cpu")))


def _judged(kind: ArtifactKind, judge: _Judge) -> CheckResult:
    traits = read_traits(kind)
    if kind.format == "gguf" or judge.support.name != "onnxruntime":
        asked = traits
    else:  # a runtime of its own reads the graph; the directory around it is ORT GenAI's
        asked = tuple(trait for trait in traits if trait.what not in {"model_type", "config_key"})
    findings = [*judge.findings(asked), *_pinned_pair(judge.support, judge.stacks[0])]
    return _result(judge.stacks[0], findings, len(asked))


def _guarded(kind: ArtifactKind, action: Callable[[], CheckResult]) -> CheckResult:
    """Judge nothing where the artifact cannot be read: the check of its structure says why.

    ValueError is what a text of a protobuf raises that is not UTF-8, and JSON with an endless number.
    """
    try:
        return action()
    except (ArtifactError, CheckpointError, OSError, ValueError, TypeError) as error:
        detail = f"what it asks of its runtime cannot be read: {error}"
        return _not_measured(detail, "see what the checks of its structure found", kind.path.name)


# --- which releases load it ---------------------------------------------------------------------------------------


def requirements(kind: ArtifactKind) -> tuple[Requirement, ...]:
    """Return what an artifact asks of every runtime that reads its kind: for each sort of name, the one that asks most.

    Names of which nothing is known are named together, with no release.

    Raises:
        ArtifactError: The artifact cannot be read.
        CheckpointError: genai_config.json is no JSON object.
    """
    traits = read_traits(kind)
    reads = "gguf" if kind.format == "gguf" else "onnx"
    found: list[Requirement] = []
    for support in runtime_support().values():
        if support.reads == reads:
            found += _required(support, traits)
    return tuple(found)


def _required(support: RuntimeSupport, traits: Sequence[Trait]) -> Iterator[Requirement]:
    for what, listed in support.lists.items():
        asked = [trait for trait in traits if trait.what == what and what != "operator_on_cpu"]
        if not asked:
            continue
        known = [entry for trait in asked if (entry := _requirement(support, listed, trait)) is not None]
        if known:
            yield max(known, key=lambda entry: entry[0])[1]
        yield from _unseen(support, listed, asked)


def _requirement(support: RuntimeSupport, listed: SupportList, trait: Trait) -> tuple[Version, Requirement] | None:
    name = _roomiest(listed, trait.name) if trait.what == "operator_inputs" else trait.name
    fact = listed.facts.get(name)
    if fact is None or fact.since is None:
        return None
    since = f"{support.prefix}{fact.since}"
    not_in = None if fact.not_in is None else f"{support.prefix}{fact.not_in}"
    return fact.since, Requirement(trait.text, support.title, since, not_in, _cited(fact.source.title, fact.source.url))


def _unseen(support: RuntimeSupport, listed: SupportList, asked: Sequence[Trait]) -> Iterator[Requirement]:
    """Yield what no release was seen to take, with the last that was seen to refuse it."""
    for trait in asked:
        name = _roomiest(listed, trait.name) if trait.what == "operator_inputs" else trait.name
        fact = listed.facts.get(name)
        if fact is not None and fact.since is not None:
            continue
        refused = fact.not_in if fact is not None else listed.last if listed.complete else None
        source = fact.source if fact is not None else listed.source
        not_in = None if refused is None else f"{support.prefix}{refused}"
        yield Requirement(trait.text, support.title, None, not_in, _cited(source.title, source.url))


def _cited(title: str, url: str) -> str:
    return f"{title}, {url}"
