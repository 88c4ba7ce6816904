"""The size of an ONNX artifact before it is written.

The data file is known to the byte from its layout, and the tokenizer's files are copied. model.onnx is a formula: what
it says of the layout, a constant, an amount for each layer, and one for each digit that a layer's number has beyond the
first, since names repeat it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from edgekiln.checkpoint import TOKENIZER_FILES, Checkpoint
from edgekiln.errors import UnsupportedError
from edgekiln.exporters.base import ExportPlan
from edgekiln.exporters.genai_config import genai_config
from edgekiln.exporters.manifest_size import sealed_size
from edgekiln.exporters.onnx_layout import layout, place
from edgekiln.exporters.onnx_providers import PROVIDERS, OnnxProvider
from edgekiln.grids import CodebookGrid, FloatDtype, Grid, IntegerGrid
from edgekiln.journal import Layout

#: What differs between the graphs of providers: the CPU's is in float32 and of the newest opset; those of graphics
#: cards rotate inside the attention operator or before it.
_Style: TypeAlias = Literal["cpu", "rotating", "separate"]
#: What differs between the weights: how many initializers and nodes each has.
_Kind: TypeAlias = Literal["float16", "symmetric", "asymmetric", "codebook"]

#: (style, family, kind of the layers' matrices) to bytes of model.onnx: constant, per layer, per further digit of its
#: number, all without the places of initializers. `benchmarks/graph_sizes.py` fits them to the serialized graphs of 2,
#: 8, 28 and 64 layers at hidden size 1,024 and a tied vocabulary of 151,936, made with mobius-onnx 0.1 and onnx-ir as
#: the constraints pin them; against 2 to 110 layers at hidden sizes of 256 and 5,120 (untied) they are at most 0.9 %
#: off, which is below 0.01 % of an artifact that anyone ships.
_GRAPHS: Final[Mapping[tuple[_Style, str, _Kind], tuple[int, int, int]]] = MappingProxyType(
    {
        ("cpu", "qwen2", "float16"): (2161, 6034, 146),
        ("cpu", "qwen2", "symmetric"): (2363, 5513, 111),
        ("cpu", "qwen2", "asymmetric"): (2530, 6262, 121),
        ("cpu", "qwen2", "codebook"): (2365, 5397, 111),
        ("cpu", "qwen3", "float16"): (2174, 9782, 232),
        ("cpu", "qwen3", "symmetric"): (2392, 8726, 175),
        ("cpu", "qwen3", "asymmetric"): (2559, 9779, 189),
        ("cpu", "qwen3", "codebook"): (2393, 8565, 175),
        ("rotating", "qwen2", "float16"): (2002, 5222, 130),
        ("rotating", "qwen2", "symmetric"): (2399, 5515, 111),
        ("rotating", "qwen2", "asymmetric"): (2564, 6264, 121),
        ("rotating", "qwen2", "codebook"): (2402, 5399, 111),
        ("rotating", "qwen3", "float16"): (2014, 8703, 210),
        ("rotating", "qwen3", "symmetric"): (2429, 8790, 174),
        ("rotating", "qwen3", "asymmetric"): (2592, 9843, 188),
        ("rotating", "qwen3", "codebook"): (2430, 8629, 174),
        ("separate", "qwen2", "float16"): (1655, 7988, 199),
        ("separate", "qwen2", "symmetric"): (1827, 8075, 164),
        ("separate", "qwen2", "asymmetric"): (1933, 9126, 180),
        ("separate", "qwen3", "float16"): (1724, 8854, 216),
        ("separate", "qwen3", "symmetric"): (1900, 8939, 182),
        ("separate", "qwen3", "asymmetric"): (2006, 9992, 196),
    }
)
#: The same of graphs whose layers have experts that are made to add up to 1: family and kind alone.
_WITH_EXPERTS: Final[Mapping[tuple[str, _Kind], tuple[int, int, int]]] = MappingProxyType(
    {
        ("qwen2_moe", "float16"): (2178, 7130, 148),
        ("qwen2_moe", "symmetric"): (2373, 7067, 126),
        ("qwen2_moe", "asymmetric"): (2540, 8237, 140),
        ("qwen2_moe", "codebook"): (2375, 6951, 125),
        ("qwen3_moe", "float16"): (2269, 8376, 186),
        ("qwen3_moe", "symmetric"): (2466, 7816, 152),
        ("qwen3_moe", "asymmetric"): (2633, 8766, 164),
        ("qwen3_moe", "codebook"): (2467, 7724, 150),
    }
)
#: What a layer has more whose experts do not add up to 1.
_UNNORMALIZED: Final = 324


def graph_size(checkpoint: Checkpoint, plan: ExportPlan, places: Layout) -> int:
    """Return about how many bytes model.onnx has.

    Args:
        checkpoint: The source.
        plan: What `Onnx.plan` decided.
        places: Of its initializers.

    Raises:
        UnsupportedError: No graph of this family and provider was ever measured.
    """
    config, kind = checkpoint.config, _kind(plan)
    key = (_style(PROVIDERS[plan.device.execution_provider]), checkpoint.family.dense_type, kind)
    if key not in _GRAPHS:
        raise UnsupportedError(
            f"the size of a {config.model_type} graph for {plan.device.execution_provider} is not known"
        )
    experts, dense = config.experts, _GRAPHS[key]
    sparse = dense if experts is None else _WITH_EXPERTS[config.model_type, kind]
    size = sparse[0] + place_bytes(places)
    for layer in range(config.num_layers):
        _, per_layer, per_digit = dense if config.experts_of(layer) is None else sparse
        size += per_layer + per_digit * (len(str(layer)) - 1)
    if experts is not None and not experts.normalized:
        size += _UNNORMALIZED * len(experts.layers)
    return size


def place_bytes(places: Layout) -> int:
    """Return the bytes of a graph that say where its initializers lie: file, offset and length, as text."""
    extents = [extent for parts in places.extents.values() for extent in parts]
    return sum(len(extent.file) + len(str(extent.offset)) + len(str(extent.nbytes)) for extent in extents)


def _style(provider: OnnxProvider) -> _Style:
    if provider.genai_name is None:
        return "cpu"
    return "rotating" if provider.rotates_in_attention else "separate"


def _kind(plan: ExportPlan) -> _Kind:
    """Return what most of the layers' matrices are."""
    kinds = [
        _kind_of(tensor.storage) for tensor in plan.tensors if ".layers." in tensor.name and len(tensor.shape) == 2
    ]
    return max(sorted(set(kinds)), key=kinds.count)


def _kind_of(storage: Grid | FloatDtype) -> _Kind:
    match storage:
        case IntegerGrid():
            return "symmetric" if storage.symmetric else "asymmetric"
        case CodebookGrid():
            return "codebook"
        case _:
            return "float16"


def artifact_size(
    checkpoint: Checkpoint, plan: ExportPlan, model_file: str, tools: tuple[str, ...], others: Mapping[str, int]
) -> int:
    """Return the bytes of the artifact directory.

    Args:
        checkpoint: The source.
        plan: What `Exporter.plan` decided.
        model_file: Name of the graph's file.
        tools: Packages that the manifest lists.
        others: Sizes of further files by name.

    Raises:
        UnsupportedError: No graph of this family and provider was ever measured.
    """
    places = layout(place(plan.tensors, most=plan.scheme.split_max_size))
    files = {
        model_file: graph_size(checkpoint, plan, places),
        **places.sizes,
        "genai_config.json": len(genai_config(checkpoint.config, model_file, plan.device).encode("utf-8")),
        **others,
    }
    for name in TOKENIZER_FILES:
        if (path := checkpoint.directory / name).exists():
            files[name] = path.stat().st_size
    return sealed_size(checkpoint, plan, files, tools)
