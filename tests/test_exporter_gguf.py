"""The GGUF exporter: agreement with llama.cpp in types, bytes, metadata and logits; laws; refusals."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, dequantize
from gguf import quantize as reference_quantize
from numpy.typing import NDArray

from artifacts import llama_logits
from checkpoints import change_weights, make_checkpoint
from edgekiln.checkpoint import Checkpoint, open_checkpoint
from edgekiln.device import Device
from edgekiln.errors import CheckpointError, EdgekilnError, StepError, UnsupportedError, UsageError
from edgekiln.exporters.base import ExportPlan, TensorPlan
from edgekiln.exporters.gguf import Gguf
from edgekiln.exporters.gguf_mix import MIXES, choose
from edgekiln.grids import BlockGrid, Grid, IntegerGrid, IntegerRows
from edgekiln.quantizers.ggml import Ggml
from edgekiln.safetensors import FLOAT_BYTES, widen
from edgekiln.scheme import Scheme
from edgekiln.tensors import convert_rows

MIX_NAMES = tuple(name for name, mix in MIXES.items() if not mix.is_float and name not in {"int4", "int8"})

#: ggml's names of what a plan calls by numpy's.
TYPE_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

#: Between them: 2, 4 and 7 query heads for each key-value head; enough layers for the rules by eighths and
#: sixteenths; rows that divide by 256, by 32 only, and not by 32; tensors that end between two multiples of the
#: alignment; the 80 layers that llama.cpp takes for a 70B model.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-tied-16-layers": {"num_layers": 16, "intermediate_size": 256, "num_kv_heads": 1},
    "qwen2-untied-896": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 640,
        "num_heads": 14,
        "tied": False,
    },
    "qwen3-tied-1536-sharded": {"hidden_size": 1536, "intermediate_size": 320, "num_layers": 1, "shards": 3},
    "qwen3-padded": {"hidden_size": 72, "intermediate_size": 40, "num_heads": 2, "num_kv_heads": 1, "head_dim": 18},
    "qwen2_moe-untied-16-layers": {"model_type": "qwen2_moe", "num_layers": 16, "tied": False, "num_kv_heads": 1},
    "qwen3_moe-eight-experts": {
        "model_type": "qwen3_moe",
        "num_layers": 8,
        "shards": 2,
        "config": {"num_experts": 8, "moe_intermediate_size": 96},
    },
    "qwen2-80-layers": {
        "model_type": "qwen2",
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_heads": 2,
        "num_layers": 80,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("gguf")
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module", params=SHAPES)
def shaped(request: pytest.FixtureRequest, folder: Path) -> Checkpoint:
    return open_checkpoint(str(make_checkpoint(folder / request.param, **SHAPES[request.param])))


def export(checkpoint: Checkpoint, scheme: Scheme | str, directory: Path, exporter: Gguf | None = None) -> Path:
    exporter = exporter or Gguf()
    directory.mkdir(parents=True)
    plan = exporter.plan(checkpoint, scheme if isinstance(scheme, Scheme) else Scheme(scheme))
    exporter.write(checkpoint, plan, directory, Ggml().quantize)
    return min(directory.iterdir())  # of several files the first


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the key-values and the tensors, as gguf's own reader sees them."""
    reader = GGUFReader(path)
    return {k: f.contents() for k, f in reader.fields.items()}, {t.name: t for t in reader.tensors}


def values_of(checkpoint: Checkpoint, name: str) -> NDArray[np.float32]:
    with checkpoint.reader() as reader:
        info = checkpoint.tensors[name]
        return reader.rows(info, 0, info.rows).reshape(info.shape)


# --- agreement with llama.cpp's quantizer


def write_float32_file(checkpoint: Checkpoint, plan: ExportPlan, path: Path) -> None:
    """Write the checkpoint's own values with gguf's writer: what llama_model_quantize starts from."""
    config, writer = checkpoint.config, GGUFWriter(path, checkpoint.family.gguf_architecture)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.experts:
        writer.add_expert_count(config.experts.count)
        writer.add_expert_used_count(config.experts.per_token)
        writer.add_expert_feed_forward_length(config.experts.intermediate_size)
        writer.add_expert_shared_feed_forward_length(config.experts.shared_intermediate_size or 0)
    writer.add_file_type(0)
    for tensor in plan.tensors:
        values = np.concatenate([values_of(checkpoint, source) for source in tensor.sources])
        writer.add_tensor(tensor.name, values.reshape(tensor.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_quantize(source: Path, target: Path, file_type: int, **options: Any) -> None:
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = file_type, 2
    for key, value in options.items():
        setattr(parameters, key, value)
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), parameters) == 0


