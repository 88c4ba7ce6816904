"""How ONNX's quantized operators store a matrix: reading rows of it, and rounding others onto the same grid.

The layouts are those of ONNX Runtime's docs/ContribOperators.md and of ONNX's DequantizeLinear:
value = (code - zero point) · scale, or value = codebook[code] · absmax.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import ArtifactError
from edgekiln.grids import BNB4_NF4, NF4_VALUES
from edgekiln.validators.onnx_parts import CODES, Part, signed, unpack
from edgekiln.validators.weights import round_to_float16

#: FP4 of bitsandbytes, in the order of its codes; the upper half is negative.
_FP4: Final = np.array([0.0, 0.0625 / 12, 8 / 12, 1.0, 4 / 12, 6 / 12, 2 / 12, 3 / 12], np.float32)
#: By `quant_type` of MatMulBnb4.
BNB4_CODEBOOKS: Final[Mapping[int, tuple[str, NDArray[np.float32]]]] = MappingProxyType(
    {0: ("fp4", np.concatenate([_FP4, -_FP4])), BNB4_NF4: ("nf4", NF4_VALUES)}
)
_READABLE_BITS: Final = frozenset({2, 4, 8})


def _extents(**values: int) -> None:
    for name, value in values.items():
        if not 0 < value < 1 << 31:
            raise ArtifactError(f"a quantized operator has the impossible {name} {value}")


@functools.cache
def _byte_values(bits: int, offset: int) -> NDArray[np.generic]:
    """Return what each byte stands for: 8 / bits float32 numbers, seen as one element so that one take finds it."""
    codes = unpack(np.arange(256, dtype=np.uint8), bits).astype(np.float32) - np.float32(offset)
    table: NDArray[np.generic] = codes.view({2: np.complex128, 4: np.complex64, 8: np.float32}[bits])
    return table


@dataclass(frozen=True)
class IntegerTable:
    """Codes with a scale, and perhaps a zero point, per group of a row.

    Attributes:
        rows: Of the matrix.
        columns: Of the matrix.
        bits: 2, 4 or 8.
        group: Weights that share a scale.
        offset: The zero point where none is stored.
        stored: Codes of a stored row, those of a padded last group included.
        twos_complement: The codes are signed.
        rounded_scales: The scales are float16.
    """

    rows: int
    columns: int
    bits: int
    group: int
    offset: int
    stored: int
    codes: Part
    scales: Part
    zero_points: Part | None
    group_index: Part | None = None
    twos_complement: bool = False
    unreadable: str | None = None

    @classmethod
    def of_product(cls, attributes: Mapping[str, int], parts: Mapping[str, Part]) -> Self:
        """Return what a MatMulNBits reads.

        Raises:
            ArtifactError: Its shape is impossible, or the codes do not fill it.
        """
        rows, columns = attributes.get("N", 0), attributes.get("K", 0)
        bits, group = attributes.get("bits", 4), attributes.get("block_size", 0)
        _extents(N=rows, K=columns, bits=bits, block_size=group)
        stored = -(-columns // group) * group
        problem = None if bits in _READABLE_BITS and group % (8 // bits) == 0 else f"codes of {bits} bits are not read"
        codes = parts["codes"]
        if codes.nbytes * 8 != rows * stored * bits and problem is None:
            raise ArtifactError(f"{codes.name} has {codes.nbytes} bytes, which is not {rows} rows of {stored} codes")
        return cls(
            rows, columns, bits, group, 1 << (bits - 1), stored, codes, parts["scales"], parts.get("zero_points"),
            parts.get("group_index"), unreadable=problem,
        )  # fmt: skip

    @classmethod
    def of_experts(cls, attributes: Mapping[str, int], bits: int, parts: Mapping[str, Part]) -> Self:
        """Return what a QMoE reads as one of its matrices: those of all experts, one below the other.

        Raises:
            ArtifactError: Its shape is impossible.
        """
        codes = parts["codes"]
        if codes.type != "UINT8" or len(codes.shape) != 3:
            raise ArtifactError(f"{codes.name} is {codes.type} {list(codes.shape)}, which QMoE cannot read as experts")
        problem = None if bits in _READABLE_BITS else f"codes of {bits} bits are not read"
        if attributes.get("weights_prepacked", -1) == 1:
            problem = "experts in a layout of one execution provider are not read"
        experts, rows, row_bytes = codes.shape
        columns = row_bytes * 8 // bits if bits in _READABLE_BITS else row_bytes
        group = attributes.get("block_size", 0) or columns
        _extents(experts=experts, rows=rows, columns=columns, block_size=group)
        return cls(
            experts * rows, columns, bits, group, 1 << (bits - 1) if bits in _READABLE_BITS else 0, columns, codes,
            parts["scales"], parts.get("zero_points"), unreadable=problem,
        )  # fmt: skip

    @classmethod
    def of_lookup(cls, attributes: Mapping[str, int], parts: Mapping[str, Part]) -> Self:
        """Return what a GatherBlockQuantized looks up; its uint8 codes are packed, those of 4-bit types are not.

        Raises:
            ArtifactError: Its shape is impossible.
        """
        codes, group = parts["codes"], attributes.get("block_size", 128)
        bits = attributes.get("bits", 4) if codes.type == "UINT8" else CODES.get(codes.type, (0, False))[0]
        if codes.type not in CODES or len(codes.shape) < 2:
            raise ArtifactError(
                f"{codes.name} is {codes.type} {list(codes.shape)}, which GatherBlockQuantized cannot read"
            )
        rows, columns = codes.shape[0], codes.elements // max(1, codes.shape[0])
        problem = None
        if bits not in _READABLE_BITS:
            problem = f"codes of {bits} bits are not read"
        elif codes.type == "UINT8":
            columns *= 8 // bits
        if attributes.get("gather_axis", 0) != 0 or attributes.get("quantize_axis", 1) != 1:
            problem = "lookups along other axes are not read"
        _extents(rows=rows, columns=columns, block_size=group)
        offset = 1 << (bits - 1) if codes.type == "UINT8" and problem is None else 0
        return cls(
            rows, columns, bits, group, offset, columns, codes, parts["scales"], parts.get("zero_points"),
            twos_complement=CODES[codes.type][1], unreadable=problem,
        )  # fmt: skip

    @property
    def type(self) -> str:
        """`int4`, `int8`, `int2`."""
        return f"int{self.bits}"

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.columns // self.group)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows [start, stop), float32 [stop - start, columns]."""
        count, row_bytes = stop - start, self.stored * self.bits // 8
        packed = self.codes.read([(start * row_bytes, count * row_bytes)])
        scales = self.scales.floats(start * self.groups, stop * self.groups).reshape(count, self.groups)
        zeros = self._zero_points(start, stop)
        if self.twos_complement:
            values = signed(unpack(packed, self.bits), self.bits).astype(np.float32)
        else:
            values = _byte_values(self.bits, self.offset if zeros is None else 0)[packed].view(np.float32)
        values = values.reshape(count, self.stored)
        if self.group_index is not None:
            return self._scattered(values, scales, zeros)
        if self.stored != self.groups * self.group:  # a lookup's last group may be shorter
            columns = np.arange(self.stored) // self.group
            return (values - (0 if zeros is None else zeros[:, columns])) * scales[:, columns]
        grouped = values.reshape(count, self.groups, self.group)
        if zeros is not None:
            grouped -= zeros[:, :, None]
        grouped *= scales[:, :, None]
        return values[:, : self.columns]

    def _scattered(
        self, values: NDArray[np.float32], scales: NDArray[np.float32], zeros: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """Apply scales by the group that `g_idx` names for each column (GPTQ with activation order)."""
        part = self.group_index
        if part is None or part.type != "INT32" or part.elements < self.columns:
            raise ArtifactError(f"{self.codes.name} has a group index that is not {self.columns} int32 numbers")
        index = part.read([(0, self.columns * 4)]).view("<i4")
        if index.min() < 0 or index.max() >= self.groups:
            raise ArtifactError(f"{part.name} names a group beyond the {self.groups} of {self.codes.name}")
        centred = values[:, : self.columns] - (0 if zeros is None else zeros[:, index])
        return np.asarray(centred * scales[:, index], np.float32)

    def _zero_points(self, start: int, stop: int) -> NDArray[np.float32] | None:
        part, count = self.zero_points, stop - start
        if part is None:
            return None
        if part.is_float:
            return part.floats(start * self.groups, stop * self.groups).reshape(count, self.groups)
        if part.type == "UINT8":  # packed, each row begins at a byte
            row_bytes = -(-self.groups * self.bits // 8)
            packed = part.read([(start * row_bytes, count * row_bytes)])
            return unpack(packed, self.bits).reshape(count, -1)[:, : self.groups].astype(np.float32)
        bits, negative = CODES.get(part.type, (0, False))
        if bits != self.bits:
            raise ArtifactError(f"{part.name} is {part.type}, which is no type of zero points for {self.type}")
        codes = part.code_block(bits, self.groups, start, stop, 0, self.groups)
        return (signed(codes, bits) if negative else codes).astype(np.float32)

    def round(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return rows rounded to nearest on this grid, as ONNX Runtime's quantizer does it."""
        count, columns = rows.shape
        padded = np.zeros((count, -(-columns // self.group) * self.group), np.float32)
        padded[:, :columns] = rows
        groups = padded.reshape(count, -1, self.group)
        rounded = round_groups(
            groups, self.bits, symmetric=self.zero_points is None, half=self.scales.type == "FLOAT16"
        )
        return rounded.reshape(count, -1)[:, :columns]


def round_groups(groups: NDArray[np.float32], bits: int, *, symmetric: bool, half: bool) -> NDArray[np.float32]:
    """Return groups (the last axis) rounded to nearest with one scale each.

    Symmetric: the weight of largest magnitude becomes the lowest code; else the range, widened to hold 0, becomes
    all codes (MlasQuantizeBlockwise in ONNX Runtime).

    Args:
        groups: float32 [..., group size].
        bits: Of a code.
        symmetric: There are no zero points.
        half: The scales are float16.
    """
    highest, middle = (1 << bits) - 1, 1 << (bits - 1)
    low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    if symmetric:
        scale = np.where(high > -low, high, low) / np.float32(-middle)
        zero = np.full_like(scale, middle)
    else:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scale = (high - low) / np.float32(highest)
        zero = np.zeros_like(scale)
    if half:
        scale = round_to_float16(scale)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    if not symmetric:
        zero = np.clip(np.rint(-low * inverse), 0, highest)
    codes = np.clip(np.rint(groups * inverse) + zero, 0, highest)
    return np.asarray((codes - zero) * scale, np.float32)


@dataclass(frozen=True)
class CodebookTable:
    """Codes of MatMulBnb4, whose blocks run over the row-major matrix; of two codes the first is in the high nibble."""

    rows: int
    columns: int
    group: int
    type: str
    codebook: NDArray[np.float32]
    codes: Part
    scales: Part
    unreadable: str | None = None

    @classmethod
    def of_product(cls, attributes: Mapping[str, int], parts: Mapping[str, Part]) -> Self:
        """Return what a MatMulBnb4 reads.

        Raises:
            ArtifactError: Its shape is impossible, or the codes do not fill it.
        """
        rows, columns, group = attributes.get("N", 0), attributes.get("K", 0), attributes.get("block_size", 0)
        _extents(N=rows, K=columns, block_size=group)
        codes, kind = parts["codes"], attributes.get("quant_type", 0)
        problem = None
        if kind not in BNB4_CODEBOOKS:
            problem = f"quant_type {kind} is unknown"
        elif columns % 2:
            problem = "rows of an odd length are not read"
        elif codes.nbytes * 2 != rows * columns:
            raise ArtifactError(f"{codes.name} has {codes.nbytes} bytes, which is not {rows} rows of {columns} codes")
        name, codebook = BNB4_CODEBOOKS.get(kind, BNB4_CODEBOOKS[0])
        return cls(rows, columns, group, name, codebook, codes, parts["scales"], problem)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows [start, stop), float32 [stop - start, columns]."""
        first, last = start * self.columns, stop * self.columns
        packed = self.codes.read([(first // 2, (last - first) // 2)])
        pairs = np.stack((self.codebook[np.arange(256) >> 4], self.codebook[np.arange(256) & 15]), axis=-1)
        values = pairs.reshape(-1).view(np.complex64)[packed].view(np.float32)
        absmax = self.scales.floats(first // self.group, -(-last // self.group))
        if first % self.group == 0 and last % self.group == 0:
            values.reshape(-1, self.group)[...] *= absmax[:, None]
        else:
            values *= absmax[np.arange(first, last) // self.group - first // self.group]
        return values.reshape(stop - start, self.columns)

    def round(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return rows rounded to the nearest value of the codebook; blocks begin with the rows."""
        flat = np.zeros(-(-rows.size // self.group) * self.group, np.float32)
        flat[: rows.size] = rows.reshape(-1)
        blocks = flat.reshape(-1, self.group)
        absmax = np.abs(blocks).max(-1, keepdims=True)
        ordered = np.sort(self.codebook)
        inverse = np.divide(np.float32(1), absmax, out=np.zeros_like(absmax), where=absmax != 0)
        nearest = ordered[np.searchsorted((ordered[1:] + ordered[:-1]) / 2, blocks * inverse)]
        return np.asarray((nearest * absmax).reshape(-1)[: rows.size].reshape(rows.shape), np.float32)


@dataclass(frozen=True)
class LinearTable:
    """What a DequantizeLinear gives: one scale for all, for each place along an axis, or for blocks along it.

    Attributes:
        rows: Of the weight, after turning.
        columns: Of the weight, after turning.
        turned: The stored rows are the columns of the weight.
        block: (rows, columns) of the stored matrix that share a scale.
    """

    rows: int
    columns: int
    bits: int
    turned: bool
    block: tuple[int, int]
    codes: Part
    scales: Part
    zero_points: Part | None
    unreadable: str | None = None

    @classmethod
    def of_node(cls, attributes: Mapping[str, int], parts: Mapping[str, Part], *, turned: bool) -> Self:
        """Return what a DequantizeLinear of initializers gives.

        Raises:
            ArtifactError: Its shape is impossible.
        """
        codes, scales = parts["codes"], parts["scales"]
        if len(codes.shape) != 2:
            raise ArtifactError(f"{codes.name} has {len(codes.shape)} dimensions, where a quantized matrix has two")
        height, width = codes.shape
        _extents(rows=height, columns=width)
        axis = attributes.get("axis", 1) % 2
        size = attributes.get("block_size", 0)
        if scales.elements == 1:
            block = (height, width)
        elif size > 0:
            block = (size, 1) if axis == 0 else (1, size)
        else:
            block = (1, width) if axis == 0 else (height, 1)
        expected = -(-height // block[0]) * -(-width // block[1])
        problem = None if scales.elements == expected else f"{scales.elements} scales where {expected} are needed"
        rows, columns = (width, height) if turned else (height, width)
        return cls(rows, columns, CODES[codes.type][0], turned, block, codes, scales, parts.get("zero_points"), problem)

    @property
    def type(self) -> str:
        """`int4`, `int8`, `int2`."""
        return f"int{self.bits}"

    @property
    def group(self) -> int:
        """Weights of a row that share a scale."""
        return min(self.columns, self.block[0] if self.turned else self.block[1])

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows [start, stop), float32 [stop - start, columns]."""
        height, width = self.codes.shape
        first, last, left, right = (0, height, start, stop) if self.turned else (start, stop, 0, width)
        high, wide = self.block
        span = first // high, -(-last // high), left // wide, -(-right // wide)
        per_row = -(-width // wide)
        rows = np.arange(first, last) // high - span[0]
        columns = np.arange(left, right) // wide - span[2]
        codes = self._signed(self.codes.code_block(self.bits, width, first, last, left, right))
        scales = self.scales.float_block(per_row, *span)[rows][:, columns]
        values = codes.astype(np.float32)
        if self.zero_points is not None:
            zeros = self._signed(self.zero_points.code_block(self.bits, per_row, *span))
            values -= zeros.astype(np.float32)[rows][:, columns]
        values *= scales
        return np.ascontiguousarray(values.T) if self.turned else values

    def _signed(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.int8]:
        return signed(codes, self.bits) if CODES[self.codes.type][1] else codes

    def round(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return rows rounded to nearest with one scale for `group` weights of a row."""
        count, columns = rows.shape
        padded = np.zeros((count, -(-columns // self.group) * self.group), np.float32)
        padded[:, :columns] = rows
        groups = padded.reshape(count, -1, self.group)
        half = self.scales.type == "FLOAT16"
        return round_groups(groups, self.bits, symmetric=self.zero_points is None, half=half).reshape(count, -1)[
            :, :columns
        ]
