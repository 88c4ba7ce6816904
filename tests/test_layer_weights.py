"""Weights rounded to fp16 as they are read, against PyTorch's own rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from checkpoints import write_safetensors
from edgekiln.errors import CheckpointError, StepError
from edgekiln.safetensors import TensorInfo, read_index
from edgekiln.validators import layer_weights
from edgekiln.validators.layer_weights import Part, RoundedWeights, Rounding, piece_rows, round_raw
from reference_model import round_to_fp16

BF16 = np.arange(1 << 16, dtype=np.uint16)
FINITE = BF16[(BF16 & 0x7F80) != 0x7F80]


def info(dtype: str, count: int) -> TensorInfo:
    return TensorInfo("weights", dtype, (count,), Path(), 0, 0)


def widened(raw: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (raw.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("step", [1 << 16, 64])
def test_every_finite_bfloat16_is_rounded_as_pytorch_does(step: int) -> None:
    """In small steps most pieces take the way without overflow."""
    import torch

    for first in range(0, len(FINITE), step):
        raw = FINITE[first : first + step]
        out = np.empty(len(raw), np.float32)
        expected = torch.from_numpy(widened(raw))
        assert round_raw(raw, info("BF16", len(raw)), out) == round_to_fp16(expected)
        np.testing.assert_array_equal(out.view(np.uint32), expected.numpy().view(np.uint32))


@pytest.mark.parametrize("bits", [0, 0x8000, 1, 0x3300, 0x3301, 0x36FF, 0x3700, 0x477F, 0x4780, 0xC77F, 0xC780])
def test_a_bfloat16_at_a_border_is_rounded_alone(bits: int) -> None:
    import torch

    raw, out = np.array([bits], np.uint16), np.empty(1, np.float32)
    expected = torch.from_numpy(widened(raw))
    assert round_raw(raw, info("BF16", 1), out) == round_to_fp16(expected)
    np.testing.assert_array_equal(out.view(np.uint32), expected.numpy().view(np.uint32))


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_other_types_are_rounded_as_pytorch_does(dtype: str) -> None:
    import torch

    rng = np.random.default_rng(0)
    raw = BF16.view(np.float16) if dtype == "F16" else rng.integers(0, 1 << 32, 1 << 18, np.uint32).view(np.float32)
    raw = np.concatenate([raw[np.isfinite(raw)], np.array([0.0, -0.0], raw.dtype)])
    out, expected = np.empty(len(raw), np.float32), torch.from_numpy(raw.astype(np.float32))
    lost = round_raw(raw, info(dtype, len(raw)), out)
    assert lost == round_to_fp16(expected)
    assert (lost == Rounding(0, 0)) == (dtype == "F16")
    np.testing.assert_array_equal(out.view(np.uint32), expected.numpy().view(np.uint32))


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0x7F81])
def test_a_weight_that_is_no_number_is_refused(bits: int) -> None:
    raw = np.array([0x3F80, bits, 0x4780], np.uint16)
    with pytest.raises(StepError, match="^weights holds 1 NaN and 0|^weights holds 0 NaN and 1"):
        round_raw(raw, info("BF16", 3), np.empty(3, np.float32))


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TensorInfo, NDArray[np.float32]]:
    """A matrix of 41 rows in pieces of three, and what it holds."""
    monkeypatch.setattr(layer_weights, "PIECE_WEIGHTS", 32)
    rng = np.random.default_rng(0)
    values = rng.standard_normal((41, 10), np.float32)
    values[40, 9] = 1e-10
    raw = (values.view(np.uint32) >> 16).astype(np.uint16)
    write_safetensors(tmp_path / "a.safetensors", {"matrix": ("BF16", (41, 10), raw.tobytes())})
    return read_index(tmp_path / "a.safetensors")["matrix"], widened(raw).astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 3])
def test_pieces_make_the_whole_and_count_once(threads: int, stored: tuple[TensorInfo, NDArray[np.float32]]) -> None:
    tensor, expected = stored
    assert piece_rows(tensor) == 3
    weights = RoundedWeights({"matrix": tensor}, threads=threads)
    for _ in range(2):
        out = np.full((41, 10), np.nan, np.float32)
        weights.read([Part(tensor, 0, out[:30]), Part(tensor, 30, out[30:])])
        np.testing.assert_array_equal(out, expected)
        assert weights.rounding() == Rounding(0, 1)
    weights.close()


def test_single_rows_and_counts_of_what_was_not_read(stored: tuple[TensorInfo, NDArray[np.float32]]) -> None:
    tensor, expected = stored
    weights = RoundedWeights({"matrix": tensor}, threads=1)
    rows = weights.rows(tensor, [40, 3, 40])
    assert set(rows) == {3, 40}
    np.testing.assert_array_equal(rows[40], expected[40])
    weights.read([Part(tensor, 3, np.empty((6, 10), np.float32))])
    assert weights.rounding() == Rounding(0, 1)
    weights.close()


def test_a_file_that_became_shorter_is_said(stored: tuple[TensorInfo, NDArray[np.float32]]) -> None:
    tensor, _ = stored
    with tensor.path.open("r+b") as file:
        file.truncate(tensor.offset + 100)
    weights = RoundedWeights({"matrix": tensor}, threads=2)
    with pytest.raises(CheckpointError, match="became shorter"):
        weights.rounding()
    weights.close()
