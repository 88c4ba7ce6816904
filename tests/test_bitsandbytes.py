"""NF4 against bitsandbytes, whose format it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from edgekiln.grids import CodebookGrid, CodebookRows
from edgekiln.quantizers.nf4 import Nf4

bitsandbytes = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is made for Linux here")

GRID = CodebookGrid("nf4", 64, "float32")


def theirs(rows: NDArray[np.float32], *, nested: bool) -> tuple[NDArray[np.uint8], NDArray[np.float32], Any]:
    """Return bitsandbytes' codes and values, and what it keeps beside the codes."""
    import torch

    codes, state = bitsandbytes.quantize_4bit(
        torch.from_numpy(rows), blocksize=64, quant_type="nf4", compress_statistics=nested
    )
    return codes.numpy(), bitsandbytes.dequantize_4bit(codes, state).numpy(), state


@settings(max_examples=60)
@given(
    npst.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(128)), elements=st.floats(-100, 100, width=32)),
    st.integers(-20, 20),
)
def test_codes_and_values_are_those_of_bitsandbytes(rows: NDArray[np.float32], exponent: int) -> None:
    scaled = np.ldexp(rows, exponent).astype(np.float32)
    codes, values, state = theirs(scaled, nested=False)
    quantized = Nf4().quantize(scaled, GRID)
    np.testing.assert_array_equal(quantized.absmax.reshape(-1), state.absmax.numpy())
    # A block of zeros has no codes to agree on, and for one of subnormal weights theirs are not the nearest.
    used = state.absmax.numpy() >= np.finfo(np.float32).tiny
    np.testing.assert_array_equal(quantized.codes.reshape(-1, 32)[used], codes.reshape(-1, 32)[used])
    np.testing.assert_array_equal(Nf4().dequantize(quantized).reshape(-1, 64)[used], values.reshape(-1, 64)[used])


@pytest.mark.parametrize("seed", range(4))
def test_with_double_quantization_only_the_absmax_differs(seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((96, 512), dtype=np.float32)
    codes, values, state = theirs(rows, nested=True)
    quantized = Nf4().quantize(rows, GRID)
    np.testing.assert_array_equal(quantized.codes.reshape(-1), codes.reshape(-1))
    absmax = (bitsandbytes.dequantize_blockwise(state.absmax, state.state2) + state.offset).numpy()
    assert 0 < np.abs(absmax / quantized.absmax.reshape(-1) - 1).max() < 0.02
    nested = CodebookRows(GRID, quantized.columns, quantized.codes, absmax.reshape(quantized.absmax.shape))
    np.testing.assert_array_equal(Nf4().dequantize(nested), values)
