"""ONNX: a directory that ONNX Runtime GenAI loads.

The data file is written tensor by tensor in row chunks at offsets fixed beforehand, and the graph refers to it; no
whole tensor is ever in memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from edgekiln.checkpoint import TOKENIZER_FILES, Checkpoint
from edgekiln.device import ANY_CPU, Device
from edgekiln.errors import UnsupportedError, UsageError
from edgekiln.exporters.base import ExportPlan, Quantize, TensorPlan, unknown_precision, unknown_provider
from edgekiln.exporters.genai_config import genai_config
from edgekiln.exporters.onnx_fusions import DOWN_EXPERTS, GATE_UP_EXPERTS, ROUTERS, Fusion, fusions
from edgekiln.exporters.onnx_layout import ROTARY_TABLES, layout, place, stored_bytes
from edgekiln.exporters.onnx_providers import PROVIDERS, REFUSED, OnnxProvider
from edgekiln.exporters.onnx_size import artifact_size
from edgekiln.exporters.onnx_task import MODEL_FILE, make_graph, scratch_folder
from edgekiln.exporters.stream import CHUNK_WEIGHTS, little_endian, write_tensors
from edgekiln.families import EMBEDDING, HEAD
from edgekiln.grids import (
    CodebookGrid,
    CodebookRows,
    FloatDtype,
    Grid,
    IntegerGrid,
    IntegerRows,
    QuantizedRows,
)
from edgekiln.installed import package_version
from edgekiln.journal import Journal
from edgekiln.scheme import Scheme, one_precision, overridden
from edgekiln.tensor_files import TensorFiles

TOOLS: Final = ("mobius-onnx", "numpy", "onnx", "onnx-ir", "onnxruntime", "torch")
_GROUP_SIZES: Final = (16, 32, 64, 128, 256)
_DEFAULT_GROUP: Final = {"int8": 32, "int4": 32, "nf4": 64}
#: What embeddings and head are stored as when the scheme does not say: no operator looks NF4 up, and an int8 head
#: costs 0.0001 nats where an int4 head costs 0.015 (measured on Qwen2.5-Coder-0.5B); int4 stays as small as it can be.
_DEFAULT_ENDS: Final = {"fp16": "fp16", "int8": "int8", "int4": "int4", "nf4": "int8"}


class Onnx:
    """Exporter of ORT GenAI directories."""

    precisions: Mapping[str, str] = MappingProxyType(
        {
            "fp16": "float16 weights, computed in the device's activation type",
            "int8": "MatMulNBits, 8 bits, a scale per group (32) in the device's activation type",
            "int4": "MatMulNBits, 4 bits, a scale per group (32) in the device's activation type",
            "nf4": "MatMulBnb4, an absmax per block (64) in the device's activation type; embeddings and head int8",
        }
    )
    providers: Mapping[str, str] = MappingProxyType({name: entry.meaning for name, entry in PROVIDERS.items()})
    nearest: Mapping[str, str] = MappingProxyType({})
    asymmetric: Mapping[str, str] = MappingProxyType({})

    def __init__(self, threads: int | None = None, chunk_weights: int = CHUNK_WEIGHTS) -> None:
        """Set how the work is divided; the files are the same whatever the two are. See `write_tensors`."""
        self._threads = threads
        self._chunk_weights = chunk_weights

    def unsupported(self, scheme: Scheme, device: Device) -> str | None:
        """Return why there is no such artifact for `device`, or None. See `Exporter.unsupported`."""
        name = device.execution_provider
        if name not in PROVIDERS:
            return unknown_provider("ONNX", name, self.providers, REFUSED)
        if lacking := unknown_precision("ONNX", scheme, self.precisions, self.nearest):
            return lacking
        provider = PROVIDERS[name]
        embedding, head = _ends(scheme, provider)
        for precision in (*scheme.precisions, embedding, head):
            if precision in provider.lacks:
                return provider.lacks[precision]
        if embedding == "nf4":
            return "ONNX Runtime has no operator that looks embeddings up in nf4; use int8 or int4"
        if embedding != "fp16" and not provider.looks_up_codes:
            return f"{name} has no operator that looks embeddings up in {embedding}; use fp16"
        return None

    def plan(self, checkpoint: Checkpoint, scheme: Scheme, device: Device = ANY_CPU) -> ExportPlan:
        """Decide every tensor from metadata alone. See `Exporter.plan`."""
        if reason := self.unsupported(scheme, device):
            raise UnsupportedError(reason)
        provider = PROVIDERS[device.execution_provider]
        body = _storage(scheme.precision, scheme.group_size, scheme.symmetric, provider)
        if scheme.gguf_source != "source":
            raise UsageError("gguf_source is of GGUF's types; ONNX's are quantized from the source, so leave it out")
        ends, overrides = overridden(scheme, checkpoint.matrices)
        if reason := self.unsupported(ends, device):
            raise UnsupportedError(reason)
        embedding, head = _ends(ends, provider)
        overrides |= {EMBEDDING: embedding, HEAD: head}
        _check_experts(checkpoint, provider)
        tensors = []
        for fusion in fusions(checkpoint, provider):
            storage: Grid | FloatDtype = body
            if len(checkpoint.tensors[fusion.sources[0]].shape) == 1:
                storage = provider.activations
            elif (wanted := one_precision(fusion.sources, overrides)) is not None:
                storage = _single_storage(wanted, scheme, provider, end=fusion.sources[0] in {EMBEDDING, HEAD})
            tensors.append(_plan_tensor(checkpoint, fusion, *_possible(fusion, storage, provider)))
        _check_pairs(tensors)
        if checkpoint.config.tie_word_embeddings and embedding != head:
            tensors.append(_untied_head(checkpoint, _single_storage(head, scheme, provider, end=True)))
        tensors.extend(_rotary_tables(checkpoint, provider))
        return ExportPlan("onnx", scheme, _container_type(body), tuple(tensors), device)

    def write(
        self,
        checkpoint: Checkpoint,
        plan: ExportPlan,
        directory: Path,
        quantize: Quantize,
        *,
        journal: Journal | None = None,
        threads: int | None = None,
    ) -> None:
        """Write model.onnx, its data, genai_config.json and the tokenizer files. See `Exporter.write`."""
        placed = place(plan.tensors, most=plan.scheme.split_max_size)
        stored = [tensor for tensor in plan.tensors if tensor.sources]
        with (
            scratch_folder() as scratch,
            TensorFiles(directory, layout(placed), journal) as files,
            ThreadPoolExecutor(1, thread_name_prefix="graph") as aside,
        ):
            graph = aside.submit(
                make_graph, checkpoint, plan, placed, directory, scratch
            )  # the weights go on meanwhile

            def watched(rows: NDArray[np.float32], grid: Grid) -> QuantizedRows:
                if graph.done():
                    graph.result()  # what went wrong there ends the writing
                return quantize(rows, grid)

            workers, weights = threads or self._threads, self._chunk_weights
            write_tensors(files, checkpoint, stored, watched, pack_rows, threads=workers, chunk_weights=weights)
            tables = graph.result()
            for name in tables.names:
                if not files.is_done(name):
                    for piece in tables.pieces(name):
                        files.write(name, piece)
                    files.complete(name)
        text = genai_config(checkpoint.config, MODEL_FILE, plan.device)
        (directory / "genai_config.json").write_text(text, encoding="utf-8", newline="\n")
        for name in TOKENIZER_FILES:
            if (checkpoint.directory / name).exists():
                shutil.copyfile(checkpoint.directory / name, directory / name)

    def size(self, checkpoint: Checkpoint, plan: ExportPlan) -> int:
        """Return about how many bytes the artifact has. See `Exporter.size`."""
        return artifact_size(checkpoint, plan, MODEL_FILE, TOOLS, {})

    def tool_versions(self) -> Mapping[str, str]:
        """Return the packages that touch the bytes."""
        return {name: package_version(name) for name in TOOLS}


def _ends(scheme: Scheme, provider: OnnxProvider) -> tuple[str, str]:
    """Return the precisions of embeddings and head."""
    usual = _DEFAULT_ENDS[scheme.precision]
    head = scheme.head_precision or scheme.embedding_precision or usual
    if not provider.looks_up_codes:
        return scheme.embedding_precision or "fp16", scheme.head_precision or usual
    return scheme.embedding_precision or scheme.head_precision or usual, head


def _storage(
    precision: str, group_size: int | None, symmetric: bool, provider: OnnxProvider
) -> Grid | FloatDtype:  # fmt: skip
    """Return what a precision means in this container."""
    if precision == "fp16":
        if group_size is not None:
            raise UsageError(f"fp16 has no groups; remove group_size {group_size}")
        return "float16"
    group_size = group_size or _DEFAULT_GROUP[precision]
    if group_size not in _GROUP_SIZES:
        raise UsageError(f"group_size {group_size} is none that ONNX Runtime has; choose one of {_GROUP_SIZES}")
    if precision == "nf4":
        if not symmetric:
            raise UsageError("nf4 has no asymmetric form; remove the setting or use int4")
        return CodebookGrid("nf4", group_size, provider.activations)
    bits: Literal[4, 8] = 8 if precision == "int8" else 4
    return IntegerGrid(bits, group_size, symmetric, provider.activations)


def _single_storage(precision: str, scheme: Scheme, provider: OnnxProvider, *, end: bool) -> Grid | FloatDtype:
    """Return what a matrix with a precision of its own lies in.

    Embeddings and head have the group size that is given for them; all have that of the others if they are alike.
    """
    own = scheme.embedding_group_size if end else None
    inherited = scheme.group_size if precision == scheme.precision else None
    group_size = None if precision == "fp16" else own or inherited
    return _storage(precision, group_size, scheme.symmetric or precision == "nf4", provider)


def _possible(
    fusion: Fusion, storage: Grid | FloatDtype, provider: OnnxProvider
) -> tuple[Grid | FloatDtype, str | None]:
    """Return what a tensor can lie in, and why that is not what was asked for; None where it is."""
    if fusion.name.endswith(ROUTERS):
        return provider.activations, "it decides which experts compute, and is small"
    if fusion.experts and isinstance(storage, CodebookGrid):
        instead = IntegerGrid(4, storage.group_size, True, storage.scale_dtype)
        return instead, f"ONNX Runtime has no operator for experts in nf4: {instead.name} instead"
    return storage, None


def _untied_head(checkpoint: Checkpoint, storage: Grid | FloatDtype) -> TensorPlan:
    """Plan a second copy of a tied embedding, for a head of another precision."""
    note = "a copy of the tied embedding, since the head has a precision of its own"
    return _plan_tensor(checkpoint, Fusion(HEAD, (EMBEDDING,)), storage, note)


def _container_type(storage: Grid | FloatDtype) -> str:
    match storage:
        case IntegerGrid():
            return f"MatMulNBits {storage.name}"
        case CodebookGrid():
            return f"MatMulBnb4 {storage.name}"
        case _:
            return str(storage)


def _check_experts(checkpoint: Checkpoint, provider: OnnxProvider) -> None:
    """Refuse experts where no operator for them was ever run.

    Raises:
        UnsupportedError: Says what to use instead.
    """
    if checkpoint.config.experts is not None and not provider.has_experts:
        raise UnsupportedError(
            f"{checkpoint.source} has experts, which Edgekiln exports for ONNX Runtime's CPU provider alone: the "
            "others read them in layouts of their own; use a target on the cpu, or gguf"
        )


def _check_pairs(tensors: Sequence[TensorPlan]) -> None:
    """Refuse experts whose two matrices the operator cannot have together.

    Raises:
        UsageError: They are stored differently.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    for name, first in by_name.items():
        if name.endswith(GATE_UP_EXPERTS):
            second = by_name[name.removesuffix(GATE_UP_EXPERTS) + DOWN_EXPERTS]
            if first.storage != second.storage:
                raise UsageError(
                    f"{first.name} is {first.storage_name} and {second.name} {second.storage_name}, but ONNX Runtime's "
                    "operator for experts has one precision for both; let an override match all of them, as "
                    "*.mlp.experts.* does"
                )


