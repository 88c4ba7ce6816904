"""The report as Markdown, for a person or a CI job's summary: never longer than such a summary may be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeVar

from edgekiln.terminal import printable
from edgekiln.validators.report import (
    BuildReport,
    CheckReport,
    ConservationReport,
    FindingReport,
    ParityReport,
    PrecisionReport,
    Report,
    RequirementReport,
    Speeds,
    TensorReport,
)

#: GitHub refuses a job summary of more than 1 MiB; other steps of the job may write to it as well.
_MOST_BYTES: Final = 900_000
#: Of these, for the table of all builds.
_TABLE_BYTES: Final = 300_000
#: Entries of one list; the rest is counted.
_MOST_ROWS: Final = 20
_MOST_EXCEPTIONS: Final = 10
#: Characters of one text; what an artifact names may be long.
_LONGEST: Final = 400
#: What formats, links or loads pictures in Markdown.
_MARKUP: Final = re.compile(r"([\\`*\[\]|])")

_MARKS = {"passed": "✅ passed", "failed": "❌ failed", "error": "💥 error", "unsupported": "➖ unsupported"}


def number(value: float | None, form: str) -> str:
    """Return a figure in a format, or a dash where there is none."""
    return "–" if value is None else format(value, form)


def _line(text: str) -> str:
    """Return text as one line of a bounded length that hides nothing."""
    shown = " ".join(text[: 2 * _LONGEST].split())
    if not (shown.isascii() and shown.isprintable()):
        shown = printable(shown)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"


def _cell(text: str) -> str:
    """Return text that stays inside its table cell, formats nothing and is of a bounded length."""
    shown = _line(text)
    return _MARKUP.sub(r"\\\1", shown.replace("&", "&amp;")).replace("<", "&lt;")


def _code(text: str) -> str:
    """Return text as a code span that it cannot leave."""
    shown = _line(text).replace("`", "'") or " "
    return f"`{shown}`"


_T = TypeVar("_T")


def _first(items: Sequence[_T], most: int = _MOST_ROWS) -> tuple[Sequence[_T], list[str]]:
    """Return the first items of a list, and a line about how many there are beside them."""
    more = len(items) - most
    return items[:most], [f"… and {more} more: see report.json.", ""] if more > 0 else []


def _listed(title: str, items: Sequence[str]) -> list[str]:
    """Return a list under its title; nothing where it is empty."""
    shown, more = _first(items)
    return [title, "", *(f"- {_cell(item)}" for item in shown), "", *more] if items else []


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    return [*lines, *_table_rows(rows)]


def _table_rows(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for row in rows:
        yield f"| {' | '.join(_cell(cell) for cell in row)} |"


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
    "joules_per_token",
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
        for figure in (*_FIGURES, *_by_name(latency))
    ]
    pinned = latency.pinned_to
    threads = f"{latency.threads} threads" + (f" on processors {', '.join(map(str, pinned))}" if pinned else "")
    busy = "" if latency.contention is None else f"; others used {latency.contention:.0%} of the processors"
    header = ("figure", "median", "scatter %", "fp16 artifact", "reference")
    # What nobody measured, neither of the artifact nor of what it is compared with, needs no row.
    rows = [row for row in rows if row[1:] != ["–"] * 4]
    shown, more = _first(rows, 2 * _MOST_ROWS)
    return [*_table(header, shown), "", *more, f"{_cell(latency.runtime)}, {threads}{busy}.", ""]


def _by_name(speeds: Speeds) -> dict[str, float]:
    """Return the speeds that llama-bench's names tell apart: by length, depth of the cache, and batch."""
    return {**speeds.by_length, **speeds.by_depth, **speeds.by_batch}


def _figure(speeds: Speeds | None, name: str) -> float | None:
    if speeds is None:
        return None
    value = _by_name(speeds).get(name, getattr(speeds, name, None))
    return value if isinstance(value, int | float) else None