def assert_same_tensors(plan: ExportPlan, ours: Path, theirs: Path) -> None:
    """Compare by our plan: gguf's reader takes half a second for a vocabulary; another test reads our header."""
    reference = {tensor.name: tensor for tensor in GGUFReader(theirs).tensors}
    assert {t.name: TYPE_NAMES.get(t.storage_name, t.storage_name) for t in plan.tensors} == {
        name: tensor.tensor_type.name for name, tensor in reference.items()
    }
    padded = [tensor.nbytes + -tensor.nbytes % 32 for tensor in plan.tensors]
    offset = ours.stat().st_size - sum(padded)
    with ours.open("rb") as file:
        for tensor, size in zip(plan.tensors, padded, strict=True):
            file.seek(offset)
            assert file.read(tensor.nbytes) == reference[tensor.name].data.tobytes(), tensor.name
            offset += size


def assert_mixes_equal(shaped: Checkpoint, names: Iterable[str], tmp_path: Path) -> None:
    """Compare files of some mixes with those that llama.cpp makes."""
    source, exporter = tmp_path / "f32.gguf", Gguf()
    write_float32_file(shaped, exporter.plan(shaped, Scheme("fp16")), source)
    for name in names:
        ours, theirs = export(shaped, name, tmp_path / name), tmp_path / "theirs.gguf"
        llama_quantize(source, theirs, MIXES[name].file_type)
        assert_same_tensors(exporter.plan(shaped, Scheme(name)), ours, theirs)
        assert GGUFReader(theirs).fields["general.file_type"].contents() == MIXES[name].file_type
        ours.unlink()
        theirs.unlink()


def test_mixes_equal_llama_model_quantize_in_types_and_bytes(shaped: Checkpoint, tmp_path: Path) -> None:
    few = ("q4_0", "q4_1", "q8_0", "q4_k_m", "iq4_nl", "q3_k_m", "q4_k_s")
    whole = shaped.config.num_layers == 16 and not shaped.config.experts  # with layers for every rule
    assert_mixes_equal(shaped, MIX_NAMES if whole else few, tmp_path)


@pytest.mark.slow
def test_every_mix_of_every_shape_equals_llama_model_quantize(shaped: Checkpoint, tmp_path: Path) -> None:
    assert_mixes_equal(shaped, MIX_NAMES, tmp_path)


def importance_of(plan: ExportPlan) -> dict[str, NDArray[np.float32]]:
    """Return made-up importances of the matrices within layers: of each expert, of each column; some are 0."""
    rng = np.random.default_rng(7)
    found = {}
    for tensor in plan.tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
            values = rng.standard_normal((len(tensor.sources), tensor.shape[-1]), dtype=np.float32) ** 2
            values[:, ::13] = 0
            found[tensor.name] = values
    return found


def assert_weighed_mixes_equal(shaped: Checkpoint, names: Iterable[str], tmp_path: Path) -> None:
    """Compare types and bytes of some mixes with those of llama.cpp, given one importance matrix."""
    import llama_cpp

    source, plan = tmp_path / "f32.gguf", Gguf().plan(shaped, Scheme("fp16"))
    write_float32_file(shaped, plan, source)
    importance = importance_of(plan)
    entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    for name in names:
        llama_quantize(source, tmp_path / "theirs.gguf", MIXES[name].file_type, imatrix=entries)
        theirs = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "theirs.gguf").tensors}
        for tensor in plan.tensors:
            choice = choose(MIXES[name], Scheme(name), shaped.config, tensor.name, tensor.shape, has_importance=True)
            assert choice.ggml_type == theirs[tensor.name].tensor_type.name, (name, tensor.name)
            if choice.ggml_type in {"F32", "F16"} or "blk" not in tensor.name:
                continue
            grid, rows = BlockGrid(choice.ggml_type), [values_of(shaped, source) for source in tensor.sources]
            weighed = zip(rows, importance[tensor.name], strict=True)
            blocks = b"".join(Ggml().quantize(part, grid, counts).blocks.tobytes() for part, counts in weighed)
            assert blocks == theirs[tensor.name].data.tobytes(), (name, tensor.name)


def test_with_an_importance_matrix_mixes_are_those_of_llama_model_quantize(shaped: Checkpoint, tmp_path: Path) -> None:
    every = ("q4_0", "q5_0", "q4_1", "q5_1", "q8_0", "q2_k", "q3_k_m", "q4_k_m", "q5_k_s", "q6_k", "iq4_nl", "iq4_xs")
    whole = shaped.config.num_layers == 16 and not shaped.config.experts  # where rules name first layers
    assert_weighed_mixes_equal(shaped, every if whole else ("q4_0", "q4_k_m"), tmp_path)


