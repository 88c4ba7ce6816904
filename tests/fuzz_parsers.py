"""The parsers that `fuzz.py` feeds: each with sound inputs, what reads them, and where the damaged bytes are put."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from edgekiln.checkpoint import embedded_directory, open_checkpoint
from edgekiln.errors import StepError
from fuzz import beside, file_named
from stores import fill, key, record_of

_KEY = key()

_Entry: TypeAlias = tuple[str, Callable[[], Sequence[bytes]], Callable[[Path], object], Callable[[Path, bytes], Path]]


@functools.cache
def _artifact(container: str, precision: str) -> Mapping[str, bytes]:
    """Return the beginnings of the files of an artifact of the embedded checkpoint."""
    from artifacts import artifact

    with tempfile.TemporaryDirectory() as scratch:
        made = artifact(container, precision, Path(scratch))
        return {path.name: path.read_bytes() for path in sorted(made.iterdir()) if path.is_file()}


def _gguf() -> Sequence[bytes]:
    files = [*_artifact("gguf", "q4_0").items(), *_artifact("gguf", "q4_k_m").items()]
    return [data for name, data in files if name.endswith(".gguf")]


def _embedded(name: str) -> Callable[[], Sequence[bytes]]:
    return lambda: [(embedded_directory() / name).read_bytes()]


@functools.cache
def _checkpoint_files() -> Mapping[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in sorted(embedded_directory().iterdir())
        if path.is_file() and path.name != "ORIGIN.md"
    }


def _read_gguf(path: Path) -> object:
    from edgekiln.validators.gguf_read import read_header

    return read_header(path)


def _structure(directory: Path) -> object:
    from edgekiln.validators.kinds import identify
    from edgekiln.validators.structure import check_structure

    config = open_checkpoint("tiny-qwen3").config
    return check_structure(identify(directory), config, architecture="qwen3", genai_type="qwen3")


def _weights_of(path: Path) -> object:
    """Go through the first rows of every weight."""
    from edgekiln.validators.gguf_weights import gguf_weights

    return [weight.name for weight in gguf_weights(path)]


def _onnx(directory: Path) -> object:
    from edgekiln.validators.onnx_read import read_graph

    return read_graph(directory, directory / "model.onnx")


def _onnx_weights(directory: Path) -> object:
    from edgekiln.validators.onnx_weights import onnx_weights

    return [weight.name for weight in onnx_weights(directory, directory / "model.onnx")]


def _safetensors(path: Path) -> object:
    from edgekiln.safetensors import read_index

    return read_index(path)


def _checkpoint(directory: Path) -> object:
    return open_checkpoint(str(directory), offline=True)


def _targets(path: Path) -> object:
    from edgekiln.pipelines.targets import load_targets

    return load_targets(path)


def _pipeline(path: Path) -> object:
    from edgekiln.pipelines.spec import load_pipeline

    return load_pipeline(str(path))


def _gates(path: Path) -> object:
    from edgekiln.validators.gates import parse_gate

    return parse_gate(path.read_bytes().decode("latin-1"))


def _sizes(path: Path) -> object:
    from edgekiln.units import parse_size

    return parse_size(path.read_bytes().decode("latin-1"))


def _hub_id(path: Path) -> object:
    from edgekiln.hub import parse_hub_id

    return parse_hub_id(path.read_bytes().decode("latin-1"))


def _corpus(path: Path) -> object:
    from edgekiln.validators.corpus import read_corpus

    return read_corpus(path)


def _report(path: Path) -> object:
    from edgekiln.pipelines.compare import read_report

    return read_report(path)


def _reports() -> Sequence[bytes]:
    from sample_reports import failed, healthy, pipeline

    return [report.to_json().encode() for report in (healthy(), failed(), pipeline(3))]


def _entry(path: Path) -> object:
    from edgekiln.engine.entry import parse_entry

    try:
        return parse_entry(path.read_bytes(), _KEY)
    except ValueError as error:  # what its stores expect
        raise StepError(str(error)) from None


def _entries() -> Sequence[bytes]:
    from edgekiln.engine.entry import Entry

    with tempfile.TemporaryDirectory() as scratch:
        fill(Path(scratch))
        return [Entry(record=record_of(Path(scratch)), stamps={}, kept=True).to_bytes()]


def _template(path: Path) -> object:
    from edgekiln.template_check import template_fault

    return template_fault(path.read_bytes().decode("utf-8", errors="replace"))


def _inspect(directory: Path) -> object:
    from edgekiln.pipelines.inspect import inspect

    class Quiet:
        def __getattr__(self, _name: str) -> Callable[..., None]:
            return lambda *_, **__: None

    return inspect(str(directory), tensors=True, hashed=False, offline=True, listener=Quiet())  # type: ignore[arg-type]  # it listens to nothing


def _genai_files() -> Mapping[str, bytes]:
    return _artifact("onnx", "int4")


def _gates_seeds() -> Sequence[bytes]:
    return [b"mean_kld <= 0.05", b"decode_tokens_per_second >= 0.9 * fp16_artifact", b"size_bytes <= 350 MB"]


def _yaml(pattern: str) -> Callable[[], Sequence[bytes]]:
    root = Path(__file__).parent.parent
    return lambda: [path.read_bytes() for path in sorted(root.glob(pattern))]


def _of_onnx(name: str) -> Callable[[], Sequence[bytes]]:
    return lambda: [_genai_files()[name]]


def _in_artifact(name: str) -> Callable[[Path, bytes], Path]:
    return beside(name, _genai_files)


def _in_checkpoint(name: str) -> Callable[[Path, bytes], Path]:
    return beside(name, _checkpoint_files)


#: Name, sound inputs, what reads them, where the damaged bytes are put.
PARSERS: Sequence[_Entry] = (
    ("gguf-header", _gguf, _read_gguf, file_named("model.gguf")),
    ("gguf-weights", _gguf, _weights_of, file_named("model.gguf")),
    ("gguf-structure", _gguf, _structure, beside("model.gguf", dict)),
    ("onnx-graph", _of_onnx("model.onnx"), _onnx, _in_artifact("model.onnx")),
    ("onnx-weights", _of_onnx("model.onnx"), _onnx_weights, _in_artifact("model.onnx")),
    ("onnx-structure", _of_onnx("model.onnx"), _structure, _in_artifact("model.onnx")),
    ("genai-config", _of_onnx("genai_config.json"), _structure, _in_artifact("genai_config.json")),
    ("inspected-genai-config", _of_onnx("genai_config.json"), _inspect, _in_artifact("genai_config.json")),
    ("safetensors", _embedded("model.safetensors"), _safetensors, file_named("model.safetensors")),
    ("config-json", _embedded("config.json"), _checkpoint, _in_checkpoint("config.json")),
    ("generation-config", _embedded("generation_config.json"), _checkpoint, _in_checkpoint("generation_config.json")),
    ("tokenizer-json", _embedded("tokenizer.json"), _checkpoint, _in_checkpoint("tokenizer.json")),
    ("tokenizer-config", _embedded("tokenizer_config.json"), _checkpoint, _in_checkpoint("tokenizer_config.json")),
    ("chat-template", _embedded("chat_template.jinja"), _template, file_named("chat_template.jinja")),
    ("targets-yaml", _yaml("targets.yaml"), _targets, file_named("targets.yaml")),
    ("pipeline-yaml", _yaml("pipelines/*.yaml"), _pipeline, file_named("pipeline.yaml")),
    ("gate", _gates_seeds, _gates, file_named("gate")),
    ("size", lambda: [b"350 MB", b"4 GiB", b"123"], _sizes, file_named("size")),
    ("hub-id", lambda: [b"Qwen/Qwen3-0.6B", b"Qwen/Qwen3-0.6B@main"], _hub_id, file_named("id")),
    ("corpus", _yaml("validators/data/corpus.jsonl"), _corpus, file_named("corpus.jsonl")),
    ("report", _reports, _report, file_named("report.json")),
    ("cache-entry", _entries, _entry, file_named("entry.json")),
)
