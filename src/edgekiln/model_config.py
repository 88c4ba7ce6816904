"""config.json and generation_config.json as one frozen value, from the layouts of transformers 4 and 5.

transformers 5 writes `rope_parameters` and `dtype` where 4 wrote `rope_theta`, `rope_scaling` and `torch_dtype`;
both are read. Everything that the exporters rely on is checked here, once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from edgekiln.errors import CheckpointError, UnsupportedError
from edgekiln.files import parse_json, read_bounded

#: No config.json of a model is larger; it bounds the time spent on one made to waste it.
MAX_JSON_BYTES: Final = 16 << 20
#: The tokenizer.json of a Qwen has 15 bytes for each value that `parse_json` counts, an index of shards 30.
_BYTES_PER_VALUE: Final = 8
_MISSING: Final = object()
#: Beyond every Qwen; what is larger is a mistake, or made to exhaust memory (tensor names, rotary tables).
_LIMITS: Final[Mapping[str, int]] = MappingProxyType({"num_hidden_layers": 1024, "max_position_embeddings": 1 << 21})
_MAX_INTEGER: Final = 1 << 24


@dataclass(frozen=True)
class Sampling:
    """Sampling defaults of generation_config.json; None where it says nothing."""

    do_sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True)
class ModelConfig:
    """The hyper-parameters of a dense Qwen decoder.

    Attributes:
        model_type: Key of `edgekiln.families.FAMILIES`.
        max_position_embeddings: Context length in tokens.
        eos_token_ids: All tokens that end a generation, the chat's end-of-turn token first.
        raw: config.json as read, for frameworks that want it whole.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    bos_token_id: int | None
    pad_token_id: int | None
    eos_token_ids: tuple[int, ...]
    sampling: Sampling
    raw: Mapping[str, object]


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, object]:
    """Return the JSON object in `path`.

    Raises:
        CheckpointError: The file is missing, too large, or no JSON object.
        MachineError: The system does not let us read it.
    """
    raw = read_bounded(path, max_bytes)
    try:
        value = parse_json(raw, max_bytes // _BYTES_PER_VALUE)
    except ValueError as error:  # also an integer of thousands of digits
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


class _Fields:
    """Typed access to a JSON object; every error names the file, the key and the value."""

    def __init__(self, path: Path, values: Mapping[str, object]) -> None:
        self.path, self.values = path, values

    def _get(self, key: str, kinds: tuple[type, ...], what: str, default: object) -> object:
        value = self.values.get(key)
        if value is None:
            if default is _MISSING:
                raise CheckpointError(f"{self.path} has no {key!r}; it must be {what}")
            return default
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise CheckpointError(f"{self.path}: {key} is {value!r}, but must be {what}")
        return value

    def positive(self, key: str, default: object = _MISSING) -> int:
        value = self._get(key, (int,), "a positive integer", default)
        limit = _LIMITS.get(key, _MAX_INTEGER)
        if not isinstance(value, int) or not 0 < value <= limit:
            raise CheckpointError(
                f"{self.path}: {key} is {str(value)[:40]}, but must be a positive integer up to {limit}"
            )
        return value

    def number(self, key: str, default: object = _MISSING) -> float:
        value = self._get(key, (int, float), "a number", default)
        try:
            number = float(value) if isinstance(value, int | float) else math.nan
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise CheckpointError(f"{self.path}: {key} is {str(value)[:40]}, but must be a finite number")
        return number

    def optional_number(self, key: str) -> float | None:
        return None if self.values.get(key) is None else self.number(key)

    def optional_int(self, key: str) -> int | None:
        value = self._get(key, (int,), "an integer", None)
        return value if isinstance(value, int) else None

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._get(key, (bool,), "true or false", default))

    def text(self, key: str, default: object = _MISSING) -> str:
        return str(self._get(key, (str,), "a text", default))

    def ids(self, key: str) -> tuple[int, ...]:
        value = self.values.get(key)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        ids = tuple(v for v in listed if type(v) is int and v >= 0)
        if len(ids) != len(listed):
            raise CheckpointError(f"{self.path}: {key} is {value!r}, but must be a token id or a list of them")
        return ids


