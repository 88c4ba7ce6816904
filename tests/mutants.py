"""Breaking finished artifacts on purpose, each in one way, with manifest and checksums made anew.

Every mutant is a function of an artifact directory and of one that a later training step gave (same container, same
scheme, other weights). `MUTANTS` says which finding must name it. What a GGUF file cannot express is said there.
"""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeAlias

import gguf
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgekiln.artifact import CHECKSUMS, MANIFEST, Manifest, list_files, seal

_Array: TypeAlias = NDArray[Any]
#: Names of a layer's weights in the two containers.
_NAMES: Final = MappingProxyType(
    {
        "gguf": {
            "q": "blk.{}.attn_q.weight",
            "o": "blk.{}.attn_output.weight",
            "q_norm": "blk.{}.attn_q_norm.weight",
            "k_norm": "blk.{}.attn_k_norm.weight",
            "gate": "blk.{}.ffn_gate.weight",
            "up": "blk.{}.ffn_up.weight",
            "down": "blk.{}.ffn_down.weight",
            "layer": "blk.{}.",
            "head": "output.weight",
        },
        "onnx": {
            "q": "model.layers.{}.self_attn.q_proj.weight",
            "o": "model.layers.{}.self_attn.o_proj.weight",
            "q_norm": "model.layers.{}.self_attn.q_norm.weight",
            "k_norm": "model.layers.{}.self_attn.k_norm.weight",
            "gate": "model.layers.{}.mlp.gate_proj.weight",
            "up": "model.layers.{}.mlp.up_proj.weight",
            "down": "model.layers.{}.mlp.down_proj.weight",
            "layer": "model.layers.{}.",
            "head": "lm_head.weight",
        },
    }
)
#: Half a block of Q4_0 and Q4_1 beside the scale, and the minimum: ggml-common.h.
_SCALE_BYTES: Final = 2
_MINIMUM: Final = slice(2, 4)
_CODES: Final = {"Q4_0": slice(2, 18), "Q4_1": slice(4, 20)}
_BLOCK_BYTES: Final = {"Q4_0": 18, "Q4_1": 20}


class Stored(Protocol):
    """The tensors of an artifact, as raw as they are stored, to be changed in place."""

    arrays: dict[str, _Array]

    def named(self, part: str, layer: int = 1) -> list[str]:
        """Return the names of all tensors that belong to a part of a layer."""
        ...


def gguf_path(directory: Path) -> Path:
    """Return the one GGUF file of an artifact."""
    (path,) = directory.glob("*.gguf")
    return path


def is_gguf(directory: Path) -> bool:
    """Tell a GGUF artifact from an ONNX one."""
    return any(directory.glob("*.gguf"))


