"""What a build will need, from metadata alone: bytes of the artifact, memory on the device, memory of each step.

Every constant here was measured, and stands beside how. They come from peak resident memory (VmHWM) on Linux x86-64,
llama-cpp-python 0.3 and onnxruntime-genai 0.18, on a Qwen2.5 of 0.5 B weights (vocabulary 151,936), a random Qwen3 of
0.2 B (vocabulary 4,096) and the embedded checkpoint, at contexts of 256, 4,096 and 16,384 tokens. A figure is meant to
be a little too high rather than too low.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from edgekiln.checkpoint import Checkpoint
from edgekiln.device import Device
from edgekiln.exporters import EXPORTERS
from edgekiln.exporters.base import ExportPlan, TensorPlan
from edgekiln.exporters.onnx_layout import ROTARY_TABLES
from edgekiln.exporters.onnx_providers import PROVIDERS
from edgekiln.exporters.stream import worker_count
from edgekiln.families import EMBEDDING
from edgekiln.host import memory_bytes
from edgekiln.model_config import ModelConfig
from edgekiln.pipelines.settings import Settings
from edgekiln.validators.base import LOGIT_CHUNK
from edgekiln.validators.layered import least_memory_bytes, resident_memory_bytes
from edgekiln.validators.parity_paths import LONG_POSITIONS
from edgekiln.validators.reference_rows import MAX_ROW_BYTES

_MIB: Final = 1 << 20
#: From this share of what a target gives a process on, a model is tight there.
TIGHT: Final = 0.85

Fit: TypeAlias = Literal["fits", "tight", "does not fit", "unknown"]


@dataclass(frozen=True)
class RuntimeCost:
    """What a runtime takes beside weights and KV cache.

    Attributes:
        base: Bytes of the process itself: interpreter, libraries, buffers of the graph.
        per_token_text: Bytes for each entry of the vocabulary: texts, tables and merges of the tokenizer.
        activations: Activations of a prompt's token, counted in rows of the feed-forward layer.
        logits_of_prompt: The graph gives logits for every token of a prompt, in the type of the activations.
    """

    base: int
    per_token_text: int
    activations: int
    logits_of_prompt: bool


#: ORT GenAI beside the weights: 87 MiB on the embedded checkpoint, 114 MiB at 4,096 rows of the feed-forward layer and
#: 245 MiB at a vocabulary of 151,936, whatever type of weights; and the logits of a prompt in float32, 116 MiB for 200
#: tokens of that vocabulary.
_ORT_GENAI: Final = RuntimeCost(84 * _MIB, 950, 8, logits_of_prompt=True)
#: By container. llama.cpp beside the weights: 62 MiB at a vocabulary of 4,096, 101 MiB at 151,936, whatever type and
#: context. Foundry Local chats in 43 MiB more than ORT GenAI takes for the same directory.
RUNTIME_COSTS: Final[Mapping[str, RuntimeCost]] = MappingProxyType(
    {
        "gguf": RuntimeCost(62 * _MIB, 290, 0, logits_of_prompt=False),
        "onnx": _ORT_GENAI,
        "foundry-local": replace(_ORT_GENAI, base=127 * _MIB),
    }
)
#: Types that llama.cpp's CPU backend copies into an order of its kernels' when it loads a file (ggml's repack.cpp). The
#: pages of the file stay mapped beside the copy: 192 MiB more for a Q4_0 whose matrices have 192 MiB. The system can
#: take those pages back, so the sum is what is resident, and more than what must be. Q2_K, Q5_0, Q5_K, Q6_K, Q8_0 and
#: floats had no such copy.
REPACKED: Final = frozenset({"Q4_0", "IQ4_NL", "Q4_K"})
#: llama.cpp keeps keys and values in F16 unless told otherwise (`type_k` and `type_v` of its context parameters).
_GGUF_CACHE_BYTES: Final = 2
#: ONNX Runtime's CPU provider computes float16 weights in float32: it folds the cast when it loads the model, holds
#: both meanwhile, and keeps a transposed copy. 4,193 MiB at the peak for 942 MiB of weights, 1,399 for 316.
_FLOAT16_ON_CPU: Final = 4.45
#: Experts have no transposed copy: 949 MiB for a model of 384 MiB of experts and 36 of the rest.
_FLOAT16_EXPERTS_ON_CPU: Final = 2.0

#: Writing a GGUF file: 68 to 83 MiB with two threads on small vocabularies.
_GGUF_EXPORT: Final = 64 * _MIB
_GGUF_EXPORT_WORKER: Final = 10 * _MIB
#: A tokenizer.json as Python has it: 295 MiB at the peak for 11.4 MB of it.
_TOKENIZER_JSON: Final = 20
_QWEN3_TOKENIZER: Final = 11_422_654
#: Writing an ONNX directory: 326, 331 and 347 MiB with 1, 2 and 8 threads on the embedded checkpoint, 393, 402 and 462
#: at 0.5 B weights, where the graph has a process of its own; most of it are the libraries that build it. Rotary tables
#: are held a few times.
_ONNX_EXPORT: Final = 365 * _MIB
_ONNX_EXPORT_WORKER: Final = 10 * _MIB
_ROTARY_COPIES: Final = 4
#: Transformers: 389 MiB for the embedded checkpoint, 3,279 for 0.5 B weights in bfloat16, whose file stays mapped.
_TRANSFORMERS: Final = 365 * _MIB
_REFERENCE_ROWS: Final = 4
_REFERENCE_LOGITS: Final = 1
#: Arrays of logits of which the comparison of a chunk consists: 1,154 MiB for a Q4_0 that takes 690 alone, at 74 MiB
#: each.
_COMPARED_LOGITS: Final = 7
#: The structural checks: 52 MiB for the embedded checkpoint, 542 where tokenizer.json has 11.4 MB.
_STRUCTURE: Final = 52 * _MIB
_STRUCTURE_TOKENIZER: Final = 46
#: Room for a templated chat prompt; see `edgekiln.pipelines.protocol`.
_PROMPT_TOKENS: Final = 480


@dataclass(frozen=True)
class DeviceMemory:
    """What a process with a model takes on its device, in bytes; the target's `memory` is the limit of the sum.

    Attributes:
        weights: The artifact's weights as the runtime holds them.
        cache: Keys and values at the context.
        overhead: The runtime itself.
        context: Tokens of context that the cache is for.
    """

    weights: int
    cache: int
    overhead: int
    context: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.overhead


@dataclass(frozen=True)
class BuildPrediction:
    """What one build will be.

    Attributes:
        artifact_bytes: All files of the artifact.
        memory: On the device.
        fit: Whether that fits there.
    """

    artifact_bytes: int
    memory: DeviceMemory
    fit: Fit


def judge_fit(needed: int, memory: int | None) -> Fit:
    """Return how `needed` bytes go into what a target gives a process; None where it does not say."""
    if memory is None:
        return "unknown"
    if needed > memory:
        return "does not fit"
    return "tight" if needed > TIGHT * memory else "fits"


def cache_bytes(config: ModelConfig, context: int, element_bytes: int) -> int:
    """Return the bytes of keys and values of `context` tokens in all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * context * element_bytes


