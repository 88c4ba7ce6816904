"""GGUF, the container of llama.cpp and of everything built on it.

One pass from the checkpoint to the file: the header with all tensor infos first, then the data of each tensor, row
chunk by row chunk (`edgekiln.exporters.stream`). Quantized tensors are made from the checkpoint's own weights.
llama.cpp's usual two steps go through an F16 file, which rounds bfloat16 weights below 2⁻¹⁴ and float32 weights once
more; blocks where that rounding shows then differ from ours, all others are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from edgekiln.checkpoint import Checkpoint
from edgekiln.device import ANY_CPU, Device
from edgekiln.errors import CheckpointError, StepError, UnsupportedError, UsageError
from edgekiln.exporters.base import ExportPlan, Quantize, TensorPlan, unknown_precision, unknown_provider
from edgekiln.exporters.gguf_header import TensorEntry, pack_header, place
from edgekiln.exporters.gguf_metadata import (
    add_general,
    add_hyper_parameters,
    add_sampling,
    add_split,
    add_tokenizer,
    context_length,
)
from edgekiln.exporters.gguf_mix import MIXES, Mix, check_group_size, choose, find_mix, tensor_bytes
from edgekiln.exporters.gguf_names import gguf_name
from edgekiln.exporters.gguf_size import artifact_size
from edgekiln.exporters.gguf_tokenizer import read_vocabulary
from edgekiln.exporters.shards import divide, numbered
from edgekiln.exporters.stream import CHUNK_WEIGHTS, little_endian, write_tensors
from edgekiln.families import EMBEDDING
from edgekiln.grids import BlockGrid, BlockRows, FloatDtype, Grid, QuantizedRows
from edgekiln.installed import package_version
from edgekiln.journal import Extent, Journal, Layout
from edgekiln.model_config import ModelConfig, Yarn
from edgekiln.scheme import Scheme, one_precision, overridden
from edgekiln.tensor_files import TensorFiles

FORMAT: Final = "gguf"
#: ggml's name of each float type.
_FLOATS: Final[Mapping[str, FloatDtype]] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_GGML_FLOATS: Final = {dtype: name for name, dtype in _FLOATS.items()}


def shards(plan: ExportPlan) -> dict[str, tuple[TensorPlan, ...]]:
    """Return the tensors of each file by its name: `model-Q4_K_M.gguf`, `model-Q4_K_M-00001-of-00003.gguf`."""
    divided = divide(plan.tensors, plan.scheme.split_max_size)
    names = numbered(f"model-{plan.container_type}", ".gguf", len(divided))
    return dict(zip(names, divided, strict=True))


def _mix(scheme: Scheme) -> Mix:
    return find_mix(scheme.precision, symmetric=scheme.symmetric)


def _storage(ggml_type: str) -> Grid | FloatDtype:
    return _FLOATS[ggml_type] if ggml_type in _FLOATS else BlockGrid(ggml_type)


def _ggml_type(storage: Grid | FloatDtype) -> str:
    if isinstance(storage, str):
        return _GGML_FLOATS[storage]
    if not isinstance(storage, BlockGrid):
        raise StepError(f"a GGUF file cannot hold {storage.name}; plan it with the gguf exporter")
    return storage.ggml_type


#: llama.cpp's backends (the table in its README): each loads the same file and converts what it has no kernel for.
_BACKENDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "cpu": "the same file for every backend; Q4_0 is repacked for the processor when it is loaded",
        "blas": "the same file; prompts are multiplied in float32 by BLAS",
        "cann": "the same file, on Ascend NPUs; Q4_0, Q8_0 and F16 run there",
        "cuda": "the same file, on NVIDIA GPUs",
        "hexagon": "the same file, on Snapdragon's NPU, in progress in llama.cpp; Q4_0 and Q8_0 run there",
        "hip": "the same file, on AMD GPUs",
        "metal": "the same file, on Apple silicon",
        "musa": "the same file, on Moore Threads GPUs",
        "opencl": "the same file, on Adreno GPUs; Q4_0 and Q8_0 run fastest there",
        "openvino": "the same file, on Intel CPUs, GPUs and NPUs, in progress in llama.cpp",
        "rpc": "the same file, on the backends of other machines",
        "sycl": "the same file, on Intel GPUs",
        "vulkan": "the same file, on any GPU with Vulkan",
        "webgpu": "the same file, on any GPU through WebGPU",
        "zdnn": "the same file, on IBM Z and LinuxONE",
        "zendnn": "the same file, on AMD processors",
    }
)
#: Providers of ONNX Runtime that one may take for a backend.
_REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "coreml": "llama.cpp computes on Apple's GPUs through Metal; use metal",
        "dml": "llama.cpp has no DirectML; use vulkan, or the onnx format",
        "qnn": "llama.cpp reaches Snapdragon's NPU as hexagon and its GPU as opencl; use one of them",
        "rocm": "llama.cpp reaches AMD's GPUs as hip; use that, or vulkan",
        "vitisai": "llama.cpp has no backend for AMD's NPU; use vulkan or cpu",
    }
)


_HEAD: Final = "output.weight"


class Gguf:
    """Writes one GGUF file, `model-<TYPE>.gguf`."""

    precisions: Mapping[str, str] = MappingProxyType(
        {name: f"{mix.label}: {mix.meaning}" for name, mix in MIXES.items()}
    )
    providers: Mapping[str, str] = _BACKENDS
    nearest: Mapping[str, str] = MappingProxyType({"nf4": "iq4_nl"})
    asymmetric: Mapping[str, str] = MappingProxyType({"q4_0": "q4_1", "q5_0": "q5_1"})

    def __init__(self, threads: int | None = None, chunk_weights: int = CHUNK_WEIGHTS) -> None:
        """Set how the work is divided; the file is the same whatever the two are.

        Args:
            threads: Workers that read and quantize, see `write_tensors`.
            chunk_weights: Weights of one piece of work, rounded to whole rows.
        """
        self._threads = threads
        self._chunk_weights = chunk_weights

    def unsupported(self, scheme: Scheme, device: Device) -> str | None:
        """Return why there is no such artifact for `device`, or None. See `Exporter.unsupported`."""
        return self._no_backend(device) or unknown_precision("GGUF", scheme, self.precisions, self.nearest)

    def _no_backend(self, device: Device) -> str | None:
        if device.execution_provider in self.providers:
            return None
        return unknown_provider("GGUF", device.execution_provider, self.providers, _REFUSED)

    def plan(self, checkpoint: Checkpoint, scheme: Scheme, device: Device = ANY_CPU) -> ExportPlan:
        """Decide every tensor's type as llama.cpp's `llama_model_quantize` does; the device changes nothing.

        Raises:
            CheckpointError: The tokenizer is malformed.
            UnsupportedError: GGUF has no such type (NF4), or llama.cpp no such tokenizer or backend.
            UsageError: The scheme contradicts itself or the container.
        """
        if reason := self._no_backend(device):
            raise UnsupportedError(reason)
        if scheme.accuracy_level is not None:
            raise UsageError("accuracy_level is of ONNX Runtime's MatMulNBits; GGUF has none, so leave it out")
        _check_rope(checkpoint)
        _check_experts(checkpoint)
        mix = _mix(scheme)
        ends, overrides = overridden(scheme, checkpoint.matrices)
        check_group_size(scheme.precision, scheme.group_size)
        check_group_size(ends.embedding_precision or scheme.precision, scheme.embedding_group_size)
        read_vocabulary(checkpoint)
        names, config = _tensor_names(checkpoint), checkpoint.config
        if config.tie_word_embeddings and checkpoint.family.gguf_experts and checkpoint.family.gguf_experts.needs_head:
            names[_HEAD], config = (EMBEDDING,), replace(config, tie_word_embeddings=False)
        tensors: list[TensorPlan] = []
        for name, sources in names.items():
            shape = _shape(checkpoint, name, sources)
            choice = choose(mix, ends, config, name, shape, one_precision(sources, overrides))
            tensors.append(
                TensorPlan(
                    name=name,
                    sources=sources,
                    shape=shape,
                    storage=_storage(choice.ggml_type),
                    nbytes=tensor_bytes(choice.ggml_type, shape),
                    note=choice.note,
                    through="float16" if scheme.gguf_source == "f16" else None,
                )
            )
        return ExportPlan(FORMAT, scheme, mix.label, tuple(tensors), device, _notes(checkpoint.config))

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
        """Write the file, tensor by tensor in row chunks; memory does not grow with the model. See `Exporter.write`.

        Raises:
            StepError: A weight is NaN or infinite, or overflows the type of its tensor.
        """
        headers = _headers(checkpoint, plan)
        with TensorFiles(directory, _layout(plan, headers), journal) as files:
            for name, header in headers.items():
                files.put(name, 0, header)
            workers, weights = threads or self._threads, self._chunk_weights
            write_tensors(files, checkpoint, plan.tensors, quantize, _pack, threads=workers, chunk_weights=weights)

    def size(self, checkpoint: Checkpoint, plan: ExportPlan) -> int:
        """Return the bytes of the artifact, to the byte. See `Exporter.size`."""
        return artifact_size(checkpoint, plan, shards(plan))

    def tool_versions(self) -> Mapping[str, str]:
        """Return the versions of the libraries that touch the bytes; the quantizer names its own."""
        return {name: package_version(name) for name in ("gguf", "numpy")}


def _check_rope(checkpoint: Checkpoint) -> None:
    """Refuse what a file cannot tell llama.cpp, whose context parameters alone decide it for these architectures."""
    yarn = checkpoint.config.yarn
    if yarn is not None and not yarn.has_usual_betas:
        raise UnsupportedError(
            f"{checkpoint.source} stretches its rope by YaRN with beta_fast {yarn.beta_fast:g} and beta_slow "
            f"{yarn.beta_slow:g}, but llama.cpp takes {Yarn.beta_fast:g} and {Yarn.beta_slow:g} whatever a Qwen's file "
            "says; use onnx"
        )


def _check_experts(checkpoint: Checkpoint) -> None:
    """Refuse what llama.cpp computes otherwise: GGUF has no keys for which layers have experts, and how they weigh.

    Raises:
        UnsupportedError: Says what, and what to use instead.
    """
    assumed, name = checkpoint.family.gguf_experts, checkpoint.family.gguf_architecture
    if assumed is None:
        return
    experts, layers = checkpoint.config.experts, checkpoint.config.num_layers
    dense = layers - len(experts.layers if experts else ())
    if experts is None or dense:
        raise UnsupportedError(
            f"{checkpoint.source} has no experts in {dense} of its {layers} layers (decoder_sparse_step, "
            f"mlp_only_layers), but llama.cpp's {name} has them in all; use onnx"
        )
    if experts.normalized is not assumed.normalized:
        raise UnsupportedError(
            f"{checkpoint.source} has norm_topk_prob {str(experts.normalized).lower()}, but llama.cpp's {name} "
            f"computes {str(assumed.normalized).lower()} whatever a file says; use onnx"
        )


def _shape(checkpoint: Checkpoint, name: str, sources: Sequence[str]) -> tuple[int, ...]:
    """Return the shape of a tensor; experts lie one after another."""
    shape = checkpoint.tensors[sources[0]].shape
    return (len(sources), *shape) if name.endswith("_exps.weight") else shape


def _notes(config: ModelConfig) -> tuple[str, ...]:
    if context_length(config) == config.max_position_embeddings:
        return ()
    window = config.sliding_window
    return (f"llama.cpp has no sliding window for this model, so its context is the window of {window} tokens",)


def _tensor_names(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """Return the tensors of the file by name, each with those of the checkpoint that it has the rows of.

    Raises:
        CheckpointError: llama.cpp has no name for one of them.
    """
    names: dict[str, list[str]] = {}
    for source in checkpoint.tensors:
        name = gguf_name(checkpoint.family, source)
        if name is None:
            raise CheckpointError(
                f"{checkpoint.directory}: GGUF has no name for {source} of a {checkpoint.config.model_type} model"
            )
        names.setdefault(name, []).append(source)
    return {name: tuple(sources) for name, sources in names.items()}


def _headers(checkpoint: Checkpoint, plan: ExportPlan) -> dict[str, bytes]:
    """Return everything before the data of each file: metadata, then name, shape, type and offset of every tensor.

    Of several files the first one has the metadata of the model, and each says which it is.
    """
    from gguf import GGUFWriter

    files = shards(plan)
    headers = {}
    for number, (name, tensors) in enumerate(files.items()):
        writer = GGUFWriter(None, checkpoint.family.gguf_architecture)
        if number == 0:
            add_general(writer, checkpoint, _mix(plan.scheme))
            add_hyper_parameters(writer, checkpoint)
            add_sampling(writer, checkpoint)
            add_tokenizer(writer, checkpoint, read_vocabulary(checkpoint))
        else:
            writer.kv_data[0].clear()  # the architecture, which the writer adds by itself
        if len(files) > 1:
            add_split(writer, number, len(files), len(plan.tensors))
        headers[name] = pack_header(writer, _entries(tensors))
    return headers


def _entries(tensors: Sequence[TensorPlan]) -> list[TensorEntry]:
    return [TensorEntry(t.name, t.shape, _ggml_type(t.storage), t.nbytes) for t in tensors]


def _layout(plan: ExportPlan, headers: Mapping[str, bytes]) -> Layout:
    """Return where the tensors lie: in each file behind its header."""
    from gguf import GGUF_DEFAULT_ALIGNMENT

    sizes: dict[str, int] = {}
    extents: dict[str, tuple[Extent, ...]] = {}
    for file, tensors in shards(plan).items():
        start, offsets = len(headers[file]), place(_entries(tensors), GGUF_DEFAULT_ALIGNMENT)
        sizes[file] = start + offsets[-1]
        extents |= {t.name: (Extent(file, start + at, t.nbytes),) for t, at in zip(tensors, offsets, strict=False)}
    return Layout(sizes, extents)


def _pack(quantized: QuantizedRows) -> tuple[memoryview]:
    """Return the bytes of rows of blocks."""
    if not isinstance(quantized, BlockRows):
        raise TypeError(f"a GGUF file does not hold {type(quantized).__name__}")
    return (little_endian(quantized.blocks),)
