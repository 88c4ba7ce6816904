"""The float decoder graph, from mobius, without weights.

mobius builds the graph of any family it knows from the configuration alone: GroupQueryAttention, standard KV-cache
inputs, initializers named as in the checkpoint and without values. It is alpha, so this module is the only one that
knows it, its version is pinned exactly, and a test keeps a digest of the graph per family.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edgekiln.errors import StepError
from edgekiln.exporters.onnx_providers import PROVIDERS, OnnxProvider
from edgekiln.model_config import ModelConfig

if TYPE_CHECKING:
    import onnx_ir as ir

#: What mobius adds as a function body although ONNX Runtime has the operator itself.
_NATIVE_FUNCTIONS = (("com.microsoft", "SkipSimplifiedLayerNormalization", ""),)


def build_float_graph(config: ModelConfig, provider: OnnxProvider = PROVIDERS["cpu"]) -> ir.Model:
    """Return the decoder graph for an execution provider, in its type of activations; its weights have no values.

    Raises:
        StepError: mobius made something else than one decoder.
    """
    import mobius
    import onnx_ir as ir
    from transformers import AutoConfig

    # `auto_map` would name code of the checkpoint's own; a known model type never needs it.
    fields = {key: value for key, value in config.raw.items() if key not in {"auto_map", "model_type"}}
    described = AutoConfig.for_model(config.model_type, **fields)
    architecture = dataclasses.replace(
        mobius.ArchitectureConfig.from_transformers(described),
        # The checkpoint's own bf16 would make a graph that the CPU provider refuses.
        dtype=ir.DataType.FLOAT if provider.activations == "float32" else ir.DataType.FLOAT16,
    )
    module = mobius.registry.get(config.model_type)(architecture)
    package = mobius.build_from_module(module, architecture, execution_provider=provider.mobius_name)
    if list(package) != ["model"]:
        raise StepError(f"mobius built {sorted(package)} for {config.model_type}, where one decoder was expected")
    model: ir.Model = package["model"]
    for function in _NATIVE_FUNCTIONS:
        model.functions.pop(function, None)
    return model