def _activation_bytes(format_name: str, provider: str) -> int:
    """Return the bytes of an activation, a logit, and a cached key or value.

    ORT GenAI allocates keys and values for `search.max_length` tokens at once, in the type of the graph's inputs
    (https://onnxruntime.ai/docs/genai/howto/past-present-share-buffer.html), which is that of the activations.
    """
    if format_name == "gguf":
        return _GGUF_CACHE_BYTES
    return 4 if PROVIDERS[provider].activations == "float32" else 2


def _held_weights(plan: ExportPlan, tensor: TensorPlan, provider: str) -> int:
    """Return the bytes that a runtime holds for one tensor."""
    if provider != "cpu" or len(tensor.shape) < 2:
        return tensor.nbytes
    if plan.format == "gguf":
        is_repacked = tensor.storage_name in REPACKED and EMBEDDING not in tensor.sources
        return 2 * tensor.nbytes if is_repacked else tensor.nbytes
    if tensor.storage != "float16":
        return tensor.nbytes
    return round((_FLOAT16_EXPERTS_ON_CPU if len(tensor.shape) > 2 else _FLOAT16_ON_CPU) * tensor.nbytes)


def _overhead(cost: RuntimeCost, config: ModelConfig, prompt_tokens: int, element_bytes: int) -> int:
    """Return what a runtime takes beside weights and cache, for prompts of that length."""
    per_token = cost.activations * config.widest_network + (config.vocab_size if cost.logits_of_prompt else 0)
    return cost.base + cost.per_token_text * config.vocab_size + prompt_tokens * per_token * element_bytes


def held_weights(plan: ExportPlan, provider: str | None = None) -> int:
    """Return the bytes of an artifact's weights as a runtime holds them, on a provider or on the artifact's own."""
    provider = provider or plan.device.execution_provider
    return sum(_held_weights(plan, tensor, provider) for tensor in plan.tensors)


def device_memory(
    config: ModelConfig, format_name: str, device: Device, weights: int, prompt_tokens: int
) -> DeviceMemory:
    """Predict what an artifact takes in the runtime of its container.

    On other providers than the CPU the overhead is the CPU's: it was not measured there.

    Args:
        config: Of the model.
        format_name: The artifact's container.
        device: Its provider, and the tokens that it has room for; without these the model's own.
        weights: See `held_weights`.
        prompt_tokens: Longest prompt that is processed at once.
    """
    tokens = min(device.context_length or config.max_position_embeddings, config.max_position_embeddings)
    element = _activation_bytes(format_name, device.execution_provider)
    return DeviceMemory(
        weights=weights,
        cache=cache_bytes(config, tokens, element),
        overhead=_overhead(RUNTIME_COSTS[format_name], config, min(prompt_tokens, tokens), element),
        context=tokens,
    )


