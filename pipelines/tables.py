"""Plans, targets and reports as tables on a terminal, and as JSON for scripts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence

from edgekiln.pipelines.plan import Build, Plan
from edgekiln.pipelines.targets import Target, TargetsFile
from edgekiln.units import format_size
from edgekiln.validators.report import BuildReport, Report

_STYLES = {"passed": "green", "failed": "red", "error": "red", "unsupported": "yellow"}
#: Width of tables where there is no terminal: no figure is ever cut off in a log.
_LOG_WIDTH = 160


def _print_table(title: str, columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; a column is a heading and whether it holds numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if _is_terminal() else _LOG_WIDTH)
    table = Table(title=title or None, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for heading, numeric in columns:
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    console.print(table)


def _is_terminal() -> bool:
    import sys

    return sys.stdout.isatty() and shutil.get_terminal_size().columns > 0


def _styled(status: str) -> object:
    from rich.text import Text

    return Text(status, style=_STYLES[status])


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _result_row(build: BuildReport) -> list[object]:
    parity, latency = build.parity, build.latency
    return [
        build.id,
        _styled(build.status),
        build.container_type or "–",
        _number(build.size_bytes / 1e6 if build.size_bytes else None, ".1f"),
        _number(parity.mean_kld if parity else None, ".5f"),
        _number(100 * parity.top1_agreement if parity else None, ".1f"),
        _number(parity.perplexity if parity else None, ".2f"),
        _number(latency.prefill_tokens_per_second if latency else None, ".0f"),
        _number(latency.decode_tokens_per_second if latency else None, ".1f"),
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


def print_report(report: Report) -> None:
    """Print one row per build, then the reason of each that did not pass."""
    _print_table("", _RESULT_COLUMNS, map(_result_row, report.builds))
    for build in report.builds:
        if build.reason:
            print(f"{build.id}: {build.status}: {build.reason}")
    passed = sum(build.status == "passed" for build in report.builds)
    print(f"{passed} of {len(report.builds)} builds passed.")


def _plan_row(build: Build) -> list[object]:
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
        "cannot be built" if build.unsupported else "will be built",
    ]


def print_plan(plan: Plan) -> None:
    """Print the matrix, and why a cell cannot be built."""
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
    _print_table("", columns, map(_plan_row, plan.builds))
    for build in plan.builds:
        if build.unsupported:
            print(f"{build.id}: {build.unsupported}")
    settings = plan.settings
    print(f"Checkpoint: {settings.values.checkpoint} ({settings.origins['checkpoint']})")
    print(f"Targets: {plan.targets.name}")
    print(f"Output: {settings.values.out} ({settings.origins['out']})")


def plan_json(plan: Plan) -> str:
    """Return the plan as JSON."""
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
            "unsupported": build.unsupported,
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


def print_targets(catalogue: TargetsFile) -> None:
    """Print one row per device profile."""
    rows = [
        [t.name, t.format, f"{t.runtime.name} {t.runtime.version}", t.execution_provider, t.description]
        for t in catalogue.targets.values()
    ]
    columns = (("target", False), ("format", False), ("runtime", False), ("provider", False), ("description", False))
    _print_table("", columns, rows)
    print(f"From {catalogue.name}")


def print_target(target: Target) -> None:
    """Print one device profile with the reason for each of its precisions."""
    memory = "not given" if target.memory is None else format_size(target.memory)
    print(f"{target.name}: {target.description}")
    print(f"  format     {target.format}")
    print(f"  runtime    {target.runtime.name} {target.runtime.version} on {target.execution_provider}")
    print(f"  memory     {memory}")
    print(f"  threads    {target.threads or 'all physical cores'}")
    print(f"  context    {target.context_length or 'as long as the model allows'}")
    for name, meaning in target.precisions.items():
        print(f"  {name:<10} {meaning.unsupported or meaning.container or name}: {meaning.why}")
    for gate in target.gates:
        print(f"  gate       {gate}")


def targets_json(targets: Sequence[Target]) -> str:
    """Return device profiles as JSON."""
    entries = [target.model_dump(mode="json", exclude={"gates"}) for target in targets]
    for entry, target in zip(entries, targets, strict=True):
        entry["gates"] = [str(gate) for gate in target.gates]
    return json.dumps(entries, indent=2)