@functools.lru_cache(maxsize=16)
def _parsed(content: bytes) -> tuple[dict[str, Any], dict[str, _Array], dict[str, gguf.GGMLQuantizationType]]:
    """Take a GGUF file apart; gguf's reader is slow on vocabularies, and mutants are made of few files."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        reader = gguf.GGUFReader(file.name)
        fields = {}
        for name, entry in reader.fields.items():
            if not name.startswith("GGUF."):
                element = entry.types[-1] if entry.types[0] == gguf.GGUFValueType.ARRAY else None
                fields[name] = (entry.contents(), entry.types[0], element)
        arrays = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
        return fields, arrays, {tensor.name: tensor.tensor_type for tensor in reader.tensors}


@dataclass
class GgufFile:
    """A GGUF file taken apart: metadata as (value, type, element type), tensors as raw arrays."""

    path: Path
    fields: dict[str, tuple[Any, Any, Any]] = field(default_factory=dict)
    arrays: dict[str, _Array] = field(default_factory=dict)
    types: dict[str, gguf.GGMLQuantizationType] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fields, arrays, types = _parsed(self.path.read_bytes())
        self.fields, self.types = dict(fields), dict(types)
        self.arrays = {name: data.copy() for name, data in arrays.items()}

    def named(self, part: str, layer: int = 1) -> list[str]:
        """Return the names of all tensors that belong to a part of a layer."""
        prefix = _NAMES["gguf"][part].format(layer)
        return [name for name in self.arrays if name.startswith(prefix)]

    def set(self, key: str, value: object) -> None:
        """Change the value of a key, whose architecture is left out."""
        full = key if key in self.fields else f"{self.fields['general.architecture'][0]}.{key}"
        _, kind, element = self.fields[full]
        self.fields[full] = (value, kind, element)

    def save(self) -> None:
        """Write the file anew."""
        writer = gguf.GGUFWriter(self.path.with_suffix(".new"), self.fields["general.architecture"][0])
        for name, (value, kind, element) in self.fields.items():
            if name != "general.architecture":
                writer.add_key_value(name, value, kind, element)
        for name, data in self.arrays.items():
            writer.add_tensor(name, data, raw_dtype=self.types[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        self.path.with_suffix(".new").replace(self.path)


@dataclass
class OnnxModel:
    """An ONNX decoder with its data in memory."""

    directory: Path
    model: Any = None
    arrays: dict[str, _Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = onnx.load(self.directory / "model.onnx")
        self.arrays = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in self.model.graph.initializer}

    def named(self, part: str, layer: int = 1) -> list[str]:
        """Return the names of all tensors that belong to a part of a layer."""
        prefix = _NAMES["onnx"][part].format(layer)
        return [name for name in self.arrays if name.startswith(prefix)]

    def nodes(self, operator: str) -> list[Any]:
        """Return the nodes of one operator."""
        return [node for node in self.model.graph.node if node.op_type == operator]

    def bypass(self, node: Any, kept: int = 0) -> None:
        """Take a node out: who reads its output reads its input."""
        for reader in self.model.graph.node:
            for index, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[index] = node.input[kept]
        self.model.graph.node.remove(node)

    def save(self) -> None:
        """Write graph and data anew; what no node reads any more is left out."""
        graph = self.model.graph
        read = {name for node in graph.node for name in node.input}
        kept = [numpy_helper.from_array(data, name) for name, data in self.arrays.items() if name in read]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        (self.directory / "model.onnx.data").unlink()
        onnx.save(self.model, self.directory / "model.onnx", save_as_external_data=True, location="model.onnx.data")


def reseal(directory: Path) -> None:
    """Make manifest.json and SHA256SUMS anew, so that they vouch for whatever lies there."""
    manifest = Manifest.model_validate_json((directory / MANIFEST).read_text(encoding="utf-8"))
    files = tuple(entry for entry in list_files(directory) if entry.path not in {MANIFEST, CHECKSUMS})
    seal(directory, manifest.model_copy(update={"files": files}))


@contextmanager
def changed_gguf(directory: Path) -> Iterator[GgufFile]:
    """Give a GGUF file to change; it is written anew afterwards."""
    stored = GgufFile(gguf_path(directory))
    yield stored
    stored.save()


@contextmanager
def changed_onnx(directory: Path) -> Iterator[OnnxModel]:
    """Give an ONNX model to change; it is written anew afterwards."""
    stored = OnnxModel(directory)
    yield stored
    stored.save()


@contextmanager
def changed(directory: Path) -> Iterator[GgufFile | OnnxModel]:
    """Give the tensors of either container to change."""
    with changed_gguf(directory) if is_gguf(directory) else changed_onnx(directory) as stored:
        yield stored


def _exchange(stored: GgufFile | OnnxModel, some: Sequence[str], others: Sequence[str]) -> None:
    assert some
    for one, other in zip(some, others, strict=True):
        assert not np.array_equal(stored.arrays[one], stored.arrays[other])
        stored.arrays[one], stored.arrays[other] = stored.arrays[other], stored.arrays[one]


def _scaled(stored: GgufFile | OnnxModel, name: str, factor: float) -> None:
    """Multiply the scales of a 4-bit GGUF tensor, in its blocks, or those of an ONNX one, in a tensor of their own."""
    if isinstance(stored, OnnxModel):
        if name.endswith(".scales"):
            stored.arrays[name] = (stored.arrays[name] * factor).astype(stored.arrays[name].dtype)
        return
    blocks = stored.arrays[name].reshape(-1, _BLOCK_BYTES[stored.types[name].name])
    scales = blocks[:, :_SCALE_BYTES].copy().view(np.float16)
    blocks[:, :_SCALE_BYTES] = (scales * np.float16(factor)).view(np.uint8)


# --- weights ----------------------------------------------------------------------------------------------------------


def swap_layers(directory: Path, one: int = 1, other: int = 4) -> None:
    """Exchange all weights of two layers in a GGUF or ONNX directory; everything else stays as it is."""
    with changed(directory) as stored:
        names = stored.named("layer", one)
        places = [name.replace(f".{one}.", f".{other}.", 1) for name in names]
        alike = [(a, b) for a, b in zip(names, places, strict=True) if _same_type(stored, a, b)]
        _exchange(stored, [a for a, _ in alike], [b for _, b in alike])


def _same_type(stored: GgufFile | OnnxModel, one: str, other: str) -> bool:
    return isinstance(stored, OnnxModel) or stored.types[one] == stored.types[other]


def _layers_swapped(directory: Path, _: Path) -> None:
    swap_layers(directory, 0, 2)


def _gate_up_swapped(directory: Path, _: Path) -> None:
    with changed(directory) as stored:
        _exchange(stored, stored.named("gate"), stored.named("up"))


def _qk_norm_swapped(directory: Path, _: Path) -> None:
    with changed(directory) as stored:
        _exchange(stored, stored.named("q_norm"), stored.named("k_norm"))


def _scale_off(directory: Path, _: Path) -> None:
    with changed(directory) as stored:
        for name in stored.named("down"):
            _scaled(stored, name, 1.02)


def _nibbles(codes: _Array) -> _Array:
    return (codes << 4 | codes >> 4).astype(np.uint8)


def _nibble_order(directory: Path, _: Path) -> None:
    with changed(directory) as stored:
        for name in stored.named("up"):
            if isinstance(stored, GgufFile):
                kind = stored.types[name].name
                blocks = stored.arrays[name].reshape(-1, _BLOCK_BYTES[kind])
                blocks[:, _CODES[kind]] = _nibbles(blocks[:, _CODES[kind]])
            elif name.endswith(".codes"):
                stored.arrays[name] = _nibbles(stored.arrays[name])


def _offsets_dropped(directory: Path, _: Path) -> None:
    """Without its zero points MatMulNBits takes 8 for all; Q4_1 without its minima begins at 0."""
    with changed(directory) as stored:
        if isinstance(stored, GgufFile):
            for name, kind in stored.types.items():
                if kind.name == "Q4_1":
                    stored.arrays[name].reshape(-1, _BLOCK_BYTES["Q4_1"])[:, _MINIMUM] = 0
            return
        for node in stored.nodes("MatMulNBits"):
            node.input[3] = ""


def _zeroed(directory: Path, _: Path) -> None:
    with changed(directory) as stored:
        for name in stored.named("o"):
            stored.arrays[name][...] = 0


def _transposed(directory: Path, _: Path) -> None:
    with changed(directory) as stored:
        for name in stored.named("o"):
            stored.arrays[name] = np.ascontiguousarray(stored.arrays[name].T)


def _overflow(directory: Path, _: Path) -> None:
    """What casting to float16 makes of weights beyond 65504."""
    with changed(directory) as stored:
        for name in stored.named("down"):
            stored.arrays[name][3, 5:9] = [np.inf, -np.inf, np.inf, np.inf]


def _taken_from(directory: Path, other: Path, parts: Sequence[str]) -> None:
    donor = GgufFile(gguf_path(other)) if is_gguf(other) else OnnxModel(other)
    with changed(directory) as stored:
        for part in parts:
            for name in stored.named(part):
                assert not np.array_equal(stored.arrays[name], donor.arrays[name]) or "norm" in name
                stored.arrays[name] = donor.arrays[name]


def _stale_head(directory: Path, other: Path) -> None:
    _taken_from(directory, other, ["head"])


def _mixed_steps(directory: Path, other: Path) -> None:
    _taken_from(directory, other, ["q", "gate", "down"])


def _bias_missing(directory: Path, _: Path) -> None:
    with changed(directory) as stored:
        if isinstance(stored, GgufFile):
            del stored.arrays["blk.1.attn_k.bias"]
            return
        bias = "model.layers.1.self_attn.qkv_proj.bias"
        (node,) = (node for node in stored.nodes("Add") if bias in node.input)
        stored.bypass(node, kept=1 - list(node.input).index(bias))


def _qk_norm_dropped(directory: Path, _: Path) -> None:
    with changed(directory) as stored:
        (name,) = stored.named("q_norm")
        if isinstance(stored, GgufFile):
            del stored.arrays[name]
            return
        (node,) = (node for node in stored.model.graph.node if name in node.input)
        stored.bypass(node)


# --- hyper-parameters -------------------------------------------------------------------------------------------------


def _tables(stored: OnnxModel, base: float, factor: float = 1.0, columns: int = 32) -> None:
    """Compute the rotary tables anew."""
    positions = np.arange(len(stored.arrays["model.rotary_emb.cos_cache"]))[:, None] / factor
    angles = positions * base ** (-np.arange(columns) / columns)
    stored.arrays["model.rotary_emb.cos_cache"] = np.cos(angles).astype(np.float32)
    stored.arrays["model.rotary_emb.sin_cache"] = np.sin(angles).astype(np.float32)


def _rope_base(directory: Path, _: Path) -> None:
    with changed(directory) as stored:
        if isinstance(stored, GgufFile):
            stored.set("rope.freq_base", 1e6)
        else:
            _tables(stored, 1e6)


def _rope_scaling(directory: Path, _: Path) -> None:
    with changed(directory) as stored:
        if isinstance(stored, GgufFile):
            architecture = stored.fields["general.architecture"][0]
            stored.fields[f"{architecture}.rope.scaling.type"] = ("linear", gguf.GGUFValueType.STRING, None)
            stored.fields[f"{architecture}.rope.scaling.factor"] = (4.0, gguf.GGUFValueType.FLOAT32, None)
        else:
            _tables(stored, 1e4, 4.0)


def _norm_epsilon(directory: Path, _: Path) -> None:
    with changed(directory) as stored:
        if isinstance(stored, GgufFile):
            stored.set("attention.layer_norm_rms_epsilon", 1e-5)
            return
        node = stored.nodes("SkipSimplifiedLayerNormalization")[1]
        next(attribute for attribute in node.attribute if attribute.name == "epsilon").f = 1e-5


def _head_dim(directory: Path, _: Path) -> None:
    """Heads of half the size, and twice as many: all matrices keep their shapes."""
    with changed(directory) as stored:
        if isinstance(stored, GgufFile):
            for key, value in (("head_count", 8), ("head_count_kv", 4), ("key_length", 32), ("value_length", 32)):
                stored.set(f"attention.{key}", value)
            return
        _tables(stored, 1e4, columns=16)
        for node in stored.nodes("GroupQueryAttention"):
            for attribute in node.attribute:
                if attribute.name in {"num_heads", "kv_num_heads"}:
                    attribute.i *= 2
        for value in (*stored.model.graph.input, *stored.model.graph.output):
            extents = value.type.tensor_type.shape.dim
            if len(extents) == 4:
                extents[1].dim_value, extents[3].dim_value = 4, 32
    if not is_gguf(directory):
        change_genai(
            directory, lambda model: model["decoder"].update(head_size=32, num_attention_heads=8, num_key_value_heads=4)
        )


def _layer_dropped(directory: Path, _: Path) -> None:
    if is_gguf(directory):
        with changed_gguf(directory) as stored:
            stored.set("block_count", 2)
    else:
        change_genai(directory, lambda model: model["decoder"].update(num_hidden_layers=2))


def _context_beyond(directory: Path, _: Path) -> None:
    if is_gguf(directory):
        with changed_gguf(directory) as stored:
            stored.set("context_length", 1 << 17)
    else:
        change_genai(directory, lambda model: model.update(context_length=1 << 17))


def _attention_scale(directory: Path, _: Path) -> None:
    with changed_onnx(directory) as stored:
        for node in stored.nodes("GroupQueryAttention"):
            next(attribute for attribute in node.attribute if attribute.name == "scale").f = 0.5


def _cache_position(directory: Path, _: Path) -> None:
    """seqlens_k is the sum of the attention mask less one; without the one, the cache is read one position late."""
    with changed_onnx(directory) as stored:
        (subtraction,) = stored.nodes("Sub")
        (one,) = (node for node in stored.nodes("Constant") if node.output[0] == subtraction.input[1])
        (value,) = one.attribute
        assert value.i == 1
        value.i = 2


# --- tokenizer and configuration --------------------------------------------------------------------------------------


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON object in place."""
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def change_genai(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change `model` of genai_config.json."""
    change_json(directory / "genai_config.json", lambda genai: change(genai["model"]))


def _eos_missing(directory: Path, _: Path) -> None:
    """A GGUF file names one end; a genai_config.json that lacks the end of a turn never ends one."""
    if is_gguf(directory):
        with changed_gguf(directory) as stored:
            del stored.fields["tokenizer.ggml.eos_token_id"]
    else:
        change_genai(directory, lambda model: model.update(eos_token_id=model["pad_token_id"]))


def _template_without_prompt(directory: Path, _: Path) -> None:
    def cut(text: str) -> str:
        assert "add_generation_prompt" in text
        return text.replace("if add_generation_prompt", "if false")

    if is_gguf(directory):
        with changed_gguf(directory) as stored:
            stored.set("tokenizer.chat_template", cut(stored.fields["tokenizer.chat_template"][0]))
    else:
        path = directory / "chat_template.jinja"
        path.write_text(cut(path.read_text(encoding="utf-8")), encoding="utf-8")


def _merges_truncated(directory: Path, _: Path) -> None:
    if is_gguf(directory):
        with changed_gguf(directory) as stored:
            merges = stored.fields["tokenizer.ggml.merges"][0]
            stored.set("tokenizer.ggml.merges", merges[: len(merges) // 2])
    else:
        change_json(directory / "tokenizer.json", _half_the_merges)


def _half_the_merges(tokenizer: dict[str, Any]) -> None:
    merges = tokenizer["model"]["merges"]
    del merges[len(merges) // 2 :]


def _special_ids_swapped(directory: Path, _: Path) -> None:
    """The tokens that begin and end a turn have each other's ids."""
    names = ("<|im_start|>", "<|im_end|>")
    if is_gguf(directory):
        with changed_gguf(directory) as stored:
            tokens = list(stored.fields["tokenizer.ggml.tokens"][0])
            one, other = (tokens.index(name) for name in names)
            tokens[one], tokens[other] = tokens[other], tokens[one]
            stored.set("tokenizer.ggml.tokens", tokens)
        return

    def swap(tokenizer: dict[str, Any]) -> None:
        one, other = (next(t for t in tokenizer["added_tokens"] if t["content"] == name) for name in names)
        one["content"], other["content"] = other["content"], one["content"]

    change_json(directory / "tokenizer.json", swap)


# --- files ------------------------------------------------------------------------------------------------------------


def _weights_file(directory: Path) -> Path:
    return gguf_path(directory) if is_gguf(directory) else directory / "model.onnx.data"


def _truncated(directory: Path, _: Path) -> None:
    path = _weights_file(directory)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 5000)


