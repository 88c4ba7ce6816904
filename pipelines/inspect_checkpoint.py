"""Describing a checkpoint, also one that Edgekiln cannot export: what could be read is told, then why not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgekiln.checkpoint import Checkpoint, open_resolved, resolve
from edgekiln.errors import CheckpointError, EdgekilnError
from edgekiln.exporters import EXPORTERS
from edgekiln.families import EMBEDDING, HEAD
from edgekiln.hub_files import Listener
from edgekiln.pipelines.inspect_files import (
    bounded,
    describe_files,
    flatten,
    integer,
    optional_json,
    sum_types,
    template_facts,
)
from edgekiln.pipelines.inspect_tokenizer import directory_tokenizer
from edgekiln.pipelines.inspection import Inspection, MakeFacts, ModelFacts, TemplateFacts, TensorFacts
from edgekiln.safetensors import read_entries, read_index
from edgekiln.scheme import GENERIC_PRECISIONS, Scheme
from edgekiln.validators.chat_template import directory_template

_MAX_SHARDS: Final = 1000
_MAX_DIMENSIONS: Final = 8
#: A safetensors dtype; the number in its name is its width in bits, and BOOL takes a byte.
_DTYPE: Final = re.compile(r"BOOL|[A-Z]{1,3}([1-9]\d{0,2})(?:_[A-Z0-9]{1,16})?")


@dataclass(frozen=True)
class Inspected:
    """An inspection, and the error that the command ends with after showing it."""

    inspection: Inspection
    error: EdgekilnError | None


@dataclass(frozen=True)
class _Stored:
    """A tensor as a safetensors file stores it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    weights: int
    file: str


def _leniently(path: Path) -> list[_Stored]:
    """Return the tensors of a file that Edgekiln does not export, as far as its bounded header can be believed."""
    try:
        entries, _, size = read_entries(path)
    except CheckpointError:  # no other reader opens what the bounded one refuses
        return []
    read = (_stored(name, entry, size, path.name) for name, entry in entries.items())
    return [tensor for tensor in read if tensor is not None]


def _stored(name: str, entry: object, size: int, file: str) -> _Stored | None:
    """Return a tensor of any dtype, or None where its dtype, its shape and its place in `size` bytes disagree."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]}:
            kind = _DTYPE.fullmatch(dtype)
        case _:
            return None
    if kind is None or len(shape) > _MAX_DIMENSIONS or not 0 <= start <= stop <= size:
        return None
    if not all(type(extent) is int and 0 <= extent < 1 << 63 for extent in shape):
        return None
    weights = math.prod(shape)
    if (weights * int(kind[1] or 8) + 7) // 8 != stop - start:
        return None
    return _Stored(name, tuple(shape), dtype, stop - start, weights, file)


def _stored_tensors(directory: Path, problems: list[str]) -> list[_Stored]:
    tensors: list[_Stored] = []
    for path in sorted(directory.glob("*.safetensors"))[:_MAX_SHARDS]:
        try:
            infos = read_index(path).values()
            tensors += [
                _Stored(info.name, info.shape, info.dtype, info.nbytes, info.elements, path.name) for info in infos
            ]
        except CheckpointError as error:
            problems.append(str(error))
            tensors += _leniently(path)
    return tensors


def _number(value: object) -> float | None:
    """Return a finite number of JSON, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e18:
        return None
    return float(value)


