"""The size of a GGUF file before it is written: header and data are known to the byte from metadata.

What is counted here is what `gguf_header` packs and `gguf_metadata` adds; tests compare the two on every family.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from edgekiln.checkpoint import Checkpoint
from edgekiln.exporters.base import ExportPlan, TensorPlan
from edgekiln.exporters.gguf_metadata import KNOWN_ENDS, MOST_OTHER_ENDS, model_name, size_label
from edgekiln.exporters.gguf_tokenizer import Vocabulary, read_vocabulary
from edgekiln.exporters.manifest_size import sealed_size
from edgekiln.model_config import ModelConfig

#: Magic, version, number of tensors, number of pairs.
_FIXED: Final = 4 + 4 + 8 + 8
#: A text has its length before it, a value the number of its type, an array that of its items and their count.
_LENGTH: Final = 8
_KIND: Final = 4
_ARRAY: Final = _KIND + 4 + 8
#: Integers and floats of the metadata; a boolean takes one byte.
_NUMBER: Final = 4
_ALIGNMENT: Final = 32
#: What each of several files has, and the bytes of the value.
_SPLIT: Final = {"split.no": 2, "split.count": 2, "split.tensors.count": 4}
_TOOLS: Final = ("gguf", "llama-cpp-python", "numpy")

_HYPER_PARAMETERS: Final = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "rope.freq_base",
    "attention.layer_norm_rms_epsilon",
)
#: Field of `Sampling` to key.
_SAMPLING: Final = {
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "temperature": "temp",
    "repetition_penalty": "penalty_repeat",
}


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _text(text: str) -> int:
    return _LENGTH + len(text.encode("utf-8"))


def _numbers(checkpoint: Checkpoint, vocabulary: Vocabulary) -> Iterator[str]:
    """Yield the keys whose values are numbers of four bytes."""
    config = checkpoint.config
    yield from ("general.file_type", "general.quantization_version")
    yield from (
        f"{checkpoint.family.gguf_architecture}.{name}" for name in (*_HYPER_PARAMETERS, *_more_numbers(config))
    )
    yield from (
        f"general.sampling.{k}" for field, k in _SAMPLING.items() if getattr(config.sampling, field) is not None
    )
    yield "tokenizer.ggml.eos_token_id"
    others = [number for number in config.eos_token_ids[1:] if vocabulary.tokens[number] not in KNOWN_ENDS]
    yield from ("tokenizer.ggml.eot_token_id" for _ in others[:MOST_OTHER_ENDS])  # `eom` is as long
    if config.bos_token_id is not None:
        yield "tokenizer.ggml.bos_token_id"
    if config.pad_token_id is not None:
        yield "tokenizer.ggml.padding_token_id"


def _more_numbers(config: ModelConfig) -> Iterator[str]:
    """Yield the names of the numbers that only some models have."""
    if config.yarn is not None:
        yield from ("rope.scaling.factor", "rope.scaling.original_context_length")
    if config.experts is not None:
        yield from ("expert_count", "expert_used_count", "expert_feed_forward_length")
        if config.experts.shared_intermediate_size is not None:
            yield "expert_shared_feed_forward_length"


def _texts(checkpoint: Checkpoint, vocabulary: Vocabulary) -> Iterator[tuple[str, str]]:
    """Yield the pairs of which both are texts."""
    yield "general.architecture", checkpoint.family.gguf_architecture
    yield "general.type", "model"
    yield "general.name", model_name(checkpoint)
    yield "general.size_label", size_label(checkpoint)
    if checkpoint.config.yarn is not None:
        yield f"{checkpoint.family.gguf_architecture}.rope.scaling.type", "yarn"
    yield "tokenizer.ggml.model", "gpt2"
    yield "tokenizer.ggml.pre", vocabulary.pre
    if checkpoint.chat_template is not None:
        yield "tokenizer.chat_template", checkpoint.chat_template


def metadata_size(checkpoint: Checkpoint) -> int:
    """Return the bytes before the tensor infos."""
    vocabulary = read_vocabulary(checkpoint)
    size = _FIXED
    size += sum(_text(key) + _KIND + _NUMBER for key in _numbers(checkpoint, vocabulary))
    size += sum(_text(key) + _KIND + _text(value) for key, value in _texts(checkpoint, vocabulary))
    size += _text("tokenizer.ggml.add_bos_token") + _KIND + 1
    size += _text("tokenizer.ggml.token_type") + _ARRAY + _NUMBER * len(vocabulary.types)
    for key, count, characters in (
        ("tokenizer.ggml.tokens", len(vocabulary.tokens), vocabulary.token_bytes),
        ("tokenizer.ggml.merges", len(vocabulary.merges), vocabulary.merge_bytes),
    ):
        size += _text(key) + _ARRAY + _LENGTH * count + characters
    return size


def _infos_size(tensors: Sequence[TensorPlan]) -> int:
    """Return the bytes of the tensor infos: name, number of dimensions, dimensions, type, offset."""
    return sum(_text(tensor.name) + 4 + 8 * len(tensor.shape) + 4 + 8 for tensor in tensors)


def header_sizes(checkpoint: Checkpoint, plan_shards: Mapping[str, Sequence[TensorPlan]]) -> dict[str, int]:
    """Return the bytes before the data of each file: metadata, then the tensor infos, padded.

    Args:
        checkpoint: The source.
        plan_shards: The tensors of each file by its name; of several files the first has the metadata of the model.
    """
    split = sum(_text(key) + _KIND + size for key, size in _SPLIT.items()) if len(plan_shards) > 1 else 0
    sizes: dict[str, int] = {}
    for name, tensors in plan_shards.items():
        metadata = _FIXED if sizes else metadata_size(checkpoint)
        sizes[name] = _aligned(metadata + split + _infos_size(tensors))
    return sizes


def artifact_size(checkpoint: Checkpoint, plan: ExportPlan, plan_shards: Mapping[str, Sequence[TensorPlan]]) -> int:
    """Return the bytes of the artifact directory; every tensor begins, and each file ends, at the alignment.

    Raises:
        CheckpointError: The tokenizer is malformed.
        UnsupportedError: llama.cpp has no such tokenizer.
    """
    headers = header_sizes(checkpoint, plan_shards)
    sizes = {
        name: headers[name] + sum(_aligned(tensor.nbytes) for tensor in tensors)
        for name, tensors in plan_shards.items()
    }
    return sealed_size(checkpoint, plan, sizes, _TOOLS)
