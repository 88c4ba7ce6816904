"""The ONNX exporter: what lies in the file is what the quantizer said, and ONNX Runtime computes the model with it."""

import hashlib
import json

import numpy as np
import onnx
import onnxruntime
import pytest

from checkpoints import make_checkpoint
from edgekiln.checkpoint import EMBEDDED, open_checkpoint
from edgekiln.errors import StepError, UnsupportedError, UsageError
from edgekiln.exporters.genai_config import genai_config
from edgekiln.exporters.onnx import MODEL_FILE, Onnx, pack_zero_points
from edgekiln.exporters.onnx_graph import build_float_graph
from edgekiln.exporters.onnx_layout import DATA_FILE, place
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
}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def checkpoint(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "checkpoint"
    make_checkpoint(directory, **request.param)
    return open_checkpoint(str(directory))


def export(checkpoint, scheme, directory):
    directory.mkdir()
    exporter = Onnx()
    plan = exporter.plan(checkpoint, scheme)
    exporter.write(checkpoint, plan, directory, quantize)
    return plan


def source_rows(checkpoint, plan):
    with checkpoint.reader() as reader:
        infos = [checkpoint.tensors[name] for name in plan.sources]
        rows = [reader.rows(info, 0, info.rows) for info in infos]
    return np.concatenate(rows, axis=0 if len(plan.shape) == 2 else 1)


def unpack4(packed, count):
    return np.stack((packed & 15, packed >> 4), -1).reshape(packed.shape[0], -1)[:, :count]


def read_back(data, placed):
    """Return the values that the finished file holds for one tensor."""
    dtypes = {"uint8": np.uint8, "float16": np.float16, "float32": np.float32}
    parts = {
        role: np.frombuffer(data, dtypes[part.dtype], np.prod(part.shape), part.offset).reshape(part.shape)
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


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_the_file_holds_exactly_what_the_quantizer_said(checkpoint, scheme, tmp_path):
    plan = export(checkpoint, scheme, tmp_path / "out")
    data = (tmp_path / "out" / DATA_FILE).read_bytes()
    for placed in place(plan.tensors).values():
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
        np.testing.assert_array_equal(read_back(data, placed).reshape(expected.shape), expected, placed.plan.name)


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
    data = (directory / DATA_FILE).read_bytes()
    weights = {}
    for placed in place(plan.tensors).values():
        values = read_back(data, placed) if placed.plan.sources else None
        start = 0
        for name in placed.plan.sources:
            shape = checkpoint.tensors[name].shape
            key = HEAD if placed.plan.name == HEAD else name
            weights[key] = values[start : start + shape[0]].reshape(shape)
            start += shape[0]
    return weights


def onnx_logits(checkpoint, directory, ids):
    session = onnxruntime.InferenceSession(directory / MODEL_FILE, providers=["CPUExecutionProvider"])
    config = checkpoint.config
    past = np.zeros((1, config.num_kv_heads, 0, config.head_dim), np.float32)
    feeds = {i.name: past for i in session.get_inputs() if i.name.startswith("past")}
    feeds |= {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
    return session.run(["logits"], feeds)[0][0]


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
    artifact = onnx_logits(checkpoint, tmp_path / "out", ids)
    # Integer kernels quantize their activations to int8; everything else is float32 arithmetic.
    limit = 1e-3 if any(isinstance(tensor.storage, IntegerGrid) for tensor in plan.tensors) else 1e-6
    assert mean_kld(reference, artifact) < limit
    assert mean_kld(reference, reference[:, ::-1]) > 100 * limit  # the measure can tell


def test_the_same_export_gives_the_same_bytes(checkpoint, tmp_path):
    for name in ("a", "b"):
        export(checkpoint, Scheme("int4"), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_the_plan_predicts_the_bytes(checkpoint, scheme, tmp_path):
    plan = export(checkpoint, scheme, tmp_path / "out")
    written = (tmp_path / "out" / DATA_FILE).stat().st_size
    assert plan.weights_bytes <= written <= plan.weights_bytes + 64 * 3 * len(plan.tensors)


def test_the_graph_passes_the_checker_and_refers_to_its_own_folder(checkpoint, tmp_path):
    export(checkpoint, Scheme("int4"), tmp_path / "out")
    onnx.checker.check_model(tmp_path / "out" / MODEL_FILE)
    model = onnx.load(tmp_path / "out" / MODEL_FILE, load_external_data=False)
    places = {entry.value for t in model.graph.initializer for entry in t.external_data if entry.key == "location"}
    assert places == {DATA_FILE}


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
    "group does not divide": (Scheme("int4", group_size=256), UsageError, "group size 256 does not divide the 896"),
    "no such group": (Scheme("int4", group_size=48), UsageError, "choose one of"),
    "fp16 with groups": (Scheme("fp16", group_size=32), UsageError, "no groups"),
    "asymmetric nf4": (Scheme("nf4", symmetric=False), UsageError, "no asymmetric form"),
    "another container's": (Scheme("q4_k_m"), UnsupportedError, "choose one of"),
    "nf4 embeddings": (Scheme("int4", embedding_precision="nf4"), UnsupportedError, "use int8 or int4"),
}


@pytest.mark.parametrize(("scheme", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, scheme, error, message):
    make_checkpoint(tmp_path / "c", model_type="qwen2", hidden_size=896, tied=True)
    with pytest.raises(error, match=message):
        Onnx().plan(open_checkpoint(str(tmp_path / "c")), scheme)


@pytest.mark.parametrize(("value", "precision", "message"), [
    (np.nan, "int4", "1 NaN or infinite"), (np.inf, "int8", "1 NaN or infinite"), (1e6, "fp16", "1 weights beyond"),
])  # fmt: skip
def test_weights_that_no_container_holds_are_an_error_with_their_name(tmp_path, value, precision, message):
    make_checkpoint(tmp_path / "c", model_type="qwen3", hidden_size=128, dtype="F32")
    checkpoint = open_checkpoint(str(tmp_path / "c"))
    info = checkpoint.tensors["model.layers.1.mlp.up_proj.weight"]
    with info.path.open("r+b") as file:
        file.seek(info.offset + 40)
        file.write(np.float32(value).tobytes())
    with pytest.raises(StepError, match=f"layers.1.mlp.up_proj.weight holds {message}"):
        export(checkpoint, Scheme(precision), tmp_path / "out")


def test_zero_points_pack_low_nibble_first():
    packed = pack_zero_points(np.array([[1, 2, 3]], np.uint8), 4)
    np.testing.assert_array_equal(packed, [[1 | 2 << 4, 3]])
