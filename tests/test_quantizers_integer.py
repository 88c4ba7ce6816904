"""Laws of int4, int8 and nf4: the reference kernels' bits, what a grid means, and that rows do not depend on others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnxruntime.capi import _pybind_state as kernels

from edgekiln.errors import StepError, UsageError
from edgekiln.grids import BNB4_NF4, BlockGrid, CodebookGrid, IntegerGrid
from edgekiln.quantizers import QUANTIZERS, quantizer_for
from edgekiln.quantizers.nf4 import NF4_VALUES
from edgekiln.quantizers.shared import SHARED_GRID

INTEGER = [IntegerGrid(b, g, s) for b in (4, 8) for g in (16, 32, 64, 128) for s in (True, False)]
NF4 = [CodebookGrid("nf4", g) for g in (16, 32, 64, 128)]
HALF = [IntegerGrid(b, 32, s, "float16") for b in (4, 8) for s in (True, False)] + [CodebookGrid("nf4", 64, "float16")]
GRIDS = INTEGER + NF4 + HALF
#: Where the scale is rounded before the codes are chosen; the grid that is Q4_0's own is ggml's, which does not.
ROUNDED = [grid for grid in HALF if grid != SHARED_GRID]


def onnxruntime_integers(rows, grid):
    """Codes, scales and zero points by ONNX Runtime's own kernel."""
    (count, columns), groups = rows.shape, rows.shape[1] // grid.group_size
    codes = np.empty((count, groups, grid.group_size * grid.bits // 8), np.uint8)
    scales = np.empty(count * groups, np.float32)
    offsets = np.zeros((count, -(-groups * grid.bits // 8)), np.uint8)  # it leaves bits that no zero point uses
    kernel = kernels.quantize_matmul_4bits if grid.bits == 4 else kernels.quantize_matmul_8bits
    weight = np.ascontiguousarray(rows.T)  # as [K, N]
    kernel(codes, weight, scales, offsets.reshape(-1), grid.group_size, count, columns, grid.symmetric)
    if grid.bits == 4:
        offsets = np.stack((offsets & 15, offsets >> 4), -1).reshape(count, -1)[:, :groups]
    return codes, scales.reshape(count, groups), None if grid.symmetric else offsets


def onnxruntime_nf4(rows, grid):
    """Codes and absmax by ONNX Runtime's own kernel."""
    codes, absmax = np.zeros(rows.size // 2, np.uint8), np.empty(rows.size // grid.group_size, np.float32)
    kernels.quantize_matmul_bnb4(codes, rows, absmax, grid.group_size, BNB4_NF4, *rows.shape)
    return codes, absmax


def assert_same_bits_as_onnxruntime(rows, grid):
    quantized = quantizer_for(grid).quantize(rows, grid)
    if isinstance(grid, CodebookGrid):
        found, expected = (quantized.codes, quantized.absmax), onnxruntime_nf4(rows, grid)
    else:
        found = (quantized.codes, quantized.scales, quantized.zero_points)
        expected = onnxruntime_integers(rows, grid)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert mine.tobytes() == theirs.tobytes()  # NaN, the sign of zero: all of it


def top(rows):
    """For each row the highest code of 4 or of 8 bits, which make the scale of a group of positive weights 1."""
    return np.resize(np.float32([15, 255]), (len(rows), 1))


#: Kinds of weights that a kernel's branches and roundings tell apart, made of normally distributed ones.
KINDS = {
    "normal": lambda rows: rows,
    "bfloat16": lambda rows: (rows.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32),
    "ties": lambda rows: np.round(rows * 4) / np.float32(2),  # between two codes, and of magnitudes of opposite sign
    "one sign": np.abs,
    "constant": lambda rows: np.full_like(rows, rows[0, 0]),
    "subnormal": lambda rows: rows * np.float32(1e-40),
    "sparse": lambda rows: np.where(np.abs(rows) > 2, rows, np.float32(0)),
    "just below ties": lambda rows: np.where(np.abs(rows) > 2, top(rows), np.nextafter(np.float32(0.5), np.float32(0))),
    "huge": lambda rows: rows * np.float32(1e30),
}


WIDE = [IntegerGrid(b, 256, s) for b in (4, 8) for s in (True, False)] + [CodebookGrid("nf4", 256)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", INTEGER + NF4 + WIDE, ids=lambda grid: grid.name)
def test_the_bits_are_those_of_onnxruntimes_kernel(grid, kind):
    assert_same_bits_as_onnxruntime(KINDS[kind](normal(300, 512)), grid)  # more than one batch


@settings(max_examples=200)
@given(st.binary(min_size=1024, max_size=1024), st.sampled_from(INTEGER + NF4 + WIDE))
def test_the_bits_are_those_of_onnxruntimes_kernel_for_any_rows(data, grid):
    rows = np.nan_to_num(np.frombuffer(data, np.float32).reshape(1, 256))
    assert_same_bits_as_onnxruntime(np.clip(rows, -1e37, 1e37), grid)  # the width of a group's range is finite


def name(grid):
    return grid.name


def normal(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def equal(left, right):
    return all(
        np.array_equal(getattr(left, field), getattr(right, field))
        for field in ("codes", "scales", "zero_points", "absmax")
        if hasattr(left, field)
    )


@pytest.mark.parametrize("grid", GRIDS, ids=name)
def test_rows_do_not_depend_on_each_other(grid):
    rows = normal(6, 256)
    quantizer = quantizer_for(grid)
    whole = quantizer.dequantize(quantizer.quantize(rows, grid))
    for size in (1, 2, 4):
        parts = [quantizer.quantize(rows[i : i + size], grid) for i in range(0, 6, size)]
        np.testing.assert_array_equal(np.concatenate([quantizer.dequantize(part) for part in parts]), whole)


@pytest.mark.parametrize("grid", GRIDS, ids=name)
def test_the_same_rows_give_the_same_numbers_and_stay_unchanged(grid):
    rows = normal(3, 256)
    kept = rows.copy()
    assert equal(quantizer_for(grid).quantize(rows, grid), quantizer_for(grid).quantize(rows, grid))
    np.testing.assert_array_equal(rows, kept)


@pytest.mark.parametrize("grid", INTEGER, ids=name)
def test_no_weight_is_further_off_than_its_scale(grid):
    rows = normal(8, 256)
    quantized = quantizer_for(grid).quantize(rows, grid)
    error = np.abs(quantizer_for(grid).dequantize(quantized) - rows).reshape(8, -1, grid.group_size)
    # Half a step from rounding; a symmetric range lacks its last positive code, so there a whole step.
    bound = np.abs(quantized.scales)[:, :, None] * (1.0 if grid.symmetric else 0.5)
    if not grid.symmetric:  # the zero point is rounded as well
        bound = bound * 2
    assert np.all(error <= bound * (1 + 1e-5))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_symmetric_scale_maps_the_largest_magnitude_to_the_lowest_code(bits):
    rows = normal(4, 64)
    quantized = QUANTIZERS[f"int{bits}"].quantize(rows, IntegerGrid(bits, 32, True))
    groups = rows.reshape(4, 2, 32)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)[..., 0]
    np.testing.assert_allclose(quantized.scales, largest / -(1 << (bits - 1)), rtol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_an_asymmetric_grid_holds_zero_exactly(bits):
    rows = normal(4, 64) + 3
    rows[:, ::5] = 0
    grid = IntegerGrid(bits, 32, False)
    values = QUANTIZERS[f"int{bits}"].dequantize(QUANTIZERS[f"int{bits}"].quantize(rows, grid))
    assert np.all(values[:, ::5] == 0)


def test_codes_lie_low_nibble_first():
    rows = np.zeros((1, 32), np.float32)
    rows[0, :3] = [-8, 1, 7]
    quantized = QUANTIZERS["int4"].quantize(rows, IntegerGrid(4, 32, True))
    assert quantized.scales[0, 0] == 1
    assert list(quantized.codes[0, 0, :2]) == [0 | 9 << 4, 15 | 8 << 4]


@pytest.mark.parametrize("grid", NF4, ids=name)
def test_nf4_takes_the_nearest_of_its_sixteen_values(grid):
    rows = normal(4, 256)
    quantized = QUANTIZERS["nf4"].quantize(rows, grid)
    blocks = rows.reshape(-1, grid.group_size)
    np.testing.assert_array_equal(quantized.absmax, np.abs(blocks).max(-1))
    distance = np.abs(blocks[..., None] / quantized.absmax[:, None, None] - NF4_VALUES)
    chosen = np.abs(blocks - QUANTIZERS["nf4"].dequantize(quantized).reshape(blocks.shape)) / quantized.absmax[:, None]
    np.testing.assert_allclose(chosen, distance.min(-1), atol=1e-6)


@settings(max_examples=60)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.sampled_from([64, 128, 192])),
        elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=True),
    ),
    st.sampled_from([grid for grid in INTEGER + NF4 if grid.group_size <= 64]),
)
def test_any_finite_rows_give_finite_values(rows, grid):
    quantizer = quantizer_for(grid)
    values = quantizer.dequantize(quantizer.quantize(rows, grid))
    assert values.shape == rows.shape
    assert np.all(np.isfinite(values))


@pytest.mark.parametrize("grid", GRIDS, ids=name)
def test_zeros_stay_zeros(grid):
    quantizer = quantizer_for(grid)
    assert not np.any(quantizer.dequantize(quantizer.quantize(np.zeros((2, 256), np.float32), grid)))


@pytest.mark.parametrize("grid", [IntegerGrid(4, 128, True), CodebookGrid("nf4", 128)], ids=name)
def test_a_group_that_does_not_divide_is_refused(grid):
    with pytest.raises(UsageError, match="group size 128 does not divide rows of 96"):
        quantizer_for(grid).quantize(np.zeros((2, 96), np.float32), grid)


@pytest.mark.parametrize("key", ["int8", "int4", "nf4"])
def test_a_quantizer_refuses_a_grid_of_another_kind(key):
    with pytest.raises(TypeError):
        QUANTIZERS[key].quantize(np.zeros((2, 64), np.float32), BlockGrid("Q4_0"))


@pytest.mark.parametrize("magnitude", [1, 1e-6], ids=["normal", "subnormal scales"])
@pytest.mark.parametrize("grid", ROUNDED, ids=name)
def test_float16_scales_are_float16_numbers_and_the_codes_are_the_nearest_for_them(grid, magnitude):
    rows = normal(8, 256) * np.float32(magnitude)
    quantizer = quantizer_for(grid)
    quantized = quantizer.quantize(rows, grid)
    scales = quantized.absmax if isinstance(grid, CodebookGrid) else quantized.scales
    np.testing.assert_array_equal(scales, scales.astype(np.float16))
    levels = NF4_VALUES if isinstance(grid, CodebookGrid) else np.arange(1 << grid.bits)
    offsets = getattr(quantized, "zero_points", None)
    if isinstance(grid, IntegerGrid) and offsets is None:
        offsets = np.full(scales.shape, 1 << (grid.bits - 1))
    shift = 0 if offsets is None else offsets.reshape(-1, 1, 1).astype(np.float64)
    groups = rows.reshape(-1, grid.group_size, 1).astype(np.float64)
    choices = (levels - shift) * scales.reshape(-1, 1, 1)
    best = np.abs(groups - choices).min(-1)
    error = np.abs(quantizer.dequantize(quantized).reshape(groups.shape[:2]) - groups[:, :, 0])
    assert (error - best).max() <= 1e-6 * magnitude


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("bits", [4, 8])
def test_symmetric_bfloat16_weights_have_the_same_codes_with_float16_scales(bits, group):
    """Their scales need no rounding, and many of the weights lie in the middle between two codes."""
    rows = KINDS["bfloat16"](normal(64, 512))
    wide, half = (IntegerGrid(bits, group, True, dtype) for dtype in ("float32", "float16"))
    if half != SHARED_GRID:
        assert equal(quantizer_for(half).quantize(rows, half), quantizer_for(wide).quantize(rows, wide))
        return
    found, expected = quantizer_for(half).quantize(rows, half), quantizer_for(wide).quantize(rows, wide)
    same = found.scales == expected.scales
    assert same.mean() > 0.95
    np.testing.assert_array_equal(found.scales[~same], -expected.scales[~same])  # of two equal ones ggml has the first
    assert (found.codes != expected.codes)[same].mean() < 1e-3  # a compiler may have fused ggml's a * b + c


@settings(max_examples=50)
@given(hnp.arrays(np.float32, (2, 128), elements=st.floats(-1000, 1000, width=32)))
def test_the_shared_grid_has_the_values_of_q4_0(rows):
    block = BlockGrid("Q4_0")
    ggml, shared = QUANTIZERS["ggml"], QUANTIZERS["shared"]
    expected = ggml.dequantize(ggml.quantize(rows, block))
    np.testing.assert_array_equal(shared.dequantize(shared.quantize(rows, SHARED_GRID)), expected)


@pytest.mark.parametrize("grid", HALF, ids=name)
def test_a_scale_beyond_float16_is_refused(grid):
    rows = np.zeros((2, 256), np.float32)
    rows[1, 5] = 1e9
    with pytest.raises(StepError, match="overflow (the )?float16 scales"):
        quantizer_for(grid).quantize(rows, grid)


@pytest.mark.parametrize("grid", HALF, ids=name)
def test_weights_below_float16_scales_become_zero(grid):
    rows = normal(2, 256) * np.float32(1e-20)
    assert not quantizer_for(grid).dequantize(quantizer_for(grid).quantize(rows, grid)).any()
