"""config.json and generation_config.json as one frozen value, from the layouts of transformers 4 and 5.

transformers 5 writes `rope_parameters` and `dtype` where 4 wrote `rope_theta`, `rope_scaling` and `torch_dtype`;
both are read. Everything that the exporters rely on is checked here, once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
_LIMITS: Final[Mapping[str, int]] = MappingProxyType(
    {"num_hidden_layers": 1024, "max_position_embeddings": 1 << 21, "num_experts": 1024, "num_local_experts": 1024}
)
_MAX_INTEGER: Final = 1 << 24
_MAX_YARN_FACTOR: Final = 64
#: Experts of all layers; the largest Qwen3-MoE has 12,032.
_MAX_EXPERTS: Final = 32_768


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
class Yarn:
    """YaRN (arXiv:2309.00071), by which a rotary embedding reaches beyond the context that it was trained for.

    Attributes:
        factor: How many times as far.
        original_context: Tokens of context that it was trained for.
        beta_fast: Dimensions that turn more often within it are left as they are.
        beta_slow: Dimensions that turn less often within it are stretched by the factor.
    """

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    @property
    def has_usual_betas(self) -> bool:
        """Tell whether the two are those of the paper."""
        return (self.beta_fast, self.beta_slow) == (Yarn.beta_fast, Yarn.beta_slow)

    @property
    def attention_factor(self) -> float:
        """What cosines and sines are multiplied with (section 3.4)."""
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


@dataclass(frozen=True)
class Experts:
    """A mixture of experts, which stands in some layers where others have one feed-forward network.

    Attributes:
        count: Experts of a layer.
        per_token: To how many of them a token goes.
        intermediate_size: Rows of an expert's gate.
        normalized: The weights of those that a token goes to are made to add up to 1.
        layers: Layers that have experts, ascending.
        shared_intermediate_size: Rows of the gate of the expert that every token goes to; None if there is none.
    """

    count: int
    per_token: int
    intermediate_size: int
    normalized: bool
    layers: tuple[int, ...]
    shared_intermediate_size: int | None = None


@dataclass(frozen=True)
class ExpertDefaults:
    """What Transformers takes of a family's experts where config.json says nothing; see `Experts`."""

    count: int
    per_token: int
    intermediate_size: int
    shared_intermediate_size: int | None = None