@pytest.mark.slow
def test_with_an_importance_matrix_every_mix_of_every_shape_is_that_of_llama_model_quantize(
    shaped: Checkpoint, tmp_path: Path
) -> None:
    assert_weighed_mixes_equal(shaped, MIX_NAMES, tmp_path)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("embedding", "head"), [("int8", None), (None, "int4"), ("q6_k", "q6_k"), (None, "bf16")])
def test_precisions_of_embedding_and_head_equal_llama_cpps_options(
    tmp_path: Path, tied: bool, embedding: str | None, head: str | None
) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path / "c", num_layers=1, tied=tied)))
    scheme = Scheme("q4_k_m", embedding_precision=embedding, head_precision=head)
    ours = export(checkpoint, scheme, tmp_path / "o")
    write_float32_file(checkpoint, Gguf().plan(checkpoint, Scheme("fp16")), tmp_path / "f32.gguf")
    options = {}
    if embedding:
        options["token_embedding_type"] = int(GGMLQuantizationType[MIXES[embedding].base])
    if head:
        options["output_tensor_type"] = int(GGMLQuantizationType[MIXES[head].base])
    llama_quantize(tmp_path / "f32.gguf", tmp_path / "t.gguf", MIXES["q4_k_m"].file_type, **options)
    assert_same_tensors(Gguf().plan(checkpoint, scheme), ours, tmp_path / "t.gguf")


def test_an_override_decides_the_type_of_what_it_matches_and_of_nothing_else(shaped: Checkpoint) -> None:
    asked = (("*.down_proj", "int8"), ("model.layers.0.*", "q4_k_m"))
    plain, plan = (Gguf().plan(shaped, Scheme("int4", overrides=given)) for given in ((), asked))
    for before, after in zip(plain.tensors, plan.tensors, strict=True):
        if "ffn_gate_inp" in after.name:
            assert after.storage_name == "float32"
            assert after.note == "llama.cpp keeps what decides about experts in F32"
        elif len(after.shape) > 1 and after.name.startswith("blk.0."):
            assert after.storage_name in {"Q4_K", "Q5_0", "float16"}  # its rows may not divide into blocks
            assert after.note is None or "do not divide" in after.note
        elif "ffn_down" in after.name:
            assert after.storage_name in {"Q8_0", "float16"}
        else:
            assert after == before


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_through_f16_the_bytes_are_those_of_llama_cpps_two_steps(tmp_path: Path, dtype: str) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path / "c", num_layers=1, dtype=dtype, scale=1e-4)))
    scheme = Scheme("q4_k_m", gguf_source="f16")
    ours = export(checkpoint, scheme, tmp_path / "o")
    llama_quantize(export(checkpoint, "fp16", tmp_path / "f16"), tmp_path / "t.gguf", MIXES["q4_k_m"].file_type)
    assert_same_tensors(Gguf().plan(checkpoint, scheme), ours, tmp_path / "t.gguf")
    from_source = export(checkpoint, "q4_k_m", tmp_path / "s")
    assert (from_source.read_bytes() == ours.read_bytes()) == (dtype == "F16")


def test_weights_beyond_fp16_cannot_go_through_it(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path / "c", num_layers=1, scale=1e6)))
    with pytest.raises(StepError, match=r"weights beyond ±65504, which float16 cannot hold"):
        export(checkpoint, Scheme("int8", gguf_source="f16"), tmp_path / "o")


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_every_source_type_exports_to_every_float_type(tmp_path: Path, dtype: str, precision: str) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path / "c", num_layers=1, dtype=dtype)))
    _, tensors = read(export(checkpoint, precision, tmp_path / "o"))
    wanted = {"fp16": "F16", "bf16": "BF16", "int8": "Q8_0"}[precision]
    for plan in Gguf().plan(checkpoint, Scheme(precision)).tensors:
        kind = tensors[plan.name].tensor_type
        assert kind.name == (wanted if len(plan.shape) > 1 else "F32")
        expected = reference_quantize(values_of(checkpoint, plan.sources[0]), kind)
        assert tensors[plan.name].data.tobytes() == expected.tobytes()


@pytest.mark.parametrize("target", ["float16", "bfloat16"])
def test_rounding_of_every_bfloat16_and_float16_number_equals_ggufs(target: Any) -> None:
    kind = {"float16": GGMLQuantizationType.F16, "bfloat16": GGMLQuantizationType.BF16}[target]
    bits = np.arange(1 << 16, dtype=np.uint16)
    for source, raw in (("BF16", bits), ("F16", bits.view(np.float16))):
        finite = raw[np.isfinite(widen(raw, source))].reshape(1, -1)
        with np.errstate(over="ignore"):
            expected = reference_quantize(widen(finite, source), kind)
        np.testing.assert_array_equal(convert_rows(finite, source, target).view(np.uint16), expected.view(np.uint16))


