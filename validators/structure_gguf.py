"""Structural checks of a GGUF file: are its tensors where the header says, and is it of the reference's shape?"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from edgekiln.errors import ArtifactError
from edgekiln.families import FAMILIES
from edgekiln.model_config import ModelConfig
from edgekiln.validators.base import CheckResult, Finding
from edgekiln.validators.faults import FaultError, failed, finding, judged, shown
from edgekiln.validators.gguf_read import ArrayLength, GgufHeader, GgufTensor, TruncatedError, read_header
from edgekiln.validators.gguf_weights import split_paths
from edgekiln.validators.hyperparameters import Comparison, same

#: llama.cpp's default where a file has no `rope.freq_base`.
_DEFAULT_ROPE_BASE: Final = 10000.0
_DEFAULT_ALIGNMENT: Final = 32


def check_gguf(
    path: Path, config: ModelConfig, architecture: str, *, reread: bool = True
) -> tuple[tuple[CheckResult, ...], int | None]:
    """Return the checks of a GGUF file, and the bytes of its tensors where it holds all of them.

    Args:
        path: The file; of a split model the first.
        config: The reference's.
        architecture: `general.architecture` that llama.cpp has for its family.
        reread: Read it with gguf's own reader as well.
    """
    try:
        first = read_header(path)
        paths = _paths(path, first)
        parts = {part: first if part == path else read_header(part) for part in paths}
    except FaultError as fault:
        return (judged("files", [fault.finding], ""),), None
    except TruncatedError as error:
        return (failed("gguf/header", "files/truncated", path.name, str(error)),), None
    except ArtifactError as error:
        return (failed("gguf/header", "gguf/header", path.name, str(error)),), None
    checks = (
        _files(parts),
        _bounds(parts),
        *([_reread(parts)] if reread else []),
        _metadata(first, [tensor for header in parts.values() for tensor in header.tensors], config, architecture),
    )
    return checks, sum(tensor.nbytes for header in parts.values() for tensor in header.tensors)


def _paths(path: Path, first: GgufHeader) -> tuple[Path, ...]:
    """Return the files of a model, of which llama.cpp finds all but the first by its naming rule.

    Raises:
        FaultError: One is missing, or the first is not named as it must be.
    """
    try:
        return split_paths(path, first.metadata.get("split.count"))
    except ArtifactError as error:
        raise FaultError("files/split", "split.count", str(error)) from None


def _files(parts: Mapping[Path, GgufHeader]) -> CheckResult:
    """The files of a split model say how many they are, which of them each is, and how many tensors there are."""
    size, count = sum(header.file_size for header in parts.values()), len(parts)
    if count == 1:
        return CheckResult("files", "pass", f"{next(iter(parts)).name}, {size} bytes")
    tensors = sum(len(header.tensors) for header in parts.values())
    findings = []
    for number, (path, header) in enumerate(parts.items()):
        for key, expected in (("no", number), ("count", count), ("tensors.count", tensors)):
            if (value := header.metadata.get(f"split.{key}")) != expected:
                detail = f"split.{key} of {path.name} is {shown(value)}, but must be {expected}"
                findings.append(finding("files/split", path.name, detail))
    return judged("files", findings, f"{count} files from {next(iter(parts)).name} on, {size} bytes")


def _bounds(parts: Mapping[Path, GgufHeader]) -> CheckResult:
    """Every tensor lies inside its file, where the one before it ends: ggml reads no other file.

    Source: `gguf_init_from_reader` in ggml's gguf.cpp, which compares each offset with the padded sum of the sizes.
    """
    findings = [found for path, header in parts.items() for found in _misplacements(path, header)]
    owners: dict[str, Path] = {}
    for path, header in parts.items():
        for tensor in header.tensors:
            if (other := owners.setdefault(tensor.name, path)) != path:
                detail = f"{shown(tensor.name)} lies in {other.name} and in {path.name}"
                findings.append(finding("gguf/duplicate", tensor.name, detail))
    tensors, size = sum(len(header.tensors) for header in parts.values()), sum(h.file_size for h in parts.values())
    return judged("gguf/bounds", findings, f"{tensors} tensors within {size} bytes")


def _misplacements(path: Path, header: GgufHeader) -> list[Finding]:
    findings = _duplicates(path, header)
    misplaced = _misplaced(header)
    if misplaced is not None:
        tensor, expected = misplaced
        detail = f"{tensor.name} is said to begin at byte {tensor.offset} of {path.name}, but must at byte {expected}"
        overlap = _overlap(header)
        findings.append(finding("gguf/offsets", tensor.name, f"{detail}{overlap}"))
    last = max(header.tensors, key=lambda tensor: tensor.offset + tensor.nbytes, default=None)
    if last is not None and (end := last.offset + last.nbytes) > header.file_size:
        detail = f"{path.name} has {header.file_size} bytes, but {last.name} ends at byte {end}"
        findings.append(finding("gguf/offsets" if misplaced else "files/truncated", last.name, detail))
    return findings


def _duplicates(path: Path, header: GgufHeader) -> list[Finding]:
    names = sorted(tensor.name for tensor in header.tensors)
    twice = [name for name, other in itertools.pairwise(names) if name == other]
    return [finding("gguf/duplicate", name, f"{path.name} has two tensors named {shown(name)}") for name in twice[:1]]


def _misplaced(header: GgufHeader) -> tuple[GgufTensor, int] | None:
    """Return the first tensor that does not begin where it must, and where that is."""
    alignment = header.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int):
        return None
    expected = header.data_start
    for tensor in header.tensors:
        if tensor.offset != expected:
            return tensor, expected
        expected += -(-tensor.nbytes // alignment) * alignment
    return None


def _overlap(header: GgufHeader) -> str:
    """Return the end of a sentence on two tensors that share bytes, or nothing."""
    ordered = sorted(header.tensors, key=lambda tensor: tensor.offset)
    for before, after in itertools.pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            return f"; {before.name} and {after.name} overlap"
    return ""


def _reread(parts: Mapping[Path, GgufHeader]) -> CheckResult:
    """Read the files with gguf's own reader, which must see the same tensors."""
    from gguf import GGUFReader

    check = "gguf/reader"
    for path, header in parts.items():
        try:
            tensors = {str(t.name): (int(t.data_offset), int(t.n_bytes)) for t in GGUFReader(path).tensors}
        except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
            return failed(check, check, path.name, f"gguf's reader refuses {path.name}: {error}")
        if tensors != {tensor.name: (tensor.offset, tensor.nbytes) for tensor in header.tensors}:
            detail = f"gguf's reader sees other tensors in {path.name} than its header lists"
            return failed(check, check, path.name, detail)
    count = sum(len(header.tensors) for header in parts.values())
    return CheckResult(check, "pass", f"gguf's reader finds the same {count} tensors")


