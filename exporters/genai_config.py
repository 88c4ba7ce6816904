"""genai_config.json: what ONNX Runtime GenAI needs to know of a decoder.

The keys are those of onnxruntime-genai's config.cpp; the values come from config.json and generation_config.json of
the checkpoint, not from a template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from edgekiln.device import ANY_CPU, Device
from edgekiln.exporters.onnx_providers import PROVIDERS
from edgekiln.families import FAMILIES
from edgekiln.model_config import ModelConfig


def genai_config(config: ModelConfig, model_file: str, device: Device = ANY_CPU) -> str:
    """Return the text of genai_config.json.

    Args:
        config: The checkpoint's configuration.
        model_file: Name of the ONNX file beside it.
        device: Where it is to run. Its context length bounds `search.max_length`, for which the runtime allocates the
            whole KV cache at once; `model.context_length` stays the model's.
    """
    sampling, context = config.sampling, config.max_position_embeddings
    provider = PROVIDERS[device.execution_provider]
    providers = [{provider.genai_name: dict(provider.options)}] if provider.genai_name else []
    positions = {} if provider.rotates_in_attention else {"position_ids": "position_ids"}
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": providers},
        "filename": model_file,
        "head_size": config.head_dim,
        "hidden_size": config.hidden_size,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            **positions,
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
    }
    eos = list(config.eos_token_ids)
    pad = config.pad_token_id if config.pad_token_id is not None else next(iter(eos), None)
    model = {
        "type": FAMILIES[config.model_type].genai_type,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "context_length": context,
        "vocab_size": config.vocab_size,
        "decoder": decoder,
    }
    search = {
        "do_sample": sampling.do_sample,
        "max_length": min(context, device.context_length or context),
        "min_length": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": True,
        "repetition_penalty": sampling.repetition_penalty,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
    }
    document = {"model": _known(model), "search": _known(search)}
    return json.dumps(document, indent=2) + "\n"


def _known(values: Mapping[str, object]) -> dict[str, object]:
    """Leave out what the checkpoint does not say, so that the runtime's own default holds."""
    return {key: value for key, value in values.items() if value is not None}
