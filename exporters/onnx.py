"""ONNX: a directory that ONNX Runtime GenAI loads.

The data file is written tensor by tensor in row chunks at offsets fixed beforehand, and the graph refers to it; no
whole tensor is ever in memory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final, Literal

import numpy as np
from numpy.typing import NDArray

from edgekiln.checkpoint import TOKENIZER_FILES, Checkpoint
from edgekiln.errors import UnsupportedError, UsageError, nearest
from edgekiln.exporters.base import ExportPlan, Quantize, TensorPlan
from edgekiln.exporters.genai_config import genai_config
from edgekiln.exporters.onnx_layout import DATA_FILE, ROTARY_TABLES, Placed, Role, place, stored_bytes
from edgekiln.families import EMBEDDING, HEAD
from edgekiln.grids import CodebookGrid, CodebookRows, FloatDtype, Grid, IntegerGrid, IntegerRows, QuantizedRows
from edgekiln.safetensors import TensorInfo, TensorReader
from edgekiln.scheme import Scheme
from edgekiln.tensors import require_finite, to_float16

MODEL_FILE: Final = "model.onnx"
_CHUNK_WEIGHTS: Final = 1 << 20
_GROUP_SIZES: Final = (16, 32, 64, 128, 256)
_DEFAULT_GROUP: Final = {"int8": 32, "int4": 32, "nf4": 64}
#: What embeddings and head are stored as when the scheme does not say: no operator looks NF4 up, and an int8 head
#: costs 0.0001 nats where an int4 head costs 0.015 (measured on Qwen2.5-Coder-0.5B); int4 stays as small as it can be.
_DEFAULT_ENDS: Final = {"fp16": "fp16", "int8": "int8", "int4": "int4", "nf4": "int8"}


class Onnx:
    """Exporter of ORT GenAI directories."""

    precisions: Mapping[str, str] = MappingProxyType(
        {
            "fp16": "float16 weights, computed in float32",
            "int8": "MatMulNBits, 8 bits, a float32 scale per group (32)",
            "int4": "MatMulNBits, 4 bits, a float32 scale per group (32)",
            "nf4": "MatMulBnb4, a float32 absmax per block (64); embeddings and head int8",
        }
    )

    def plan(self, checkpoint: Checkpoint, scheme: Scheme) -> ExportPlan:
        """Decide every tensor from metadata alone. See `Exporter.plan`."""
        body = self._storage(scheme.precision, scheme.group_size, symmetric=scheme.symmetric)
        ends = _DEFAULT_ENDS[scheme.precision]
        embedding = scheme.embedding_precision or scheme.head_precision or ends
        head = scheme.head_precision or scheme.embedding_precision or ends
        if embedding == "nf4":
            raise UnsupportedError("ONNX Runtime has no operator that looks embeddings up in nf4; use int8 or int4")
        tensors = []
        for sources, name in _fusions(checkpoint):
            infos = [checkpoint.tensors[source] for source in sources]
            wanted = {EMBEDDING: embedding, HEAD: head}.get(sources[0])
            storage: Grid | FloatDtype = body
            if len(infos[0].shape) == 1:
                storage = "float32"
            elif wanted is not None:
                storage = self._end_storage(wanted, scheme)
            tensors.append(_plan_tensor(name, sources, infos, storage))
        if checkpoint.config.tie_word_embeddings and embedding != head:
            tensors.append(self._untied_head(checkpoint, head, scheme))
        tensors.extend(_rotary_tables(checkpoint))
        return ExportPlan("onnx", scheme, _container_type(body), tuple(tensors))

    def write(self, checkpoint: Checkpoint, plan: ExportPlan, directory: Path, quantize: Quantize) -> None:
        """Write model.onnx, its data, genai_config.json and the tokenizer files. See `Exporter.write`."""
        placed = place(plan.tensors)
        computed = _write_graph(checkpoint, placed, directory)
        with (directory / DATA_FILE).open("wb") as file, checkpoint.reader() as reader:
            for item in placed.values():
                if not item.plan.sources:
                    file.seek(item.parts["values"].offset)
                    file.write(computed[item.plan.name].astype("<f4", copy=False).tobytes())
                    continue
                _write_tensor(file, item, [checkpoint.tensors[name] for name in item.plan.sources], reader, quantize)
        text = genai_config(checkpoint.config, MODEL_FILE)
        (directory / "genai_config.json").write_text(text, encoding="utf-8", newline="\n")
        for name in TOKENIZER_FILES:
            if (checkpoint.directory / name).exists():
                shutil.copyfile(checkpoint.directory / name, directory / name)

    def tool_versions(self) -> Mapping[str, str]:
        """Return the packages that touch the bytes."""
        names = ("mobius-onnx", "numpy", "onnx", "onnx-ir", "onnxruntime", "torch", "transformers")
        return {name: version(name) for name in names}

    def _storage(self, precision: str, group_size: int | None, *, symmetric: bool) -> Grid | FloatDtype:
        """Return what a precision means in this container."""
        if precision == "fp16":
            if group_size is not None:
                raise UsageError(f"fp16 has no groups; remove group_size {group_size}")
            return "float16"
        if precision not in self.precisions:
            raise UnsupportedError(f"ONNX does not hold {precision!r}; {nearest(precision, self.precisions)}")
        group_size = group_size or _DEFAULT_GROUP[precision]
        if group_size not in _GROUP_SIZES:
            raise UsageError(f"group_size {group_size} is none that ONNX Runtime has; choose one of {_GROUP_SIZES}")
        if precision == "nf4":
            if not symmetric:
                raise UsageError("nf4 has no asymmetric form; remove the setting or use int4")
            return CodebookGrid("nf4", group_size)
        bits: Literal[4, 8] = 8 if precision == "int8" else 4
        return IntegerGrid(bits, group_size, symmetric)

    def _end_storage(self, precision: str, scheme: Scheme) -> Grid | FloatDtype:
        """Return what embeddings or head lie in: by their own group size, else by that of the body if it is alike."""
        inherited = scheme.group_size if precision == scheme.precision else None
        group_size = None if precision == "fp16" else scheme.embedding_group_size or inherited
        return self._storage(precision, group_size, symmetric=scheme.symmetric or precision == "nf4")

    def _untied_head(self, checkpoint: Checkpoint, head: str, scheme: Scheme) -> TensorPlan:
        """Plan a second copy of a tied embedding, for a head of another precision."""
        storage = self._end_storage(head, scheme)
        tensor = _plan_tensor(HEAD, (EMBEDDING,), [checkpoint.tensors[EMBEDDING]], storage)
        return replace(tensor, note="a copy of the tied embedding, since the head has a precision of its own")


def _container_type(storage: Grid | FloatDtype) -> str:
    match storage:
        case IntegerGrid():
            return f"MatMulNBits {storage.name}"
        case CodebookGrid():
            return f"MatMulBnb4 {storage.name}"
        case _:
            return str(storage)


def _fusions(checkpoint: Checkpoint) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (sources, name in the artifact): query, key and value are one tensor where the graph packs them."""
    packed = not checkpoint.family.qk_norm
    for source in checkpoint.tensors:
        if (packed and ".self_attn.k_proj." in source) or (packed and ".self_attn.v_proj." in source):
            continue
        if packed and ".self_attn.q_proj." in source:
            parts = tuple(source.replace("q_proj", part) for part in ("q_proj", "k_proj", "v_proj"))
            yield parts, source.replace("q_proj", "qkv_proj")
        else:
            yield (source,), source