def _offsets_lie(directory: Path, _: Path) -> None:
    """The header says that one tensor begins where another does."""
    path = gguf_path(directory)
    data = path.read_bytes()
    name = b"blk.1.ffn_down.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8 + 4  # dimensions, extents, type
    path.write_bytes(data[:at] + (0).to_bytes(8, "little") + data[at + 8 :])


def _data_outside(directory: Path, _: Path) -> None:
    outside = directory.parent / "elsewhere"
    shutil.move(directory / "model.onnx.data", outside)
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../elsewhere" if entry.key == "location" else entry.value
    (directory / "model.onnx").write_bytes(model.SerializeToString())


def _data_missing(directory: Path, _: Path) -> None:
    (directory / "model.onnx.data").unlink()


@dataclass(frozen=True)
class Mutant:
    """One way to break an artifact.

    Attributes:
        breaks: Changes an artifact in place; the second directory is the same artifact of another training step.
        containers: Those that can be broken so.
        finding: Id of the finding that must name it.
        base: Key of `BASES` in tests/mutant_bases.py: the artifact to break.
    """

    breaks: Callable[[Path, Path], None]
    containers: tuple[str, ...]
    finding: str
    base: str = "int4"


_BOTH: Final = ("gguf", "onnx")
#: A GGUF file holds no cache arithmetic and no attention scale for these families: llama.cpp computes both itself.
_GRAPH: Final = ("onnx",)
MUTANTS: Final = MappingProxyType(
    {
        "layers swapped": Mutant(_layers_swapped, _BOTH, "conservation/swapped"),
        "gate and up swapped": Mutant(_gate_up_swapped, _BOTH, "conservation/swapped"),
        "q and k norm swapped": Mutant(_qk_norm_swapped, _BOTH, "conservation/swapped"),
        "q norm dropped": Mutant(_qk_norm_dropped, _BOTH, "conservation/missing"),
        "bias missing": Mutant(_bias_missing, _BOTH, "conservation/missing", "qwen2"),
        "scale off by 2 %": Mutant(_scale_off, _BOTH, "conservation/scale"),
        "nibble order": Mutant(_nibble_order, _BOTH, "conservation/nibble_order"),
        "zero points dropped": Mutant(_offsets_dropped, _BOTH, "conservation/offset", "asymmetric"),
        "tensor zeroed": Mutant(_zeroed, _BOTH, "conservation/zeroed"),
        "tensor transposed": Mutant(_transposed, _BOTH, "conservation/transposed", "fp16"),
        "float16 overflow": Mutant(_overflow, _BOTH, "conservation/overflow", "fp16"),
        "stale head": Mutant(_stale_head, _BOTH, "conservation/altered"),
        "shard of another step": Mutant(_mixed_steps, _BOTH, "conservation/altered"),
        "rope base": Mutant(_rope_base, _BOTH, "metadata/rope_base"),
        "rope scaling": Mutant(_rope_scaling, _BOTH, "metadata/rope_scaling"),
        "norm epsilon": Mutant(_norm_epsilon, _BOTH, "metadata/norm_epsilon"),
        "head dimension": Mutant(_head_dim, _BOTH, "metadata/head_dim"),
        "layer dropped": Mutant(_layer_dropped, _BOTH, "metadata/layers"),
        "context beyond the model's": Mutant(_context_beyond, _BOTH, "metadata/context"),
        "attention scale": Mutant(_attention_scale, _GRAPH, "metadata/attention_scale"),
        "eos missing": Mutant(_eos_missing, _BOTH, "metadata/eos"),
        "cache position": Mutant(_cache_position, _GRAPH, "parity/decode"),
        "template without generation prompt": Mutant(_template_without_prompt, _BOTH, "template/generation_prompt"),
        "merges truncated": Mutant(_merges_truncated, _BOTH, "tokenizer/ids"),
        "special ids swapped": Mutant(_special_ids_swapped, _BOTH, "tokenizer/ids"),
        "file truncated": Mutant(_truncated, _BOTH, "files/truncated"),
        "offsets that lie": Mutant(_offsets_lie, ("gguf",), "gguf/offsets"),
        "data outside": Mutant(_data_outside, _GRAPH, "files/outside"),
        "data missing": Mutant(_data_missing, _GRAPH, "files/missing"),
    }
)
