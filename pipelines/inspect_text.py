"""An inspection as a text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from edgekiln.pipelines.inspection import Inspection, MakeFacts, ModelFacts, TemplateFacts, TokenizerFacts
from edgekiln.table import table, table_width
from edgekiln.terminal import printable

_KINDS: Final = {
    "checkpoint": "a checkpoint",
    "gguf": "a GGUF artifact",
    "onnx": "an ONNX Runtime GenAI artifact",
    "foundry-local": "a Foundry Local artifact",
}
_THINKING: Final = {
    "switch": "thinking can be switched",
    "tags": "thinks, without a switch",
    "none": "knows no thinking",
}
_KEY_WIDTH: Final = 15
#: Files and problems that the text lists; the JSON has all of them.
_MOST_LINES: Final = 20


def _size(size: int) -> str:
    """Return a size to three figures, with the exact number of bytes."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 1000)):
        if size >= factor:
            return f"{size / factor:.3g} {unit} ({size:,} bytes)"
    return f"{size} bytes"


def _entry(key: str, value: str | None) -> Iterator[str]:
    if value:
        yield from textwrap.wrap(
            value,
            width=max(60, table_width()),
            initial_indent=f"  {key:<{_KEY_WIDTH}} ",
            subsequent_indent=" " * (_KEY_WIDTH + 3),
            break_long_words=False,
            break_on_hyphens=False,
        )


def _count(value: int | None, one: str, many: str = "") -> str | None:
    return None if value is None else f"{value:,} {one if value == 1 else many or one + 's'}"


def _joined(parts: Iterable[str | None], separator: str = ", ") -> str:
    return separator.join(part for part in parts if part)


def _model_lines(model: ModelFacts) -> Iterator[str]:
    yield from _entry("family", model.family)
    yield from _entry("name", model.name)
    if model.parameters is not None:
        split = None
        if model.embedding_parameters is not None:
            split = f"{model.embedding_parameters:,} of embeddings, {model.other_parameters:,} others"
        yield from _entry("parameters", _joined([f"{model.parameters:,}", f"({split})" if split else None], " "))
    yield from _entry("context", _count(model.context_length, "token"))
    heads = None
    if model.heads is not None:
        heads = f"{model.heads} heads" + (f" ({model.kv_heads} for keys and values)" if model.kv_heads else "")
        heads += f" of {model.head_dim}" if model.head_dim else ""
    shape = [
        _count(model.layers, "layer"),
        heads,
        f"hidden {model.hidden_size}" if model.hidden_size else None,
        f"intermediate {model.intermediate_size}" if model.intermediate_size else None,
        f"{model.experts} experts" + (f" ({model.experts_per_token} for each token)" if model.experts_per_token else "")
        if model.experts
        else None,
    ]
    yield from _entry("shape", _joined(shape))
    tied = {True: "head shares the embeddings", False: "head has weights of its own", None: None}[model.tied]
    yield from _entry("vocabulary", _joined([f"{model.vocab_size:,}" if model.vocab_size else None, tied]))
    yield from _entry("rope theta", None if model.rope_theta is None else f"{model.rope_theta:g}")


def _tokenizer_line(tokenizer: TokenizerFacts | None) -> str:
    if tokenizer is None:
        return "none"
    ends = ", ".join(map(str, tokenizer.eos_ids)) or "none given"
    return _joined(
        [
            tokenizer.model or "of an unknown kind",
            f"pre-tokenizer {tokenizer.pre_tokenizer}" if tokenizer.pre_tokenizer else "pre-tokenizer not Qwen's",
            _count(tokenizer.tokens, "token"),
            _count(tokenizer.merges, "merge"),
            f"ends with {ends}",
        ]
    )


def _template_line(template: TemplateFacts | None) -> str:
    if template is None:
        return "none"
    tools = "knows tools" if template.tools else "knows no tools"
    return f"{template.where}, {template.characters:,} characters, {tools}, {_THINKING[template.thinking]}" + (
        f"; broken: {template.fault}" if template.fault else ""
    )


def _manifest_lines(found: Inspection) -> Iterator[str]:
    if (manifest := found.manifest) is not None:
        name = manifest.checkpoint or "a local checkpoint"
        by = f" by edgekiln {manifest.edgekiln}" if manifest.edgekiln else ""
        text = f"{manifest.container_type} ({manifest.precision}), made{by} from {name} "
        yield from _entry("manifest says", f"{text}with the identity {manifest.checkpoint_identity[:16]}…")


