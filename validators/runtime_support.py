"""The table of what releases of runtimes load: `data/runtime_support.yaml`, parsed into frozen values.

A name of a list (an architecture, an operator, a key …) is taken by a release, refused by it, or nobody has looked; the
third is said as it is. How rows are added is written at the head of the file.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal, TypeAlias

from packaging.version import InvalidVersion, Version
from pydantic import Field, PlainValidator

from edgekiln.errors import UsageError, nearest
from edgekiln.yamlfile import Strict, Text, parsed_by, read_yaml, validate

SCHEMA: Final = "edgekiln.runtime-support/1"
_TABLE: Final = Path(__file__).parent / "data" / "runtime_support.yaml"
#: Whether a release takes a name: it does, it does not, or nobody has looked.
Verdict: TypeAlias = Literal["yes", "no", "unknown"]
What: TypeAlias = Literal[
    "architecture",
    "tensor_type",
    "tokenizer",
    "gguf_version",
    "opset",
    "ir_version",
    "operator",
    "operator_on_cpu",
    "operator_attribute",
    "operator_inputs",
    "operator_form",
    "model_type",
    "config_key",
]


def _parse_version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        raise UsageError(f"{text[:40]!r} is no version; write one like 0.3.36") from None


Release: TypeAlias = Annotated[Version, PlainValidator(parsed_by(_parse_version, "a version like 0.3.36"))]


class Source(Strict):
    """Where a fact comes from."""

    title: Text = Field(min_length=1)
    url: Text = Field(pattern=r"^https://[^\s]+$")
    says: Text = Field(min_length=1)


class _Row(Strict):
    names: tuple[Text, ...] = Field(min_length=1)
    since: Release | None = None
    not_in: Release | None = None
    gone_in: Release | None = None
    source: Text | None = None


class _List(Strict):
    what: What
    complete: bool
    source: Text
    rows: tuple[_Row, ...]


class _Need(Strict):
    release: Release
    onnxruntime: Release
    genai: Release | None = Field(default=None, alias="onnxruntime-genai")


class _Needs(Strict):
    source: Text
    rows: tuple[_Need, ...]


class _Runtime(Strict):
    title: Text
    prefix: Text = ""
    reads: Literal["gguf", "onnx"]
    releases: tuple[Release, ...]
    needs: tuple[_Needs, ...] = ()
    lists: tuple[_List, ...] = ()


class _File(Strict):
    schema_: Literal["edgekiln.runtime-support/1"] = Field(alias="schema")
    sources: Mapping[str, Source]
    runtimes: Mapping[str, _Runtime]


@dataclass(frozen=True)
class Fact:
    """What was seen of one name.

    Attributes:
        since: First release that was seen to take it; None when none was.
        not_in: Last release before it that was seen to refuse it; None when the first one looked at took it.
        gone_in: First release that was seen to refuse it again.
        source: Where that is from.
    """

    since: Version | None
    not_in: Version | None
    gone_in: Version | None
    source: Source

    def verdict(self, release: Version) -> Verdict:
        """Tell whether a release takes the name."""
        if self.gone_in is not None and release >= self.gone_in:
            return "no"
        if self.since is not None and release >= self.since:
            return "yes"
        return "no" if self.not_in is not None and release <= self.not_in else "unknown"


@dataclass(frozen=True)
class SupportList:
    """All that is known of one kind of name.

    Attributes:
        facts: By name.
        complete: Whether releases that were looked at refuse every name that is not listed.
        first: First release that was looked at.
        last: Last release that was looked at.
        source: Where the list as a whole is from.
    """

    facts: Mapping[str, Fact]
    complete: bool
    first: Version | None
    last: Version | None
    source: Source

    def verdict(self, name: str, release: Version) -> Verdict:
        """Tell whether a release takes a name."""
        if (fact := self.facts.get(name)) is not None:
            return fact.verdict(release)
        looked_at = self.first is not None and self.last is not None and self.first <= release <= self.last
        return "no" if self.complete and looked_at else "unknown"


@dataclass(frozen=True)
class Need:
    """The libraries that a release comes with, or asks for."""

    onnxruntime: Version
    genai: Version | None
    source: Source


@dataclass(frozen=True)
class RuntimeSupport:
    """One runtime.

    Attributes:
        name: Its key; of a Python package its name.
        title: Its name for people.
        prefix: What its version numbers begin with: `b` for llama.cpp's builds.
        reads: The kind of artifact.
        releases: Those that the table knows of, sorted; empty where it only has single facts.
        needs: By release.
        lists: By what is listed.
    """

    name: str
    title: str
    prefix: str
    reads: Literal["gguf", "onnx"]
    releases: tuple[Version, ...]
    needs: Mapping[Version, Need]
    lists: Mapping[What, SupportList]

    def needed(self, release: Version) -> Need | None:
        """Return what a release needs, or None where nobody has looked."""
        return self.needs.get(release)

    def named(self, release: Version) -> str:
        """Return a release as people write it."""
        return f"{self.title} {self.prefix}{release}"


def _looked_at(rows: Iterable[_Row]) -> tuple[Version | None, Version | None]:
    """Return the first and the last release that rows speak of."""
    spoken = [v for row in rows for v in (row.since, row.not_in, row.gone_in) if v is not None]
    return (min(spoken), max(spoken)) if spoken else (None, None)


def _facts(listed: _List, sources: Mapping[str, Source], place: str) -> Mapping[str, Fact]:
    facts: dict[str, Fact] = {}
    for row in listed.rows:
        if row.since is None and row.not_in is None:
            raise UsageError(f"{place}: a row of {row.names[0]!r} has neither since nor not_in")
        if row.since is not None and row.not_in is not None and row.not_in >= row.since:
            raise UsageError(f"{place}: {row.names[0]!r} is not in {row.not_in}, but since {row.since}; swap them")
        fact = Fact(row.since, row.not_in, row.gone_in, _source(row.source or listed.source, sources, place))
        for name in row.names:
            if name in facts:
                raise UsageError(f"{place} has {name!r} twice; keep one")
            facts[name] = fact
    return MappingProxyType(facts)


def _source(key: str, sources: Mapping[str, Source], place: str) -> Source:
    if key not in sources:
        raise UsageError(f"{place} names the source {key!r}, which does not exist; {nearest(key, tuple(sources))}")
    return sources[key]


def _support(name: str, runtime: _Runtime, sources: Mapping[str, Source]) -> RuntimeSupport:
    lists: dict[What, SupportList] = {}
    for listed in runtime.lists:
        place = f"{listed.what} of {name}"
        if listed.what in lists:
            raise UsageError(f"{name} has two lists of {listed.what}; put their rows together")
        first, last = _looked_at(listed.rows)
        if listed.complete and runtime.releases:
            last = max(runtime.releases)
        source = _source(listed.source, sources, place)
        lists[listed.what] = SupportList(_facts(listed, sources, place), listed.complete, first, last, source)
    needs = {
        need.release: Need(need.onnxruntime, need.genai, _source(group.source, sources, f"needs of {name}"))
        for group in runtime.needs
        for need in group.rows
    }
    return RuntimeSupport(
        name,
        runtime.title,
        runtime.prefix,
        runtime.reads,
        tuple(sorted(runtime.releases)),
        MappingProxyType(needs),
        MappingProxyType(lists),
    )


def parse_support(path: Path) -> Mapping[str, RuntimeSupport]:
    """Return the runtimes of a table by name.

    Raises:
        UsageError: It is no such table, or contradicts itself.
    """
    file = validate(read_yaml(path), _File)
    return MappingProxyType({name: _support(name, runtime, file.sources) for name, runtime in file.runtimes.items()})


@functools.cache
def runtime_support() -> Mapping[str, RuntimeSupport]:
    """Return the runtimes of the table that is shipped, by name."""
    return parse_support(_TABLE)
