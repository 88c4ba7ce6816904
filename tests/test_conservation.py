"""Every weight of the checkpoint is found in every artifact, and whatever is done to one is told by its cause."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest

from artifacts import artifact, gguf_file
from checkpoints import make_checkpoint
from edgekiln.checkpoint import Checkpoint, open_checkpoint
from edgekiln.pipelines.export import export
from edgekiln.scheme import Scheme
from edgekiln.validators.conservation import Audit, audit
from edgekiln.validators.kinds import identify
from edgekiln.validators.report import ConservationReport, PrecisionReport
from mutants import swap_layers
from weight_bytes import change, find, read, swap

PRECISIONS = [
    *(("gguf", name) for name in ("fp16", "int8", "int4", "q4_k_m", "q2_k", "iq4_xs", "q5_1")),
    *(("onnx", name) for name in ("fp16", "int8", "int4", "nf4")),
    ("foundry-local", "int4"),
]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint("tiny-qwen3")


def run(path: Path, checkpoint: Checkpoint, **options) -> Audit:
    return audit(identify(path), checkpoint, **options)


def found(result: Audit) -> dict[str, list[str]]:
    """Return the subjects of all errors by id."""
    listed: dict[str, list[str]] = {}
    for check in result.checks:
        for finding in check.findings:
            if finding.severity == "error":
                listed.setdefault(finding.id, []).append(finding.subject)
    return listed


def outcomes(result: Audit) -> dict[str, str]:
    return {check.check: check.outcome for check in result.checks}


@pytest.mark.parametrize(("container", "precision"), PRECISIONS)
def test_every_tensor_of_a_good_artifact_is_found(container, precision, checkpoint, tmp_path):
    result = run(artifact(container, precision, tmp_path), checkpoint, asked=precision)
    assert set(outcomes(result).values()) == {"pass"}, result.checks
    report = result.conservation
    assert report.exported + report.fused == len(checkpoint.tensors)
    assert report.compared_weights >= checkpoint.weight_count
    assert len(report.layers) == checkpoint.config.num_layers + 1
    assert not found(result)
    values = json.loads(json.dumps(dataclasses.asdict(result), allow_nan=False))
    assert ConservationReport.model_validate(values["conservation"]).worst[0].relative_error >= 0
    assert PrecisionReport.model_validate(values["precision"]).bits_per_weight > 2


@pytest.mark.parametrize("precision", ["fp16", "int8", "q4_k_m"])
def test_errors_are_those_of_gguf_s_own_dequantization(precision, checkpoint, tmp_path):
    path = gguf_file(artifact("gguf", precision, tmp_path))
    report = run(path, checkpoint).conservation
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, checkpoint.config.num_layers)
    ours = {(layer.layer, part): error for layer in report.layers for part, error in layer.relative_errors.items()}
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    with checkpoint.reader() as reader:
        for name, info in checkpoint.tensors.items():
            tensor = stored[names.get_name(name, try_suffixes=(".weight",))]
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(info.shape).astype(np.float64)
            source = reader.rows(info, 0, info.rows).reshape(info.shape).astype(np.float64)
            error = np.linalg.norm(values - source) / np.linalg.norm(source)
            stem = name.removesuffix(".weight").removeprefix("model.")
            key = (None, stem)
            if stem.startswith("layers."):
                _, layer, part = stem.split(".", 2)
                key = (int(layer), part)
            assert ours[key] == pytest.approx(error, rel=1e-4, abs=1e-9), name


def test_the_result_does_not_depend_on_pieces_or_threads(checkpoint, tmp_path):
    path = artifact("onnx", "int4", tmp_path)
    swap_layers(path)
    results = [
        run(path, checkpoint, chunk_weights=chunk, threads=threads)
        for chunk, threads in ((1 << 18, 1), (1 << 18, 3), (1000, 2), (1, 2))
    ]
    assert all(result == results[0] for result in results[1:])


def test_a_sample_looks_at_every_tensor(checkpoint, tmp_path):
    path = artifact("gguf", "int4", tmp_path)
    whole, part = run(path, checkpoint), run(path, checkpoint, sample=0.01)
    assert part.conservation.compared_weights < whole.conservation.compared_weights / 2
    assert part.conservation.exported == whole.conservation.exported
    assert part.conservation.relative_error == pytest.approx(whole.conservation.relative_error, rel=0.1)
    change(path, find(path, "blk.0.ffn_norm"), np.zeros_like)
    assert found(run(path, checkpoint, sample=0.01)) == {"conservation/zeroed": ["blk.0.ffn_norm.weight"]}


def test_names_of_onnx_initializers_do_not_matter(checkpoint, tmp_path):
    path = artifact("onnx", "int4", tmp_path)
    before = run(path, checkpoint)
    model = onnx.load(path / "model.onnx", load_external_data=False)
    names = {t.name: f"onnx::{index}" for index, t in enumerate(model.graph.initializer)}
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
    (path / "model.onnx").write_bytes(model.SerializeToString())
    after = run(path, checkpoint)
    assert outcomes(after) == outcomes(before)
    assert after.conservation.layers == before.conservation.layers


# --- What is done to one tensor is told by its cause ------------------------------------------------------------------

UP = "blk.1.ffn_up.weight"


def blocks(old, size):
    return old.reshape(-1, size)


def scaled_halves(old, block, factor, count=1):
    """Multiply the float16 numbers at the beginning of each block."""
    parts = blocks(old, block)
    halves = parts[:, : 2 * count].copy().view(np.float16)
    parts[:, : 2 * count] = (halves.astype(np.float32) * factor).astype(np.float16).view(np.uint8)
    return parts


def nibbles(old):
    return (old >> 4) | (old << 4)


def q4_0_nibbles(old):
    parts = blocks(old, 18)
    parts[:, 2:] = nibbles(parts[:, 2:])
    return parts


def q4_0_pairs(old):
    """Codes packed in neighbouring pairs, as ONNX Runtime has them."""
    parts = blocks(old, 18)
    codes = np.concatenate([parts[:, 2:] & 15, parts[:, 2:] >> 4], axis=1)
    parts[:, 2:] = codes[:, 0::2] | (codes[:, 1::2] << 4)
    return parts


def dropped_minima(old):
    parts = blocks(old, 144)  # block_q4_K: d, dmin, …
    parts[:, 2:4] = 0
    return parts


GGUF_CHANGES = {
    "zeroed": ("int4", np.zeros_like, "zeroed"),
    "nibbles exchanged": ("int4", q4_0_nibbles, "nibble_order"),
    "codes in pairs": ("int4", q4_0_pairs, "nibble_order"),
    "2 % at 4 bits": ("int4", lambda old: scaled_halves(old, 18, 1.02), "scale"),
    "-2 % at 4 bits": ("int4", lambda old: scaled_halves(old, 18, 0.98), "scale"),
    "2 % at 8 bits": ("int8", lambda old: scaled_halves(old, 34, 1.02), "scale"),
    "half": ("int4", lambda old: scaled_halves(old, 18, 0.5), "scale"),
    "2 % in a K-quant": ("q4_k_m", lambda old: scaled_halves(old, 144, 1.02, 2), "scale"),
    "scales of others": ("int4", lambda old: np.concatenate(
        [np.roll(blocks(old, 18)[:, :2], 7, 0) , blocks(old, 18)[:, 2:]], 1), "scale"),
    "minima dropped": ("q4_k_m", dropped_minima, "offset"),
    "infinite scale": ("int4", lambda old: scaled_halves(old, 18, np.inf), "overflow"),
    "random codes": ("int4", lambda old: np.concatenate(
        [blocks(old, 18)[:, :2], np.random.default_rng(0).integers(0, 256, (old.size // 18, 16), np.uint8)], 1),
        "altered"),
}  # fmt: skip


@pytest.mark.parametrize(("precision", "how", "cause"), GGUF_CHANGES.values(), ids=GGUF_CHANGES)
def test_a_change_of_a_gguf_tensor_is_told_by_its_cause(precision, how, cause, checkpoint, tmp_path):
    path = artifact("gguf", precision, tmp_path)
    change(path, find(path, UP), how)
    result = run(path, checkpoint)
    assert found(result) == {f"conservation/{cause}": [UP]}
    assert outcomes(result)["conservation/values"] == "fail"
    assert outcomes(result)["conservation/tensors"] == "pass"


def float32(old):
    return old.view(np.float32)


ONNX_CHANGES = {
    "zeroed": (Scheme("int4"), 1, np.zeros_like, "zeroed"),
    "nibbles": (Scheme("int4"), 0, nibbles, "nibble_order"),
    "nibbles of nf4": (Scheme("nf4"), 0, nibbles, "nibble_order"),
    "2 % at 4 bits": (Scheme("int4"), 1, lambda old: float32(old) * np.float32(1.02), "scale"),
    "2 % at nf4": (Scheme("nf4"), 1, lambda old: float32(old) * np.float32(0.98), "scale"),
    "2 % at 8 bits": (Scheme("int8"), 1, lambda old: float32(old) * np.float32(0.98), "scale"),
    "scales of others": (Scheme("int4"), 1, lambda old: np.roll(float32(old), 1), "scale"),
    "zero points dropped": (Scheme("int4", symmetric=False), 2, lambda old: np.full_like(old, 0x88), "offset"),
    "codes shifted": (Scheme("int8"), 0, lambda old: np.clip(old.astype(int) - 1, 0, 255).astype(np.uint8), "offset"),
    "not a number": (Scheme("int8"), 1, lambda old: np.full_like(float32(old), np.nan), "overflow"),
}


@pytest.mark.parametrize(("scheme", "part", "how", "cause"), ONNX_CHANGES.values(), ids=ONNX_CHANGES)
def test_a_change_of_an_onnx_tensor_is_told_by_its_cause(scheme, part, how, cause, checkpoint, tmp_path):
    export(checkpoint, "onnx", scheme, tmp_path / "out")
    weight = find(tmp_path / "out", "layers.1.mlp.up_proj")
    change(tmp_path / "out", weight, how, part)
    assert found(run(tmp_path / "out", checkpoint)) == {f"conservation/{cause}": [weight.name]}


def half(values):
    return np.asarray(values).astype(np.float16)


def from_source(checkpoint, name, how):
    """Return what puts changed values of the checkpoint, in float16, in place of a tensor's."""
    info = checkpoint.tensors[name]
    with checkpoint.reader() as reader:
        values = reader.rows(info, 0, info.rows)
    return lambda _: half(how(values))


