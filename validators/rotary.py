"""Is a pair of rotary tables what the model's rope gives, and if not, what is it?

Column i of row p holds the cosine and the sine of p · base^(-2i / d) (Su et al., RoFormer, arXiv:2104.09864; d numbers
of a head are rotated), or what YaRN makes of it (Peng et al., arXiv:2309.00071). What differs is told by what the
angles look like: another base keeps their logarithms on one line through 0, a scaling (linear, YaRN, llama 3's) bends
or shifts that line or the magnitude, and tables that begin at another position turn their first row.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekiln.model_config import Yarn
from edgekiln.validators.onnx_hyperparameters import RotaryTable

#: Angles are computed in float32: their relative error, with that of the frequencies, is a few of its steps.
_ANGLE_ERROR: Final = 5e-7
#: Storing rounds by half a step at most; two leave room for other libraries' cosines.
_STEPS: Final = 2.0
#: A scaled magnitude or first frequency differs by more (YaRN's smallest published factor is 1.07).
_SCALED: Final = 0.02
#: Half precision keeps the digits of no smaller angle.
_LEGIBLE: Final = 2.0**-13
#: How far the logarithms of angles of one base may lie from a line.
_LINE: Final = 1e-4


def rotary_frequencies(base: float, dimension: int, yarn: Yarn | None) -> NDArray[np.float64]:
    """Return by how much each pair of a head turns from one position to the next, float64 [dimension / 2].

    YaRN leaves what turns often within the original context as it is, stretches what turns seldom by the factor, and
    goes from one to the other along a ramp (section 3.2 of the paper, with whole numbers for its ends, as Transformers
    and llama.cpp have it).
    """
    columns = np.arange(dimension // 2)
    plain = base ** (-2.0 * columns / dimension)
    if yarn is None:
        return plain

    def column(turns: float) -> float:
        return dimension * math.log(yarn.original_context / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(column(yarn.beta_fast)), 0)
    high = min(math.ceil(column(yarn.beta_slow)), dimension - 1)
    stretched = np.clip((columns - low) / max(high - low, 0.001), 0.0, 1.0)
    return plain * (1 - stretched) + plain / yarn.factor * stretched


def judge_table(table: RotaryTable, base: float, yarn: Yarn | None = None) -> tuple[str, str] | None:
    """Return the id of a finding and a sentence where a table is not that of the model's rope, else None.

    Args:
        table: Whose `rotary_dim` is the model's.
        base: The model's `rope_theta`.
        yarn: How the rope is scaled; None where it is not.
    """
    magnitude = 1.0 if yarn is None else yarn.attention_factor
    frequencies = rotary_frequencies(base, table.rotary_dim, yarn)[: table.cos.shape[1]]
    rows = np.asarray(table.rows, np.float64)[:, None]
    difference = np.maximum(
        np.abs(table.cos - magnitude * np.cos(rows * frequencies)),
        np.abs(table.sin - magnitude * np.sin(rows * frequencies)),
    )
    allowed = magnitude * (_STEPS * table.resolution + 1e-6 + rows * frequencies * _ANGLE_ERROR)
    wrong = ~(difference <= allowed)  # so that NaN is wrong, too
    if not wrong.any():
        return None
    first = int(np.argmax(wrong.any(axis=1)))
    return _diagnosis(table, base, first) if yarn is None else _yarn_diagnosis(table, yarn, first)


def _not_finite(table: RotaryTable) -> tuple[str, str] | None:
    if np.isfinite(table.cos).all() and np.isfinite(table.sin).all():
        return None
    return "metadata/rope_table", f"{table.name} has numbers that are NaN or infinite"


def _yarn_diagnosis(table: RotaryTable, yarn: Yarn, first: int) -> tuple[str, str]:
    if (fault := _not_finite(table)) is not None:
        return fault
    magnitude = float(np.median(np.hypot(table.cos, table.sin)))
    if abs(magnitude - yarn.attention_factor) > _SCALED / 2:
        detail = f"{table.name} is scaled by {magnitude:.4g}, but YaRN of factor {yarn.factor:g} by "
        return "metadata/rope_scaling", f"{detail}{yarn.attention_factor:.4g}"
    where = f"row {table.rows[first]} of {table.name}"
    return "metadata/rope_scaling", f"{where} is not what YaRN of factor {yarn.factor:g} gives"


def _diagnosis(table: RotaryTable, base: float, first: int) -> tuple[str, str]:
    where = f"row {table.rows[first]} of {table.name}"
    if (fault := _not_finite(table)) is not None:
        return fault
    magnitude = float(np.median(np.hypot(table.cos, table.sin)))
    if abs(magnitude - 1.0) > _SCALED:
        return "metadata/rope_scaling", f"{table.name} is scaled by {magnitude:.4g}, as YaRN does"
    start = float(np.arctan2(table.sin[0, 0], table.cos[0, 0]))
    if table.rows[0] == 0 and abs(start) > _SCALED:
        return "metadata/rope_position", f"{table.name} begins at position {start:.4g} instead of 0"
    return _frequencies(table, base) or ("metadata/rope_table", f"{where} is not what rope_theta {base:g} gives")


def _frequencies(table: RotaryTable, base: float) -> tuple[str, str] | None:
    """Tell another base from a scaling by the angles of position 1; None where they are right."""
    if len(table.rows) < 2 or table.rows[1] != 1:
        return None
    angles = np.arctan2(table.sin[1], table.cos[1])
    if abs(angles[0] - 1.0) > _SCALED:
        detail = f"position 1 of {table.name} turns by {angles[0]:.4g} instead of 1, as positions that were scaled do"
        return "metadata/rope_scaling", detail
    columns = np.flatnonzero(angles > _LEGIBLE)[1:]
    if not columns.size:
        return None
    exponents, logarithms = -2.0 * columns / table.rotary_dim, np.log(angles[columns])
    slope = float(exponents @ logarithms / (exponents @ exponents))
    tolerance = _LINE + 4 * table.resolution
    if np.abs(logarithms - slope * exponents).max() > tolerance:
        return "metadata/rope_scaling", f"the frequencies of {table.name} follow no single base, so its rope is scaled"
    found = float(np.exp(slope))
    if abs(slope - np.log(base)) < tolerance:
        return None
    return "metadata/rope_base", f"{table.name} has the rope base {found:.6g}, but the reference has {base:.6g}"
