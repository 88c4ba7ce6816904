"""The key-value part of a GGUF file: hyper-parameters, tokenizer, chat template, sampling defaults.

The keys are those of the GGUF specification (ggml's docs/gguf.md) as `gguf.GGUFWriter` writes them. Every value comes
from the checkpoint's files, none from its path, so that equal checkpoints give equal files.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from edgekiln.checkpoint import Checkpoint
from edgekiln.errors import CheckpointError, UnsupportedError
from edgekiln.exporters.gguf_mix import Mix
from edgekiln.exporters.gguf_tokenizer import Vocabulary
from edgekiln.model_config import Experts, ModelConfig, Yarn

if TYPE_CHECKING:
    from gguf import GGUFWriter

#: Ends of generation that llama.cpp recognises by their text (src/llama-vocab.cpp), whatever the metadata says.
KNOWN_ENDS: Final = frozenset({"<|im_end|>", "<|endoftext|>"})
#: Of others GGUF has keys for two, eot and eom.
MOST_OTHER_ENDS: Final = 2
_HUB_ID: Final = re.compile(r"[\w.-]+/([\w.-]+)")
#: Weights beyond which a number of them has a suffix, and the factor that goes with it.
_COUNT_SUFFIXES: Final = ((1e12, 1e-12, "T"), (1e9, 1e-9, "B"), (1e6, 1e-6, "M"), (-1, 1e-3, "K"))


def model_name(checkpoint: Checkpoint) -> str:
    """Return a name for the model: that of its Hub id if config.json has one, else family and size."""
    recorded = checkpoint.config.raw.get("_name_or_path")
    if isinstance(recorded, str) and (match := _HUB_ID.fullmatch(recorded)):
        return match[1]
    return f"{checkpoint.config.model_type.capitalize()} {size_label(checkpoint)}"


def size_label(checkpoint: Checkpoint) -> str:
    """Return the number of weights, `494M`; with experts how many, and the weights of one and all else: `128x860M`."""
    weights, experts, hidden = checkpoint.weight_count, checkpoint.config.experts, checkpoint.config.hidden_size
    if experts is None:
        return rounded_count(weights)
    one_expert = len(experts.layers) * 3 * experts.intermediate_size * hidden
    return f"{experts.count}x{rounded_count(weights - (experts.count - 1) * one_expert)}"


def rounded_count(weights: int) -> str:
    """Return a number of weights with two digits or more, as `gguf.utility.size_label` writes it."""
    factor, suffix = next((factor, suffix) for bound, factor, suffix in _COUNT_SUFFIXES if weights > bound)
    scaled = weights * factor
    decimals = max(2 - len(str(round(scaled)).lstrip("0")), 0)
    return f"{scaled:.{decimals}f}{suffix}"


def add_general(writer: GGUFWriter, checkpoint: Checkpoint, mix: Mix) -> None:
    """Add `general.*`; the architecture is added by the writer itself."""
    from gguf import GGML_QUANT_VERSION, GGUFType

    writer.add_type(GGUFType.MODEL)
    writer.add_name(model_name(checkpoint))
    writer.add_size_label(size_label(checkpoint))
    writer.add_file_type(mix.file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)


def add_split(writer: GGUFWriter, number: int, count: int, tensors: int) -> None:
    """Add `split.*`: which of how many files this is, counted from 0, and how many tensors there are in all of them."""
    from gguf import Keys

    writer.add_uint16(Keys.Split.LLM_KV_SPLIT_NO, number)
    writer.add_uint16(Keys.Split.LLM_KV_SPLIT_COUNT, count)
    writer.add_int32(Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, tensors)


def add_hyper_parameters(writer: GGUFWriter, checkpoint: Checkpoint) -> None:
    """Add `<architecture>.*`."""
    config = checkpoint.config
    writer.add_block_count(config.num_layers)
    writer.add_context_length(context_length(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.yarn is not None:
        _add_yarn(writer, config.yarn)
    if config.experts is not None:
        _add_experts(writer, config.experts)


def context_length(config: ModelConfig) -> int:
    """Return the tokens of context that llama.cpp computes as the model does.

    It knows no sliding window of these architectures, and within one there is no difference.
    """
    return min(config.max_position_embeddings, config.sliding_window or config.max_position_embeddings)


def _add_yarn(writer: GGUFWriter, yarn: Yarn) -> None:
    from gguf import RopeScalingType

    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(yarn.factor)
    writer.add_rope_scaling_orig_ctx_len(yarn.original_context)


def _add_experts(writer: GGUFWriter, experts: Experts) -> None:
    writer.add_expert_count(experts.count)
    writer.add_expert_used_count(experts.per_token)
    writer.add_expert_feed_forward_length(experts.intermediate_size)
    if experts.shared_intermediate_size is not None:
        writer.add_expert_shared_feed_forward_length(experts.shared_intermediate_size)


def add_sampling(writer: GGUFWriter, checkpoint: Checkpoint) -> None:
    """Add `general.sampling.*` for what generation_config.json says, as llama.cpp's converter does."""
    sampling = checkpoint.config.sampling
    if (top_k := sampling.top_k) is not None:
        writer.add_sampling_top_k(top_k)
    if (top_p := sampling.top_p) is not None:
        writer.add_sampling_top_p(top_p)
    if (min_p := sampling.min_p) is not None:
        writer.add_sampling_min_p(min_p)
    if (temperature := sampling.temperature) is not None:
        writer.add_sampling_temp(temperature)
    if (penalty := sampling.repetition_penalty) is not None:
        writer.add_sampling_penalty_repeat(penalty)


def _checked_id(checkpoint: Checkpoint, what: str, number: int) -> int:
    if not 0 <= number < checkpoint.config.vocab_size:
        raise CheckpointError(
            f"{checkpoint.directory}: {what} is {number}, but the vocabulary has {checkpoint.config.vocab_size} tokens"
        )
    return number


def add_tokenizer(writer: GGUFWriter, checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
    """Add `tokenizer.*`.

    Raises:
        CheckpointError: A special token's id is outside of the vocabulary, or there is no end of generation.
        UnsupportedError: There are more ends of generation than GGUF has keys for.
    """
    config = checkpoint.config
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([int(kind) for kind in vocabulary.types])
    writer.add_token_merges(vocabulary.merges)
    ends = [_checked_id(checkpoint, "eos_token_id", number) for number in config.eos_token_ids]
    if not ends:
        raise CheckpointError(f"{checkpoint.directory} has no eos_token_id in generation_config.json or config.json")
    writer.add_eos_token_id(ends[0])
    others = [number for number in ends[1:] if vocabulary.tokens[number] not in KNOWN_ENDS]
    if len(others) > MOST_OTHER_ENDS:
        raise UnsupportedError(f"{checkpoint.directory} has {len(ends)} eos tokens; GGUF has keys for three")
    for number, add in zip(others, (writer.add_eot_token_id, writer.add_eom_token_id), strict=False):
        add(number)
    if config.bos_token_id is not None:
        writer.add_bos_token_id(_checked_id(checkpoint, "bos_token_id", config.bos_token_id))
    if config.pad_token_id is not None:
        writer.add_pad_token_id(_checked_id(checkpoint, "pad_token_id", config.pad_token_id))
    writer.add_add_bos_token(False)
    if (template := checkpoint.chat_template) is not None:
        writer.add_chat_template(template)
