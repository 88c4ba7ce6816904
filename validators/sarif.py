"""The findings of a report as SARIF 2.1.0, which GitHub code scanning and editors show.

A result needs a place: the artifact, as a path relative to the report, line 1, with the tensor, key or input as logical
location. What follows results from run to run is the fingerprint, of what was found and where, never of figures or of
the digest in the artifact's path.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from edgekiln import __version__
from edgekiln.terminal import printable
from edgekiln.validators.finding_rules import Rule, rule
from edgekiln.validators.report import BuildReport, FindingReport, Report

_SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"
#: GitHub shows the first 5,000 results of a run: https://docs.github.com/code-security, "SARIF support".
_MOST_RESULTS: Final = 5000
#: Characters of one text; what an artifact names may be long.
_LONGEST: Final = 2000
_MOST_NOTIFICATIONS: Final = 100
_ORDER: Final = ("error", "warning", "note")
#: What GitHub calls the levels.
_PROBLEMS: Final = {"error": "error", "warning": "warning", "note": "recommendation"}


@dataclass(frozen=True)
class _Found:
    """One finding and the build that it is about."""

    build: BuildReport
    finding: FindingReport


def _text(text: str) -> str:
    """Return text of a bounded length that hides and reorders nothing."""
    shown = printable(text)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"


def _of_build(build: BuildReport) -> Iterator[_Found]:
    """Yield the findings of a build; a failed check without any stands for itself."""
    for check in build.structure:
        for finding in check.findings:
            yield _Found(build, finding)
        if check.outcome == "fail" and not any(finding.severity == "error" for finding in check.findings):
            whole = FindingReport(
                id=check.check, severity="error", subject=check.check, detail=check.detail, fix=rule(check.check).help
            )
            yield _Found(build, whole)


def _uri(build: BuildReport) -> str:
    """Return where the artifact lies as a relative reference: no scheme, no root, no way up."""
    path = (build.artifact or build.id).replace("\\", "/")
    parts = [part for part in path.split("/") if part not in {"", ".", ".."}]
    encoded = quote("/".join(parts).encode("utf-8", "replace"), safe="/-._~") or "artifact"
    return encoded[:_LONGEST]


def _fingerprint(found: _Found) -> str:
    """Return what stays the same while the same thing is wrong with the same build."""
    parts = (found.build.id, found.finding.id, found.finding.subject)
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()


def _result(found: _Found, index: Mapping[str, int]) -> dict[str, Any]:
    finding, subject = found.finding, _text(found.finding.subject)
    fingerprint = _fingerprint(found)
    return {
        "ruleId": finding.id,
        "ruleIndex": index[finding.id],
        "level": finding.severity,
        "message": {"text": _text(f"{found.build.id}: {finding.subject}: {finding.detail}. Fix: {finding.fix}")},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": _uri(found.build)}, "region": {"startLine": 1}},
                "logicalLocations": [
                    {"name": subject, "fullyQualifiedName": f"{_text(found.build.id)}/{subject}", "kind": "resource"}
                ],
            }
        ],
        # GitHub follows a result by the first of these names only.
        "partialFingerprints": {"primaryLocationLineHash": fingerprint, "edgekilnFinding/v1": fingerprint},
    }


def _rule(name: str, known: Rule, level: str) -> dict[str, Any]:
    return {
        "id": name,
        "name": "".join(part.capitalize() for part in name.replace("/", "-").replace("_", "-").split("-")),
        "shortDescription": {"text": known.summary},
        "fullDescription": {"text": known.meaning},
        "help": {"text": f"{known.meaning} {known.help}", "markdown": f"{known.meaning}\n\n**Fix:** {known.help}"},
        "defaultConfiguration": {"level": level},
        "properties": {"tags": [name.partition("/")[0]], "problem.severity": _PROBLEMS[level]},
    }


def _rules(shown: list[_Found]) -> list[dict[str, Any]]:
    """Return the rules that results name, each at the gravest level that it was found at."""
    levels: dict[str, str] = {}
    for found in shown:  # the gravest first
        levels.setdefault(found.finding.id, found.finding.severity)
    return [_rule(name, rule(name), levels[name]) for name in sorted(levels)]


def _invocation(report: Report, left_off: int) -> dict[str, Any]:
    """Return that the run went well, and what it could not say."""
    broken = [build for build in report.builds if build.status == "error"]
    said = [
        {"level": "error", "message": {"text": _text(f"{build.id}: {build.reason}")}}
        for build in broken[:_MOST_NOTIFICATIONS]
    ]
    if left_off:
        text = f"{left_off} more findings are in report.json; the gravest {_MOST_RESULTS} are shown"
        said.append({"level": "warning", "message": {"text": text}})
    return {"executionSuccessful": not broken, **({"toolExecutionNotifications": said} if said else {})}


def render_sarif(report: Report) -> str:
    """Return every finding of the structural checks as SARIF 2.1.0, the gravest first, at most five thousand.

    Equal reports give equal texts: no time, no random identifier.
    """
    every = [found for build in report.builds for found in _of_build(build)]
    every.sort(key=lambda found: _ORDER.index(found.finding.severity))
    shown = every[:_MOST_RESULTS]
    rules = _rules(shown)
    index = {entry["id"]: number for number, entry in enumerate(rules)}
    category = f"edgekiln/{_text(report.pipeline)}/" if report.pipeline else "edgekiln/validate/"
    log = {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "Edgekiln", "semanticVersion": __version__, "rules": rules}},
                "automationDetails": {"id": category},
                "invocations": [_invocation(report, len(every) - len(shown))],
                "columnKind": "unicodeCodePoints",
                "results": [_result(found, index) for found in shown],
            }
        ],
    }
    return json.dumps(log, indent=2, ensure_ascii=True) + "\n"