def _details(build: BuildReport) -> list[str]:
    lines = [f"## {_cell(build.id)}: {_MARKS[build.status]}", ""]
    if build.health is not None:
        lines += _listed(f"Health: {build.health.status}.", build.health.findings) or [
            f"Health: {build.health.status}.",
            "",
        ]
    elif build.reason:
        lines += [_cell(build.reason), ""]
    if build.stand_in is not None:
        missing = "; ".join(build.stand_in.not_measured[:_MOST_ROWS])
        lines += [f"{_cell(build.stand_in.what)}. Not measured: {_cell(missing)}.", ""]
    if build.artifact:
        lines += [f"Artifact: {_code(build.artifact)}", ""]
    if build.gates:
        gates, more = _first(build.gates, 2 * _MOST_ROWS)
        rows = [[g.metric, g.limit, number(g.value, ".6g"), g.outcome, g.reason] for g in gates]
        lines += [*_table(("gate", "limit", "value", "outcome", "reason"), rows), "", *more]
    lines += _checks(build.structure)
    lines += _conservation(build.conservation) if build.conservation else []
    lines += _precision(build.precision_built) if build.precision_built else []
    lines += _requirements(build.requirements)
    lines += _parity(build.parity) if build.parity else []
    lines += _latency(build)
    lines += _listed(
        "Not measured, or too noisy to be relied on:", [f"{name}: {why}" for name, why in build.not_measured.items()]
    )
    lines += _listed("Otherwise than asked for:", build.notes)
    return lines


_GRAVITY: Final = ("error", "warning", "note")


def _checks(checks: Sequence[CheckReport]) -> list[str]:
    """Return how many checks passed, what the others say, and everything found with its fix, the gravest first."""
    if not checks:
        return []
    noteworthy = [check for check in checks if check.outcome != "pass"]
    lines = [f"Structure: {len(checks) - len(noteworthy)} of {len(checks)} checks passed.", ""]
    if noteworthy:
        shown, more = _first(noteworthy)
        lines += [*_table(("check", "outcome", "detail"), [[c.check, c.outcome, c.detail] for c in shown]), "", *more]
    findings = [finding for check in checks for finding in check.findings]
    findings.sort(key=lambda finding: _GRAVITY.index(finding.severity))
    return lines + _findings(findings)


def _findings(findings: Sequence[FindingReport]) -> list[str]:
    if not findings:
        return []
    shown, more = _first(findings)
    rows = [[f.severity, f.id, f.subject, f.detail, f.fix] for f in shown]
    return [*_table(("severity", "finding", "subject", "what", "fix"), rows), "", *more]


def _tensors(tensors: Sequence[TensorReport]) -> list[str]:
    rows = [
        [
            tensor.name,
            tensor.type,
            number(tensor.bits_per_weight, ".2f"),
            number(tensor.relative_error, ".5f"),
            number(tensor.cosine, ".5f"),
            number(tensor.snr_db, ".1f"),
        ]
        for tensor in tensors
    ]
    return [*_table(("tensor", "type", "bits/weight", "relative error", "cosine", "SNR dB"), rows), ""]


def _conservation(found: ConservationReport) -> list[str]:
    """Return what became of the checkpoint's tensors, and the worst of them."""
    snr = "" if found.snr_db is None else f" (SNR {found.snr_db:.1f} dB)"
    counts = f"{found.exported} tensors exported, {found.tied} tied, {found.fused} fused, {len(found.dropped)} dropped"
    error = f"relative error {found.relative_error:.5f}{snr} over {found.compared_weights:,} weights"
    lines = [f"Conservation: {counts}; {error}.", ""]
    lines += _listed("Dropped:", [f"{name}: {why}" for name, why in found.dropped.items()])
    shown, _ = _first(found.worst, 10)
    return lines + (["Worst tensors:", "", *_tensors(shown)] if shown else [])


def _precision(found: PrecisionReport) -> list[str]:
    """Return what the weights lie in, and what lies in something else than was asked for."""
    shares, _ = _first(sorted(found.weights_by_type.items(), key=lambda item: -item[1]))
    listed = ", ".join(f"{_cell(name)} {count:,}" for name, count in shares)
    asked = f"{_cell(found.asked)} was asked for" if found.asked else "nobody asked for a type"
    lines = [
        f"Precision as built: {found.bits_per_weight:.2f} bits per weight; {asked}. Weights of matrices: {listed}."
    ]
    shown, more = _first(found.exceptions, _MOST_EXCEPTIONS)
    return [*lines, "", *(["Of another type:", "", *_tensors(shown), *more] if shown else [])]


def _requirements(found: Sequence[RequirementReport]) -> list[str]:
    """Return the first release of each runtime that loads all that was found; what is not known is said."""
    asked: dict[str, list[str]] = {}
    for entry in found:
        asked.setdefault(entry.runtime, []).append(f"{entry.what}: {entry.since or 'not known'}")
    return _listed(
        "What loads it, since which release:", [f"{runtime}: {'; '.join(what)}" for runtime, what in asked.items()]
    )


def _interval(interval: tuple[float, float] | None, form: str) -> str:
    return "" if interval is None else f" (95 %: {format(interval[0], form)} to {format(interval[1], form)})"