def _rotary_tables(checkpoint: Checkpoint) -> Iterator[TensorPlan]:
    """Yield the cosine and sine tables, which the graph computes from the configuration."""
    config = checkpoint.config
    shape = (config.max_position_embeddings, config.head_dim // 2)
    for name in ROTARY_TABLES:
        yield TensorPlan(name, (), shape, "float32", stored_bytes("float32", shape))


def _plan_tensor(
    name: str, sources: tuple[str, ...], infos: list[TensorInfo], storage: Grid | FloatDtype
) -> TensorPlan:
    shape: tuple[int, ...] = (sum(info.shape[0] for info in infos), *infos[0].shape[1:])
    if isinstance(storage, IntegerGrid | CodebookGrid) and shape[-1] % storage.group_size:
        raise UsageError(
            f"group size {storage.group_size} does not divide the {shape[-1]} columns of {sources[0]}; "
            f"choose one of {', '.join(str(g) for g in _GROUP_SIZES if shape[-1] % g == 0) or 'fp16 instead'}"
        )
    return TensorPlan(name, sources, shape, storage, stored_bytes(storage, shape))


def _pack(name: str, rows: NDArray[np.float32], storage: Grid | FloatDtype, quantize: Quantize) -> dict[Role, bytes]:
    """Return the bytes of a row chunk for each initializer of its tensor."""
    require_finite(name, rows)
    if storage == "float32":
        return {"values": rows.astype("<f4", copy=False).tobytes()}
    if storage == "float16":
        return {"values": to_float16(name, rows).astype("<f2", copy=False).tobytes()}
    if storage == "bfloat16":
        raise TypeError("an ONNX file for the CPU holds no bfloat16")
    return pack_rows(quantize(rows, storage))


def pack_rows(quantized: QuantizedRows) -> dict[Role, bytes]:
    """Return the bytes of quantized rows for each initializer; nothing is rounded."""
    match quantized:
        case IntegerRows(grid, _, codes, scales, zero_points):
            packed: dict[Role, bytes] = {"codes": codes.tobytes(), "scales": scales.astype("<f4", copy=False).tobytes()}
            if zero_points is not None:
                packed["zero_points"] = pack_zero_points(zero_points, grid.bits).tobytes()
            return packed
        case CodebookRows(_, _, codes, absmax):
            return {"codes": codes.tobytes(), "absmax": absmax.astype("<f4", copy=False).tobytes()}
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


def _chunks(infos: list[TensorInfo], weights: int) -> Iterator[tuple[TensorInfo, int, int]]:
    for info in infos:
        step = max(1, weights // info.columns)
        for start in range(0, info.rows, step):
            yield info, start, min(start + step, info.rows)


def _write_tensor(
    file: BinaryIO, item: Placed, infos: list[TensorInfo], reader: TensorReader, quantize: Quantize
) -> None:
    """Stream one tensor: chunks are read and quantized by a few threads, and written in their order."""
    positions = {part.role: part.offset for part in item.parts.values()}

    def work(chunk: tuple[TensorInfo, int, int]) -> dict[Role, bytes]:
        info, start, stop = chunk
        return _pack(info.name, reader.rows(info, start, stop), item.plan.storage, quantize)

    workers = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        chunks = _chunks(infos, _CHUNK_WEIGHTS)
        pending: list[Future[dict[Role, bytes]]] = [pool.submit(work, chunk) for chunk in islice(chunks, workers + 1)]
        while pending:
            pieces = pending.pop(0).result()
            pending.extend(pool.submit(work, chunk) for chunk in islice(chunks, 1))
            for role, data in pieces.items():
                file.seek(positions[role])
                file.write(data)
                positions[role] += len(data)


def _write_graph(
    checkpoint: Checkpoint, placed: Mapping[str, Placed], directory: Path
) -> dict[str, NDArray[np.float32]]:
    """Build the float graph, rewrite it onto the data file, and write model.onnx; return the computed tensors."""
    import onnx_ir as ir

    from edgekiln.exporters.onnx_graph import build_float_graph
    from edgekiln.exporters.onnx_rewrite import Rewriter

    model = build_float_graph(checkpoint.config)
    computed = Rewriter(model.graph, placed).run()
    model.producer_name, model.producer_version = "edgekiln", version("edgekiln")
    proto = ir.serde.serialize_model(model)
    (directory / MODEL_FILE).write_bytes(proto.SerializeToString(deterministic=True))
    return computed