# --- laws


def test_file_dequantizes_to_what_the_quantizer_said(shaped: Checkpoint, tmp_path: Path) -> None:
    scheme, quantizer = Scheme("q4_k_m"), Ggml()
    _, tensors = read(export(shaped, scheme, tmp_path / "o"))
    for plan in Gguf().plan(shaped, scheme).tensors:
        rows = np.concatenate([values_of(shaped, source) for source in plan.sources])
        if isinstance(plan.storage, BlockGrid):
            expected = quantizer.dequantize(quantizer.quantize(rows, plan.storage))
        else:
            expected = rows.astype(plan.storage).astype(np.float32)
        found = tensors[plan.name]
        np.testing.assert_array_equal(dequantize(found.data, found.tensor_type).reshape(rows.shape), expected)


def test_plan_says_what_the_file_holds(shaped: Checkpoint, tmp_path: Path) -> None:
    path = export(shaped, "q3_k_m", tmp_path / "o")
    plan, (_, tensors) = Gguf().plan(shaped, Scheme("q3_k_m")), read(path)
    assert plan.container_type == "Q3_K_M"
    assert [t.name for t in plan.tensors] == list(tensors)
    for tensor in plan.tensors:
        assert tensor.nbytes == tensors[tensor.name].n_bytes
        assert tuple(reversed(tensors[tensor.name].shape.tolist())) == tensor.shape
        as_usual = tensors[tensor.name].tensor_type.name in {"F32", "Q3_K"} and "ffn_gate_inp" not in tensor.name
        assert (tensor.note is None) == as_usual
    assert {s for t in plan.tensors for s in t.sources} == set(shaped.tensors)


def test_bytes_depend_neither_on_threads_nor_on_chunks_nor_on_the_folder(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path / "c", num_layers=1, intermediate_size=320)))
    moved = open_checkpoint(str(shutil.copytree(checkpoint.directory, tmp_path / "elsewhere")))
    exporters = (Gguf(), Gguf(1), Gguf(5, 5000), Gguf(2, 1), Gguf(3, 1 << 30))
    digests = {
        hashlib.sha256(export(source, "q4_k_m", tmp_path / f"o{number}", exporter).read_bytes()).hexdigest()
        for number, exporter in enumerate(exporters)
        for source in [moved if number % 2 else checkpoint]
    }
    assert len(digests) == 1


def test_sharding_does_not_show(tmp_path: Path) -> None:
    one = open_checkpoint(str(make_checkpoint(tmp_path / "one")))
    many = open_checkpoint(str(make_checkpoint(tmp_path / "many", shards=4)))
    ours, theirs = export(one, "int4", tmp_path / "o"), export(many, "int4", tmp_path / "t")
    assert ours.read_bytes() == theirs.read_bytes()
    assert ours.name == theirs.name == "model-Q4_0.gguf"


def test_several_files_hold_what_one_does_and_llama_cpp_reads_them(shaped: Checkpoint, tmp_path: Path) -> None:
    most = 200_000
    whole = export(shaped, "q4_k_m", tmp_path / "one")
    first = export(shaped, Scheme("q4_k_m", split_max_size=most), tmp_path / "many")
    files = sorted(first.parent.iterdir())
    assert [path.name for path in files] == [
        f"model-Q4_K_M-{number:05d}-of-{len(files):05d}.gguf" for number in range(1, len(files) + 1)
    ]
    metadata, expected = read(whole)
    found: dict[str, Any] = {}
    for number, path in enumerate(files):
        keys, tensors = read(path)
        assert sum(int(tensor.n_bytes) for tensor in tensors.values()) <= most or len(tensors) == 1
        split = {key: keys.pop(f"split.{key}") for key in ("no", "count", "tensors.count")}
        assert split == {"no": number, "count": len(files), "tensors.count": len(expected)}
        of_model = {key for key in keys if not key.startswith("GGUF.")}
        assert of_model == ({key for key in metadata if not key.startswith("GGUF.")} if number == 0 else set())
        found |= tensors
    assert list(found) == list(expected)
    assert all(found[name].data.tobytes() == expected[name].data.tobytes() for name in expected)
    tokens = [5, 3, 200, 77]
    np.testing.assert_array_equal(llama_logits(first, tokens), llama_logits(whole, tokens))


# --- running it in llama.cpp


