"""The ggml quantizer: agreement with the reference implementation, invariance, refusals."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as reference_dequantize
from gguf.quants import quantize as reference_quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekiln.errors import StepError, UnsupportedError, UsageError
from edgekiln.grids import BlockGrid, BlockRows, IntegerGrid
from edgekiln.quantizers.ggml import Ggml, find_library, library_version

SMALL = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL")
SUPER = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")


def weights(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    scales = np.exp2(rng.integers(-20, 8, (rows, 1))).astype(np.float32)
    return rng.standard_normal((rows, columns), dtype=np.float32) * scales


@pytest.mark.parametrize("name", SMALL + SUPER)
def test_dequantized_values_equal_those_of_gguf(name: str) -> None:
    quantized = Ggml().quantize(weights(33, 512), BlockGrid(name))
    expected = reference_dequantize(quantized.blocks, GGMLQuantizationType[name])
    np.testing.assert_array_equal(Ggml().dequantize(quantized), expected)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_blocks_equal_those_of_the_python_reference(name: str) -> None:
    # gguf's numpy quantizers are a second implementation of these formats, said to be bit-exact
    rows = weights(64, 896)
    expected = reference_quantize(rows, GGMLQuantizationType[name])
    np.testing.assert_array_equal(Ggml().quantize(rows, BlockGrid(name)).blocks, expected)


@pytest.mark.parametrize("name", SMALL + SUPER)
def test_importance_brings_the_error_to_the_columns_that_count_least(name: str) -> None:
    rows = np.random.default_rng(3).standard_normal((64, 512), dtype=np.float32)
    importance = np.where(np.arange(512) % 32 < 8, 100, 0.01).astype(np.float32)
    errors = [
        float((importance * (Ggml().dequantize(Ggml().quantize(rows, BlockGrid(name), counts)) - rows) ** 2).sum())
        for counts in (None, importance)
    ]
    assert errors[1] == errors[0] if name == "Q8_0" else errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (np.ones(255, np.float32), "of shape .255. is not one number for 256 columns"),
        (np.ones((1, 256), np.float32), "of shape .1, 256. is not one number"),
        (np.full(256, -1, np.float32), "negative, NaN or infinite"),
        (np.full(256, np.nan, np.float32), "negative, NaN or infinite"),
        (np.full(256, 3e38, np.float32), "negative, NaN or infinite"),
        (np.zeros(256, np.float32), "32 columns in a row that do not count"),
        (np.repeat(np.float32([0, 1]), [64, 192]), "32 columns in a row that do not count"),
    ],
)
def test_an_importance_that_is_none_is_refused(importance: NDArray[np.float32], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Ggml().quantize(weights(4, 256), BlockGrid("Q4_K"), importance)


@pytest.mark.parametrize("name", SMALL + SUPER)
def test_bytes_do_not_depend_on_threads_or_chunks(name: str) -> None:
    rows, grid = weights(37, 256), BlockGrid(name)
    whole = Ggml().quantize(rows, grid)
    for threads in (2, 3, 64):
        np.testing.assert_array_equal(Ggml(threads).quantize(rows, grid).blocks, whole.blocks)
        np.testing.assert_array_equal(Ggml(threads).dequantize(whole), Ggml().dequantize(whole))
    pieces = [Ggml().quantize(rows[start : start + 5], grid).blocks for start in range(0, len(rows), 5)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole.blocks)


@pytest.mark.parametrize(("name", "step"), [("Q4_0", 1 / 8), ("Q5_0", 1 / 16), ("Q8_0", 1 / 254)])
def test_error_is_bounded_by_the_step_of_the_grid(name: str, step: float) -> None:
    # half a step, or a whole one at the clipped end of the four- and five-bit grids; the scale is rounded to float16
    rows = np.random.default_rng(1).standard_normal((50, 1536), dtype=np.float32)
    error = np.abs(Ggml().dequantize(Ggml().quantize(rows, BlockGrid(name))) - rows)
    largest = np.abs(rows).reshape(50, -1, 32).max(-1)
    assert (error.reshape(50, -1, 32).max(-1) <= largest * (step + 2**-11)).all()


@settings(max_examples=60)
@given(
    name=st.sampled_from(SMALL + SUPER),
    value=st.floats(-60000, 60000, width=32),
    rows=st.integers(1, 4),
    groups=st.integers(1, 3),
)
def test_constant_and_single_valued_rows_survive(name: str, value: float, rows: int, groups: int) -> None:
    data = np.zeros((rows, 256 * groups), np.float32)
    data[:, ::32] = value
    values = Ggml().dequantize(Ggml().quantize(data, BlockGrid(name)))
    assert values.shape == data.shape
    assert np.isfinite(values).all()
    assert not np.any(values[data == 0]) or name not in {"Q4_0", "Q5_0", "Q8_0"}  # zero is on the symmetric grids


@pytest.mark.parametrize("name", SMALL + SUPER)
def test_zeros_stay_zeros(name: str) -> None:
    values = Ggml().dequantize(Ggml().quantize(np.zeros((3, 512), np.float32), BlockGrid(name)))
    assert not values.any()


def test_input_is_not_changed_and_need_not_be_contiguous() -> None:
    rows = weights(16, 512)
    view, before = rows[::2, :256], rows.copy()
    blocks = Ggml().quantize(view, BlockGrid("Q4_K")).blocks
    np.testing.assert_array_equal(rows, before)
    np.testing.assert_array_equal(blocks, Ggml().quantize(view.copy(), BlockGrid("Q4_K")).blocks)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_and_counted(bad: float) -> None:
    rows = weights(4, 64)
    rows[1, 3] = rows[3, 63] = bad
    with pytest.raises(StepError, match=r"^2 weights are NaN or infinite"):
        Ggml().quantize(rows, BlockGrid("Q8_0"))


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "Q4_K"])
def test_scales_that_overflow_float16_are_refused(name: str) -> None:
    rows = np.full((2, 256), 3e38, np.float32)
    with pytest.raises(StepError, match="overflow the float16 scales"):
        Ggml().quantize(rows, BlockGrid(name))


def test_other_grids_and_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match="not int4 g32 sym"):
        Ggml().quantize(weights(1, 32), IntegerGrid(4, 32, True))
    with pytest.raises(UsageError, match="rows of 896 weights do not divide into Q4_K blocks of 256"):
        Ggml().quantize(weights(1, 896), BlockGrid("Q4_K"))
    with pytest.raises(UsageError, match="did you mean 'Q4_0'"):
        Ggml().quantize(weights(1, 32), BlockGrid("Q4-0"))
    with pytest.raises(UnsupportedError, match="importance matrix"):
        Ggml().quantize(weights(1, 256), BlockGrid("IQ2_XXS"))
    with pytest.raises(UsageError, match="rows of 17 bytes are not 32 weights in Q4_0"):
        Ggml().dequantize(BlockRows(BlockGrid("Q4_0"), 32, np.zeros((1, 17), np.uint8)))


def test_llama_cpp_is_not_imported() -> None:
    code = (
        "import sys, numpy as np\n"
        "from edgekiln.grids import BlockGrid\n"
        "from edgekiln.quantizers.ggml import Ggml, library_version\n"
        "library_version(); Ggml().quantize(np.ones((1, 32), np.float32), BlockGrid('Q4_0'))\n"
        "print([name for name in ('llama_cpp', 'torch', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_library_is_named_by_its_content() -> None:
    versions = library_version()
    assert set(versions) == {"llama-cpp-python", "libggml-base"}
    assert versions["libggml-base"].startswith("sha256:")
    assert find_library().parent.name == "lib"
