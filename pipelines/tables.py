"""Plans, targets and reports as texts with tables for a terminal, and as JSON for scripts."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence

from edgekiln.pipelines.plan import Build, Plan
from edgekiln.pipelines.targets import Target, TargetsFile
from edgekiln.units import format_size
from edgekiln.validators.markdown import number
from edgekiln.validators.report import BuildReport, Report

_STYLES = {"passed": "green", "failed": "red", "error": "red", "unsupported": "yellow"}
#: Width of tables where there is no terminal: no figure is ever cut off in a log.
_LOG_WIDTH = 160


def _table(columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; a column is a heading and whether it holds numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else _LOG_WIDTH
    text = io.StringIO()
    console = Console(
        file=text, width=width, force_terminal=terminal, no_color="NO_COLOR" in os.environ or not terminal
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading, numeric in columns:
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    console.print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().strip("\n").splitlines())


def _styled(status: str) -> object:
    from rich.text import Text

    return Text(status, style=_STYLES[status])


def _result_row(build: BuildReport) -> list[object]:
    parity, latency = build.parity, build.latency
    return [
        build.id,
        _styled(build.status),
        build.container_type or "–",
        number(build.size_bytes / 1e6 if build.size_bytes else None, ".1f"),
        number(parity.mean_kld if parity else None, ".5f"),
        number(100 * parity.top1_agreement if parity else None, ".1f"),
        number(parity.perplexity if parity else None, ".2f"),
        number(latency.prefill_tokens_per_second if latency else None, ".0f"),
        number(latency.decode_tokens_per_second if latency else None, ".1f"),
    ]


_RESULT_COLUMNS = (
    ("build", False),
    ("status", False),
    ("holds", False),
    ("MB", True),
    ("mean KLD", True),
    ("top-1 %", True),
    ("perplexity", True),
    ("prefill tok/s", True),
    ("decode tok/s", True),
)


def report_text(report: Report) -> str:
    """Return one row per build, then the reason of each that did not pass."""
    lines = [_table(_RESULT_COLUMNS, map(_result_row, report.builds))]
    lines += [f"{build.id}: {build.status}: {build.reason}" for build in report.builds if build.reason]
    passed = sum(build.status == "passed" for build in report.builds)
    lines.append(f"{passed} of {len(report.builds)} builds passed.")
    return "\n".join(lines)


def _plan_row(build: Build, reason: str | None) -> list[object]:
    options = [
        f"group {build.scheme.group_size}" if build.scheme.group_size else "",
        "" if build.scheme.symmetric else "asymmetric",
        f"embeddings {build.scheme.embedding_precision}" if build.scheme.embedding_precision else "",
        f"head {build.scheme.head_precision}" if build.scheme.head_precision else "",
        f"embedding group {build.scheme.embedding_group_size}" if build.scheme.embedding_group_size else "",
    ]
    return [
        build.id,
        build.target.name,
        build.format,
        build.requested,
        build.precision,
        ", ".join(filter(None, options)) or "–",
        build.threads,
        "cannot be built" if reason else "will be built",
    ]


def plan_text(plan: Plan, reasons: Mapping[str, str], note: str | None) -> str:
    """Return the matrix, and why a cell cannot be built.

    Args:
        plan: The expanded pipeline.
        reasons: By build id, why it cannot be built.
        note: What was not looked at, and why; None when everything was.
    """
    columns = (
        ("build", False),
        ("target", False),
        ("format", False),
        ("asked for", False),
        ("precision", False),
        ("options", False),
        ("threads", True),
        ("", False),
    )
    settings = plan.settings
    lines = [_table(columns, (_plan_row(build, reasons.get(build.id)) for build in plan.builds))]
    lines += [f"{name}: {reason}" for name, reason in reasons.items()]
    lines += [note] if note else []
    lines.append(f"Checkpoint: {settings.values.checkpoint} ({settings.origins['checkpoint']})")
    lines.append(f"Targets: {plan.targets.name}")
    lines.append(f"Output: {settings.values.out} ({settings.origins['out']})")
    return "\n".join(lines)


def plan_json(plan: Plan, reasons: Mapping[str, str]) -> str:
    """Return the plan as JSON; `reasons` says why a build cannot be made."""
    builds = [
        {
            "id": build.id,
            "target": build.target.name,
            "format": build.format,
            "requested": build.requested,
            "precision": build.precision,
            "group_size": build.scheme.group_size,
            "symmetric": build.scheme.symmetric,
            "embedding_precision": build.scheme.embedding_precision,
            "head_precision": build.scheme.head_precision,
            "embedding_group_size": build.scheme.embedding_group_size,
            "threads": build.threads,
            "gates": [str(gate) for gate in build.gates],
            "unsupported": reasons.get(build.id),
            "allow_unsupported": build.allow_unsupported,
            "origins": dict(build.origins),
        }
        for build in plan.builds
    ]
    settings = {
        key: {"value": value, "origin": plan.settings.origins[key]}
        for key, value in plan.settings.values.model_dump(mode="json").items()
    }
    targets = {"name": plan.targets.name, "sha256": plan.targets.document.sha256}
    document = {"schema": "edgekiln.plan/1", "targets": targets, "settings": settings, "builds": builds}
    return json.dumps(document, indent=2)


def targets_text(catalogue: TargetsFile) -> str:
    """Return one row per device profile."""
    rows = [
        [t.name, t.format, f"{t.runtime.name} {t.runtime.version}", t.execution_provider, t.description]
        for t in catalogue.targets.values()
    ]
    columns = (("target", False), ("format", False), ("runtime", False), ("provider", False), ("description", False))
    return f"{_table(columns, rows)}\nFrom {catalogue.name}"


def target_text(target: Target) -> str:
    """Return one device profile with the reason for each of its precisions."""
    memory = "not given" if target.memory is None else format_size(target.memory)
    lines = [
        f"{target.name}: {target.description}",
        f"  format     {target.format}",
        f"  runtime    {target.runtime.name} {target.runtime.version} on {target.execution_provider}",
        f"  memory     {memory}",
        f"  threads    {target.threads or 'all physical cores'}",
        f"  context    {target.context_length or 'as long as the model allows'}",
    ]
    for name, meaning in target.precisions.items():
        lines.append(f"  {name:<10} {meaning.unsupported or meaning.container or name}: {meaning.why}")
    return "\n".join([*lines, *(f"  gate       {gate}" for gate in target.gates)])


def targets_json(targets: Sequence[Target]) -> str:
    """Return device profiles as JSON."""
    entries = [target.model_dump(mode="json", exclude={"gates"}) for target in targets]
    for entry, target in zip(entries, targets, strict=True):
        entry["gates"] = [str(gate) for gate in target.gates]
    return json.dumps(entries, indent=2)
