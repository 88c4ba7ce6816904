"""The size of an ONNX artifact before it is written.

The data file is known to the byte from its layout, and the tokenizer's files are copied. model.onnx is a formula: a
constant, an amount for each layer, and one for each digit that a layer's number has beyond the first, since names
repeat it.
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

#: What differs between the graphs of providers: the CPU's is in float32 and of the newest opset; those of graphics
#: cards rotate inside the attention operator or before it.
_Style: TypeAlias = Literal["cpu", "rotating", "separate"]
#: What differs between the weights: how many initializers and nodes each has.
_Kind: TypeAlias = Literal["float16", "symmetric", "asymmetric", "codebook"]

#: (style, family, kind of the layers' matrices) to bytes of model.onnx: constant, per layer, per further digit of its
#: number. Least squares over the serialized graphs of 2, 8, 28 and 64 layers at hidden size 1,024 and a tied vocabulary
#: of 151,936, made with mobius-onnx 0.1 and onnx-ir as the constraints pin them; against 2 to 110 layers at hidden
#: size 256 they are at most 0.8 % off, which is below 0.02 % of an artifact that anyone ships.
_GRAPHS: Final[Mapping[tuple[_Style, str, _Kind], tuple[int, int, int]]] = MappingProxyType(
    {
        ("cpu", "qwen2", "float16"): (4321, 11_575, 193),
        ("cpu", "qwen2", "symmetric"): (4349, 8726, 139),
        ("cpu", "qwen2", "asymmetric"): (4611, 9966, 154),
        ("cpu", "qwen2", "codebook"): (4360, 8561, 138),
        ("cpu", "qwen3", "float16"): (4486, 18_174, 302),
        ("cpu", "qwen3", "symmetric"): (4503, 13_745, 216),
        ("cpu", "qwen3", "asymmetric"): (4770, 15_483, 239),
        ("cpu", "qwen3", "codebook"): (4519, 13_510, 216),
        ("rotating", "qwen2", "float16"): (4111, 10_764, 178),
        ("rotating", "qwen2", "symmetric"): (4105, 8726, 138),
        ("rotating", "qwen2", "asymmetric"): (4359, 9966, 153),
        ("rotating", "qwen2", "codebook"): (4131, 8563, 137),
        ("rotating", "qwen3", "float16"): (4275, 16_489, 276),
        ("rotating", "qwen3", "symmetric"): (4245, 13_201, 212),
        ("rotating", "qwen3", "asymmetric"): (4495, 14_939, 235),
        ("rotating", "qwen3", "codebook"): (4281, 12_966, 212),
        ("separate", "qwen2", "float16"): (4925, 15_549, 265),
        ("separate", "qwen2", "symmetric"): (4933, 12_401, 201),
        ("separate", "qwen2", "asymmetric"): (5118, 14_139, 224),
        ("separate", "qwen3", "float16"): (5156, 16_717, 283),
        ("separate", "qwen3", "symmetric"): (5148, 13_427, 220),
        ("separate", "qwen3", "asymmetric"): (5333, 15_165, 243),
    }
)
#: The same of graphs whose layers have experts that are made to add up to 1: family and kind alone.
_WITH_EXPERTS: Final[Mapping[tuple[str, _Kind], tuple[int, int, int]]] = MappingProxyType(
    {
        ("qwen2_moe", "float16"): (4762, 10_689, 311),
        ("qwen2_moe", "symmetric"): (4730, 10_206, 273),
        ("qwen2_moe", "asymmetric"): (4993, 12_136, 302),
        ("qwen2_moe", "codebook"): (4731, 10_044, 266),
        ("qwen3_moe", "float16"): (4811, 14_327, 323),
        ("qwen3_moe", "symmetric"): (4741, 12_017, 254),
        ("qwen3_moe", "asymmetric"): (5008, 13_589, 280),
        ("qwen3_moe", "codebook"): (4751, 11_880, 250),
    }
)
#: What a layer has more whose experts do not add up to 1.
_UNNORMALIZED: Final = 335


def graph_size(checkpoint: Checkpoint, plan: ExportPlan) -> int:
    """Return about how many bytes model.onnx has.

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
    size = sparse[0]
    for layer in range(config.num_layers):
        _, per_layer, per_digit = dense if config.experts_of(layer) is None else sparse
        size += per_layer + per_digit * (len(str(layer)) - 1)
    if experts is not None and not experts.normalized:
        size += _UNNORMALIZED * len(experts.layers)
    return size


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


def data_sizes(plan: ExportPlan) -> Mapping[str, int]:
    """Return the bytes of each data file: it ends where the last initializer does."""
    return layout(place(plan.tensors, most=plan.scheme.split_max_size)).sizes


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
    files = {
        model_file: graph_size(checkpoint, plan),
        **data_sizes(plan),
        "genai_config.json": len(genai_config(checkpoint.config, model_file, plan.device).encode("utf-8")),
        **others,
    }
    for name in TOKENIZER_FILES:
        if (path := checkpoint.directory / name).exists():
            files[name] = path.stat().st_size
    return sealed_size(checkpoint, plan, files, tools)
