"""Rotary tables: those of the model pass in every type; others are named by what was done to them."""

from __future__ import annotations

import numpy as np
import pytest

from edgekiln.validators.onnx_hyperparameters import RotaryTable
from edgekiln.validators.rotary import judge_table

DIM, POSITIONS, BASE = 64, 2048, 1e6
ROWS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2047)
PRECISIONS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def stored(values, precision):
    if precision == "bfloat16":
        return ((values.astype(np.float32).view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32).astype(np.float64)
    return values.astype(precision).astype(np.float64)


def table(frequencies, precision="float32", *, start=0.0, magnitude=1.0, dim=DIM):
    """Compute angles in float32, as libraries do."""
    rows = np.asarray(ROWS, np.float32)[:, None] + np.float32(start)
    angles = rows * np.asarray(frequencies, np.float32)
    cos, sin = (stored(magnitude * f(angles), precision) for f in (np.cos, np.sin))
    return RotaryTable("cos_cache", POSITIONS, dim, ROWS, cos, sin, PRECISIONS[precision])


def frequencies(base, dim=DIM):
    return base ** (-np.arange(0, dim, 2) / dim)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("base", [1e4, 1e6, 5e6])
@pytest.mark.parametrize("dim", [32, 64, 128])
def test_the_models_own_tables_pass(base, dim, precision):
    assert judge_table(table(frequencies(base, dim), precision, dim=dim), base) is None


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("base", [1e4, 5e5, 1.1e6, 1e7])
def test_another_base_is_named_with_its_value(base, precision):
    cause, detail = judge_table(table(frequencies(base), precision), BASE)
    assert cause == "metadata/rope_base"
    found = float(detail.split("rope base ")[1].split(",")[0])
    assert found == pytest.approx(base, rel={"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}[precision])


def llama3(factor=8.0, low=1.0, high=4.0, original=512):
    """Scale low frequencies and leave high ones, with a ramp between, as rope type llama3 of transformers does."""
    plain = frequencies(BASE)
    waves = 2 * np.pi / plain
    share = np.clip((original / waves - low) / (high - low), 0, 1)
    return plain * (share + (1 - share) / factor)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "changed",
    [
        lambda precision: table(frequencies(BASE) / 4, precision),
        lambda precision: table(frequencies(BASE), precision, magnitude=1.1386),  # YaRN with factor 4
        lambda precision: table(llama3(), precision),
    ],
    ids=["linear", "yarn", "llama3"],
)
def test_scalings_are_named(changed, precision):
    cause, _ = judge_table(changed(precision), BASE)
    assert cause == "metadata/rope_scaling"


def test_tables_that_begin_elsewhere_are_named():
    assert judge_table(table(frequencies(BASE), start=1.0), BASE)[0] == "metadata/rope_position"


def test_a_damaged_row_is_named():
    damaged = table(frequencies(BASE))
    damaged.sin[7] = damaged.sin[6]
    cause, detail = judge_table(damaged, BASE)
    assert cause == "metadata/rope_table"
    assert "row 64 of cos_cache" in detail
    damaged.sin[7, 3] = np.nan
    assert "NaN" in judge_table(damaged, BASE)[1]


def test_sines_and_cosines_exchanged_are_named():
    good = table(frequencies(BASE))
    swapped = RotaryTable("cos", POSITIONS, DIM, ROWS, good.sin, good.cos, good.resolution)
    assert judge_table(swapped, BASE) is not None
