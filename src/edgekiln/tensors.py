"""Weights in float types: converted from one to another; those that none can hold are counted and refused."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import StepError
from edgekiln.grids import FloatDtype
from edgekiln.safetensors import widen

#: Largest finite number of the float types that weights may be too large for.
_LARGEST: Final[Mapping[str, str]] = MappingProxyType({"float16": "65504", "bfloat16": "3.39e38"})
#: Float types by their name in safetensors.
_DTYPE: Final[Mapping[str, FloatDtype]] = MappingProxyType({"F32": "float32", "F16": "float16", "BF16": "bfloat16"})
#: The other way round.
SAFETENSORS_NAME: Final[Mapping[FloatDtype, str]] = MappingProxyType({dtype: name for name, dtype in _DTYPE.items()})
#: The bits of the largest exponent, and all but the sign.
_BITS: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {"BF16": (0x7F80, 0x7FFF), "F16": (0x7C00, 0x7FFF), "F32": (0x7F800000, 0x7FFFFFFF)}
)


@dataclass(frozen=True)
class Defects:
    """Weights that cannot be stored; those of two chunks add up.

    Attributes:
        nan: Not a number.
        infinite: Infinite.
        overflowed: Finite, but too large for the float type of the artifact.
    """

    nan: int = 0
    infinite: int = 0
    overflowed: int = 0

    def __add__(self, other: Defects) -> Defects:
        """Return the sums."""
        return Defects(self.nan + other.nan, self.infinite + other.infinite, self.overflowed + other.overflowed)

    def __bool__(self) -> bool:
        """Tell whether there is any."""
        return bool(self.nan or self.infinite or self.overflowed)

    def require_none(self, name: str, dtype: str) -> None:
        """Refuse the tensor unless all its weights can be stored.

        Args:
            name: Of the tensor, as the checkpoint has it.
            dtype: Float type that its weights were to lie in; what an overflow is told with.

        Raises:
            StepError: Says how many of its weights are NaN, infinite or too large.
        """
        if self.nan or self.infinite:
            raise StepError(
                f"{name} holds {self.nan} NaN and {self.infinite} infinite weights; fetch the checkpoint again, or "
                "look at how it was trained"
            )
        if self.overflowed:
            raise StepError(
                f"{name} holds {self.overflowed} weights beyond ±{_LARGEST[dtype]}, which {dtype} cannot hold; "
                "export another precision"
            )


#: All is well.
NO_DEFECTS: Final = Defects()


def count_defects(raw: NDArray[np.generic], dtype: str) -> Defects:
    """Count NaN and infinity by the exponent bits, without widening.

    Args:
        raw: Weights as the file has them; uint16 for BF16, else float16 or float32.
        dtype: `BF16`, `F16` or `F32`.
    """
    exponent, magnitude = _BITS[dtype]
    words: NDArray[np.uint16] | NDArray[np.uint32] = raw.view(np.uint32) if dtype == "F32" else raw.view(np.uint16)
    bits = words & words.dtype.type(magnitude)
    if bits.max() < exponent:
        return NO_DEFECTS
    infinite = int(np.count_nonzero(bits == exponent))  # the largest exponent and nothing else; with more it is NaN
    return Defects(nan=int(np.count_nonzero(bits > exponent)), infinite=infinite)


def to_float16(rows: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return rows as float16, rounded to nearest even: what is too large becomes infinite, what is too small zero."""
    with np.errstate(over="ignore"):
        return rows.astype(np.float16)


@functools.cache
def _bf16_to_f16() -> NDArray[np.float16]:
    """Return the float16 nearest to each of the 65,536 bfloat16 numbers (much faster than two casts)."""
    numbers = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(over="ignore", invalid="ignore"):
        return widen(numbers, "BF16").astype(np.float16)


def _round_to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return finite float32 values as bfloat16, rounded to nearest even like `ggml_fp32_to_bf16_row`."""
    bits = values.view(np.uint32)
    return ((bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)).astype(np.uint16)


def convert_rows(raw: NDArray[np.generic], source: str, target: FloatDtype) -> NDArray[np.generic]:
    """Return finite weights, as the checkpoint stores them, in a float type of the file; the input is not changed.

    Args:
        raw: [rows, columns]; uint16 for BF16, else float16 or float32.
        source: `BF16`, `F16` or `F32`.
        target: bfloat16 comes back as uint16.

    Returns:
        [rows, columns], rounded to nearest even; what overflows is infinite.
    """
    if _DTYPE[source] == target:
        return raw
    if target == "float16" and source == "BF16":
        return _bf16_to_f16().take(raw.view(np.uint16))
    wide = widen(raw, source)
    if target == "float32":
        return wide
    if target == "bfloat16":
        return _round_to_bf16(wide)
    with np.errstate(over="ignore"):
        return wide.astype(np.float16)