@pytest.mark.parametrize(
    "shape",
    [
        {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 640, "num_heads": 14, "tied": False},
        {"model_type": "qwen2", "hidden_size": 128, "num_heads": 2, "num_kv_heads": 1},
        {"model_type": "qwen3", "hidden_size": 192, "head_dim": 64, "config": {"rope_theta": 1e6}},
        {"model_type": "qwen3", "hidden_size": 256, "head_dim": 32, "tied": False, "shards": 2},
    ],
    ids=["qwen2-untied-896", "qwen2-tied", "qwen3-tied", "qwen3-untied"],
)
def test_logits_agree_with_transformers(tmp_path: Path, shape: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path / "c", **shape)))
    tokens = np.random.default_rng(0).integers(0, 4000, 40).tolist()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "c", dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    found = llama_logits(export(checkpoint, "fp16", tmp_path / "o"), tokens)
    assert np.abs(found - expected).max() < 0.02 * expected.std()  # float16 matrices and KV cache
    coarse = llama_logits(export(checkpoint, "int4", tmp_path / "q"), tokens)
    assert 0.02 < np.abs(coarse - expected).std() / expected.std() < 0.5  # the law can fail


def test_llama_cpp_tokenizes_and_ends_like_the_checkpoint(tmp_path: Path) -> None:
    import llama_cpp
    from tokenizers import Tokenizer

    checkpoint = open_checkpoint("tiny-qwen3")
    path = export(checkpoint, "int8", tmp_path / "o")
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    reference = Tokenizer.from_file(str(checkpoint.directory / "tokenizer.json"))
    texts = [
        "def f(x):\n\treturn x ** 2  # naïve\r\n\r\n",
        "I'll've  3,14159 'quotes' — 你好，世界 🙂 Ελληνικά",
        "<|im_start|>user\nhi<|im_end|>\n<think>\n</think><tool_call>{}</tool_call>",
        "   \n \t ",
    ]
    for text in texts:
        assert model.tokenize(text.encode(), add_bos=False, special=True) == reference.encode(text).ids
    assert model.tokenize(b"a", add_bos=True) == reference.encode("a").ids  # add_bos_token is false
    assert model.token_eos() == checkpoint.config.eos_token_ids[0]
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    assert all(llama_cpp.llama_vocab_is_eog(vocab, end) for end in checkpoint.config.eos_token_ids)
    assert model.metadata["tokenizer.chat_template"] == checkpoint.chat_template
    model.close()


# --- metadata


def test_metadata_is_complete(tmp_path: Path) -> None:
    checkpoint = open_checkpoint("tiny-qwen3")
    keys, _ = read(export(checkpoint, "int4", tmp_path / "o"))
    tokens, types = keys.pop("tokenizer.ggml.tokens"), keys.pop("tokenizer.ggml.token_type")
    merges = keys.pop("tokenizer.ggml.merges")
    root = json.loads((checkpoint.directory / "tokenizer.json").read_text(encoding="utf-8"))
    assert tokens[:4072] == sorted(root["model"]["vocab"], key=root["model"]["vocab"].__getitem__)
    assert tokens[4072:4075] == ["<|im_end|>", "<|endoftext|>", "<|im_start|>"]
    assert tokens[4081:] == [f"[PAD{number}]" for number in range(4081, 4096)]
    assert (set(types[:4072]), types[4072:4081], set(types[4081:])) == ({1}, [3, 3, 3, 4, 4, 4, 4, 4, 4], {5})
    assert merges == [" ".join(pair) for pair in root["model"]["merges"]]
    assert {k: v for k, v in keys.items() if not k.startswith("GGUF.")} == {
        "general.architecture": "qwen3",
        "general.type": "model",
        "general.name": "Qwen3 5.8M",
        "general.size_label": "5.8M",
        "general.file_type": 2,
        "general.quantization_version": 2,
        "general.sampling.temp": pytest.approx(0.7),
        "general.sampling.top_k": 20,
        "general.sampling.top_p": pytest.approx(0.8),
        "qwen3.block_count": 6,
        "qwen3.context_length": 2048,
        "qwen3.embedding_length": 256,
        "qwen3.feed_forward_length": 768,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 64,
        "qwen3.attention.value_length": 64,
        "qwen3.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "qwen3.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.eos_token_id": 4072,
        "tokenizer.ggml.bos_token_id": 4073,
        "tokenizer.ggml.padding_token_id": 4073,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": (checkpoint.directory / "chat_template.jinja").read_bytes().decode(),
    }


def test_name_comes_from_a_hub_id_in_the_config_and_never_from_a_path(tmp_path: Path) -> None:
    names = {}
    for number, recorded in enumerate(["Qwen/Qwen3-0.6B", "/home/me/secret/model", "../up"]):
        directory = make_checkpoint(tmp_path / str(number), num_layers=1, config={"_name_or_path": recorded})
        keys, _ = read(export(open_checkpoint(str(directory)), "int4", tmp_path / f"o{number}"))
        names[recorded] = keys["general.name"]
    assert names["Qwen/Qwen3-0.6B"] == "Qwen3-0.6B"
    assert names["/home/me/secret/model"] == "Qwen3 1.6M"