def _rotary_tables(checkpoint: Checkpoint, provider: OnnxProvider) -> Iterator[TensorPlan]:
    """Yield the cosine and sine tables, which the graph computes from the configuration."""
    config = checkpoint.config
    shape = (config.max_position_embeddings, config.head_dim // 2)
    for name in ROTARY_TABLES:
        yield TensorPlan(name, (), shape, provider.activations, stored_bytes(provider.activations, shape))


def _plan_tensor(
    checkpoint: Checkpoint, fusion: Fusion, storage: Grid | FloatDtype, note: str | None = None
) -> TensorPlan:
    shapes = [checkpoint.tensors[source].shape for source in fusion.sources]
    shape: tuple[int, ...] = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    if fusion.experts:
        shape = (fusion.experts, shape[0] // fusion.experts, *shape[1:])
    if isinstance(storage, IntegerGrid | CodebookGrid) and shape[-1] % storage.group_size:
        raise UsageError(
            f"group size {storage.group_size} does not divide the {shape[-1]} columns of {fusion.sources[0]}; "
            f"choose one of {', '.join(str(g) for g in _GROUP_SIZES if shape[-1] % g == 0) or 'fp16 instead'}"
        )
    nbytes = stored_bytes(storage, shape)
    return TensorPlan(fusion.name, fusion.sources, shape, storage, nbytes, note, in_turn=fusion.in_turn)


def pack_rows(quantized: QuantizedRows) -> tuple[memoryview, ...]:
    """Return the bytes of quantized rows for each initializer, in the order of `parts_of`; nothing is rounded."""
    match quantized:
        case IntegerRows(grid, _, codes, scales, zero_points):
            packed = little_endian(codes), little_endian(scales.astype(grid.scale_dtype, copy=False))
            if zero_points is None:
                return packed
            return *packed, little_endian(pack_zero_points(zero_points, grid.bits))
        case CodebookRows(grid, _, codes, absmax):
            return little_endian(codes), little_endian(absmax.astype(grid.scale_dtype, copy=False))
        case _:
            raise TypeError(f"an ONNX file does not hold {type(quantized).__name__}")


def pack_zero_points(zero_points: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return zero points as MatMulNBits reads them: rows of bytes, two 4-bit values a byte, the first one low."""
    if bits == 8:
        return zero_points
    rows, groups = zero_points.shape
    padded = np.zeros((rows, groups + groups % 2), np.uint8)
    padded[:, :groups] = zero_points
    packed: NDArray[np.uint8] = padded[:, 0::2] | (padded[:, 1::2] << 4)
    return packed
