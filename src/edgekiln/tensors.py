"""Weights that no container holds: counted while a tensor is written, and refused with one sentence for all formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import StepError

#: Largest finite number of the float types that weights may be too large for.
_LARGEST: Final[Mapping[str, str]] = MappingProxyType({"float16": "65504", "bfloat16": "3.39e38"})
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