def edit(directory: Path, name: str, **change: Any) -> Checkpoint:
    """Change keys of a JSON file of a checkpoint and open it."""
    change_json(directory / name, **change)
    return open_checkpoint(str(directory))


def change_json(path: Path, **change: Any) -> None:
    """Change keys of a JSON file; a key of two parts, `a__b`, goes one level down."""
    root = json.loads(path.read_text(encoding="utf-8"))
    for key, value in change.items():
        *parents, last = key.split("__")
        place = root
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(json.dumps(root), encoding="utf-8")


@pytest.fixture(name="small")
def make_small(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "small", hidden_size=64, intermediate_size=64, num_layers=1, head_dim=32)


def test_both_layouts_of_merges_give_the_same_file(small: Path, tmp_path: Path) -> None:
    pairs = json.loads((small / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    assert isinstance(pairs[0], list)
    first = export(open_checkpoint(str(small)), "int4", tmp_path / "a").read_bytes()
    strings = edit(small, "tokenizer.json", model__merges=[" ".join(pair) for pair in pairs])
    assert export(strings, "int4", tmp_path / "b").read_bytes() == first


def test_unknown_ends_of_generation_get_keys_of_their_own(small: Path, tmp_path: Path) -> None:
    checkpoint = edit(small, "generation_config.json", eos_token_id=[4072, 4073, 4079, 4080])
    keys, _ = read(export(checkpoint, "int4", tmp_path / "o"))
    ends = [keys[f"tokenizer.ggml.{kind}_token_id"] for kind in ("eos", "eot", "eom")]
    assert ends == [4072, 4079, 4080]
    with pytest.raises(UnsupportedError, match="has 5 eos tokens"):
        export(edit(small, "generation_config.json", eos_token_id=[4072, 1, 2, 3, 4]), "int4", tmp_path / "p")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": []}, CheckpointError, "model must be an object, not list"),
        ({"model__vocab": "x"}, CheckpointError, r"model\.vocab must be an object, not str"),
        ({"model__vocab": {"a": "0"}}, CheckpointError, "token 'a' has id '0'"),
        ({"model__vocab": {"a": True}}, CheckpointError, "token 'a' has id True"),
        ({"model__vocab": {"a": 4096}}, CheckpointError, r"ids must lie in 0…4095"),
        ({"model__vocab": {"a": 1, "b": 1}}, CheckpointError, "tokens 'a' and 'b' share id 1"),
        ({"model__vocab": {"[PAD7]": 1}, "model__merges": []}, CheckpointError, r"'\[PAD7\]' has more than one id"),
        ({"model__vocab": {"\ud800": 1}, "model__merges": []}, CheckpointError, "a token is no valid text"),
        ({"model__merges": {}}, CheckpointError, r"model\.merges must be a list, not dict"),
        ({"model__merges": [["a", "b", "c"]]}, CheckpointError, "is not a pair of tokens"),
        ({"model__merges": [["a", 1]]}, CheckpointError, "is not a pair of tokens"),
        ({"model__merges": ["a"]}, CheckpointError, "'a' is not a pair of tokens"),
        ({"model__merges": [["zz", "zzz"]]}, CheckpointError, "is not of tokens in the vocabulary"),
        ({"model__type": "Unigram"}, UnsupportedError, "holds a 'Unigram' model"),
        ({"model__ignore_merges": True}, UnsupportedError, "sets ignore_merges"),
        ({"added_tokens": {}}, CheckpointError, "added_tokens must be a list, not dict"),
        ({"added_tokens": [{"id": 9999, "content": "x"}]}, CheckpointError, "needs a text and an id of its own"),
        ({"added_tokens": [7]}, CheckpointError, "the added token 7"),
        ({"normalizer": {"type": "Lowercase"}}, UnsupportedError, "normalizes text by 'Lowercase'"),
        ({"normalizer": 3}, CheckpointError, "normalizer must be an object, not int"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, UnsupportedError, "does not know as Qwen's"),
        ({"pre_tokenizer": {"type": "Sequence"}}, CheckpointError, "a Sequence without a list of steps"),
        (
            {"post_processor": {"type": "TemplateProcessing", "special_tokens": {"<s>": {}}}},
            UnsupportedError,
            "adds special tokens to every text",
        ),
    ],
)
def test_a_tokenizer_that_cannot_be_exported_is_refused_before_anything_is_written(
    small: Path, change: dict[str, Any], error: type[EdgekilnError], message: str
) -> None:
    checkpoint = open_checkpoint(str(small))  # which would refuse some of these itself
    change_json(small / "tokenizer.json", **change)
    with pytest.raises(error, match=message):
        Gguf().plan(checkpoint, Scheme("int4"))