class _Keys:
    """Compares keys of a file's metadata; defaults for missing keys are llama.cpp's own."""

    def __init__(self, header: GgufHeader, architecture: str) -> None:
        self.header, self.architecture, self.comparison = header, architecture, Comparison()

    def value(self, name: str) -> object:
        return self.header.metadata.get(f"{self.architecture}.{name}")

    def equal(self, cause: str, name: str, expected: object, default: object = None) -> None:
        value = self.value(name)
        if isinstance(value, ArrayLength):  # one value per layer, whose lengths alone are read
            return
        key = f"{self.architecture}.{name}"
        self.comparison.equal(cause, key, default if value is None else value, expected)

    def absent_or(self, cause: str, name: str, expected: object) -> None:
        self.comparison.equal(cause, f"{self.architecture}.{name}", self.value(name), expected, required=False)


def _metadata(header: GgufHeader, tensors: Sequence[GgufTensor], config: ModelConfig, architecture: str) -> CheckResult:
    """Compare the hyper-parameters, which the first file has, and the shape of the embeddings."""
    values, keys = header.metadata, _Keys(header, architecture)
    comparison = keys.comparison
    found = values.get("general.architecture")
    comparison.equal("metadata/architecture", "general.architecture", found, architecture)
    if not same(found, architecture):  # its keys are named after another one
        return comparison.result("gguf/metadata")
    keys.equal("metadata/layers", "block_count", config.num_layers)
    keys.equal("metadata/hidden_size", "embedding_length", config.hidden_size)
    _feed_forward(keys, config)
    keys.equal("metadata/norm_epsilon", "attention.layer_norm_rms_epsilon", float(config.rms_norm_eps))
    _attention(keys, config)
    _rope(keys, config)
    comparison.context(f"{architecture}.context_length", keys.value("context_length"), config.max_position_embeddings)
    _vocabulary(comparison, header, tensors, config)
    comparison.compared += 1
    eos = values.get("tokenizer.ggml.eos_token_id")
    if config.eos_token_ids and (type(eos) is not int or eos not in config.eos_token_ids):
        expected = " or ".join(map(str, config.eos_token_ids))
        detail = f"tokenizer.ggml.eos_token_id is {shown(eos)}, but the reference ends with {expected}"
        comparison.problem("metadata/eos", "tokenizer.ggml.eos_token_id", detail)
    return comparison.result("gguf/metadata")


