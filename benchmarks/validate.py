"""What the validator itself costs: `python benchmarks/validate.py CHECKPOINT ARTIFACT [ARTIFACT …]`.

Every artifact is compared with the reference as `edgekiln validate` does it, in this process, with a clock at each call
of the runtime. What is left is ours: reading the kept distributions, comparing, and the statistics. A table goes to
standard output; `--json FILE` writes all figures.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.checkpoint import Checkpoint, open_checkpoint
from edgekiln.host import physical_cores
from edgekiln.pipelines.predict import reference_budget
from edgekiln.pipelines.protocol import make_protocol
from edgekiln.pipelines.settings import Settings, assignments_layer, flags_layer, resolve_settings
from edgekiln.validators import RUNTIME_NAMES, RUNTIMES
from edgekiln.validators.base import MeasurementProtocol
from edgekiln.validators.compare import compare_artifact, read_reference
from edgekiln.validators.hf_tokenizer import decode, load_tokenizer
from edgekiln.validators.kinds import identify
from edgekiln.validators.validate import make_reference


class Clocked:
    """A runtime with a clock: `seconds` is what was spent inside it, `positions` how many logits it gave."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self.seconds = 0.0
        self.positions = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._runtime, name)
        return self._clocked(found) if callable(found) else found

    def _clocked(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: object) -> Any:
            begin = time.perf_counter()
            answer = call(*arguments)
            self.seconds += time.perf_counter() - begin
            return self._rows(answer) if isinstance(answer, Iterator) else answer

        return timed

    def _rows(self, rows: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        while True:
            begin = time.perf_counter()
            chunk = next(rows, None)
            self.seconds += time.perf_counter() - begin
            if chunk is None:
                return
            self.positions += len(chunk)
            yield chunk


def compare_once(path: Path, reference: Path, protocol: MeasurementProtocol, tokenizer: Any) -> dict[str, float]:
    """Compare one artifact and return where the time went."""
    kind = identify(path)
    runtime = Clocked(RUNTIMES[kind.format]())
    begin = time.perf_counter()
    found = compare_artifact(runtime, kind.path, reference, protocol, lambda ids: decode(tokenizer, ids))  # type: ignore[arg-type]  # it passes every call on
    runtime.end()
    total = time.perf_counter() - begin
    ours = total - runtime.seconds
    return {
        "seconds": total,
        "runtime_seconds": runtime.seconds,
        "own_seconds": ours,
        "own_share": ours / total,
        "positions": runtime.positions,
        "positions_per_second": runtime.positions / ours,
        "mean_kld": found.parity.mean_kld,
    }


def measure(
    checkpoint: Checkpoint, artifacts: Sequence[Path], settings: Settings, rounds: int, scratch: Path
) -> dict[str, Any]:
    """Make the reference once, then compare every artifact in turn, `rounds` times."""
    protocol = make_protocol(settings, settings.threads or physical_cores())
    begin = time.perf_counter()
    log, budget = scratch / "log", reference_budget(checkpoint)
    made = make_reference(checkpoint, protocol, scratch / "reference", log=log, memory_bytes=budget)
    reference_seconds = time.perf_counter() - begin
    kept = sum(path.stat().st_size for path in made.directory.glob("windows*"))
    tokenizer = load_tokenizer(checkpoint.directory)
    samples: dict[str, list[dict[str, float]]] = {str(path): [] for path in artifacts}
    for _ in range(rounds):
        for path in artifacts:
            samples[str(path)].append(compare_once(path, made.directory, protocol, tokenizer))
    return {
        "checkpoint": checkpoint.source,
        "scored_tokens": made.scored_tokens,
        "reference_seconds": reference_seconds,
        "kept_bytes_per_token": kept / made.scored_tokens,
        "float32_bytes_per_token": 4 * read_reference(made.directory).vocabulary,
        "artifacts": {
            name: {key: statistics.median(sample[key] for sample in found) for key in found[0]}
            for name, found in samples.items()
        },
    }


def show(found: dict[str, Any]) -> str:
    """Return the tables."""
    kept, whole = found["kept_bytes_per_token"], found["float32_bytes_per_token"]
    intro = (
        f"Reference of {found['checkpoint']}: {found['scored_tokens']:,} positions in "
        f"{found['reference_seconds']:.1f} s; {kept:,.0f} bytes are kept of each, in place of {whole:,}."
    )
    lines = [
        intro,
        "",
        "| artifact | runtime | seconds | in the runtime | ours | ours, share | positions per second of ours |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in found["artifacts"].items():
        runtime = RUNTIME_NAMES[identify(Path(name)).format]
        lines.append(
            f"| {Path(name).name} | {runtime} | {one['seconds']:.2f} | {one['runtime_seconds']:.2f} | "
            f"{one['own_seconds']:.2f} | {one['own_share']:.1%} | {one['positions_per_second']:,.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=3, help="comparisons of each artifact; medians count")
    parser.add_argument("--profile", default="full", help="quick or full")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, help="write all figures there")
    given = parser.parse_args()
    layers = assignments_layer(given.assignments), flags_layer({"profile": given.profile})
    settings = resolve_settings(*layers).values
    scratch = Path(tempfile.mkdtemp(prefix="edgekiln-benchmark-"))
    try:
        checkpoint = open_checkpoint(given.checkpoint, offline=True)
        found = measure(checkpoint, given.artifacts, settings, given.rounds, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(show(found))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