def test_special_tokens_outside_of_the_vocabulary_are_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the token 5000 that ends a reply lies beyond the vocabulary of 4096"):
        export(edit(small, "generation_config.json", eos_token_id=5000), "int4", tmp_path / "o")
    assert not (tmp_path / "o").exists()


# --- refusals


@pytest.mark.parametrize(
    ("scheme", "error", "message"),
    [
        (Scheme("nf4"), UnsupportedError, "no NF4 type; the nearest is IQ4_NL: ask for iq4_nl"),
        (Scheme("int4", embedding_precision="nf4"), UnsupportedError, "iq4_nl"),
        (Scheme("int4", group_size=64), UsageError, "Q4_0 has groups of 32, not a group size of 64"),
        (Scheme("int8", group_size=128), UsageError, "Q8_0 has groups of 32"),
        (Scheme("q4_k_m", group_size=32), UsageError, "super-blocks of 256"),
        (Scheme("fp16", group_size=32), UsageError, "fp16 has no groups"),
        (Scheme("int8", symmetric=False), UnsupportedError, "no asymmetric 8-bit type"),
        (Scheme("q8_0", symmetric=False), UsageError, "q8_0 is symmetric by definition"),
        (Scheme("q4_k"), UsageError, "did you mean 'q4_k_s'|did you mean 'q4_k_m'"),
        (Scheme("int4", embedding_precision="int8", head_precision="q6_k"), UsageError, "ties them into one tensor"),
        (Scheme("int4", head_precision="int3"), UsageError, "no precision 'int3'"),
    ],
)
def test_schemes_that_the_container_cannot_hold(scheme: Scheme, error: type[EdgekilnError], message: str) -> None:
    with pytest.raises(error, match=message):
        Gguf().plan(open_checkpoint("tiny-qwen3"), scheme)


def test_generic_precisions_mean_what_the_interface_says() -> None:
    checkpoint = open_checkpoint("tiny-qwen3")
    for scheme, label in [
        (Scheme("fp16"), "F16"),
        (Scheme("int8", group_size=32), "Q8_0"),
        (Scheme("int4", group_size=32), "Q4_0"),
        (Scheme("int4", symmetric=False), "Q4_1"),
        (Scheme("q4_1", symmetric=False), "Q4_1"),
        (Scheme("q4_k_m", symmetric=False), "Q4_K_M"),
    ]:
        assert Gguf().plan(checkpoint, scheme).container_type == label
    assert set(Gguf.precisions) >= {"fp16", "int8", "int4", "q8_0", "q4_0", "q4_1", "q4_k_m", "iq4_nl"}


def test_fallbacks_are_noted(folder: Path) -> None:
    directory = folder / "qwen2-untied-896"
    if not directory.exists():
        make_checkpoint(directory, **SHAPES[directory.name])
    plan = Gguf().plan(open_checkpoint(str(directory)), Scheme("q4_k_m"))
    notes: dict[str, TensorPlan] = {t.name: t for t in plan.tensors}
    assert notes["blk.0.attn_q.weight"].storage_name == "Q5_0"
    assert notes["blk.0.attn_q.weight"].note == "rows of 896 do not divide by 256: Q5_0 instead of Q4_K"
    assert notes["output.weight"].storage_name == "Q8_0"
    assert notes["blk.0.attn_norm.weight"].storage_name == "float32"


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int4", "q6_k"])
@pytest.mark.parametrize(
    ("dtype", "bad", "nan"), [("BF16", b"\x80\x7f", 0), ("F16", b"\x01\xfe", 3), ("F32", b"\0\0\x80\xff", 0)]
)
def test_weights_that_are_not_finite_are_counted_by_tensor(
    tmp_path: Path, precision: str, dtype: str, bad: bytes, nan: int
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    directory = make_checkpoint(tmp_path / "c", num_layers=1, dtype=dtype)
    assert len(bad) == FLOAT_BYTES[dtype]
    change_weights(directory, name, {3: bad, 511 * 256: bad, 70000: bad})
    with pytest.raises(StepError, match=f"^{name} holds {nan} NaN and {3 - nan} infinite weights; "):
        export(open_checkpoint(str(directory)), precision, tmp_path / "o", Gguf(chunk_weights=4096))


def test_norms_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "c", num_layers=1)
    change_weights(directory, "model.norm.weight", {0: b"\xc0\x7f"})
    with pytest.raises(StepError, match=r"^model\.norm\.weight holds 1 NaN and 0 infinite weights"):
        export(open_checkpoint(str(directory)), "int4", tmp_path / "o")


