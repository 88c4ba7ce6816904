"""The report as JUnit XML, which every CI service reads: a suite per build, a case per gate and per check.

What is written is what readers have in common: Jenkins's schema (`junit-10.xsd` of its xunit plugin), GitLab's unit
test reports and the actions of GitHub that show such files. There is no time stamp and no duration, so that equal
reports give equal files. The standard library writes it: packages for this escape what XML lets escape, but not the
characters that it forbids, and there is little else to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias
from xml.etree import ElementTree as ET

from edgekiln.terminal import printable
from edgekiln.validators.report import BuildReport, CheckReport, GateReport, Report

#: Everything but the `Char` of XML 1.0: https://www.w3.org/TR/xml/#charsets
_FORBIDDEN: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
#: Findings of one check that are written out.
_MOST_FINDINGS: Final = 50
#: Characters of one text; what an artifact names may be long.
_LONGEST: Final = 4000

Ending: TypeAlias = Literal["passed", "failure", "error", "skipped"]


@dataclass(frozen=True)
class _Case:
    """One test case.

    Attributes:
        name: What was judged.
        ending: What became of it.
        kind: Type of a failure or error.
        message: One line; empty for a case that passed and has nothing to say.
        text: All there is to say, in lines.
    """

    name: str
    ending: Ending = "passed"
    kind: str = ""
    message: str = ""
    text: str = ""


def _clean(text: str) -> str:
    """Return text that XML can hold and that hides nothing, of a bounded length."""
    shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return _FORBIDDEN.sub("\ufffd", printable(shown, lines=True))


def _build_case(build: BuildReport) -> _Case:
    """Return the case of the build itself: that it was made and measured."""
    reason = build.reason or ""
    match build.status:
        case "error":
            return _Case("build", "error", "error", reason)
        case "unsupported":
            return _Case("build", "skipped", "unsupported", reason)
        case "passed" | "failed":
            text = _clean(f"{build.container_type or build.format}, {build.size_bytes or 0:,} bytes")
            return _Case("build", text=text)


def _gate_case(gate: GateReport, build: BuildReport) -> _Case:
    """Return the case of a gate; one that was not measured counts as it does in the verdict."""
    name = f"gate {gate.metric} {gate.limit}"
    value = "not measured" if gate.value is None else f"{gate.value:.6g}"
    text = _clean(f"{gate.metric}: {value}, limit {gate.limit}. {gate.reason}")
    if gate.outcome == "pass":
        return _Case(name, text=text)
    if gate.outcome == "fail":
        return _Case(name, "failure", "gate", gate.reason, text)
    if not gate.binding or build.status == "passed":
        return _Case(name, "skipped", "not_measured", gate.reason, text)
    return _Case(name, "error" if build.status == "error" else "failure", "not_measured", gate.reason, text)


def _lines(check: CheckReport) -> Iterator[str]:
    """Yield what a check says: its outcome, then each finding with its fix."""
    yield f"{check.outcome}: {_clean(check.detail)}"
    for finding in check.findings[:_MOST_FINDINGS]:
        yield f"{finding.severity} {_clean(finding.id)}: {_clean(finding.subject)}: {_clean(finding.detail)}"
        yield f"    fix: {_clean(finding.fix)}"
    if (more := len(check.findings) - _MOST_FINDINGS) > 0:
        yield f"and {more} more"


def _check_case(check: CheckReport) -> _Case:
    """Return the case of a check; a known divergence passes."""
    name, text = f"check {check.check}", "\n".join(_lines(check))
    match check.outcome:
        case "fail":
            return _Case(name, "failure", "check", check.detail, text)
        case "not_measured":
            return _Case(name, "skipped", "not_measured", check.detail, text)
        case "pass" | "known_divergence":
            return _Case(name, text=text)


def _cases(build: BuildReport) -> Iterator[_Case]:
    yield _build_case(build)
    yield from (_check_case(check) for check in build.structure)
    yield from (_gate_case(gate, build) for gate in build.gates)


def _add_case(suite: ET.Element, build: str, case: _Case) -> None:
    element = ET.SubElement(suite, "testcase", {"classname": build, "name": _clean(case.name)})
    text = case.text  # clean and cut to a bounded length already, line by line
    if case.ending == "passed":
        ET.SubElement(element, "system-out").text = text
        return
    said = {"type": case.kind, "message": _clean(case.message)}
    ET.SubElement(element, case.ending, said).text = text or said["message"]


def _counts(cases: list[_Case]) -> dict[str, str]:
    endings = [case.ending for case in cases]
    return {
        "tests": str(len(cases)),
        "failures": str(endings.count("failure")),
        "errors": str(endings.count("error")),
    }


def render_junit(report: Report) -> str:
    """Return the whole report as JUnit XML, in UTF-8, ending with a line end."""
    by_build = [(_clean(build.id), list(_cases(build))) for build in report.builds]
    name = f"edgekiln {report.pipeline}" if report.pipeline else "edgekiln"
    root = ET.Element("testsuites", {"name": _clean(name)})
    root.attrib |= _counts([case for _, cases in by_build for case in cases])
    for build, cases in by_build:
        suite = ET.SubElement(root, "testsuite", {"name": build, **_counts(cases)})
        suite.set("skipped", str(sum(case.ending == "skipped" for case in cases)))
        for case in cases:
            _add_case(suite, build, case)
    ET.indent(root)
    body = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'