def artifact_bytes(checkpoint: Checkpoint, plan: ExportPlan) -> int:
    """Predict the bytes of all files of an artifact. See `Exporter.size`."""
    return EXPORTERS[plan.format].size(checkpoint, plan)


def export_memory(plan: ExportPlan, checkpoint: Checkpoint | None = None, threads: int | None = None) -> int:
    """Predict the peak memory of writing an artifact; it does not grow with the model.

    Args:
        plan: The artifact.
        checkpoint: The model, for the size of its tokenizer; without it one like Qwen3's is assumed.
        threads: Workers that read and quantize; None for as many as this machine has processors.
    """
    workers = worker_count(threads)
    if plan.format == "gguf":
        tokenizer = _tokenizer_bytes(checkpoint) if checkpoint else _QWEN3_TOKENIZER
        return _GGUF_EXPORT + workers * _GGUF_EXPORT_WORKER + _TOKENIZER_JSON * tokenizer
    rotary = sum(tensor.nbytes for tensor in plan.tensors if tensor.name in ROTARY_TABLES)
    return _ONNX_EXPORT + workers * _ONNX_EXPORT_WORKER + _ROTARY_COPIES * rotary


def _tokenizer_bytes(checkpoint: Checkpoint) -> int:
    path = checkpoint.directory / "tokenizer.json"
    return path.stat().st_size if path.exists() else 0


def scored_tokens(settings: Settings) -> int:
    """Return at most how many positions the reference is compared at; a shorter corpus has fewer."""
    return settings.windows * (settings.window - 1)


def reference_bytes(settings: Settings) -> int:
    """Return at most how many bytes the reference leaves: most likely tokens and their log-probabilities."""
    long = LONG_POSITIONS if settings.long_context else 0
    return (scored_tokens(settings) + long) * MAX_ROW_BYTES


def reference_budget(checkpoint: Checkpoint) -> int:
    """Return what the reference may take for weights and states: all of them, or half of the machine's memory."""
    return min(resident_memory_bytes(checkpoint), max(least_memory_bytes(checkpoint), memory_bytes() // 2))


def reference_memory(checkpoint: Checkpoint) -> int:
    """Predict the peak memory of the reference, which goes through the layers one by one."""
    return _TRANSFORMERS + reference_budget(checkpoint)


def transformers_memory(checkpoint: Checkpoint, settings: Settings) -> int:
    """Predict the peak memory of Transformers: weights in float32, the mapped file, logits of some positions."""
    stored = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    activations = 4 * settings.window * checkpoint.config.widest_network * _REFERENCE_ROWS
    logits = 4 * LOGIT_CHUNK * checkpoint.config.vocab_size * _REFERENCE_LOGITS
    return _TRANSFORMERS + 4 * checkpoint.weight_count + stored + activations + logits


def validate_memory(
    checkpoint: Checkpoint, format_name: str, plan: ExportPlan | None = None, settings: Settings | None = None
) -> int:
    """Predict the peak memory of the processes that validate an artifact, one after the other.

    Args:
        checkpoint: The model.
        format_name: The artifact's container.
        plan: The artifact; without it one at fp16, which takes the most.
        settings: Lengths of what is run; without them the defaults.
    """
    comparison = 4 * LOGIT_CHUNK * checkpoint.config.vocab_size * _COMPARED_LOGITS
    parity = _runtime_memory(checkpoint, format_name, plan, settings) + comparison
    return max(parity, _STRUCTURE + _STRUCTURE_TOKENIZER * _tokenizer_bytes(checkpoint))


def latency_memory(
    checkpoint: Checkpoint,
    format_name: str | None,
    plan: ExportPlan | None = None,
    settings: Settings | None = None,
) -> int:
    """Predict the peak memory of the processes that time an artifact, one after the other.

    Args:
        checkpoint: The model.
        format_name: The artifact's container; None for the reference itself.
        plan: The artifact; without it one at fp16, such as the baseline beside it.
        settings: Lengths of what is run; without them the defaults.
    """
    if format_name is None:
        return transformers_memory(checkpoint, settings or Settings())
    return _runtime_memory(checkpoint, format_name, plan, settings)


def _runtime_memory(
    checkpoint: Checkpoint, format_name: str, plan: ExportPlan | None, settings: Settings | None
) -> int:
    """Return what a runtime takes on this machine, whose CPU stands in for other providers."""
    settings = settings or Settings()
    prompt = max(settings.window, *settings.prefill_tokens)
    longest = max(prompt, settings.long_context, *settings.decode_tokens, *settings.depths)
    context = longest + settings.greedy_tokens + _PROMPT_TOKENS
    cost, config = RUNTIME_COSTS[format_name], checkpoint.config
    if plan is not None:
        weights = held_weights(plan, "cpu")
    else:
        weights = round(2 * checkpoint.weight_count * (1 if format_name == "gguf" else _FLOAT16_ON_CPU))
    cache = cache_bytes(config, context, _activation_bytes(format_name, "cpu"))
    return weights + cache + _overhead(cost, config, prompt, _activation_bytes(format_name, "cpu"))
