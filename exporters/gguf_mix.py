"""Which ggml type each tensor gets: llama.cpp's mixes, as data and a few rules.

The rules are those of `llama_tensor_get_type` and its fallback table in llama.cpp's src/llama-quant.cpp, for the
architectures that Edgekiln exports, with an importance matrix and without. The tests compare every mix type for type
with what `llama_model_quantize` makes of the same model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from edgekiln.errors import UnsupportedError, UsageError, nearest
from edgekiln.model_config import ModelConfig
from edgekiln.scheme import Scheme


@dataclass(frozen=True)
class Mix:
    """One of llama.cpp's file types.

    Attributes:
        label: Its name, as in file names: `Q4_K_M`.
        file_type: Its number, `general.file_type` (llama.h, `enum llama_ftype`).
        base: The ggml type of a tensor that no rule treats otherwise.
        meaning: One line for users.
    """

    label: str
    file_type: int
    base: str
    meaning: str

    @property
    def is_float(self) -> bool:
        """Nothing is quantized."""
        return self.base in {"F16", "BF16"}


_F16 = Mix("F16", 1, "F16", "float16 weights, float32 norms and biases")
_Q4_0 = Mix("Q4_0", 2, "Q4_0", "4 bits, groups of 32, float16 scales")
_Q4_1 = Mix("Q4_1", 3, "Q4_1", "4 bits, groups of 32, float16 scales and minima")
_Q8_0 = Mix("Q8_0", 7, "Q8_0", "8 bits, groups of 32, float16 scales")

#: Every precision of the container. A generic name means what stands beside it here.
MIXES: Final[Mapping[str, Mix]] = MappingProxyType(
    {
        "fp16": _F16,
        "int8": _Q8_0,
        "int4": _Q4_0,
        "bf16": Mix("BF16", 32, "BF16", "bfloat16 weights, float32 norms and biases"),
        "q8_0": _Q8_0,
        "q6_k": Mix("Q6_K", 18, "Q6_K", "K-quants of 6 bits"),
        "q5_k_m": Mix("Q5_K_M", 17, "Q5_K", "K-quants of 5 bits, the sensitive half at 6"),
        "q5_k_s": Mix("Q5_K_S", 16, "Q5_K", "K-quants of 5 bits"),
        "q5_1": Mix("Q5_1", 9, "Q5_1", "5 bits, groups of 32, float16 scales and minima"),
        "q5_0": Mix("Q5_0", 8, "Q5_0", "5 bits, groups of 32, float16 scales"),
        "q4_k_m": Mix("Q4_K_M", 15, "Q4_K", "K-quants of 4 bits, the sensitive half at 6"),
        "q4_k_s": Mix("Q4_K_S", 14, "Q4_K", "K-quants of 4 bits, the first layers at 5"),
        "q4_1": _Q4_1,
        "q4_0": _Q4_0,
        "iq4_nl": Mix("IQ4_NL", 25, "IQ4_NL", "4 bits on a non-linear codebook, groups of 32: the nearest to NF4"),
        "iq4_xs": Mix("IQ4_XS", 30, "IQ4_XS", "4 bits on a non-linear codebook, super-blocks of 256"),
        "q3_k_l": Mix("Q3_K_L", 13, "Q3_K", "K-quants of 3 bits, the sensitive tensors at 5"),
        "q3_k_m": Mix("Q3_K_M", 12, "Q3_K", "K-quants of 3 bits, the sensitive tensors at 4 and 5"),
        "q3_k_s": Mix("Q3_K_S", 11, "Q3_K", "K-quants of 3 bits"),
        "q2_k": Mix("Q2_K", 10, "Q2_K", "K-quants of 2 bits, the sensitive tensors at 3 and 4"),
    }
)

#: What a type becomes when a row does not divide into its super-blocks of 256.
FALLBACKS: Final[Mapping[str, str]] = MappingProxyType(
    {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
)
#: Weights and bytes of a block: `GGML_QUANT_SIZES` of the gguf package, which planning has no time to import.
BLOCKS: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {
        "F32": (1, 4),
        "F16": (1, 2),
        "BF16": (1, 2),
        "Q8_0": (32, 34),
        "Q5_1": (32, 24),
        "Q5_0": (32, 22),
        "Q4_1": (32, 20),
        "Q4_0": (32, 18),
        "IQ4_NL": (32, 18),
        "IQ4_XS": (256, 136),
        "Q6_K": (256, 210),
        "Q5_K": (256, 176),
        "Q4_K": (256, 144),
        "Q3_K": (256, 110),
        "Q2_K": (256, 84),
    }
)
#: Types that store a minimum beside the scale, so that "asymmetric" says nothing new of them.
_WITH_MINIMUM: Final = frozenset({"Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"})
_GROUP: Final = 32


def block_size(ggml_type: str) -> int:
    """Return how many weights of a row make a block of `ggml_type`; 1 for a float type."""
    return BLOCKS[ggml_type][0]


def tensor_bytes(ggml_type: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor of this shape, whose rows divide into blocks."""
    block, size = BLOCKS[ggml_type]
    total = 1
    for dimension in shape:
        total *= dimension
    return total // block * size