def test_float16_overflow_is_counted_by_tensor(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    directory = make_checkpoint(tmp_path / "c", num_layers=1)
    change_weights(directory, name, {3: b"\x80\x47", 70000: b"\x80\xc7"})  # ±65536
    checkpoint = open_checkpoint(str(directory))
    with pytest.raises(StepError, match=f"^{name} holds 2 weights beyond ±65504, which float16 cannot hold"):
        export(checkpoint, "fp16", tmp_path / "o")
    export(checkpoint, "bf16", tmp_path / "b")
    export(checkpoint, "int8", tmp_path / "q")
    change_weights(directory, name, {3: b"\x7f\x7f"})  # 3.4e38
    with pytest.raises(StepError, match=f"^{name}: weights up to 3.39e.38 overflow the float16 scales of Q8_0"):
        export(checkpoint, "int8", tmp_path / "r")


def test_a_quantizer_of_another_grid_is_refused(tmp_path: Path) -> None:
    def wrong(rows: NDArray[np.float32], grid: Grid) -> IntegerRows:
        empty = np.zeros((len(rows), 1, 16), np.uint8)
        return IntegerRows(IntegerGrid(4, 32, True), rows.shape[1], empty, np.ones((len(rows), 1), np.float32), None)

    exporter, checkpoint = Gguf(), open_checkpoint("tiny-qwen3")
    with pytest.raises(StepError, match=r"token_embd\.weight was to be Q6_K"):
        exporter.write(checkpoint, exporter.plan(checkpoint, Scheme("int4")), tmp_path, wrong)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path\n"
        "from edgekiln.checkpoint import open_checkpoint\n"
        "from edgekiln.exporters.gguf import Gguf\n"
        "from edgekiln.memory import peak_rss_bytes\n"
        "from edgekiln.quantizers.ggml import Ggml\n"
        "from edgekiln.scheme import Scheme\n"
        "checkpoint, out = open_checkpoint(sys.argv[1]), Path(sys.argv[2]); out.mkdir()\n"
        "exporter = Gguf(threads=2); plan = exporter.plan(checkpoint, Scheme('int4'))\n"
        "exporter.write(checkpoint, plan, out, Ggml().quantize)\n"
        "print(peak_rss_bytes(), 'torch' in sys.modules, 'transformers' in sys.modules)\n"
    )
    peaks = []
    for layers in (1, 5):
        make_checkpoint(tmp_path / f"c{layers}", hidden_size=1024, intermediate_size=4096, num_layers=layers)
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / f"c{layers}"), str(tmp_path / f"o{layers}")],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": ""},
        )
        peak, *imported = done.stdout.split()
        assert imported == ["False", "False"]
        peaks.append(int(peak))
        shutil.rmtree(tmp_path / f"c{layers}")
    assert peaks[1] - peaks[0] < 16 << 20  # the four layers more are 126 MB of weights
    assert peaks[1] < 250 << 20


# --- devices


def test_the_file_is_the_same_for_every_backend(tmp_path: Path) -> None:
    checkpoint, exporter = open_checkpoint("tiny-qwen3"), Gguf()
    for backend in ("cpu", "metal", "vulkan"):
        (tmp_path / backend).mkdir()
        plan = exporter.plan(checkpoint, Scheme("int4"), Device(backend, 512))
        assert plan.device == Device(backend, 512)
        exporter.write(checkpoint, plan, tmp_path / backend, Ggml().quantize)
    files = [(tmp_path / backend / "model-Q4_0.gguf").read_bytes() for backend in ("cpu", "metal", "vulkan")]
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize(
    ("provider", "message"),
    [
        ("qnn", "GGUF is not exported for qnn: .* hexagon .* opencl"),
        ("dml", "no DirectML; use vulkan"),
        ("vulcan", "which it does not know; did you mean 'vulkan'"),
    ],
)
def test_a_backend_that_llama_cpp_lacks_is_refused_with_the_way_out(provider: str, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        Gguf().plan(open_checkpoint("tiny-qwen3"), Scheme("int4"), Device(provider))


def test_the_tables_answer_without_a_checkpoint() -> None:
    exporter = Gguf()
    for backend in exporter.providers:
        assert exporter.unsupported(Scheme("q4_k_m"), Device(backend)) is None
    reason = exporter.unsupported(Scheme("nf4"), Device())
    assert reason == "GGUF does not hold nf4; use iq4_nl, the nearest it has"
    assert set(exporter.nearest.values()) <= set(exporter.precisions)
    for plain, offset in exporter.asymmetric.items():
        with pytest.raises(UsageError, match="symmetric by definition"):
            exporter.plan(open_checkpoint("tiny-qwen3"), Scheme(plain, symmetric=False))
        assert exporter.plan(open_checkpoint("tiny-qwen3"), Scheme(offset, symmetric=False)).container_type
