"""`edgekiln doctor`: what works on this machine, and how to mend the rest.

It needs none of the libraries that it judges but the light ones that every command needs, makes no connection, and
leaves nothing behind.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from edgekiln import __version__
from edgekiln.errors import EdgekilnError, ExitCode, UsageError
from edgekiln.pipelines.doctor_libraries import (
    GROUPS,
    agreement_findings,
    compiler_findings,
    library_findings,
    probe_all,
    provider_findings,
    python_findings,
)
from edgekiln.pipelines.doctor_machine import (
    busy_share,
    cpu_findings,
    disk_findings,
    file_system_findings,
    memory_findings,
    timing_findings,
)
from edgekiln.pipelines.doctor_network import network_findings
from edgekiln.pipelines.doctor_targets import target_findings
from edgekiln.pipelines.findings import DoctorReport, Finding, Verdict
from edgekiln.pipelines.settings import Settings, environment_layer, flags_layer, resolve_settings
from edgekiln.pipelines.targets import load_targets
from edgekiln.redact import redact

_MARKS: Final = {"ok": "ok", "info": "-", "warning": "WARNING", "problem": "PROBLEM"}


def _guarded(identifier: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Run a check; a library that it lacks, or a system that answers oddly, is a finding of its own."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except ImportError as error:
        line, fix = f"could not be looked at: {error}", "install Edgekiln with its dependencies again"
        found.append(Finding(id=f"{identifier}/check", status="problem", summary=line, fix=fix))
    except (OSError, ValueError, EdgekilnError) as error:
        line = f"could not be looked at: {type(error).__name__}: {error}"
        found.append(Finding(id=f"{identifier}/check", status="warning", summary=line))
    return found


def _settings(targets: Path | None) -> tuple[Settings, list[Finding]]:
    """Return the settings that builds would have, and a finding where the environment's cannot be read."""
    flags = flags_layer({"targets": targets})
    try:
        return resolve_settings(environment_layer(os.environ), flags).values, []
    except UsageError as error:
        found = Finding(id="settings/environment", status="problem", summary=str(error), fix="correct or unset it")
        return resolve_settings(flags).values, [found]


def _broken(findings: Iterable[Finding]) -> dict[str, str]:
    """Return the libraries that do not work, with what is wrong."""
    return {
        finding.id.removeprefix("library/"): finding.summary
        for finding in findings
        if finding.subject == "library" and finding.status == "problem"
    }


def _verdict(findings: Iterable[Finding]) -> Verdict:
    counts = Counter(finding.status for finding in findings)
    problems, warnings = counts["problem"], counts["warning"]
    if problems:
        count = f"{problems} problem{'s' if problems > 1 else ''}"
        line = f"Not every build can run here: {count} to mend, marked PROBLEM above."
    elif warnings:
        line = f"Builds can run here, with {warnings} warning{'s' if warnings > 1 else ''}."
    else:
        line = "Builds can run here."
    return Verdict(ready=not problems, problems=problems, warnings=warnings, summary=line)


def _clean(finding: Finding) -> Finding:
    """Return a finding without secrets: error messages of others may quote an address or a variable."""
    facts = {key: redact(value) if isinstance(value, str) else value for key, value in finding.facts.items()}
    fix = redact(finding.fix) if finding.fix else None
    return finding.model_copy(update={"summary": redact(finding.summary), "fix": fix, "facts": facts})


def _examine(targets: Path | None) -> Iterator[Finding]:
    settings, wrong = _settings(targets)
    # First of all, before our own children keep the processors busy.
    timing = _guarded("timing", lambda: timing_findings(settings.out, busy_share))
    yield from _guarded("python", python_findings)
    yield from wrong
    yield from _guarded("compiler", compiler_findings)
    with tempfile.TemporaryDirectory(prefix="edgekiln-doctor-", ignore_cleanup_errors=True) as directory:
        answers = probe_all(Path(directory))
    libraries = _guarded("library", lambda: library_findings(answers))
    yield from libraries
    yield from _guarded("library", agreement_findings)
    yield from _guarded("provider", lambda: provider_findings(answers))
    yield from _guarded("cpu", cpu_findings)
    yield from _guarded("memory", memory_findings)
    yield from _guarded("disk", lambda: disk_findings(settings.out))
    yield from _guarded("files", file_system_findings)
    yield from _guarded("network", network_findings)
    yield from timing
    yield from _guarded("target", lambda: target_findings(settings.targets, _broken(libraries)))


def examine(targets: Path | None = None) -> DoctorReport:
    """Look at everything that builds depend on.

    Args:
        targets: A targets file; None for the one that builds would use.

    Raises:
        UsageError: `targets` is given and cannot be read.
    """
    if targets is not None:
        load_targets(targets)  # a mistake in what this very command names ends it at once
    findings = tuple(_clean(finding) for finding in _examine(targets))
    return DoctorReport(edgekiln=__version__, findings=findings, verdict=_verdict(findings))


def exit_code(report: DoctorReport) -> ExitCode:
    """Return what `edgekiln doctor` ends with."""
    return ExitCode.PASSED if report.verdict.ready else ExitCode.ENVIRONMENT


def report_text(report: DoctorReport) -> str:
    """Return the report for people: one line per finding, grouped by subject, and the verdict last."""
    width = max(len(finding.id.partition("/")[2]) for finding in report.findings)
    lines: list[str] = []
    subject = ""
    for finding in report.findings:
        if finding.subject != subject:
            subject = finding.subject
            lines.append(subject)
        thing = finding.id.partition("/")[2]
        lines.append(f"  {_MARKS[finding.status]:<7}  {thing:<{width}}  {finding.summary}")
        if finding.fix:
            lines.append(f"{'':<{width + 13}}mend: {finding.fix}")
    return "\n".join([*lines, "", report.verdict.summary])


#: Packages that are looked at, for tests.
LOOKED_AT: Final = tuple(library.package for group in GROUPS for library in group)