def find_mix(precision: str, *, symmetric: bool = True) -> Mix:
    """Return the mix of a precision.

    Raises:
        UnsupportedError: GGUF has no such type, though others have (NF4, asymmetric 8 bits).
        UsageError: There is no such precision, or it cannot be asymmetric.
    """
    if precision == "nf4":
        raise UnsupportedError("GGUF has no NF4 type; the nearest is IQ4_NL: ask for iq4_nl")
    if precision not in MIXES:
        raise UsageError(f"GGUF has no precision {precision!r}; {nearest(precision, (*MIXES, 'nf4'))}")
    if symmetric:
        return MIXES[precision]
    if precision == "int4":
        return _Q4_1
    if precision == "int8":
        raise UnsupportedError("GGUF has no asymmetric 8-bit type; ask for int8 without --asymmetric")
    if MIXES[precision].base not in _WITH_MINIMUM:
        raise UsageError(
            f"{precision} is symmetric by definition; asymmetric in GGUF are int4, q4_1, q5_1 and K-quants"
        )
    return MIXES[precision]


def check_group_size(precision: str, group_size: int | None) -> None:
    """Refuse a group size that the container does not have.

    Raises:
        UsageError: The size is not what the precision's blocks have.
    """
    if group_size is None:
        return
    mix = find_mix(precision)
    if mix.is_float:
        raise UsageError(f"{precision} has no groups, so group size {group_size} means nothing; leave it out")
    if group_size != _GROUP or block_size(mix.base) != _GROUP:
        fixed = f"groups of {_GROUP}" if block_size(mix.base) == _GROUP else "super-blocks of 256"
        raise UsageError(f"GGUF's {mix.label} has {fixed}, not a group size of {group_size}; leave the group size out")


@dataclass(frozen=True)
class Choice:
    """The type of one tensor, and why it is not the mix's own; no note if it is."""

    ggml_type: str
    note: str | None = None


def _use_more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _attention_value(mix: Mix, layer: int, config: ModelConfig) -> str:
    shared = config.num_heads // config.num_kv_heads >= 4
    chosen = mix.base
    match mix.label:
        case "Q2_K":
            chosen = "Q4_K" if shared else "Q3_K"
        case "Q3_K_M":
            chosen = "Q5_K" if layer < 2 else "Q4_K"
        case "Q3_K_L":
            chosen = "Q5_K"
        case "IQ4_NL" | "IQ4_XS" if shared:
            chosen = "Q5_K"
        case "Q4_K_M" | "Q5_K_M" if _use_more_bits(layer, config.num_layers):
            chosen = "Q6_K"
        case "Q4_K_S" if layer < 4:
            chosen = "Q5_K"
    is_70b = config.model_type == "qwen2" and config.num_layers == 80  # LLM_TYPE_70B in llama.cpp
    return "Q5_K" if is_70b and chosen in {"Q3_K", "Q4_K"} else chosen


def _feed_forward_down(mix: Mix, layer: int, config: ModelConfig, has_importance: bool) -> str:
    layers = config.num_layers
    is_first = layer < layers // 8
    chosen = mix.base
    match mix.label:
        case "Q2_K":
            chosen = "Q3_K"
        case "Q3_K_M":
            chosen = "Q5_K" if layer < layers // 16 else "Q4_K"
        case "Q3_K_L":
            chosen = "Q5_K"
        case "Q4_K_M" | "Q5_K_M" if _use_more_bits(layer, layers):
            chosen = "Q6_K"
        case "Q4_K_S" if is_first:
            chosen = "Q5_K"
        case "IQ4_NL" | "IQ4_XS" if is_first and not has_importance:
            chosen = "Q5_K"
        case "Q4_0" | "Q5_0" if is_first and has_importance:
            chosen = {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[mix.label]
    return chosen


_ATTENTION_OUTPUT: Final = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}
_ROUTERS: Final = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight")
#: llama.cpp has rules of their own for models of eight experts: their attention is a small part of them.
_EIGHT: Final = 8
_WIDE_OF_EIGHT: Final = frozenset({"attn_k.weight", "attn_v.weight"})
_OF_EIGHT: Final = _WIDE_OF_EIGHT | {"attn_output.weight"}
_OUTPUT_OF_EIGHT: Final = dict.fromkeys(("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M"), "Q5_K")