def _file_lines(found: Inspection) -> Iterator[str]:
    yield from _entry("size", f"{_size(found.size_bytes)} in {_count(len(found.files), 'file')}")
    for entry in found.files[:_MOST_LINES]:
        state = f"  {entry.checksum}" if entry.checksum else ""
        digest = f"  sha256 {entry.sha256}" if entry.sha256 else ""
        yield f"    {entry.path:<32} {entry.size:>15,}{digest}{state}"
    if len(found.files) > _MOST_LINES:
        yield f"    and {len(found.files) - _MOST_LINES} more; --json lists all"


def _onnx_lines(found: Inspection) -> Iterator[str]:
    if (onnx := found.onnx) is not None:
        opsets = ", ".join(f"{domain} {version}" for domain, version in onnx.opsets.items())
        yield from _entry("graph", f"{onnx.file}, IR version {onnx.ir_version}, opsets {opsets}")
        yield from _entry("producer", onnx.producer)
        yield from _entry("operators", ", ".join(f"{name} {count}" for name, count in onnx.operators.items()))


def _types_text(found: Inspection) -> str:
    columns = (("type", False), ("tensors", True), ("weights", True), ("bytes", True), ("share", True), ("bits", True))
    rows: list[Sequence[object]] = [
        [
            entry.type,
            entry.tensors,
            f"{entry.weights:,}",
            f"{entry.bytes:,}",
            f"{100 * entry.share:.1f} %",
            "–" if entry.bits_per_weight is None else f"{entry.bits_per_weight:.2f}",
        ]
        for entry in found.types
    ]
    if len(rows) > 1:
        weights, size = sum(e.weights for e in found.types), sum(e.bytes for e in found.types)
        total = sum(entry.tensors for entry in found.types)
        stored = sum(entry.bytes for entry in found.types if entry.weights)
        bits = f"{8 * stored / weights:.2f}" if weights else "–"
        rows.append(["all", total, f"{weights:,}", f"{size:,}", "100.0 %", bits])
    return table(columns, rows).strip("\n")


def _makes_lines(makes: Sequence[MakeFacts]) -> Iterator[str]:
    if not makes:
        return
    yield "  Edgekiln can make of it (bytes of the weights; more in `edgekiln plan`)"
    for name in dict.fromkeys(entry.format for entry in makes):
        sizes = [
            f"{entry.precision} {entry.bytes / 1e6:,.4g} MB"
            for entry in makes
            if entry.format == name and entry.bytes is not None
        ]
        yield from _entry(f"  {name}", ", ".join(sizes) or "nothing")
    reasons: dict[str, list[str]] = {}
    for entry in makes:
        if entry.reason is not None:
            reasons.setdefault(entry.reason, []).append(f"{entry.format} {entry.precision}")
    for reason, cells in reasons.items():
        yield from _entry("  not", f"{', '.join(cells)}: {printable(reason)}")


def inspection_text(found: Inspection) -> str:
    """Return all that an inspection found, for people."""
    place = "" if found.path == found.source else f" in {printable(found.path)}"
    revision = f", revision {found.revision}" if found.revision else ""
    lines = [f"{printable(found.source)}: {_KINDS[found.kind]}{place}{revision}"]
    lines += _model_lines(found.model)
    lines += _entry("tokenizer", _tokenizer_line(found.tokenizer))
    lines += _entry("chat template", _template_line(found.template))
    lines += _onnx_lines(found)
    for loader in found.loaders:
        installed = f"{loader.installed} is installed" if loader.installed else "not installed here"
        lines += _entry("loaded by", f"{loader.runtime} ({installed}): {loader.needs}")
    lines += _manifest_lines(found)
    lines += _entry("identity", found.identity)
    lines += _file_lines(found)
    if found.types:
        lines += ["", _types_text(found)]
    if found.metadata:
        heading = {"checkpoint": "generation_config.json", "gguf": "metadata"}.get(found.kind, "genai_config.json")
        lines += ["", f"  {heading}"]
        lines += [f"    {key:<40} {value}" for key, value in found.metadata.items()]
    if found.makes:
        lines += ["", *_makes_lines(found.makes)]
    if found.tensors is not None:
        columns = (("tensor", False), ("shape", False), ("type", False), ("bytes", True))
        rows = ([t.name, " × ".join(map(str, t.shape)) or "scalar", t.type, f"{t.bytes:,}"] for t in found.tensors)
        lines += ["", table(columns, rows).strip("\n")]
    problems = [f"  {printable(problem)}" for problem in found.problems[:_MOST_LINES]]
    if problems:
        lines += ["", "Problems", *problems]
    return "\n".join(lines)
