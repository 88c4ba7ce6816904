"""How well a verdict and its figures repeat: the same build, made and validated several times.

    python benchmarks/repeatability.py --runs 5 --json repeat.json -- PIPELINE --checkpoint DIR [any option of build]

Prints a Markdown table: for each build and figure the value of every run, and the range over the median. The exit code
is 1 if a verdict, a gate's outcome or a parity figure differed between runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TIMED = (
    "load_seconds",
    "cold_load_seconds",
    "time_to_first_token_seconds",
    "peak_rss_bytes",
    "steady_rss_bytes",
)
PARITY = ("mean_kld", "top1_agreement", "perplexity")


def run_build(options: Sequence[str], out: Path) -> dict[str, Any]:
    """Run `edgekiln build` once and return its report; whatever its verdict is."""
    command = [sys.executable, "-m", "edgekiln", "build", *options, "--out", str(out), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in {0, 1}:
        sys.exit(f"edgekiln build ended with exit code {done.returncode}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def figures(build: Mapping[str, Any]) -> dict[str, float]:
    """Return every figure of one build's report that is to be compared."""
    latency, parity = build["latency"] or {}, build["parity"] or {}
    found = {name: latency.get(name) for name in TIMED} | dict(latency.get("by_length", {}))
    base = (latency.get("fp16_artifact") or {}).get("decode_tokens_per_second")
    if base and latency.get("decode_tokens_per_second"):
        found["decode / fp16 artifact"] = latency["decode_tokens_per_second"] / base
    found |= {name: parity.get(name) for name in PARITY}
    return {name: value for name, value in found.items() if value is not None}


def shown(value: float) -> str:
    """Return a figure with three digits, or whole where it is large."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def table(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the rows of the Markdown table."""
    runs = len(reports)
    lines = [f"| build | figure | {' | '.join(f'run {n + 1}' for n in range(runs))} | range / median |"]
    lines.append("|" + " --- |" * (runs + 3))
    for index, build in enumerate(reports[0]["builds"]):
        found = [figures(report["builds"][index]) for report in reports]
        for name in found[0]:
            values = [values[name] for values in found if name in values]
            spread = (max(values) - min(values)) / statistics.median(values)
            lines.append(f"| {build['id']} | {name} | {' | '.join(map(shown, values))} | {100 * spread:.1f} % |")
        statuses = [f"{report['builds'][index]['status']}" for report in reports]
        lines.append(f"| {build['id']} | verdict | {' | '.join(statuses)} | {len(set(statuses)) - 1} flips |")
    return lines


def verdicts(report: Mapping[str, Any]) -> list[object]:
    """Return what must not differ between runs."""
    return [
        (build["id"], build["status"], [(gate["metric"], gate["outcome"]) for gate in build["gates"]], build["parity"])
        for build in report["builds"]
    ]


def main() -> None:
    """Run, print, write, and exit with 1 if anything flipped."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write all reports here")
    parser.add_argument("options", nargs="+", help="what `edgekiln build` gets")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgekiln-repeat-") as scratch:
        reports = [run_build(arguments.options, Path(scratch) / str(number)) for number in range(arguments.runs)]
    print("\n".join(table(reports)))
    if arguments.json:
        arguments.json.write_text(json.dumps(reports, indent=2), encoding="utf-8")
    sys.exit(any(verdicts(report) != verdicts(reports[0]) for report in reports))


if __name__ == "__main__":
    main()
