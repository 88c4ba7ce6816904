"""The float decoder graph, from mobius, without weights.

mobius builds the graph of any family it knows from the configuration alone: GroupQueryAttention, standard KV-cache
inputs, initializers named as in the checkpoint and without values. It is alpha, so this module is the only one that
knows it, its version is pinned exactly, and a test keeps a digest of the graph per family.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING

from edgekiln.errors import StepError
from edgekiln.exporters.onnx_providers import PROVIDERS, OnnxProvider
from edgekiln.families import FAMILIES
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

    from edgekiln.exporters.onnx_experts import put_experts

    dense_type = FAMILIES[config.model_type].dense_type
    architecture = dataclasses.replace(
        mobius.ArchitectureConfig.from_transformers(_described(config, dense_type)),
        # The checkpoint's own bf16 would make a graph that the CPU provider refuses.
        dtype=ir.DataType.FLOAT if provider.activations == "float32" else ir.DataType.FLOAT16,
    )
    module = mobius.registry.get(dense_type)(architecture)
    package = mobius.build_from_module(module, architecture, execution_provider=provider.mobius_name)
    if list(package) != ["model"]:
        raise StepError(f"mobius built {sorted(package)} for {config.model_type}, where one decoder was expected")
    model: ir.Model = package["model"]
    for function in _NATIVE_FUNCTIONS:
        model.functions.pop(function, None)
    _set_windows(model.graph, config)
    put_experts(model.graph, config)
    return model


def _described(config: ModelConfig, dense_type: str) -> SimpleNamespace:
    """Return what mobius asks of a configuration of Transformers, whose own takes a second to import.

    Experts are put in later: mobius' own graphs compute all of them for every token. Sliding windows are left out:
    mobius knows only graphs in which all layers have the same one.
    """
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if (yarn := config.yarn) is not None:
        rope |= {"rope_type": "yarn", "factor": yarn.factor, "beta_fast": yarn.beta_fast, "beta_slow": yarn.beta_slow}
        rope["original_max_position_embeddings"] = yarn.original_context
    return SimpleNamespace(
        model_type=dense_type,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        hidden_act="silu",
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters=rope,
        tie_word_embeddings=config.tie_word_embeddings,
        vocab_size=config.vocab_size,
        pad_token_id=config.pad_token_id,
    )


def _set_windows(graph: ir.Graph, config: ModelConfig) -> None:
    """Let the layers that have a window look back on no more than that, the current token included.

    Raises:
        StepError: mobius did not make one attention node for each layer.
    """
    import onnx_ir as ir

    nodes = [node for node in graph if node.op_type == "GroupQueryAttention"]
    if len(nodes) != config.num_layers:
        raise StepError(f"mobius made {len(nodes)} attention nodes for {config.num_layers} layers")
    for layer, node in enumerate(nodes):
        if (window := config.window_of(layer)) is not None:
            node.attributes["local_window_size"] = ir.AttrInt64("local_window_size", window)