def _model(config: Mapping[str, object], tensors: list[_Stored]) -> ModelFacts:
    """Return the hyper-parameters as config.json has them, whatever the family."""
    family = config.get("model_type")
    text = config.get("text_config")  # where models of text and images keep them
    values = text if isinstance(text, Mapping) else config
    heads, hidden = integer(values.get("num_attention_heads")), integer(values.get("hidden_size"))
    head_dim = integer(values.get("head_dim"))
    if head_dim is None and heads and hidden:
        head_dim = hidden // heads
    rope = values.get("rope_parameters")
    theta = rope.get("rope_theta") if isinstance(rope, Mapping) else values.get("rope_theta")
    tied = values.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    ends = {EMBEDDING} if tied else {EMBEDDING, HEAD}
    dropped = {HEAD} if tied else set()  # some savers store the tied head too
    return ModelFacts(
        family=bounded(family) if isinstance(family, str) else None,
        parameters=sum(t.weights for t in tensors if t.name not in dropped) if tensors else None,
        embedding_parameters=sum(t.weights for t in tensors if t.name in ends) or None,
        context_length=integer(values.get("max_position_embeddings")),
        layers=integer(values.get("num_hidden_layers")),
        heads=heads,
        kv_heads=integer(values.get("num_key_value_heads")) or heads,
        head_dim=head_dim,
        hidden_size=hidden,
        intermediate_size=integer(values.get("intermediate_size")),
        experts=integer(values.get("num_experts")) or integer(values.get("num_local_experts")),
        experts_per_token=integer(values.get("num_experts_per_tok")),
        vocab_size=integer(values.get("vocab_size")),
        tied=tied if isinstance(tied, bool) else None,
        rope_theta=_number(theta),
    )


def _template(directory: Path, problems: list[str]) -> TemplateFacts | None:
    try:
        return template_facts(directory_template(directory))
    except EdgekilnError as error:
        problems.append(str(error))
        return None


def _make(checkpoint: Checkpoint, format_name: str, precision: str) -> MakeFacts:
    try:
        plan = EXPORTERS[format_name].plan(checkpoint, Scheme(precision))
    except EdgekilnError as error:
        return MakeFacts(format=format_name, precision=precision, reason=str(error))
    return MakeFacts(
        format=format_name, precision=precision, container_type=plan.container_type, bytes=plan.weights_bytes
    )


def _makes(checkpoint: Checkpoint) -> tuple[MakeFacts, ...]:
    """Return every format with every precision; those that a container does not have, with the reason."""
    return tuple(
        _make(checkpoint, name, precision)
        for name, exporter in EXPORTERS.items()
        for precision in dict.fromkeys((*GENERIC_PRECISIONS, *exporter.precisions))
    )


def inspect_checkpoint(
    source: str, *, tensors: bool, hashed: bool, offline: bool, listener: Listener | None = None
) -> Inspected:
    """Describe a checkpoint.

    Args:
        source: A directory, a Hub id, or `tiny-qwen3`.
        tensors: List every tensor.
        hashed: Hash every file, and take the checkpoint's identity.
        offline: Take Hub ids from the local cache only.
        listener: Is told how a fetch goes on.

    Raises:
        UsageError: There is no such checkpoint.
        MachineError: It has to be fetched and cannot be.
    """
    directory, revision = resolve(source, offline=offline, listener=listener)
    checkpoint: Checkpoint | None = None
    error: EdgekilnError | None = None
    try:
        checkpoint = open_resolved(source, directory, revision)
    except EdgekilnError as reason:
        error = reason
    problems: list[str] = []
    config = optional_json(directory / "config.json", problems)
    generation = optional_json(directory / "generation_config.json", problems)
    stored = _stored_tensors(directory, problems)
    files, wrong = describe_files(directory, [p for p in directory.iterdir() if p.is_file()], hashed=hashed)
    special = {**config, **{key: value for key, value in generation.items() if value is not None}}
    inspection = Inspection(
        source=source,
        kind="checkpoint",
        path=str(directory),
        revision=revision,
        model=_model(config, stored),
        tokenizer=directory_tokenizer(directory, special, problems),
        template=_template(directory, problems),
        size_bytes=sum(entry.size for entry in files),
        files=files,
        types=sum_types((t.dtype, t.weights, t.nbytes) for t in stored),
        tensors=tuple(
            TensorFacts(name=bounded(t.name), shape=t.shape, type=t.dtype, bytes=t.nbytes, file=bounded(t.file))
            for t in stored
        )
        if tensors
        else None,
        metadata=flatten(generation),
        makes=_makes(checkpoint) if checkpoint is not None else (),
        identity=checkpoint.identity if checkpoint is not None and hashed else None,
        problems=tuple(dict.fromkeys([*problems, *wrong, *([str(error)] if error else [])])),
    )
    return Inspected(inspection, error)
