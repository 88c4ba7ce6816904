"""Describing an artifact of any origin from its own content; a manifest is shown, and decides nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from edgekiln.artifact import MANIFEST, Manifest
from edgekiln.errors import ArtifactError, CheckpointError, EdgekilnError
from edgekiln.model_config import read_json
from edgekiln.pipelines.inspect_checkpoint import Inspected
from edgekiln.pipelines.inspect_files import (
    bounded,
    describe_files,
    flatten,
    integer,
    missing_files,
    model_files,
    optional_json,
    sum_types,
    template_facts,
)
from edgekiln.pipelines.inspect_tokenizer import directory_tokenizer, ids
from edgekiln.pipelines.inspection import (
    FileFacts,
    Inspection,
    LoaderFacts,
    ManifestFacts,
    ModelFacts,
    OnnxFacts,
    TensorFacts,
    TokenizerFacts,
)
from edgekiln.validators.chat_template import directory_template, gguf_template
from edgekiln.validators.gguf_read import ArrayLength, GgufHeader, GgufTensor, read_header
from edgekiln.validators.kinds import ArtifactKind, identify
from edgekiln.validators.onnx_files import decoder_path
from edgekiln.validators.onnx_read import OnnxGraph, OnnxTensor, read_graph

#: llama.cpp's name of a part of a split model (`llama_split_path`).
_SPLIT: Final = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")
_MAX_PARTS: Final = 1000
_MAX_MANIFEST_BYTES: Final = 64 << 20
_MAX_OPERATORS: Final = 200
#: Tables of a file that are computed, not trained.
_COMPUTED: Final = ("rope_freqs", "rope_factors")


def inspect_artifact(path: Path, *, tensors: bool, hashed: bool) -> Inspected:
    """Describe an artifact.

    Args:
        path: A GGUF file, or a directory that ORT GenAI or Foundry Local loads.
        tensors: List every tensor.
        hashed: Hash every file, and compare with SHA256SUMS where there are some.

    Raises:
        ArtifactError: Nothing is there, or it cannot be read.
        UnsupportedError: It is no artifact.
    """
    kind = identify(path)
    try:
        if kind.format == "gguf":
            return _gguf(path, kind, tensors=tensors, hashed=hashed)
        return _onnx(path, kind, tensors=tensors, hashed=hashed)
    except CheckpointError as error:  # JSON is read by the checkpoint's reader
        raise ArtifactError(str(error)) from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _manifest(folder: Path, problems: list[str]) -> ManifestFacts | None:
    path = folder / MANIFEST
    values = optional_json(path, problems, _MAX_MANIFEST_BYTES)
    if not values:
        return None
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        problems.append(f"{path} is no manifest of Edgekiln's: {error.error_count()} values are not as they must be")
        return None
    made = manifest.tools.get("edgekiln")
    return ManifestFacts(
        edgekiln=None if made is None else bounded(made),
        container_type=bounded(manifest.container_type),
        precision=bounded(manifest.scheme.precision),
        checkpoint=None if manifest.checkpoint.name is None else bounded(manifest.checkpoint.name),
        checkpoint_identity=bounded(manifest.checkpoint.identity),
    )


def _files(kind: ArtifactKind, paths: Iterable[Path], problems: list[str], *, hashed: bool) -> tuple[FileFacts, ...]:
    folder = kind.root if kind.root.is_dir() else kind.root.parent
    files, wrong = describe_files(folder, paths, hashed=hashed)
    problems += wrong
    if hashed and kind.root.is_dir():
        problems += missing_files(folder, files)
    return files


def _finish(inspection: Inspection) -> Inspected:
    problems = inspection.problems
    if inspection.template is not None and inspection.template.fault is not None:
        problems = (
            *problems,
            f"the chat template in {inspection.template.where} is broken: {inspection.template.fault}",
        )
        inspection = inspection.model_copy(update={"problems": problems})
    error = ArtifactError(f"{inspection.source} is not sound: {problems[0]}") if problems else None
    return Inspected(inspection, error)


# --- GGUF ---------------------------------------------------------------------------------------------------------


def _parts(path: Path, header: GgufHeader, problems: list[str]) -> list[Path]:
    """Return the files of a split model, by llama.cpp's naming rule; one that is not there is a problem."""
    count = header.metadata.get("split.count", 1)
    if type(count) is not int or count <= 1:
        return [path]
    match = _SPLIT.fullmatch(path.name)
    if match is None or int(match[3]) != count or count > _MAX_PARTS:
        problems.append(
            f"it is one of {count} files, but its name is not as llama.cpp names them (-00001-of-{count:05d})"
        )
        return [path]
    names = [path.with_name(f"{match[1]}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    missing = [part.name for part in names if not part.is_file()]
    if missing:
        problems.append(f"{len(missing)} of its {count} files are missing, first {missing[0]}")
    return [part for part in names if part.is_file()]


def _type_name(tensor: GgufTensor) -> str:
    from gguf import GGMLQuantizationType

    return str(GGMLQuantizationType(tensor.type_id).name)


def _gguf_bounds(parts: Sequence[tuple[Path, GgufHeader]], problems: list[str]) -> None:
    for path, header in parts:
        for tensor in header.tensors:
            if tensor.offset + tensor.nbytes > header.file_size:
                problems.append(
                    f"{path.name} is truncated: {bounded(tensor.name)} ends at byte {tensor.offset + tensor.nbytes}, "
                    f"but the file has {header.file_size}"
                )
                break


def _gguf_model(values: Mapping[str, object], tensors: Sequence[GgufTensor]) -> ModelFacts:
    architecture = values.get("general.architecture")

    def number(key: str) -> int | None:
        return integer(values.get(f"{architecture}.{key}"))

    trained = [t for t in tensors if not t.name.startswith(_COMPUTED)]
    by_name = {tensor.name: tensor for tensor in tensors}
    embedding, head = by_name.get("token_embd.weight"), by_name.get("output.weight")
    hidden, heads = number("embedding_length"), number("attention.head_count")
    theta = values.get(f"{architecture}.rope.freq_base")
    name = values.get("general.name")
    tokens = values.get("tokenizer.ggml.tokens")
    listed = tokens.length if isinstance(tokens, ArrayLength) else None
    return ModelFacts(
        family=bounded(architecture) if isinstance(architecture, str) else None,
        name=bounded(name) if isinstance(name, str) else None,
        parameters=sum(_weights(tensor) for tensor in trained),
        embedding_parameters=sum(_weights(t) for t in (embedding, head) if t is not None) or None,
        context_length=number("context_length"),
        layers=number("block_count"),
        heads=heads,
        kv_heads=number("attention.head_count_kv") or heads,
        head_dim=number("attention.key_length") or (hidden // heads if hidden and heads else None),
        hidden_size=hidden,
        intermediate_size=number("feed_forward_length"),
        experts=number("expert_count"),
        experts_per_token=number("expert_used_count"),
        vocab_size=embedding.shape[0] if embedding is not None else number("vocab_size") or listed,
        tied=head is None if embedding is not None else None,
        rope_theta=float(theta) if isinstance(theta, int | float) else None,
    )


def _weights(tensor: GgufTensor) -> int:
    return math.prod(tensor.shape)


def _gguf_tokenizer(values: Mapping[str, object]) -> TokenizerFacts | None:
    kind, pre = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre")
    tokens, merges = values.get("tokenizer.ggml.tokens"), values.get("tokenizer.ggml.merges")
    if kind is None and tokens is None:
        return None
    ends = [values.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    return TokenizerFacts(
        model=bounded(kind) if isinstance(kind, str) else None,
        pre_tokenizer=bounded(pre) if isinstance(pre, str) else None,
        tokens=tokens.length if isinstance(tokens, ArrayLength) else None,
        merges=merges.length if isinstance(merges, ArrayLength) else None,
        bos_id=integer(values.get("tokenizer.ggml.bos_token_id")),
        eos_ids=tuple(dict.fromkeys(ids(ends))),
        pad_id=integer(values.get("tokenizer.ggml.padding_token_id")),
    )


def _gguf_metadata(values: Mapping[str, object]) -> dict[str, str | int | float | bool]:
    """Return all keys; of an array what it holds, of a long text its beginning."""
    shown: dict[str, str | int | float | bool] = {}
    for key, value in values.items():
        match value:
            case ArrayLength(length, elements):
                shown[bounded(key)] = f"[{length} {elements}]"
            case bool() | int():
                shown[bounded(key)] = value
            case float():
                shown[bounded(key)] = float(f"{value:.7g}") if math.isfinite(value) else str(value)
            case _:
                shown[bounded(key)] = bounded(str(value))
    return shown


def _llama_needs(model: ModelFacts, tokenizer: TokenizerFacts | None, types: Iterable[str], parts: int) -> str:
    if model.family == "clip":
        return "--mmproj, beside the text model that it belongs to"
    needs = [f"architecture {model.family}", f"tensor types {', '.join(sorted(types))}"]
    if tokenizer is not None:
        needs.append(f"tokenizer {tokenizer.model}/{tokenizer.pre_tokenizer or 'default'}")
    if parts > 1:
        needs.append(f"the first of {parts} files, the others beside it")
    return "; ".join(needs)


def _gguf(path: Path, kind: ArtifactKind, *, tensors: bool, hashed: bool) -> Inspected:
    problems: list[str] = []
    first = read_header(kind.path)
    paths = _parts(kind.path, first, problems)
    parts = [(part, first if part == kind.path else read_header(part)) for part in paths]
    main = next((header for _, header in parts if header.metadata.get("general.architecture")), first)
    values = main.metadata
    _gguf_bounds(parts, problems)
    every = [(part, tensor) for part, header in parts for tensor in header.tensors]
    model = _gguf_model(values, [tensor for _, tensor in every])
    tokenizer = _gguf_tokenizer(values)
    types = sum_types((_type_name(tensor), _weights(tensor), tensor.nbytes) for _, tensor in every)
    files = _files(kind, model_files(kind.root) if kind.root.is_dir() else paths, problems, hashed=hashed)
    folder = kind.path.parent
    inspection = Inspection(
        source=str(path),
        kind="gguf",
        path=str(kind.path),
        model=model,
        tokenizer=tokenizer,
        template=template_facts(gguf_template(values)),
        size_bytes=sum(entry.size for entry in files),
        files=files,
        types=types,
        tensors=tuple(
            TensorFacts(
                name=bounded(tensor.name),
                shape=tensor.shape,
                type=_type_name(tensor),
                bytes=tensor.nbytes,
                file=bounded(part.name),
            )
            for part, tensor in every
        )
        if tensors
        else None,
        metadata=_gguf_metadata(values),
        loaders=(
            LoaderFacts(
                runtime="llama.cpp",
                installed=_installed("llama-cpp-python"),
                needs=_llama_needs(model, tokenizer, {entry.type for entry in types}, len(parts)),
            ),
        ),
        manifest=_manifest(folder, problems) if kind.root.is_dir() else None,
        problems=tuple(problems),
    )
    return _finish(inspection)


# --- ONNX ---------------------------------------------------------------------------------------------------------


def _part(values: object, key: str) -> Mapping[str, object]:
    found = values.get(key) if isinstance(values, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _onnx_model(genai: Mapping[str, object], tensors: Sequence[OnnxTensor]) -> ModelFacts:
    model, decoder = _part(genai, "model"), _part(_part(genai, "model"), "decoder")
    vocabulary = integer(model.get("vocab_size"))
    weights = [tensor for tensor in tensors if tensor.role != "constant"]
    tables = [tensor for tensor in weights if tensor.role == "embedding"]
    heads = [t for t in weights if t.role == "matrix" and len(t.shape) == 2 and vocabulary in t.shape]
    ends = [*tables, *heads]
    inner = [t.shape[0] for t in weights if t.role == "matrix" and "down_proj" not in t.name and "up_proj" in t.name]
    family = model.get("type")
    return ModelFacts(
        family=bounded(family) if isinstance(family, str) else None,
        parameters=sum(tensor.weights for tensor in weights if not tensor.shared),
        embedding_parameters=sum(tensor.weights for tensor in ends if not tensor.shared) or None,
        context_length=integer(model.get("context_length")),
        layers=integer(decoder.get("num_hidden_layers")),
        heads=integer(decoder.get("num_attention_heads")),
        kv_heads=integer(decoder.get("num_key_value_heads")),
        head_dim=integer(decoder.get("head_size")),
        hidden_size=integer(decoder.get("hidden_size")),
        intermediate_size=max(inner, default=None),
        experts=max((t.shape[0] for t in weights if len(t.shape) == 3 and "expert" in t.name), default=None),
        vocab_size=vocabulary,
        tied=(not heads or any(tensor.shared for tensor in ends)) if tables else None,
    )


def _onnx_needs(genai: Mapping[str, object], graph: OnnxGraph) -> str:
    own = sorted(name.rpartition(".")[2] for name in graph.operators if "." in name)
    opsets = ", ".join(f"{bounded(domain)} {number}" for domain, number in sorted(graph.opsets.items()))
    kind = _part(genai, "model").get("type")
    needs = [f"model type {bounded(str(kind))}", f"opsets {opsets}", f"IR version {graph.ir_version}"]
    if own:
        needs.append(f"ONNX Runtime's own operators {', '.join(map(bounded, own[:20]))}")
    return "; ".join(needs)


def _onnx_loaders(kind: ArtifactKind, needs: str, name: str | None) -> tuple[LoaderFacts, ...]:
    genai = LoaderFacts(runtime="ONNX Runtime GenAI", installed=_installed("onnxruntime-genai"), needs=needs)
    if kind.format != "foundry-local":
        return (genai,)
    foundry = LoaderFacts(
        runtime="Foundry Local",
        installed=_installed("foundry-local-sdk"),
        needs=f"the name {name!r} of inference_model.json; beyond that what ONNX Runtime GenAI needs",
    )
    return foundry, genai


def _onnx(path: Path, kind: ArtifactKind, *, tensors: bool, hashed: bool) -> Inspected:
    problems: list[str] = []
    directory = kind.path
    genai = read_json(directory / "genai_config.json")
    model_path = decoder_path(directory, genai)
    graph = read_graph(directory, model_path)
    if graph.problem is not None:
        problems.append(graph.problem)
    files = _files(kind, model_files(directory), problems, hashed=hashed)
    name = optional_json(directory / "inference_model.json", problems).get("Name")
    name = bounded(name) if isinstance(name, str) else None
    model = _onnx_model(genai, graph.tensors)
    operators = dict(list(graph.operators.items())[:_MAX_OPERATORS])
    try:
        template = template_facts(directory_template(directory))
    except EdgekilnError as error:
        template = None
        problems.append(str(error))
    inspection = Inspection(
        source=str(path),
        kind=kind.format,
        path=str(directory),
        model=model.model_copy(update={"name": name}),
        tokenizer=directory_tokenizer(directory, _part(genai, "model"), problems),
        template=template,
        size_bytes=sum(entry.size for entry in files),
        files=files,
        types=sum_types(
            (
                "constants" if t.role == "constant" else t.type,
                0 if t.shared or t.role == "constant" else t.weights,
                t.nbytes,
            )
            for t in graph.tensors
        ),
        tensors=tuple(
            TensorFacts(name=bounded(t.name), shape=t.shape, type=t.type, bytes=t.nbytes) for t in graph.tensors
        )
        if tensors
        else None,
        metadata=flatten(genai),
        onnx=OnnxFacts(
            file=bounded(model_path.relative_to(directory).as_posix()),
            ir_version=graph.ir_version,
            opsets={bounded(domain): number for domain, number in graph.opsets.items()},
            producer=bounded(graph.producer),
            operators={bounded(operator): count for operator, count in operators.items()},
        ),
        loaders=_onnx_loaders(kind, _onnx_needs(genai, graph), name),
        manifest=_manifest(directory, problems),
        problems=tuple(problems),
    )
    return _finish(inspection)