def _parity_rows(parity: ParityReport) -> Iterator[list[str]]:
    """Yield name and value of each figure of parity."""
    ratio = parity.perplexity / parity.reference_perplexity if parity.reference_perplexity else None
    yield ["mean KLD", number(parity.mean_kld, ".5f") + _interval(parity.mean_kld_interval, ".5f")]
    tail = (parity.median_kld, parity.p95_kld, parity.p99_kld, parity.p999_kld, parity.max_kld)
    yield ["KLD median, p95, p99, p99.9, max", ", ".join(number(value, ".4f") for value in tail)]
    near = "" if parity.top1_near_ties is None else f", near ties {100 * parity.top1_near_ties:.2f} %"
    clear = "" if parity.top1_agreement_clear is None else f", without them {100 * parity.top1_agreement_clear:.2f} %"
    yield ["top-1 agreement", f"{100 * parity.top1_agreement:.2f} %{near}{clear}"]
    yield ["perplexity ratio", number(ratio, ".4f") + _interval(parity.perplexity_ratio_interval, ".4f")]
    if parity.rms_delta_p is not None:
        yield ["RMS difference of probabilities", number(parity.rms_delta_p, ".5f")]
    yield ["greedy agreement, tokens", number(parity.greedy_agreement_tokens, ".1f")]
    for name, path in (("decode path", parity.decode), ("long context", parity.long_context)):
        if path is not None:
            prefill = "" if path.prefill_mean_kld is None else f", of the same on prefill {path.prefill_mean_kld:.5f}"
            yield [
                f"{name}, mean KLD",
                f"{path.mean_kld:.5f}{prefill}; {path.scored_tokens} positions, context {path.context_tokens}",
            ]


def _parity(parity: ParityReport) -> list[str]:
    """Return the figures of parity with their intervals, and those of each part of the corpus."""
    lines = [*_table(("parity", parity.runtime), _parity_rows(parity)), ""]
    if not parity.sections:
        return lines
    sections, more = _first(parity.sections)
    rows = [
        [
            section.section,
            str(section.scored_tokens),
            number(section.mean_kld, ".5f"),
            number(section.p99_kld, ".4f"),
            number(100 * section.top1_agreement, ".1f"),
            number(section.perplexity_ratio, ".4f"),
        ]
        for section in sections
    ]
    header = ("section", "positions", "mean KLD", "p99 KLD", "top-1 %", "perplexity ratio")
    return [*lines, *_table(header, rows), "", *more]


def render_markdown(report: Report) -> str:
    """Return the whole report: verdict first, then one table, then each build."""
    counts = {status: sum(build.status == status for build in report.builds) for status in _MARKS}
    verdict = ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "no builds"
    lines = ["# Edgekiln report", "", f"**{verdict}**", ""]
    if (checkpoint := report.checkpoint) is not None:
        of = f"{_cell(checkpoint.model_type)}, {checkpoint.weights:,} weights"
        lines += [f"Checkpoint {_code(checkpoint.source)}: {of}, identity {_code(checkpoint.identity[:16])}.", ""]
    rows = ("".join(_table_rows([_summary_row(build)])) for build in report.builds)
    lines += [*_table(_SUMMARY, ()), *_fitting(rows, len(report.builds), _TABLE_BYTES), ""]
    if report.corpus is not None and (protocol := report.protocol) is not None:
        lines += [
            f"Compared on the {_cell(report.corpus.name)} corpus with {_cell(protocol.reference)}.",
            f"{protocol.scored_tokens} positions were scored, in windows of {protocol.window} tokens.",
            f"Speeds are medians of at least {protocol.repeats} processes, each after {protocol.warmups} warm-up:",
            f"prefill of {protocol.prefill_tokens} and decoding of {protocol.decode_tokens} tokens,",
            f"on {_cell(report.host.processor)}.",
            "",
        ]
    details = ("\n".join(_details(build)) for build in report.builds)
    lines += _fitting(details, len(report.builds), _MOST_BYTES - _TABLE_BYTES)
    return "\n".join(lines).rstrip() + "\n"


def _fitting(parts: Iterable[str], total: int, most: int) -> list[str]:
    """Return what is said of builds as far as it has room in `most` bytes, and a line about the others."""
    kept: list[str] = []
    used = 0
    for part in parts:
        used += len(part.encode("utf-8", "replace")) + 1
        if used > most:
            return [*kept, "", f"… and {total - len(kept)} more builds: see report.json."]
        kept.append(part)
    return kept