def _attention(keys: _Keys, config: ModelConfig) -> None:
    keys.equal("metadata/heads", "attention.head_count", config.num_heads)
    keys.equal("metadata/heads", "attention.head_count_kv", config.num_kv_heads, config.num_heads)
    default_head = config.hidden_size // config.num_heads
    keys.equal("metadata/head_dim", "attention.key_length", config.head_dim, default_head)
    keys.equal("metadata/head_dim", "attention.value_length", config.head_dim, default_head)
    keys.absent_or("metadata/causal", "attention.causal", True)


def _feed_forward(keys: _Keys, config: ModelConfig) -> None:
    """Compare the sizes of the networks; how experts weigh llama.cpp knows by the architecture alone."""
    experts, assumed, cause = config.experts, FAMILIES[config.model_type].gguf_experts, "metadata/experts"
    if experts is None:
        keys.equal("metadata/intermediate_size", "feed_forward_length", config.intermediate_size)
        keys.absent_or(cause, "expert_count", 0)
        return
    keys.equal(cause, "expert_count", experts.count)
    keys.equal(cause, "expert_used_count", experts.per_token)
    size = "expert_feed_forward_length"
    keys.equal("metadata/intermediate_size", size, experts.intermediate_size)
    if experts.shared_intermediate_size is not None:
        size, shared = "expert_shared_feed_forward_length", experts.shared_intermediate_size
        keys.equal("metadata/intermediate_size", size, shared, config.intermediate_size)
    if assumed is not None and assumed.normalized is not experts.normalized:
        detail = (
            f"llama.cpp {'makes' if assumed.normalized else 'does not make'} the weights of the chosen experts add "
        )
        keys.comparison.problem(cause, keys.architecture, f"{detail}up to 1, unlike the reference")


def _rope(keys: _Keys, config: ModelConfig) -> None:
    keys.equal("metadata/rope_base", "rope.freq_base", float(config.rope_theta), _DEFAULT_ROPE_BASE)
    keys.absent_or("metadata/rope_dimension", "rope.dimension_count", config.head_dim)
    cause = "metadata/rope_scaling"
    keys.absent_or(cause, "rope.scale_linear", 1.0)
    if (yarn := config.yarn) is not None:
        keys.equal(cause, "rope.scaling.type", "yarn")
        keys.equal(cause, "rope.scaling.factor", yarn.factor)
        keys.equal(cause, "rope.scaling.original_context_length", yarn.original_context, config.max_position_embeddings)
        if not yarn.has_usual_betas:
            detail = f"llama.cpp computes YaRN with betas of 32 and 1, the reference with {yarn.beta_fast:g} and "
            keys.comparison.problem(cause, "rope.scaling.type", f"{detail}{yarn.beta_slow:g}")
        keys.absent_or(cause, "rope.scaling.attn_factor", 1.0)
        return
    keys.absent_or(cause, "rope.scaling.type", "none")
    if keys.value("rope.scaling.type") is None:  # llama.cpp then scales linearly, if there is a factor
        keys.absent_or(cause, "rope.scaling.factor", 1.0)


def _vocabulary(comparison: Comparison, header: GgufHeader, tensors: Sequence[GgufTensor], config: ModelConfig) -> None:
    embedding = next((tensor for tensor in tensors if tensor.name == "token_embd.weight"), None)
    rows, cause = embedding and embedding.shape[0], "metadata/vocabulary"
    comparison.equal(cause, "rows of token_embd.weight", rows, config.vocab_size)
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    length = tokens.length if isinstance(tokens, ArrayLength) else None
    comparison.equal(cause, "length of tokenizer.ggml.tokens", length, config.vocab_size)