@dataclass(frozen=True)
class Reading:
    """How the config.json of a family is read: what Transformers takes where it says nothing, and what is refused.

    Attributes:
        head_dim: Size of a head; None where the heads share the hidden size.
        reads_layer_types: The layers with a sliding window may be listed.
        windowed: Tells of a layer and `max_window_layers` whether it has a window where windows are used and no list
            says which.
        experts: Its experts; None for a family without.
        refused: Keys that must have one value, with that and the reason.
    """

    head_dim: int | None = None
    reads_layer_types: bool = True
    windowed: Callable[[int, int], bool] = lambda layer, before: layer >= before
    experts: ExpertDefaults | None = None
    refused: Mapping[str, tuple[bool, str]] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class ModelConfig:
    """The hyper-parameters of a Qwen decoder.

    Attributes:
        model_type: Key of `edgekiln.families.FAMILIES`.
        max_position_embeddings: Context length in tokens, as far as YaRN takes it.
        yarn: How the rotary embedding is scaled; None where it is not.
        sliding_window: Tokens that the layers in `sliding_layers` look back on, the current one included; None if none.
        sliding_layers: Layers with a window, ascending.
        eos_token_ids: All tokens that end a generation, the chat's end-of-turn token first.
        raw: config.json as read, for frameworks that want it whole.
        experts: The mixtures of experts; None if no layer has one.
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
    yarn: Yarn | None = None
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] = ()
    experts: Experts | None = None

    def window_of(self, layer: int) -> int | None:
        """Return how many tokens a layer looks back on, the current one included; None for all."""
        return self.sliding_window if layer in self.sliding_layers else None

    @property
    def widest_network(self) -> int:
        """Columns of the widest matrix inside a feed-forward network or an expert."""
        if (experts := self.experts) is None:
            return self.intermediate_size
        dense = self.intermediate_size if len(experts.layers) < self.num_layers else 0
        return max(dense, experts.intermediate_size, experts.shared_intermediate_size or 0)

    def experts_of(self, layer: int) -> Experts | None:
        """Return the experts of a layer; None if it has one feed-forward network."""
        return self.experts if self.experts is not None and layer in self.experts.layers else None


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

    def count(self, key: str, default: object = _MISSING) -> int:
        """Return an integer that may be 0."""
        return 0 if self.values.get(key) == 0 and self.values.get(key) is not False else self.positive(key, default)

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


def _rope(config: _Fields) -> tuple[float, Yarn | None]:
    """Return the rope base and how it is scaled, refusing every kind of scaling but YaRN."""
    yarn, theta = None, None
    for key in ("rope_scaling", "rope_parameters"):
        values = config.values.get(key)
        if values is None:
            continue
        if not isinstance(values, dict):
            raise CheckpointError(f"{config.path}: {key} is {str(values)[:40]}, but must be an object")
        fields = _Fields(config.path, values)
        kind = values.get("rope_type", values.get("type", "default"))
        if kind == "yarn":
            yarn = _yarn(fields, config)
        elif kind != "default":
            raise UnsupportedError(
                f"{config.path} scales its rope by {str(kind)[:40]!r}, which Edgekiln does not export; it knows "
                "'yarn'. Remove the scaling to export the model at its own context length"
            )
        theta = fields.optional_number("rope_theta") if theta is None else theta
    theta = config.number("rope_theta", 10000.0) if theta is None else theta
    if theta <= 1:
        raise CheckpointError(f"{config.path}: rope_theta is {theta:g}, but must be greater than 1")
    return theta, yarn


def _yarn(fields: _Fields, config: _Fields) -> Yarn:
    """Return YaRN's parameters, refusing those that no runtime has."""
    factor = fields.number("factor")
    if not 1 <= factor <= _MAX_YARN_FACTOR:
        raise CheckpointError(f"{fields.path}: YaRN's factor is {factor:g}, but must lie in 1…{_MAX_YARN_FACTOR}")
    original = fields.positive("original_max_position_embeddings", config.positive("max_position_embeddings"))
    yarn = Yarn(factor, original, fields.number("beta_fast", 32.0), fields.number("beta_slow", 1.0))
    if yarn.beta_slow <= 0 or yarn.beta_fast <= yarn.beta_slow:
        raise CheckpointError(
            f"{fields.path}: YaRN's beta_fast {yarn.beta_fast:g} and beta_slow {yarn.beta_slow:g} must be positive, "
            "and the first one greater"
        )
    usual = yarn.attention_factor
    if not math.isclose(fields.number("attention_factor", usual), usual, rel_tol=1e-6):
        raise UnsupportedError(f"{fields.path} gives YaRN an attention_factor of its own, which GGUF cannot express")
    if fields.values.get("mscale") or fields.values.get("mscale_all_dim") or not fields.flag("truncate", True):
        raise UnsupportedError(f"{fields.path} gives YaRN mscale or truncate, which no Qwen uses and no runtime maps")
    return yarn


def _context(config: _Fields, yarn: Yarn | None) -> int:
    """Return the context length, as far as YaRN takes it."""
    key = "max_position_embeddings"
    context = config.positive(key)
    if yarn is not None and (stretched := round(yarn.factor * yarn.original_context)) > context:
        return _Fields(config.path, {key: stretched}).positive(key)
    return context


def _sliding(config: _Fields, reading: Reading, layers: int) -> tuple[int | None, tuple[int, ...]]:
    """Return the window and the layers that have one, as Transformers reads them."""
    kinds = config.values.get("layer_types") if reading.reads_layer_types else None
    if kinds is None:
        if not config.flag("use_sliding_window", False):
            return None, ()
        before = config.count("max_window_layers", 28)
        chosen = tuple(layer for layer in range(layers) if reading.windowed(layer, before))
    else:
        known = {"full_attention", "sliding_attention"}
        if not isinstance(kinds, list) or len(kinds) != layers or not known.issuperset(map(str, kinds)):
            raise CheckpointError(
                f"{config.path}: layer_types must name full_attention or sliding_attention for each of {layers} layers"
            )
        chosen = tuple(layer for layer, kind in enumerate(kinds) if kind == "sliding_attention")
        if chosen and not config.flag("use_sliding_window", False):
            raise CheckpointError(
                f"{config.path}: layer_types has sliding_attention, but use_sliding_window is not true; agree on one"
            )
    return (config.positive("sliding_window", 4096), chosen) if chosen else (None, ())