def _preferred(mix: Mix, name: str, config: ModelConfig, has_importance: bool) -> str:
    """Return what the mix wants a matrix to be, whatever its shape."""
    if name == "output.weight" or (name == "token_embd.weight" and config.tie_word_embeddings):
        return mix.base if mix.base == "Q8_0" or mix.is_float else "Q6_K"
    if mix.is_float or not name.startswith("blk."):
        return mix.base
    _, layer, role = name.split(".", 2)
    return _preferred_in_layer(mix, int(layer), role, config, has_importance)


def _preferred_in_layer(mix: Mix, layer: int, role: str, config: ModelConfig, has_importance: bool) -> str:
    if config.experts is not None and config.experts.count == _EIGHT and role in _OF_EIGHT:
        return "Q8_0" if role in _WIDE_OF_EIGHT else _OUTPUT_OF_EIGHT.get(mix.label, mix.base)
    match role:
        case "attn_v.weight":
            return _attention_value(mix, layer, config)
        case "ffn_down.weight" | "ffn_down_exps.weight" | "ffn_down_shexp.weight":
            return _feed_forward_down(mix, layer, config, has_importance)
        case "attn_output.weight":
            return _ATTENTION_OUTPUT.get(mix.label, mix.base)
    return mix.base


def _fit(ggml_type: str, columns: int) -> tuple[str, str | None]:
    """Return the type that a row of `columns` weights can have, and why if it is another."""
    if columns % block_size(ggml_type) == 0:
        return ggml_type, None
    fitting = FALLBACKS.get(ggml_type, ggml_type)
    if columns % block_size(fitting):
        fitting = "F16"
    return fitting, f"rows of {columns} do not divide by {block_size(ggml_type)}: {fitting} instead of {ggml_type}"


def _tensor_type(precision: str, scheme: Scheme) -> str:
    """Return the type that a precision means for one tensor; of the generic ones only int4 can be asymmetric."""
    return find_mix(precision, symmetric=scheme.symmetric or precision != "int4").base


def _end_precision(name: str, scheme: Scheme, config: ModelConfig) -> str | None:
    """Return the precision that the scheme itself gives the embeddings or the head."""
    if name == "output.weight":
        return scheme.head_precision
    if name != "token_embd.weight":
        return None
    if not config.tie_word_embeddings:
        return scheme.embedding_precision
    asked = {p for p in (scheme.embedding_precision, scheme.head_precision) if p is not None}
    if len({_tensor_type(p, scheme) for p in asked}) > 1:
        raise UsageError(
            f"embeddings at {scheme.embedding_precision} and head at {scheme.head_precision}: "
            "this model ties them into one tensor; give one of the two"
        )
    return next(iter(sorted(asked)), None)


def choose(
    mix: Mix,
    scheme: Scheme,
    config: ModelConfig,
    name: str,
    shape: tuple[int, ...],
    override: str | None = None,
    *,
    has_importance: bool = False,
) -> Choice:
    """Return the ggml type of one tensor.

    Args:
        mix: The mix of the scheme's precision.
        scheme: For its precisions of embeddings and head.
        config: The model.
        name: The tensor's name in GGUF.
        shape: Row-major.
        override: The precision that was asked for this matrix; None to leave it to the mix.
        has_importance: The weights are quantized with an importance matrix, which some rules ask for.

    Raises:
        UsageError: A precision of embeddings or head is unknown, or the two contradict each other.
        UnsupportedError: GGUF has no such type.
    """
    if len(shape) < 2:
        return Choice("F32")  # norms and biases, as in llama.cpp
    if name.endswith(_ROUTERS):
        return Choice("F32", "llama.cpp keeps what decides about experts in F32")
    override = override or _end_precision(name, scheme, config)
    if override is not None:
        wanted = _tensor_type(override, scheme)
        why = None
    else:
        wanted = _preferred(mix, name, config, has_importance)
        why = None if wanted == mix.base else f"llama.cpp's mix {mix.label} gives this tensor {wanted}"
    fitting, fallback = _fit(wanted, shape[-1])
    return Choice(fitting, "; ".join(note for note in (why, fallback) if note) or None)
