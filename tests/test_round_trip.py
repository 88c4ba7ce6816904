"""What lies in a finished file is what the quantizer said, for any weights, shapes, families and schemes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from artifacts import stored_rows
from checkpoints import encode, make_checkpoint, write_safetensors
from edgekiln.checkpoint import Checkpoint, open_checkpoint
from edgekiln.device import Device
from edgekiln.exporters import EXPORTERS
from edgekiln.exporters.base import TensorPlan
from edgekiln.families import FAMILIES, expected_tensors
from edgekiln.pipelines.export import export
from edgekiln.scheme import Scheme
from edgekiln.validators.kinds import identify
from edgekiln.validators.storage import artifact_weights
from edgekiln.validators.weight_names import claims

CPU, GPU = Device(), Device("webgpu")
SCHEMES: dict[str, tuple[str, Scheme, Device]] = {
    "onnx fp16": ("onnx", Scheme("fp16"), CPU),
    "onnx int8 g16": ("onnx", Scheme("int8", group_size=16), CPU),
    "onnx int4 g64 asymmetric": ("onnx", Scheme("int4", group_size=64, symmetric=False), CPU),
    "onnx int4 g128, int8 ends": ("onnx", Scheme("int4", group_size=128, embedding_precision="int8"), CPU),
    "onnx nf4": ("onnx", Scheme("nf4"), CPU),
    "onnx int4 for a GPU": ("onnx", Scheme("int4"), GPU),
    "onnx int8 asymmetric for a GPU": ("onnx", Scheme("int8", symmetric=False), GPU),
    **{f"gguf {name}": ("gguf", Scheme(name), CPU) for name in ("bf16", "q8_0", "q4_0", "q5_1", "q4_k_m", "iq4_nl")},
}
#: What weights are like: of each tensor one kind.
KINDS = ("normal", "zeros", "constant", "tiny", "huge", "one outlier", "rows of different size")


def values(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return weights of a kind; none overflows a scale in fp16."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    match kind:
        case "zeros":
            noise[...] = 0
        case "constant":
            noise[...] = rng.choice([-3.7, 0.001, 1.0])
        case "tiny":
            noise *= np.float32(1e-39)  # below the smallest normal number
        case "huge":
            noise = np.clip(noise * np.float32(2e4), -6e4, 6e4)
        case "one outlier":
            noise.reshape(-1)[rng.integers(noise.size)] = rng.choice([-3e4, 3e4])
        case "rows of different size":
            noise *= np.exp2(rng.integers(-30, 12, (shape[0], *[1] * (len(shape) - 1)))).astype(np.float32)
    return noise.astype(np.float32)


def any_checkpoint(directory: Path, family: str, hidden: int, dtype: str, kinds: list[str], seed: int) -> Checkpoint:
    shape: dict[str, Any] = {"hidden_size": hidden, "head_dim": hidden // 4, "num_layers": 1, "intermediate_size": 256}
    make_checkpoint(directory, family, **shape, config={"shared_expert_intermediate_size": 256})
    rng = np.random.default_rng(seed)
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for number, (name, shape) in enumerate(expected_tensors(open_checkpoint(str(directory)).config).items()):
        data = encode(values(kinds[number % len(kinds)], shape, rng), dtype)
        tensors[name] = (dtype, shape, data)
    write_safetensors(directory / "model.safetensors", tensors)
    return open_checkpoint(str(directory))


def said(checkpoint: Checkpoint, tensor: TensorPlan) -> NDArray[np.float32]:
    """Return the values that the quantizer stores of a tensor's sources, one below the other."""
    return np.concatenate([stored_rows(checkpoint, source, tensor.storage).reshape(-1) for source in tensor.sources])


@pytest.mark.parametrize("case", SCHEMES)
@settings(max_examples=4, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    hidden=st.sampled_from([128, 256, 384]),
    dtype=st.sampled_from(["BF16", "F16", "F32"]),
    kinds=st.lists(st.sampled_from(KINDS), min_size=3, max_size=7),
    seed=st.integers(0, 1 << 20),
)
def test_the_file_holds_what_the_quantizer_said(
    case: str, family: str, hidden: int, dtype: str, kinds: list[str], seed: int
) -> None:
    form, scheme, device = SCHEMES[case]
    if device is GPU and "moe" in family:
        family = family.removesuffix("_moe")
    folder = Path(tempfile.mkdtemp())
    try:
        checkpoint = any_checkpoint(folder / "c", family, hidden, dtype, kinds, seed)
        export(checkpoint, form, scheme, folder / "o", device)
        compare(checkpoint, EXPORTERS[form].plan(checkpoint, scheme, device).tensors, folder / "o")
    finally:
        shutil.rmtree(folder)


def compare(checkpoint: Checkpoint, plan: tuple[TensorPlan, ...], directory: Path) -> None:
    kind = identify(directory)
    weights = artifact_weights(kind)
    planned: dict[tuple[str, ...], list[TensorPlan]] = {}
    for tensor in plan:
        planned.setdefault(tensor.sources, []).append(tensor)
    compared: set[tuple[str, ...]] = set()
    for weight, claim in zip(weights, claims(weights, checkpoint, gguf=kind.format == "gguf"), strict=True):
        if claim.computed:
            continue
        rows: Any = weight.rows(0, weight.shape[0] if len(weight.shape) > 1 else 1)
        expected = [said(checkpoint, tensor) for tensor in planned[claim.sources]]
        assert any(np.array_equal(rows.reshape(-1), one) for one in expected), weight.name
        compared.add(claim.sources)
    assert {source for sources in compared for source in sources} == set(checkpoint.tensors)
