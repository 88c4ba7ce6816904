"""The ONNX exporter: what lies in the file is what the quantizer said, and ONNX Runtime computes the model with it."""

import hashlib
import json
import math
import subprocess
import sys

import numpy as np
import onnx
import pytest

from artifacts import onnx_logits
from checkpoints import make_checkpoint
from edgekiln.checkpoint import EMBEDDED, open_checkpoint
from edgekiln.device import ANY_CPU, Device
from edgekiln.errors import StepError, UnsupportedError, UsageError
from edgekiln.exporters.genai_config import genai_config
from edgekiln.exporters.gguf import Gguf
from edgekiln.exporters.onnx import Onnx, pack_zero_points
from edgekiln.exporters.onnx_graph import build_float_graph
from edgekiln.exporters.onnx_layout import ROTARY_TABLES, place
from edgekiln.exporters.onnx_portable import IR_VERSION, OPSET
from edgekiln.exporters.onnx_providers import PROVIDERS
from edgekiln.exporters.onnx_providers import REFUSED as REFUSED_PROVIDERS
from edgekiln.exporters.onnx_task import MODEL_FILE, make_graph, scratch_folder
from edgekiln.families import EMBEDDING, HEAD
from edgekiln.grids import CodebookRows, IntegerGrid, IntegerRows
from edgekiln.quantizers import quantize, quantizer_for
from edgekiln.scheme import Scheme

