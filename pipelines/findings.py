"""What `edgekiln doctor` found: one line each, with how to mend what does not work."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

SCHEMA: Final = "edgekiln.doctor/1"
Status: TypeAlias = Literal["ok", "info", "warning", "problem"]
Fact: TypeAlias = str | int | float | bool | tuple[str, ...] | None


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class Finding(_Value):
    """One thing that was looked at."""

    id: str = Field(description="Stable name, SUBJECT/THING.", examples=["library/torch", "timing/load"])
    status: Status = Field(
        description="ok; info: a fact without a judgement; warning: builds run, but slower or with less measured; "
        "problem: builds cannot run, or not all of them.",
        examples=["ok", "problem"],
    )
    summary: str = Field(
        description="What was found, in one line.", examples=["2.13.0 does not import: ImportError: no libtorch.so"]
    )
    fix: str | None = Field(
        default=None,
        description="How to mend it; null where nothing has to be done.",
        examples=["python -m pip install -c constraints.txt 'torch>=2.7'"],
    )
    facts: dict[str, Fact] = Field(
        default_factory=dict,
        description="The figures behind the line, for scripts; their names depend on the id.",
        examples=[{"version": "2.13.0", "requires": "torch>=2.7"}],
    )

    @property
    def subject(self) -> str:
        """The part of the id before the slash."""
        return self.id.partition("/")[0]


class Verdict(_Value):
    """What follows from all findings."""

    ready: bool = Field(description="Builds can run here: there is no problem.", examples=[True])
    problems: int = Field(ge=0, description="Findings that are problems.", examples=[0])
    warnings: int = Field(ge=0, description="Findings that are warnings.", examples=[2])
    summary: str = Field(description="The verdict in one line.", examples=["Builds can run here, with 2 warnings."])


class DoctorReport(_Value):
    """What `edgekiln doctor --json` prints."""

    schema_id: Literal["edgekiln.doctor/1"] = Field(
        default=SCHEMA, alias="schema", description="Kind and version of this document.", examples=[SCHEMA]
    )
    edgekiln: str = Field(description="Version of Edgekiln.", examples=["0.1.0"])
    findings: tuple[Finding, ...] = Field(
        description="Everything that was looked at, by subject.",
        examples=[[{"id": "python/interpreter", "status": "ok", "summary": "CPython 3.11.7, 64 bit", "facts": {}}]],
    )
    verdict: Verdict = Field(
        description="What follows from it.",
        examples=[{"ready": True, "problems": 0, "warnings": 0, "summary": "Builds can run here."}],
    )

    def to_json(self) -> str:
        """Return the report as JSON."""
        return self.model_dump_json(indent=2, by_alias=True)
