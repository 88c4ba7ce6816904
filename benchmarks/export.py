"""What an export costs beside its peers: `python benchmarks/export.py CHECKPOINT`.

Every command is a process of its own, run in turn with the others after one warm-up round; the time, the processors'
time and the memory are those of the whole tree of its processes. Our cache is empty each time, and so are the folders
that anything is written to. Peers are ONNX Runtime GenAI's model builder, and llama.cpp: its converter and then its
quantizer. A plain copy of the checkpoint is the floor. A table goes to standard output; `--json FILE` writes all
samples.

`--sizes 0.5 1 2 4 8` measures how our costs grow, on synthetic checkpoints of so many gigabytes. `--kernel` compares
K-quants with the time of ggml's kernel alone, on a synthetic checkpoint whose rows divide into their blocks.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from common import Figure, Part, environment, load, machine
from synthetic import SHAPES

from foreign import CONVERT, fetch

_POLL_SECONDS = 0.02
_QUANTIZE = """
import ctypes, os, sys
import llama_cpp
source, target, name, threads = sys.argv[1:]
params = llama_cpp.llama_model_quantize_default_params()
params.nthread, params.ftype = int(threads), getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
sys.exit(llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)))
"""
#: ggml's kernel and nothing else: the weights are in memory, and their blocks are thrown away.
_KERNEL = """
import sys
from concurrent.futures import ThreadPoolExecutor
from edgekiln.checkpoint import open_checkpoint
from edgekiln.exporters import EXPORTERS
from edgekiln.grids import BlockGrid
from edgekiln.quantizers import quantize
from edgekiln.scheme import Scheme
checkpoint, precision, threads = sys.argv[1:]
opened = open_checkpoint(checkpoint, offline=True, with_text=False)
with opened.reader() as reader, ThreadPoolExecutor(int(threads)) as pool:
    for tensor in EXPORTERS["gguf"].plan(opened, Scheme(precision)).tensors:
        info = opened.tensors[tensor.sources[0]]
        step = min(info.rows, max(1, (1 << 20) // info.columns))
        if isinstance(tensor.storage, BlockGrid):
            rows = reader.rows(info, 0, step)
            list(pool.map(lambda _: quantize(rows, tensor.storage), range(info.rows // step)))
"""


@dataclass(frozen=True)
class Case:
    """Something to measure.

    Attributes:
        commands: Run one after the other.
        output: What of the scratch folder is the artifact.
    """

    commands: tuple[tuple[str, ...], ...]
    output: str


@dataclass
class Costs:
    """What a case took, one sample a round."""

    seconds: Figure = field(default_factory=Figure)
    processor: Figure = field(default_factory=Figure)
    memory: Figure = field(default_factory=Figure)
    written: Figure = field(default_factory=Figure)


class _Watch(threading.Thread):
    """Adds up the memory of a process and all below it, again and again, and keeps the most."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.most, self._pid, self._over = 0, pid, threading.Event()

    def run(self) -> None:
        while not self._over.wait(_POLL_SECONDS):
            try:
                root = psutil.Process(self._pid)
                tree = [root, *root.children(recursive=True)]
                self.most = max(self.most, sum(_resident(process) for process in tree))
            except psutil.NoSuchProcess:
                return

    def end(self) -> int:
        self._over.set()
        self.join()
        return self.most


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def measure(case: Case, costs: Costs | None, scratch: Path, variables: Mapping[str, str]) -> None:
    """Run a case in an empty folder, and add what it took."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    seconds = processor = memory = 0.0
    for words in case.commands:
        begin = time.perf_counter()
        process = subprocess.Popen(
            words, cwd=scratch, env={**variables}, stdout=subprocess.DEVNULL, stderr=(scratch / "said").open("wb")
        )
        watch = _Watch(process.pid)
        watch.start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds += time.perf_counter() - begin
        processor += usage.ru_utime + usage.ru_stime
        memory = max(memory, watch.end(), usage.ru_maxrss * 1024)
        if process.returncode:
            sys.exit(
                f"{' '.join(words)[-200:]} ended with {process.returncode}:\n{(scratch / 'said').read_text()[-2000:]}"
            )
    if costs is not None:
        output = scratch / case.output
        files = [path for path in output.rglob("*") if path.is_file()] if output.is_dir() else [output]
        costs.seconds.samples.append(seconds)
        costs.processor.samples.append(processor)
        costs.memory.samples.append(memory)
        costs.written.samples.append(sum(path.stat().st_size for path in files) if output.exists() else 0)
    shutil.rmtree(scratch)


def compare(cases: Mapping[str, Case], rounds: int, scratch: Path) -> dict[str, Costs]:
    """Run all cases in turn, once without counting and then `rounds` times."""
    found = {name: Costs() for name in cases}
    cache = scratch / "cache"
    variables = {
        **environment(scratch, cache),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(_threads()),
    }
    for number in range(rounds + 1):
        for name, case in cases.items():
            shutil.rmtree(cache, ignore_errors=True)
            measure(case, found[name] if number else None, scratch / "run", variables)
            print(f"round {number}: {name}", file=sys.stderr)
    return found


def _threads() -> int:
    return os.cpu_count() or 1


def ours(checkpoint: Path, form: str, precision: str) -> Case:
    """Return our own export."""
    words = (sys.executable, "-m", "edgekiln", "export", str(checkpoint), "--offline")
    return Case(((*words, "--format", form, "--precision", precision, "--out", "out"),), "out")


def _builder(checkpoint: Path, precision: str) -> Case:
    words = ("-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", "out", "-p", precision)
    return Case(((sys.executable, *words, "-e", "cpu", "-c", "cache"),), "out")


def _llama(checkpoint: Path, converter: Path, kind: str) -> Case:
    convert = (sys.executable, "-c", CONVERT, str(converter), str(checkpoint), "f16.gguf")
    quantize = (sys.executable, "-c", _QUANTIZE, "f16.gguf", "out.gguf", kind, str(_threads()))
    return Case((convert,) if kind == "F16" else (convert, quantize), "f16.gguf" if kind == "F16" else "out.gguf")


def _copy(checkpoint: Path) -> Case:
    files = [str(path) for path in sorted(checkpoint.iterdir()) if path.is_file()]
    return Case((("mkdir", "out"), ("cp", "--reflink=never", *files, "out")), "out")


def all_cases(checkpoint: Path, converter: Path) -> dict[str, Case]:
    """Return ours beside each peer."""
    cases = {"copy": _copy(checkpoint)}
    for precision in ("int4", "int8"):
        cases[f"onnx {precision}"] = ours(checkpoint, "onnx", precision)
        cases[f"onnx {precision}, builder"] = _builder(checkpoint, precision)
    cases["onnx fp16"] = ours(checkpoint, "onnx", "fp16")
    for precision, kind in (("fp16", "F16"), ("q4_0", "Q4_0"), ("q8_0", "Q8_0"), ("q4_k_m", "Q4_K_M")):
        cases[f"gguf {precision}"] = ours(checkpoint, "gguf", precision)
        cases[f"gguf {precision}, llama.cpp"] = _llama(checkpoint, converter, kind)
    return cases


_COLUMNS = ("", "seconds", "processor seconds", "peak memory, MB", "bytes written", "peer's time", "peer's memory")


def table(title: str, found: Mapping[str, Costs], notes: Iterable[str] = ()) -> Part:
    """Return figures, each of ours beside how many times as much its peer needs."""
    rows, data = [], {}
    for name, costs in found.items():
        peer = next((other for label, other in found.items() if label.startswith(f"{name}, ")), None)
        ratios = ["", ""]
        if peer is not None:
            faster = peer.seconds.median / costs.seconds.median
            ratios = [f"{faster:.1f} times", f"{peer.memory.median / costs.memory.median:.1f} times"]
        rows.append(
            [
                name,
                costs.seconds.text(),
                costs.processor.text(digits=1),
                f"{costs.memory.median / 1e6:.0f}",
                f"{costs.written.median:,.0f}",
                *ratios,
            ]
        )
        data[name] = {key: getattr(costs, key).samples for key in ("seconds", "processor", "memory", "written")}
    return Part(title, _COLUMNS, rows, data, tuple(notes))


def against_peers(checkpoint: Path, only: Sequence[str], rounds: int, scratch: Path) -> Part:
    """Measure ours beside the peers."""
    converter = scratch / "llama.cpp"
    cases = all_cases(checkpoint, converter)
    if unknown := set(only) - set(cases):
        sys.exit(f"there is no case {min(unknown)!r}; choose among {', '.join(map(repr, cases))}")
    chosen = {name: case for name, case in cases.items() if not only or name in only}
    if any(str(converter) in " ".join(words) for case in chosen.values() for words in case.commands):
        fetch(converter)
    return table(f"Export of {checkpoint.name}", compare(chosen, rounds, scratch))


def _made(size: float, tokenizer: Path, scratch: Path) -> Path:
    """Make a synthetic checkpoint in another process, since the system counts our memory as that of what we start."""
    made = scratch / "made"
    program = Path(__file__).parent / "synthetic.py"
    subprocess.run([sys.executable, str(program), str(size), str(tokenizer), str(made)], check=True)
    return made


def growth(sizes: Sequence[float], tokenizer: Path, rounds: int, scratch: Path) -> Part:
    """Measure how our costs grow with the checkpoint."""
    found: dict[str, Costs] = {}
    for size in sizes:
        made = _made(size, tokenizer, scratch)
        cases = {"copy": _copy(made)}
        cases |= {f"{form} {kind}": ours(made, form, kind) for form, kind in (("onnx", "int4"), ("gguf", "q4_0"))}
        found |= {f"{size:g} GB: {name}": costs for name, costs in compare(cases, rounds, scratch).items()}
        shutil.rmtree(made)
    return table("Growth with the checkpoint", found)


def beside_the_kernel(tokenizer: Path, rounds: int, scratch: Path) -> Part:
    """Compare K-quants with ggml's kernel, called by as many threads on weights that are in memory."""
    made = _made(1.0, tokenizer, scratch)
    cases = {}
    for precision in ("q4_k_m", "q6_k"):
        cases[f"gguf {precision}"] = ours(made, "gguf", precision)
        words = (sys.executable, "-c", _KERNEL, str(made), precision, str(_threads()))
        cases[f"gguf {precision}, kernel alone"] = Case((words,), "out")
    return table("K-quants beside their kernel, 1 GB", compare(cases, rounds, scratch))


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rounds", type=int, default=3, help="after the warm-up (default: 3)")
    parser.add_argument("--only", nargs="+", default=[], metavar="CASE", help="such cases, by their names in the table")
    parser.add_argument("--sizes", nargs="+", type=float, choices=list(SHAPES), help="gigabytes; peers are left out")
    parser.add_argument("--kernel", action="store_true", help="K-quants beside their kernel; peers are left out")
    parser.add_argument("--json", type=Path, help="write all samples here")
    parser.add_argument("--scratch", type=Path, help="folder with room for the checkpoint twice (default: temporary)")
    given = parser.parse_args()
    described = machine()
    with tempfile.TemporaryDirectory(prefix="edgekiln-benchmark-", dir=given.scratch) as folder:
        scratch, checkpoint = Path(folder), given.checkpoint.resolve()
        parts = []
        if given.sizes:
            parts.append(growth(given.sizes, checkpoint, given.rounds, scratch))
        if given.kernel:
            parts.append(beside_the_kernel(checkpoint, given.rounds, scratch))
        if not parts:
            parts.append(against_peers(checkpoint, given.only, given.rounds, scratch))
    for part in parts:
        print(part.markdown())
    print(f"Medians of {given.rounds} rounds after a warm-up (least to most). {json.dumps(described)}")
    if given.json:
        document = {"machine": {**described, "load_at_end": load()}, "parts": {part.title: part.data for part in parts}}
        given.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