MODELS = {
    "qwen2 untied, biases": {"model_type": "qwen2", "hidden_size": 896, "tied": False},
    "qwen3 tied": {"model_type": "qwen3", "hidden_size": 256, "tied": True},
}
SCHEMES = {
    "fp16": Scheme("fp16"),
    "int8": Scheme("int8"),
    "int8 asymmetric": Scheme("int8", symmetric=False),
    "int4": Scheme("int4"),
    "int4 g128": Scheme("int4", group_size=128),
    "int4 asymmetric": Scheme("int4", symmetric=False),
    "nf4": Scheme("nf4"),
    "int4, int8 ends": Scheme("int4", embedding_precision="int8", head_precision="int8"),
    "int4, int8 head": Scheme("int4", embedding_precision="int4", head_precision="int8"),
    "int4 with overrides": Scheme(
        "int4",
        group_size=64,
        overrides=(
            ("model.layers.0.mlp.*", "int8"),
            ("*.mlp.down_proj", "nf4"),
            ("*.o_proj", "fp16"),
            ("lm_head", "int8"),
        ),
    ),
    "int8 in several files": Scheme("int8", split_max_size=1_000_000),
}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def checkpoint(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "checkpoint"
    make_checkpoint(directory, **request.param)
    return open_checkpoint(str(directory))


#: What runs on a graphics card, tried on the CPU: every provider, every precision that it holds.
DEVICES = {
    "cuda fp16": ("cuda", SCHEMES["fp16"]),
    "cuda int4 asymmetric": ("cuda", SCHEMES["int4 asymmetric"]),
    "cuda nf4": ("cuda", SCHEMES["nf4"]),
    "webgpu int8": ("webgpu", SCHEMES["int8"]),
    "dml int4": ("dml", SCHEMES["int4"]),
}


def export(checkpoint, scheme, directory, device=ANY_CPU):
    directory.mkdir()
    exporter = Onnx()
    plan = exporter.plan(checkpoint, scheme, device)
    exporter.write(checkpoint, plan, directory, quantize)
    return plan


def source_rows(checkpoint, plan):
    with checkpoint.reader() as reader:
        infos = [checkpoint.tensors[name] for name in plan.sources]
        rows = [reader.rows(info, 0, info.rows) for info in infos]
    return np.concatenate(rows, axis=0 if len(plan.shape) == 2 else 1)


def unpack4(packed, count):
    return np.stack((packed & 15, packed >> 4), -1).reshape(packed.shape[0], -1)[:, :count]


def read_back(directory, placed):
    """Return the values that the finished files hold for one tensor."""
    dtypes = {"uint8": np.uint8, "float16": np.float16, "float32": np.float32}
    parts = {
        role: np.fromfile(directory / part.file, dtypes[part.dtype], math.prod(part.shape), offset=part.offset).reshape(
            part.shape
        )
        for role, part in placed.parts.items()
    }
    storage = placed.plan.storage
    if "values" in parts:
        return parts["values"].astype(np.float32)
    if "absmax" in parts:
        rows = CodebookRows(storage, placed.plan.shape[-1], parts["codes"], parts["absmax"])
    else:
        zero_points = parts.get("zero_points")
        if zero_points is not None and storage.bits == 4:
            zero_points = unpack4(zero_points, parts["scales"].shape[1])
        rows = IntegerRows(storage, placed.plan.shape[-1], parts["codes"], parts["scales"], zero_points)
    return quantizer_for(storage).dequantize(rows)


def assert_the_file_holds_what_the_quantizer_said(checkpoint, plan, directory):
    for placed in place(plan.tensors, most=plan.scheme.split_max_size).values():
        if not placed.plan.sources:
            continue
        rows, storage = source_rows(checkpoint, placed.plan), placed.plan.storage
        if storage == "float16":
            expected = rows.astype(np.float16).astype(np.float32)
        elif storage == "float32":
            expected = rows
        else:
            quantizer = quantizer_for(storage)
            expected = quantizer.dequantize(quantizer.quantize(rows, storage))
        np.testing.assert_array_equal(read_back(directory, placed).reshape(expected.shape), expected, placed.plan.name)


@pytest.mark.parametrize(("provider", "scheme"), [("cpu", SCHEMES["int4"]), *DEVICES.values()])
def test_a_graph_has_the_shapes_of_what_it_computes_and_no_notes(checkpoint, provider, scheme, tmp_path):
    export(checkpoint, scheme, tmp_path / "out", Device(provider))
    graph = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph
    described = {value.name for value in graph.value_info}
    assert not described & {initializer.name for initializer in graph.initializer}
    attended = {node.output[0] for node in graph.node if node.op_type == "GroupQueryAttention"}
    assert attended
    assert attended <= described
    assert not any(item.metadata_props for item in (*graph.node, *graph.input, *graph.output, *graph.value_info))


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_the_file_holds_exactly_what_the_quantizer_said(checkpoint, scheme, tmp_path):
    plan = export(checkpoint, scheme, tmp_path / "out")
    assert_the_file_holds_what_the_quantizer_said(checkpoint, plan, tmp_path / "out")


def reference_logits(checkpoint, weights, ids):
    """Return the logits of Transformers with these float32 weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(checkpoint.directory, local_files_only=True)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    state = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {HEAD}
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def stored_weights(checkpoint, plan, directory):
    """Return what the artifact's file holds, under the checkpoint's names and shapes."""
    weights = {}
    for placed in place(plan.tensors, most=plan.scheme.split_max_size).values():
        values = read_back(directory, placed) if placed.plan.sources else None
        start = 0
        for name in placed.plan.sources:
            shape = checkpoint.tensors[name].shape
            key = HEAD if placed.plan.name == HEAD else name
            weights[key] = values[start : start + shape[0]].reshape(shape)
            start += shape[0]
    return weights


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def mean_kld(reference, artifact):
    p, q = log_softmax(reference), log_softmax(artifact)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_onnx_runtime_computes_the_model_that_the_file_holds(checkpoint, scheme, tmp_path):
    plan = export(checkpoint, scheme, tmp_path / "out")
    weights = stored_weights(checkpoint, plan, tmp_path / "out")
    if checkpoint.config.tie_word_embeddings and HEAD in weights:
        pytest.skip("Transformers has one tensor for a tied pair; the untied model covers two precisions")
    ids = [5, 17, 300, 4000, 17, 2, 9, 1000]
    reference = reference_logits(checkpoint, weights, ids)
    artifact = onnx_logits(tmp_path / "out", checkpoint.config, ids)
    # Integer kernels quantize their activations to int8; everything else is float32 arithmetic.
    limit = 1e-3 if any(isinstance(tensor.storage, IntegerGrid) for tensor in plan.tensors) else 1e-6
    assert mean_kld(reference, artifact) < limit
    assert mean_kld(reference, reference[:, ::-1]) > 100 * limit  # the measure can tell


def test_no_data_file_is_larger_than_asked_unless_a_single_tensor_is(checkpoint, tmp_path):
    plan = export(checkpoint, SCHEMES["int8 in several files"], tmp_path / "out")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").glob("*.data")}
    assert sorted(sizes) == [f"model-{n:05d}-of-{len(sizes):05d}.onnx.data" for n in range(1, len(sizes) + 1)]
    padding = 64 * 3 * len(plan.tensors)
    inside = {name: [] for name in sizes}
    for placed in place(plan.tensors, most=1_000_000).values():
        (file,) = {part.file for part in placed.parts.values()}
        inside[file].append(placed.plan.nbytes)
    assert all(size <= 1_000_000 + padding or len(inside[name]) == 1 for name, size in sizes.items())


def test_bytes_depend_neither_on_threads_nor_on_chunks(checkpoint, tmp_path):
    plan = Onnx().plan(checkpoint, Scheme("int4", symmetric=False))
    found = set()
    for number, exporter in enumerate((Onnx(), Onnx(1), Onnx(5, 5000), Onnx(3, 1))):
        directory = tmp_path / str(number)
        directory.mkdir()
        exporter.write(checkpoint, plan, directory, quantize)
        found.add(tuple(hashlib.sha256(path.read_bytes()).digest() for path in sorted(directory.iterdir())))
    assert len(found) == 1


def test_the_same_export_gives_the_same_bytes(checkpoint, tmp_path):
    for name in ("a", "b"):
        export(checkpoint, Scheme("int4"), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_a_graph_made_in_a_process_of_its_own_is_the_same(checkpoint, tmp_path, monkeypatch):
    scheme = Scheme("int4", symmetric=False, head_precision="int8", split_max_size=1_000_000, accuracy_level=1)
    export(checkpoint, scheme, tmp_path / "here")
    monkeypatch.setattr("edgekiln.exporters.onnx_task.APART_WEIGHTS", 0)
    export(checkpoint, scheme, tmp_path / "apart")
    found = {path.name: path.read_bytes() for path in (tmp_path / "apart").iterdir()}
    assert found == {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}


def test_a_graph_that_cannot_be_made_ends_the_writing(tmp_path, monkeypatch):
    def broken(*_):
        raise StepError("no graph")

    monkeypatch.setattr("edgekiln.exporters.onnx.make_graph", broken)
    checkpoint, done = open_checkpoint(EMBEDDED), []

    def slow(rows, grid):
        done.append(rows.shape)
        return quantize(rows, grid)

    (tmp_path / "out").mkdir()
    exporter = Onnx(threads=1, chunk_weights=1000)
    with pytest.raises(StepError, match="no graph"):
        exporter.write(checkpoint, exporter.plan(checkpoint, Scheme("int4")), tmp_path / "out", slow)
    assert len(done) < 100  # of some thousand chunks


def test_a_checkpoint_that_changes_under_the_process_of_the_graph_is_told(tmp_path, monkeypatch):
    make_checkpoint(tmp_path / "c", num_layers=2)
    checkpoint = open_checkpoint(str(tmp_path / "c"))
    monkeypatch.setattr("edgekiln.exporters.onnx_task.APART_WEIGHTS", 0)
    plan = Onnx().plan(checkpoint, Scheme("fp16"))
    make_checkpoint(tmp_path / "c", num_layers=1)
    with scratch_folder() as scratch, pytest.raises(StepError, match="changed while it was exported"):
        make_graph(checkpoint, plan, place(plan.tensors), tmp_path, scratch)
    assert not (tmp_path / MODEL_FILE).exists()
    assert not scratch.exists()


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_the_plan_predicts_the_bytes(checkpoint, scheme, tmp_path):
    plan = export(checkpoint, scheme, tmp_path / "out")
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.data"))
    assert plan.weights_bytes <= written <= plan.weights_bytes + 64 * 3 * len(plan.tensors)


def test_the_graph_passes_the_checker_and_refers_to_its_own_folder(checkpoint, tmp_path):
    export(checkpoint, Scheme("int4"), tmp_path / "out")
    onnx.checker.check_model(tmp_path / "out" / MODEL_FILE)
    model = onnx.load(tmp_path / "out" / MODEL_FILE, load_external_data=False)
    places = {entry.value for t in model.graph.initializer for entry in t.external_data if entry.key == "location"}
    assert places == {"model.onnx.data"}


def test_tied_embeddings_are_written_once(tmp_path):
    checkpoint = open_checkpoint(EMBEDDED)
    export(checkpoint, Scheme("int8"), tmp_path / "out")
    model = onnx.load(tmp_path / "out" / MODEL_FILE, load_external_data=False)
    offsets = {
        t.name: {e.key: e.value for e in t.external_data}["offset"] for t in model.graph.initializer if t.external_data
    }
    assert offsets[f"{EMBEDDING}.codes"] == offsets[f"{EMBEDDING}.table"]


def test_tokenizer_files_are_copied_byte_for_byte(tmp_path):
    checkpoint = open_checkpoint(EMBEDDED)
    export(checkpoint, Scheme("int4"), tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (checkpoint.directory / name).read_bytes()


def test_genai_config_says_what_the_checkpoint_says():
    config = open_checkpoint(EMBEDDED).config
    document = json.loads(genai_config(config, "m.onnx"))
    model, decoder = document["model"], document["model"]["decoder"]
    assert (model["type"], model["eos_token_id"], model["pad_token_id"]) == ("qwen3", [4072, 4073], 4073)
    assert (model["context_length"], model["vocab_size"], decoder["filename"]) == (2048, 4096, "m.onnx")
    assert (decoder["num_hidden_layers"], decoder["head_size"], decoder["num_key_value_heads"]) == (6, 64, 2)
    search = document["search"]
    assert (search["do_sample"], search["temperature"], search["top_p"], search["top_k"]) == (True, 0.7, 0.8, 20)
    assert "repetition_penalty" not in search


GRAPH_DIGESTS = {
    # A change means another mobius or ONNX IR: run the parity tests of a real checkpoint before renewing it.
    "qwen2": "f5712b7d9fe8bf20",
    "qwen2_moe": "be58896bec246481",
    "qwen3_moe": "ce564b9127171a62",
    "qwen3": "a9a0b7f8cc4f9637",
}


@pytest.mark.parametrize("model_type", GRAPH_DIGESTS)
def test_the_float_graph_of_a_family_is_the_one_that_was_tried(model_type, tmp_path):
    make_checkpoint(tmp_path / "c", model_type=model_type, hidden_size=128)
    model = build_float_graph(open_checkpoint(str(tmp_path / "c")).config)
    lines = [
        f"{node.domain}:{node.op_type} {[v.name if v else None for v in node.inputs]} -> "
        f"{[v.name for v in node.outputs]} {sorted(node.attributes)}"
        for node in model.graph
    ]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == GRAPH_DIGESTS[model_type]


REFUSED = {
    "one part of three fused ones": (
        Scheme("int4", overrides=(("*.q_proj", "int8"),)),
        UsageError,
        "are one tensor in the artifact, so an override gives all of them one precision",
    ),
    "nothing has such a name": (Scheme("int4", overrides=(("*.experts", "int8"),)), UsageError, "matches none of"),
    "no such override": (Scheme("int4", overrides=(("*", "q4_k_m"),)), UnsupportedError, "ONNX does not hold q4_k_m"),
    "a source of GGUF's": (Scheme("int4", gguf_source="f16"), UsageError, "gguf_source is of GGUF's types"),
    "group does not divide": (Scheme("int4", group_size=256), UsageError, "group size 256 does not divide the 896"),
    "no such group": (Scheme("int4", group_size=48), UsageError, "choose one of"),
    "fp16 with groups": (Scheme("fp16", group_size=32), UsageError, "no groups"),
    "asymmetric nf4": (Scheme("nf4", symmetric=False), UsageError, "no asymmetric form"),
    "another container's": (Scheme("q4_k_m"), UnsupportedError, "choose one of"),
    "nf4 embeddings by pattern": (
        Scheme("int4", overrides=(("*.embed_tokens", "nf4"),)),
        UnsupportedError,
        "use int8 or int4",
    ),
    "nf4 embeddings": (Scheme("int4", embedding_precision="nf4"), UnsupportedError, "use int8 or int4"),
}


@pytest.mark.parametrize(("scheme", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, scheme, error, message):
    make_checkpoint(tmp_path / "c", model_type="qwen2", hidden_size=896, tied=True)
    with pytest.raises(error, match=message):
        Onnx().plan(open_checkpoint(str(tmp_path / "c")), scheme)


def damage(checkpoint, name, weights):
    """Overwrite float32 weights of one tensor by index."""
    info = checkpoint.tensors[name]
    with info.path.open("r+b") as file:
        for index, value in weights.items():
            file.seek(info.offset + 4 * index)
            file.write(np.float32(value).tobytes())


@pytest.mark.parametrize("exporter", [Onnx(), Gguf()], ids=["onnx", "gguf"])
def test_weights_that_no_container_holds_are_counted_and_named_alike(tmp_path, exporter):
    make_checkpoint(tmp_path / "c", model_type="qwen2", hidden_size=1024, num_layers=1, dtype="F32")
    checkpoint, name = open_checkpoint(str(tmp_path / "c")), "model.layers.0.self_attn.k_proj.weight"
    far = checkpoint.tensors["model.embed_tokens.weight"].elements - 1  # in another chunk than the first
    cases = [
        (name, {10: np.nan, 11: np.inf, 12: -np.inf}, "int4", f"{name} holds 1 NaN and 2 infinite weights; fetch the"),
        (EMBEDDING, {5: np.nan, far: np.nan}, "int8", f"{EMBEDDING} holds 2 NaN and 0 infinite weights; fetch the"),
        (name, {10: 1e6, 11: -65520}, "fp16", f"{name} holds 2 weights beyond ±65504, which float16 cannot hold"),
    ]
    for count, (damaged, weights, precision, message) in enumerate(cases):
        damage(checkpoint, damaged, weights)
        (tmp_path / f"{count}").mkdir()
        with pytest.raises(StepError, match=f"^{message}"):
            exporter.write(checkpoint, exporter.plan(checkpoint, Scheme(precision)), tmp_path / f"{count}", quantize)
        damage(checkpoint, damaged, dict.fromkeys(weights, 0))


def test_zero_points_pack_low_nibble_first():
    packed = pack_zero_points(np.array([[1, 2, 3]], np.uint8), 4)
    np.testing.assert_array_equal(packed, [[1 | 2 << 4, 3]])


@pytest.mark.parametrize(("provider", "scheme"), DEVICES.values(), ids=DEVICES)
def test_an_artifact_for_a_graphics_card_holds_and_computes_the_same_in_float16(checkpoint, provider, scheme, tmp_path):
    plan = export(checkpoint, scheme, tmp_path / "out", Device(provider))
    assert_the_file_holds_what_the_quantizer_said(checkpoint, plan, tmp_path / "out")
    assert "float32" not in {tensor.storage for tensor in plan.tensors}
    weights = stored_weights(checkpoint, plan, tmp_path / "out")
    if checkpoint.config.tie_word_embeddings and HEAD in weights:
        pytest.skip("Transformers has one tensor for a tied pair; the untied model covers two precisions")
    ids = [5, 17, 300, 4000, 17, 2, 9, 1000]
    artifact = onnx_logits(tmp_path / "out", checkpoint.config, ids)
    assert artifact.dtype == np.float16
    limit = 1e-3 if any(isinstance(tensor.storage, IntegerGrid) for tensor in plan.tensors) else 1e-5
    reference = reference_logits(checkpoint, weights, ids)
    assert mean_kld(reference, artifact) < limit
    assert mean_kld(reference, reference[:, ::-1]) > 100 * limit


@pytest.mark.parametrize("provider", sorted(set(PROVIDERS) - {"cpu"}))
def test_a_graph_for_a_graphics_card_has_no_operator_newer_than_its_opset(checkpoint, provider, tmp_path):
    export(checkpoint, Scheme("int4"), tmp_path / "out", Device(provider))
    model = onnx.load(tmp_path / "out" / MODEL_FILE, load_external_data=False)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    assert (opsets[""], model.ir_version, list(model.functions)) == (OPSET, IR_VERSION, [])
    used = {(node.domain, node.op_type) for node in model.graph.node}
    own = {
        ("com.microsoft", name) for name in ("GroupQueryAttention", "MatMulNBits", "SkipSimplifiedLayerNormalization")
    }
    assert own | {("", "SimplifiedLayerNormalization")} <= used
    for domain, op_type in used - {("", "SimplifiedLayerNormalization")}:
        assert domain or onnx.defs.get_schema(op_type, OPSET, "").since_version <= OPSET
    levels = {a.i for n in model.graph.node if n.op_type == "MatMulNBits" for a in n.attribute if a.name[:3] == "acc"}
    assert levels == {PROVIDERS[provider].accuracy_level}
    rotary = {name for name in used if name[1] == "RotaryEmbedding"}
    assert rotary == (set() if PROVIDERS[provider].rotates_in_attention else {("com.microsoft", "RotaryEmbedding")})


def test_rotary_tables_are_the_cpu_ones_rounded_once(tmp_path):
    checkpoint, tables = open_checkpoint(EMBEDDED), {}
    for provider, dtype in (("cpu", np.float32), ("cuda", np.float16)):
        plan = export(checkpoint, Scheme("int4"), tmp_path / provider, Device(provider))
        data, placed = (tmp_path / provider / "model.onnx.data").read_bytes(), place(plan.tensors)
        parts = [placed[name].parts["values"] for name in ROTARY_TABLES]
        tables[provider] = [np.frombuffer(data, dtype, part.nbytes // dtype().itemsize, part.offset) for part in parts]
    for wide, half in zip(tables["cpu"], tables["cuda"], strict=True):
        np.testing.assert_array_equal(wide.astype(np.float16), half)


def test_genai_config_says_what_the_device_needs():
    config = open_checkpoint(EMBEDDED).config
    for device, options, longest in (
        (Device(), [], 2048),
        (Device("cpu", 512), [], 512),
        (Device("cuda", 100_000), [{"cuda": {}}], 2048),
        (Device("webgpu", 512), [{"webgpu": {}}], 512),
        (Device("dml"), [{"dml": {"enable_graph_capture": "0"}}], 2048),
    ):
        document = json.loads(genai_config(config, "m.onnx", device))
        assert document["model"]["decoder"]["session_options"]["provider_options"] == options
        assert (document["search"]["max_length"], document["model"]["context_length"]) == (longest, 2048)
        assert ("position_ids" in document["model"]["decoder"]["inputs"]) == (device.execution_provider == "dml")


GENERATE = """
import sys, onnxruntime_genai as og
og.disable_telemetry_events()
config = og.Config(sys.argv[1])
config.clear_providers()
model = og.Model(config)
generator = og.Generator(model, og.GeneratorParams(model))
generator.append_tokens([5, 17, 300, 4000])
count = 4
while not generator.is_done():
    generator.generate_next_token()
    count += 1
print(count)
"""


@pytest.mark.parametrize("provider", ["webgpu", "dml"])
def test_the_runtime_generates_up_to_the_devices_context(provider, tmp_path):
    export(open_checkpoint(EMBEDDED), Scheme("int4"), tmp_path / "out", Device(provider, 24))
    path = tmp_path / "out" / "genai_config.json"
    document = json.loads(path.read_text())
    document["model"]["eos_token_id"] = [4095]
    path.write_text(json.dumps(document))
    shown = subprocess.run(  # a child: the runtime prints, and holds its libraries until the process ends
        [sys.executable, "-c", GENERATE, tmp_path / "out"], capture_output=True, text=True, timeout=120, check=False
    )
    assert (shown.returncode, shown.stdout.strip()) == (0, "24"), shown.stderr


def test_what_a_provider_lacks_is_refused_with_the_way_out():
    exporter = Onnx()
    for provider in PROVIDERS:
        assert exporter.unsupported(Scheme("int4"), Device(provider)) is None
    for provider, reason in REFUSED_PROVIDERS.items():
        assert (
            exporter.unsupported(Scheme("int4"), Device(provider)) == f"ONNX is not exported for {provider}: {reason}"
        )
        assert " use " in reason
    for scheme, provider, message in (
        (Scheme("int8"), "dml", "use int4 or fp16"),
        (Scheme("int4", head_precision="int8"), "dml", "no 8-bit artifact was ever tried on DirectML"),
        (Scheme("nf4"), "dml", "no MatMulBnb4; use int4"),
        (Scheme("int4", embedding_precision="int4"), "dml", "looks embeddings up in int4; use fp16"),
        (Scheme("int4"), "webgp", "did you mean 'webgpu'"),
    ):
        with pytest.raises(UnsupportedError, match=message):
            exporter.plan(open_checkpoint(EMBEDDED), scheme, Device(provider))