def _experts(config: _Fields, usual: ExpertDefaults, layers: int) -> Experts | None:
    """Return the experts and the layers that have them."""
    step = config.count("decoder_sparse_step", 1)
    listed = config.values.get("mlp_only_layers") or []
    if not isinstance(listed, list) or not all(type(layer) is int and 0 <= layer < layers for layer in listed):
        raise CheckpointError(f"{config.path}: mlp_only_layers must be a list of layers from 0 to {layers - 1}")
    dense = frozenset(listed)
    key = "num_local_experts" if config.values.get("num_experts") is None else "num_experts"
    count = config.count(key, usual.count)
    if step == 0 and count:
        raise CheckpointError(f"{config.path}: decoder_sparse_step is 0, but must be positive")
    sparse = tuple(layer for layer in range(layers) if count and (layer + 1) % step == 0 and layer not in dense)
    if not sparse:
        return None
    if len(sparse) * count > _MAX_EXPERTS:
        raise CheckpointError(
            f"{config.path}: {key} is {count} in each of {len(sparse)} layers, but at most {_MAX_EXPERTS} experts are "
            "read in all"
        )
    per_token = config.positive("num_experts_per_tok", usual.per_token)
    if per_token > count:
        raise CheckpointError(f"{config.path}: num_experts_per_tok is {per_token}, but {key} only {count}")
    shared = usual.shared_intermediate_size
    return Experts(
        count=count,
        per_token=per_token,
        intermediate_size=config.positive("moe_intermediate_size", usual.intermediate_size),
        normalized=config.flag("norm_topk_prob", False),
        layers=sparse,
        shared_intermediate_size=None if shared is None else config.positive("shared_expert_intermediate_size", shared),
    )


def _check_supported(config: _Fields, supported: Mapping[str, Reading]) -> Reading:
    """Return how the file is to be read."""
    model_type = config.text("model_type")
    if model_type not in supported:
        raise UnsupportedError(
            f"{config.path} describes a {model_type!r} model; Edgekiln supports {', '.join(sorted(supported))}"
        )
    if (activation := config.text("hidden_act", "silu")) != "silu":
        raise UnsupportedError(f"{config.path} has hidden_act {activation!r}; Edgekiln exports 'silu'")
    reading = supported[model_type]
    for key, (wanted, why) in reading.refused.items():
        if (found := config.flag(key, wanted)) is not wanted:
            raise UnsupportedError(f"{config.path} has {key} {str(found).lower()}, which {why}")
    if config.values.get("quantization_config"):
        raise UnsupportedError(f"{config.path} is quantized already; start from the unquantized checkpoint")
    return reading


def parse_config(directory: Path, supported: Mapping[str, Reading]) -> ModelConfig:
    """Return the configuration of the checkpoint in `directory`.

    Args:
        directory: Holds config.json and, if there is one, generation_config.json.
        supported: How the file of each known model type is read.

    Raises:
        CheckpointError: A file is missing, malformed or contradicts itself.
        UnsupportedError: The model is of another family or uses what is not exported yet.
    """
    config = _Fields(directory / "config.json", read_json(directory / "config.json"))
    generation_path = directory / "generation_config.json"
    generation = _Fields(generation_path, read_json(generation_path) if generation_path.exists() else {})
    reading = _check_supported(config, supported)
    hidden, heads = config.positive("hidden_size"), config.positive("num_attention_heads")
    kv_heads = config.positive("num_key_value_heads", heads)
    if heads % kv_heads:
        raise CheckpointError(f"{config.path}: {heads} attention heads do not divide by {kv_heads} key-value heads")
    usual = reading.head_dim
    if config.values.get("head_dim") is None and usual is None and hidden % heads:
        raise CheckpointError(f"{config.path}: hidden_size {hidden} does not divide by {heads} attention heads")
    head_dim = config.positive("head_dim", usual or hidden // heads)
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
    layers, (theta, yarn) = config.positive("num_hidden_layers"), _rope(config)
    window, sliding_layers = _sliding(config, reading, layers)
    return ModelConfig(
        model_type=config.text("model_type"),
        hidden_size=hidden,
        intermediate_size=config.positive("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        max_position_embeddings=_context(config, yarn),
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
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
        yarn=yarn,
        sliding_window=window,
        sliding_layers=sliding_layers,
        experts=None if reading.experts is None else _experts(config, reading.experts, layers),
    )