def pairs(values, head_dim):
    """Rows of queries in the order that LLaMA's converter gives them."""
    rows, columns = values.shape
    return values.reshape(rows // head_dim, 2, head_dim // 2, columns).swapaxes(1, 2).reshape(rows, columns)


FLOAT_CHANGES = {
    "transposed": ("mlp.up_proj", lambda values, _: values.T, "transposed"),
    "row order": ("self_attn.q_proj", pairs, "row_order"),
    "0.5 % of noise": (
        "mlp.up_proj",
        lambda values, _: values * (1 + 0.005 * np.random.default_rng(1).standard_normal(values.shape)),
        "altered",
    ),
    "a few rows zero": (
        "mlp.up_proj",
        lambda values, _: np.where(np.arange(len(values))[:, None] // 4 == 5, 0, values),
        "zeroed",
    ),
    "one row of another layer": (
        "mlp.up_proj",
        lambda values, _: np.concatenate([values[:-1], values[:1]]),
        "altered",
    ),
    "2 %": ("mlp.up_proj", lambda values, _: values * 1.02, "scale"),
    "overflow": ("mlp.up_proj", lambda values, _: np.where(values == values.max(), 1e6, values), "overflow"),
}


@pytest.mark.parametrize("container", ["gguf", "onnx"])
@pytest.mark.parametrize(("part", "how", "cause"), FLOAT_CHANGES.values(), ids=FLOAT_CHANGES)
def test_a_change_of_plain_numbers_is_told_by_its_cause(container, part, how, cause, checkpoint, tmp_path):
    path = artifact(container, "fp16", tmp_path)
    source = f"model.layers.2.{part}.weight"
    names = {"mlp.up_proj": "blk.2.ffn_up.weight", "self_attn.q_proj": "blk.2.attn_q.weight"}
    weight = find(path, names[part] if container == "gguf" else source)
    with np.errstate(over="ignore"):
        change(path, weight, from_source(checkpoint, source, lambda v: how(v, checkpoint.config.head_dim)))
        assert found(run(path, checkpoint)) == {f"conservation/{cause}": [weight.name]}


@pytest.mark.parametrize(("container", "precision"), [("gguf", "int4"), ("onnx", "int4"), ("onnx", "fp16")])
def test_two_layers_exchanged_are_both_named(container, precision, checkpoint, tmp_path):
    path = artifact(container, precision, tmp_path)
    swap_layers(path, 0, 1)
    result = run(path, checkpoint)
    assert set(found(result)) == {"conservation/swapped"}
    check = next(check for check in result.checks if check.check == "conservation/values")
    up = next(f for f in check.findings if "up" in f.subject and ("0" in f.subject.split(".")))
    assert "model.layers.1.mlp.up_proj.weight" in up.detail
    assert len(check.findings) == 2 * 11


def test_norms_of_one_layer_exchanged_are_found(checkpoint, tmp_path):
    path = artifact("gguf", "int4", tmp_path)
    swap(path, find(path, "blk.0.attn_norm"), find(path, "blk.0.ffn_norm"))
    assert found(run(path, checkpoint)) == {"conservation/swapped": ["blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"]}


def test_parts_of_a_fused_tensor_are_told_apart(tmp_path):
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path / "in", "qwen2", num_layers=2)))
    export(checkpoint, "onnx", Scheme("int8"), tmp_path / "out")
    result = run(tmp_path / "out", checkpoint)
    assert set(outcomes(result).values()) == {"pass"}
    assert result.conservation.fused == 2 * 6
    weight = find(tmp_path / "out", "layers.1.self_attn.qkv_proj.weight")
    rows = [weight.shape[0] * part // 8 for part in (4, 6)]  # queries have four heads, keys and values two each

    def exchange(old):
        table = old.reshape(weight.shape[0], -1)
        return np.concatenate([table[: rows[0]], table[rows[1] :], table[rows[0] : rows[1]]])

    for part in (0, 1):
        change(tmp_path / "out", weight, exchange, part)
    result = run(tmp_path / "out", checkpoint)
    assert found(result) == {"conservation/swapped": [weight.name, weight.name]}
    assert "v_proj" in result.checks[1].findings[0].detail


def test_a_head_that_is_not_the_embedding_s_twin_is_told(checkpoint, tmp_path):
    scheme = Scheme("int8", embedding_precision="int8", head_precision="int4")
    export(checkpoint, "onnx", scheme, tmp_path / "out")
    result = run(tmp_path / "out", checkpoint)
    assert set(outcomes(result).values()) == {"pass"}
    assert result.conservation.tied == 1
    head = find(tmp_path / "out", "lm_head")
    for part in (0, 1):
        change(tmp_path / "out", head, lambda old: np.roll(old, old.size // 2), part)
    assert found(run(tmp_path / "out", checkpoint)) == {"conservation/tied": [head.name]}


def test_a_head_taken_from_the_embedding_is_told(tmp_path):
    untied = open_checkpoint(str(make_checkpoint(tmp_path / "untied", tied=False)))
    tied = open_checkpoint(str(make_checkpoint(tmp_path / "tied", tied=True)))  # the same weights but for the head
    for container, expected in (
        ("onnx", {"conservation/tied": ["model.embed_tokens.weight.codes"]}),
        ("gguf", {"conservation/missing": ["lm_head.weight"]}),  # llama.cpp takes the embedding for it
    ):
        export(tied, container, Scheme("int8"), tmp_path / container)
        errors = found(run(tmp_path / container, untied))
        assert errors == expected


def test_another_checkpoint_of_the_same_shape_is_altered(tmp_path):
    one, other = (open_checkpoint(str(make_checkpoint(tmp_path / f"{seed}", seed=seed))) for seed in (0, 1))
    export(one, "gguf", Scheme("int4"), tmp_path / "out")
    result = run(tmp_path / "out", other)
    assert len(found(result)["conservation/altered"]) > 10
    assert "no tensor of the checkpoint" in result.checks[1].detail


def test_a_renamed_tensor_is_missing_and_unknown(checkpoint, tmp_path):
    path = gguf_file(artifact("gguf", "int4", tmp_path))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"blk.1.attn_norm.weight", b"blk.1.attn_nomr.weight"))
    assert found(run(path, checkpoint)) == {
        "conservation/missing": ["model.layers.1.input_layernorm.weight"],
        "conservation/unknown": ["blk.1.attn_nomr.weight"],
    }


def test_a_tensor_of_another_shape_is_told(checkpoint, tmp_path):
    result = run(artifact("gguf", "int4", tmp_path), open_checkpoint(str(make_checkpoint(tmp_path / "in"))))
    assert "conservation/shape" in found(result)


def test_what_the_checkpoint_has_for_others_is_dropped_with_a_reason(checkpoint, tmp_path):
    info = checkpoint.tensors["model.norm.weight"]
    layers = checkpoint.config.num_layers
    extra = {
        name: dataclasses.replace(info, name=name)
        for name in ("mtp.norm.weight", "model.visual.merger.weight", f"model.layers.{layers}.eh_proj.weight")
    }
    wider = dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, **extra})
    result = run(artifact("gguf", "int4", tmp_path), wider)
    assert outcomes(result)["conservation/tensors"] == "pass"
    assert set(result.conservation.dropped) == set(extra)
    assert all(result.conservation.dropped.values())


def test_a_truncated_artifact_is_an_error_of_its_checks(checkpoint, tmp_path):
    path = gguf_file(artifact("gguf", "int4", tmp_path))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 4096)
    result = run(path, checkpoint)
    assert set(outcomes(result).values()) == {"fail"}
    assert result.conservation is None
    assert set(found(result)) == {"conservation/unreadable"}


def test_one_tensor_of_a_later_step_stands_out_among_its_peers(checkpoint, tmp_path):
    """Noise of the size of the rounding error hides in one tensor's error, but not beside others of its type."""
    path = artifact("gguf", "int4", tmp_path)
    weight = find(path, UP)
    source = checkpoint.tensors["model.layers.1.mlp.up_proj.weight"]
    with checkpoint.reader() as reader:
        values = reader.rows(source, 0, source.rows)
    noise = np.random.default_rng(2).standard_normal(values.shape).astype(np.float32)
    later = values + 0.07 * noise * np.float32(values.std())
    rounded = gguf.quants.quantize(later, gguf.GGMLQuantizationType.Q4_0)
    change(path, weight, lambda _: rounded)
    assert found(run(path, checkpoint)) == {"conservation/altered": [UP]}
    assert read(path, weight).size == rounded.size
