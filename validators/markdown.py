"""The report as Markdown, for a person or a CI job's summary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgekiln.validators.report import BuildReport, Report, Speeds

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
        build.health.status if build.health else "–",
    ]


_FIGURES = (
    "load_seconds",
    "cold_load_seconds",
    "time_to_first_token_seconds",
    "peak_rss_bytes",
    "steady_rss_bytes",
)
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
    "health",
)


def _share(value: float | None) -> str:
    return number(None if value is None else 100 * value, ".0f")


def _latency(build: BuildReport) -> list[str]:
    """Return one row per figure: the artifact's median and scatter, and the medians of what it is compared with."""
    latency = build.latency
    if latency is None:
        return []
    rows = [
        [
            figure,
            number(_figure(latency, figure), ".6g"),
            _share(latency.spread.get(figure)),
            number(_figure(latency.fp16_artifact, figure), ".6g"),
            number(_figure(latency.reference, figure), ".6g"),
        ]
        for figure in (*_FIGURES, *latency.by_length)
    ]
    pinned = latency.pinned_to
    threads = f"{latency.threads} threads" + (f" on processors {', '.join(map(str, pinned))}" if pinned else "")
    busy = "" if latency.contention is None else f"; others used {latency.contention:.0%} of the processors"
    header = ("figure", "median", "scatter %", "fp16 artifact", "reference")
    return [*_table(header, rows), "", f"{latency.runtime}, {threads}{busy}.", ""]


def _figure(speeds: Speeds | None, name: str) -> float | None:
    if speeds is None:
        return None
    value = speeds.by_length.get(name, getattr(speeds, name, None))
    return value if isinstance(value, int | float) else None


def _details(build: BuildReport) -> list[str]:
    lines = [f"## {build.id}: {_MARKS[build.status]}", ""]
    if build.health is not None:
        lines += [f"Health: {build.health.status}.", ""]
        lines += [*(f"- {_cell(finding)}" for finding in build.health.findings), ""] if build.health.findings else []
    elif build.reason:
        lines += [_cell(build.reason), ""]
    if build.stand_in is not None:
        missing = "; ".join(build.stand_in.not_measured)
        lines += [f"{_cell(build.stand_in.what)}. Not measured: {_cell(missing)}.", ""]
    if build.artifact:
        lines += [f"Artifact: `{build.artifact}`", ""]
    if build.gates:
        rows = [[g.metric, g.limit, number(g.value, ".6g"), g.outcome, g.reason] for g in build.gates]
        lines += [*_table(("gate", "limit", "value", "outcome", "reason"), rows), ""]
    lines += _latency(build)
    noteworthy = [check for check in build.structure if check.outcome != "pass"]
    passed = len(build.structure) - len(noteworthy)
    if build.structure:
        lines += [f"Structure: {passed} of {len(build.structure)} checks passed.", ""]
    if noteworthy:
        lines += [*_table(("check", "outcome", "detail"), [[c.check, c.outcome, c.detail] for c in noteworthy]), ""]
    if build.not_measured:
        listed = (f"- {_cell(name)}: {_cell(reason)}" for name, reason in build.not_measured.items())
        lines += ["Not measured, or too noisy to be relied on:", "", *listed, ""]
    if build.notes:
        lines += ["Otherwise than asked for:", "", *(f"- {_cell(note)}" for note in build.notes), ""]
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
            f"Speeds are medians of at least {protocol.repeats} processes, each after {protocol.warmups} warm-up:",
            f"prefill of {protocol.prefill_tokens} and decoding of {protocol.decode_tokens} tokens,",
            f"on {report.host.processor}.",
            "",
        ]
    for build in report.builds:
        lines += _details(build)
    return "\n".join(lines).rstrip() + "\n"
