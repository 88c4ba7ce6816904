"""Grids and quantized rows: what quantizers produce and exporters pack.

A *grid* says exactly which numbers a container can hold: a quantizer maps float rows onto it, an exporter packs
the result without rounding anything, and dequantizing the finished file gives what the quantizer said. Both sides
speak of grids only, so that a new algorithm works with every container and a new container with every algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: `quant_type` of ONNX Runtime's MatMulBnb4, and of the kernel behind it, that means NF4 (0 is FP4).
BNB4_NF4: Final = 1

#: The NF4 values in the order of their codes: QLoRA (arXiv:2305.14314), appendix E.
NF4_VALUES: Final = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)

FloatDtype: TypeAlias = Literal["float32", "float16", "bfloat16"]
#: What a container keeps scales in; a quantizer rounds them, an exporter never does.
ScaleDtype: TypeAlias = Literal["float32", "float16"]
#: Ending of a grid's name; float32 is ONNX Runtime's on a CPU and goes unsaid.
_SCALE_SUFFIX: Final = {"float32": "", "float16": " f16"}


@dataclass(frozen=True)
class IntegerGrid:
    """value = (code - zero_point) · scale, with one scale per group of a row.

    The rounding is that of ONNX Runtime's `quantize_matmul_4bits/8bits`, which define it. On a grid of float16 scales
    their scale is rounded to float16 first, and the codes are the nearest ones for the rounded scale.

    Attributes:
        bits: 4 or 8; codes are unsigned.
        group_size: Weights of a row that share a scale; a row is padded to whole groups.
        symmetric: The zero point is 2^(bits-1) throughout and is not stored.
        scale_dtype: What the scales are rounded to.
    """

    bits: Literal[4, 8]
    group_size: int
    symmetric: bool
    scale_dtype: ScaleDtype = "float32"

    @property
    def name(self) -> str:
        """As reports and manifests name it."""
        kind = "sym" if self.symmetric else "asym"
        return f"int{self.bits} g{self.group_size} {kind}{_SCALE_SUFFIX[self.scale_dtype]}"


@dataclass(frozen=True)
class CodebookGrid:
    """value = codebook[code] · absmax: the sixteen NormalFloat values of QLoRA (arXiv:2305.14314).

    Attributes:
        codebook: Name of the values.
        group_size: Weights that share an absmax.
        scale_dtype: What absmax is rounded to, before the codes are chosen.
    """

    codebook: Literal["nf4"]
    group_size: int
    scale_dtype: ScaleDtype = "float32"

    @property
    def name(self) -> str:
        """As reports and manifests name it."""
        return f"{self.codebook} g{self.group_size}{_SCALE_SUFFIX[self.scale_dtype]}"


@dataclass(frozen=True)
class BlockGrid:
    """One of ggml's block types, defined by ggml's own quantizer.

    Attributes:
        ggml_type: Its name in `gguf.GGMLQuantizationType`: `Q4_0`, `Q6_K`, …
    """

    ggml_type: str

    @property
    def name(self) -> str:
        """As reports and manifests name it."""
        return self.ggml_type


Grid: TypeAlias = IntegerGrid | CodebookGrid | BlockGrid


@dataclass(frozen=True)
class IntegerRows:
    """Rows on an `IntegerGrid`.

    Attributes:
        grid: Their grid.
        columns: Length of a row before padding.
        codes: uint8 [rows, groups, group_size · bits / 8]; of two 4-bit codes the first is in the low nibble.
        scales: float32 [rows, groups]; each a float16 number where the grid says so.
        zero_points: uint8 [rows, groups], one per byte, or None on a symmetric grid.
    """

    grid: IntegerGrid
    columns: int
    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | None


@dataclass(frozen=True)
class CodebookRows:
    """Rows on a `CodebookGrid`; blocks run over the row-major data.

    Attributes:
        grid: Their grid.
        columns: Length of a row.
        codes: uint8 [rows · columns / 2]; of two codes the first is in the high nibble, as in bitsandbytes.
        absmax: float32 [rows · columns / group_size]; each a float16 number where the grid says so.
    """

    grid: CodebookGrid
    columns: int
    codes: NDArray[np.uint8]
    absmax: NDArray[np.float32]


@dataclass(frozen=True)
class BlockRows:
    """Rows of ggml blocks.

    Attributes:
        grid: Their grid.
        columns: Length of a row.
        blocks: uint8 [rows, bytes per row].
    """

    grid: BlockGrid
    columns: int
    blocks: NDArray[np.uint8]


QuantizedRows: TypeAlias = IntegerRows | CodebookRows | BlockRows
