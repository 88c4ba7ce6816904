"""The report as Markdown, for a person or a CI job's summary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgekiln.validators.report import BuildReport, Report

_MARKS = {"passed": "✅ passed", "failed": "❌ failed", "error": "💥 error", "unsupported": "➖ unsupported"}


def number(value: float | None, form: str) -> str:
    """Return a figure in a format, or a dash where there is none."""
    return "–" if value is None else format(value, form)


def _cell(text: str) -> str:
    """Return text that stays inside its table cell and formats nothing."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    lines.extend(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows)
    return lines


def _summary_row(build: BuildReport) -> list[str]:
    parity, latency = build.parity, build.latency
    baseline = latency.fp16_artifact if latency else None
    decode = latency.decode_tokens_per_second if latency else None
    ratio = (
        decode / baseline.decode_tokens_per_second
        if decode and baseline and baseline.decode_tokens_per_second
        else None
    )
    return [
        build.id,
        _MARKS[build.status],
        build.container_type or "–",
        number(build.size_bytes / 1e6 if build.size_bytes else None, ".1f"),
        number(build.bits_per_weight, ".2f"),
        number(parity.mean_kld if parity else None, ".5f"),
        number(100 * parity.top1_agreement if parity else None, ".1f"),
        number(parity.perplexity / parity.reference_perplexity if parity else None, ".4f"),
        number(latency.prefill_tokens_per_second if latency else None, ".0f"),
        number(decode, ".1f"),
        number(ratio, ".2f"),
    ]


_SUMMARY = (
    "build",
    "status",
    "container type",
    "MB",
    "bits/weight",
    "mean KLD",
    "top-1 %",
    "perplexity ratio",
    "prefill tok/s",
    "decode tok/s",
    "decode / fp16",
)


def _details(build: BuildReport) -> list[str]:
    lines = [f"## {build.id}: {_MARKS[build.status]}", ""]
    if build.reason:
        lines += [_cell(build.reason), ""]
    if build.artifact:
        lines += [f"Artifact: `{build.artifact}`", ""]
    if build.gates:
        rows = [[g.metric, g.limit, number(g.value, ".6g"), g.outcome, g.reason] for g in build.gates]
        lines += [*_table(("gate", "limit", "value", "outcome", "reason"), rows), ""]
    noteworthy = [check for check in build.structure if check.outcome != "pass"]
    passed = len(build.structure) - len(noteworthy)
    if build.structure:
        lines += [f"Structure: {passed} of {len(build.structure)} checks passed.", ""]
    if noteworthy:
        lines += [*_table(("check", "outcome", "detail"), [[c.check, c.outcome, c.detail] for c in noteworthy]), ""]
    if build.notes:
        lines += ["Stored otherwise than asked for:", "", *(f"- {_cell(note)}" for note in build.notes), ""]
    return lines


def render_markdown(report: Report) -> str:
    """Return the whole report: verdict first, then one table, then each build."""
    counts = {status: sum(build.status == status for build in report.builds) for status in _MARKS}
    verdict = ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "no builds"
    lines = ["# Edgekiln report", "", f"**{verdict}**", ""]
    if (checkpoint := report.checkpoint) is not None:
        sentence = f"Checkpoint `{checkpoint.source}`: {checkpoint.model_type}, {checkpoint.weights:,} weights"
        lines += [f"{sentence}, identity `{checkpoint.identity[:16]}`.", ""]
    lines += [*_table(_SUMMARY, map(_summary_row, report.builds)), ""]
    if report.corpus is not None and (protocol := report.protocol) is not None:
        lines += [
            f"Compared on the {report.corpus.name} corpus with {protocol.reference}.",
            f"{protocol.scored_tokens} positions were scored, in windows of {protocol.window} tokens.",
            f"Speeds are medians of {protocol.repeats} processes, each after {protocol.warmups} warm-up:",
            f"prefill of {protocol.prefill_tokens} and decoding of {protocol.decode_tokens} tokens,",
            f"on {report.host.processor}.",
            "",
        ]
    for build in report.builds:
        lines += _details(build)
    return "\n".join(lines).rstrip() + "\n"
