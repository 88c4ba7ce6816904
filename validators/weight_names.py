"""Which tensors of the checkpoint a tensor of the artifact claims to be, by the names that makers of artifacts use.

A name is only a claim: whether it is true is decided by value. GGUF names are those of the gguf package's tensor name
map; the builder of onnxruntime-genai, mobius and Optimum change the checkpoint's names a little. What is looked up by
token ids is the embedding, and what makes the logits is the head, whatever they are called.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from edgekiln.checkpoint import Checkpoint
from edgekiln.families import EMBEDDING, FINAL_NORM, HEAD
from edgekiln.validators.weights import Weight

_LAYER: Final = re.compile(r"layers?[._/](\d{1,5})[._/](.+)")
#: Stands for each expert in turn.
_ALL: Final = "*"
_EXPERT: Final = re.compile(r"(?<=experts)\.\d+(?=\.)")
#: Parts of a layer in the checkpoint by what a name contains; the first that matches counts.
_IN_LAYER: Final[tuple[tuple[re.Pattern[str], tuple[str, ...]], ...]] = tuple(
    (re.compile(pattern), parts)
    for pattern, parts in (
        (r"shared_expert_gate", ("mlp.shared_expert_gate",)),
        (r"shared_expert\W.*gate_up", ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj")),
        (r"shared_expert\W.*gate_proj", ("mlp.shared_expert.gate_proj",)),
        (r"shared_expert\W.*up_proj", ("mlp.shared_expert.up_proj",)),
        (r"shared_expert\W.*down_proj", ("mlp.shared_expert.down_proj",)),
        (r"experts\W.*gate_up", (f"mlp.experts.{_ALL}.gate_proj", f"mlp.experts.{_ALL}.up_proj")),
        (r"experts\W.*(gate_proj|fc1|w1)", (f"mlp.experts.{_ALL}.gate_proj",)),
        (r"experts\W.*(up_proj|fc3|w3)", (f"mlp.experts.{_ALL}.up_proj",)),
        (r"experts\W.*(down_proj|fc2|w2)", (f"mlp.experts.{_ALL}.down_proj",)),
        (r"(mlp|moe)\W(gate|router)(\W|$)", ("mlp.gate",)),
        (r"qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        (r"gate_up", ("mlp.gate_proj", "mlp.up_proj")),
        (r"q_norm", ("self_attn.q_norm",)),
        (r"k_norm", ("self_attn.k_norm",)),
        (r"q_proj", ("self_attn.q_proj",)),
        (r"k_proj", ("self_attn.k_proj",)),
        (r"v_proj", ("self_attn.v_proj",)),
        (r"o_proj", ("self_attn.o_proj",)),
        (r"gate_proj", ("mlp.gate_proj",)),
        (r"up_proj", ("mlp.up_proj",)),
        (r"down_proj", ("mlp.down_proj",)),
        (r"input_layernorm", ("input_layernorm",)),
        (r"post_attention_layernorm", ("post_attention_layernorm",)),
    )
)
_OUTSIDE: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"final_norm"), FINAL_NORM),  # of the builder, in a layer behind the last
    (re.compile(r"embed_tokens"), EMBEDDING),
    (re.compile(r"lm_head"), HEAD),
    (re.compile(r"^model\.norm\.weight$"), FINAL_NORM),
)
#: Tensors of an artifact that are computed and not taken from the checkpoint.
_COMPUTED: Final = re.compile(
    r"(^|[._/])(rope_freqs|rope_factors_(long|short)|inv_freq|(cos|sin)_cache|rotary_emb)([._/]|$)|rotary_emb\."
)
#: Tensors of a checkpoint that no decoder of text needs, and why they are left out.
_DROPPED: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"(^|\.)mtp\."), "it predicts several tokens at once, which no runtime of ours uses"),
    (re.compile(r"(^|\.)(visual|vision_tower|vision_model)\."), "it belongs to the vision tower, another artifact"),
    (re.compile(r"(^|\.)(audio_tower|talker|thinker\.audio)\."), "it belongs to speech, another artifact"),
    (re.compile(r"rotary_emb\.inv_freq$"), "runtimes compute it from rope_theta"),
)


@dataclass(frozen=True)
class Claim:
    """What a tensor of an artifact says that it is.

    Attributes:
        sources: Tensors of the checkpoint whose rows it has, in order; empty where it says nothing that is known.
        computed: It is a constant of the architecture.
    """

    sources: tuple[str, ...] = ()
    computed: bool = False


def dropped_reason(name: str, num_layers: int) -> str | None:
    """Return why a tensor of the checkpoint may be missing in an artifact; None when it may not."""
    layer = _LAYER.search(name)
    if layer is not None and int(layer[1]) >= num_layers:
        return "it lies behind the last layer, as layers that predict several tokens at once do"
    return next((reason for pattern, reason in _DROPPED if pattern.search(name)), None)


def split_layer(source: str) -> tuple[int | None, str]:
    """Return layer and part of a checkpoint's tensor: `(3, "mlp.up_proj")`; a bias keeps its ending.

    All experts are one part.
    """
    stem = source.removesuffix(".weight").removeprefix("model.")
    layer = re.fullmatch(r"layers\.(\d+)\.(.+)", stem)
    return (int(layer[1]), _EXPERT.sub("", layer[2])) if layer else (None, stem)


def claims(weights: Iterable[Weight], checkpoint: Checkpoint, *, gguf: bool) -> tuple[Claim, ...]:
    """Return what each weight claims to be, in order.

    Args:
        weights: Of the artifact.
        checkpoint: Whose tensors they may be.
        gguf: They have llama.cpp's names.
    """
    table = _gguf_names(checkpoint) if gguf else MappingProxyType({})
    return tuple(_claim(weight, checkpoint, table, gguf=gguf) for weight in weights)


def _claim(weight: Weight, checkpoint: Checkpoint, table: Mapping[str, tuple[str, ...]], *, gguf: bool) -> Claim:
    if _COMPUTED.search(weight.name):
        return Claim(computed=True)
    if weight.use == "embedding":
        return Claim((EMBEDDING,))
    if weight.use == "head":
        return Claim((_present(HEAD, checkpoint),))
    names = table.get(weight.name, ()) if gguf else _onnx_sources(weight, checkpoint)
    found = tuple(_present(name, checkpoint) for name in names)
    return Claim(found if all(name in checkpoint.tensors for name in found) else ())


def _present(name: str, checkpoint: Checkpoint) -> str:
    """Return the tensor whose values a name stands for: a tied head is the embedding."""
    return EMBEDDING if name == HEAD and HEAD not in checkpoint.tensors else name


def _onnx_sources(weight: Weight, checkpoint: Checkpoint) -> tuple[str, ...]:
    for pattern, source in _OUTSIDE:
        if pattern.search(weight.name):
            return (source,)
    layer = _LAYER.search(weight.name)
    if layer is None:
        return ()
    parts = next((parts for pattern, parts in _IN_LAYER if pattern.search(layer[2])), ())
    ending = "bias" if weight.use == "vector" and any("_proj" in part for part in parts) else "weight"
    names = [f"model.layers.{int(layer[1])}.{part}.{ending}" for part in parts]
    if not any(_ALL in name for name in names):
        return tuple(names)
    experts = checkpoint.config.experts_of(int(layer[1]))
    return tuple(name.replace(_ALL, str(number)) for number in range(experts.count if experts else 0) for name in names)


def _gguf_names(checkpoint: Checkpoint) -> Mapping[str, tuple[str, ...]]:
    """Return the checkpoint's tensors by llama.cpp's names, fused ones too."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    wanted = checkpoint.family.gguf_architecture
    architecture = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == wanted)
    names = get_tensor_name_map(MODEL_ARCH(architecture), checkpoint.config.num_layers)
    table: dict[str, tuple[str, ...]] = {}
    for source in (*checkpoint.tensors, *({HEAD} - checkpoint.tensors.keys())):
        found = names.get_name(_EXPERT.sub("", source), try_suffixes=(".weight", ".bias"))
        if found is not None:  # the experts of a layer have one name
            table[found] = (*table.get(found, ()), source)
    for layer in range(checkpoint.config.num_layers):
        prefix = f"model.layers.{layer}.self_attn."
        for ending in ("weight", "bias"):
            fused = tuple(f"{prefix}{part}_proj.{ending}" for part in ("q", "k", "v"))
            table.setdefault(f"blk.{layer}.attn_qkv.{ending}", fused)
    return MappingProxyType(table)