def _rope_theta(config: _Fields) -> float:
    """Return the rope base, refusing every kind of scaling that is not exported yet."""
    parameters = config.values.get("rope_parameters")
    scaling = config.values.get("rope_scaling")
    for rope in (parameters, scaling):
        if isinstance(rope, dict) and (kind := rope.get("rope_type", rope.get("type", "default"))) != "default":
            raise UnsupportedError(
                f"{config.path} scales its rope by {kind!r}, which Edgekiln does not export yet; "
                "remove the scaling to export the model at its own context length"
            )
    if isinstance(parameters, dict) and "rope_theta" in parameters:
        return _Fields(config.path, parameters).number("rope_theta")
    return config.number("rope_theta", 10000.0)


def _check_supported(config: _Fields, supported: Mapping[str, object]) -> str:
    model_type = config.text("model_type")
    if model_type not in supported:
        raise UnsupportedError(
            f"{config.path} describes a {model_type!r} model; Edgekiln supports {', '.join(sorted(supported))}"
        )
    layers = config.values.get("layer_types")
    if config.flag("use_sliding_window", False) or (isinstance(layers, list) and "sliding_attention" in layers):
        raise UnsupportedError(f"{config.path} uses sliding-window attention, which Edgekiln does not export yet")
    if (activation := config.text("hidden_act", "silu")) != "silu":
        raise UnsupportedError(f"{config.path} has hidden_act {activation!r}; Edgekiln exports 'silu'")
    if model_type == "qwen3" and config.flag("attention_bias", False):
        raise UnsupportedError(f"{config.path} has attention_bias, which no published Qwen3 uses and no runtime maps")
    if config.values.get("quantization_config"):
        raise UnsupportedError(f"{config.path} is quantized already; start from the unquantized checkpoint")
    return model_type


def parse_config(directory: Path, supported: Mapping[str, object]) -> ModelConfig:
    """Return the configuration of the checkpoint in `directory`.

    Args:
        directory: Holds config.json and, if there is one, generation_config.json.
        supported: A mapping whose keys are the known model types.

    Raises:
        CheckpointError: A file is missing, malformed or contradicts itself.
        UnsupportedError: The model is of another family or uses what is not exported yet.
    """
    config = _Fields(directory / "config.json", read_json(directory / "config.json"))
    generation_path = directory / "generation_config.json"
    generation = _Fields(generation_path, read_json(generation_path) if generation_path.exists() else {})
    model_type = _check_supported(config, supported)
    hidden, heads = config.positive("hidden_size"), config.positive("num_attention_heads")
    kv_heads = config.positive("num_key_value_heads", heads)
    if heads % kv_heads:
        raise CheckpointError(f"{config.path}: {heads} attention heads do not divide by {kv_heads} key-value heads")
    if config.values.get("head_dim") is None and hidden % heads:
        raise CheckpointError(f"{config.path}: hidden_size {hidden} does not divide by {heads} attention heads")
    head_dim = config.positive("head_dim", hidden // heads)
    if head_dim % 2:
        raise CheckpointError(f"{config.path}: head_dim is {head_dim}, but rotary embeddings need an even number")
    vocab_size = config.positive("vocab_size")
    eos = generation.ids("eos_token_id") or config.ids("eos_token_id")
    if beyond := [number for number in eos if number >= vocab_size]:
        where = generation if generation.values.get("eos_token_id") else config
        raise CheckpointError(
            f"{where.path}: the token {beyond[0]} that ends a reply lies beyond the vocabulary of {vocab_size}"
        )
    pad = generation.optional_int("pad_token_id")
    return ModelConfig(
        model_type=model_type,
        hidden_size=hidden,
        intermediate_size=config.positive("intermediate_size"),
        num_layers=config.positive("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        max_position_embeddings=config.positive("max_position_embeddings"),
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(config),
        tie_word_embeddings=config.flag("tie_word_embeddings", False),
        bos_token_id=config.optional_int("bos_token_id"),
        pad_token_id=config.optional_int("pad_token_id") if pad is None else pad,
        eos_token_ids=tuple(dict.fromkeys(eos)),
        sampling=Sampling(
            do_sample=generation.flag("do_sample", False),
            temperature=generation.optional_number("temperature"),
            top_p=generation.optional_number("top_p"),
            top_k=generation.optional_int("top_k"),
            min_p=generation.optional_number("min_p"),
            repetition_penalty=generation.optional_number("repetition_penalty"),
        ),
        raw=MappingProxyType(config.values),
    )
