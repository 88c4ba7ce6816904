"""Precision as built: what the weights lie in, against what was asked for."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from edgekiln.checkpoint import Checkpoint
from edgekiln.families import EMBEDDING, HEAD
from edgekiln.validators.base import CheckResult, Finding
from edgekiln.validators.weight_values import TensorError
from edgekiln.validators.weights import FLOAT_TYPES, Weight

#: Types that a generic precision means; a name that is not here means itself, without llama.cpp's size letter.
_MEANT: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "int4": ("int4", "q4_0", "q4_1"),
        "int8": ("int8", "q8_0"),
        "nf4": ("nf4",),
        "fp16": ("fp16", "f16", "bf16"),
        "bf16": ("bf16",),
        "fp32": ("fp32", "f32"),
    }
)
_SIZE_LETTER: Final = re.compile(r"_[sml]$")
_CODE_BITS: Final = re.compile(r"[a-z]+(\d+)")
#: Share of the weights within layers that may lie in a narrower type, or in plain numbers, than was asked for.
_MAX_SHARE: Final = 0.4
#: How many times the bits of the asked type all matrices within layers may have.
_MAX_BITS: Final = 1.75
_MAX_EXCEPTIONS: Final = 50
_FALLBACK_FIX: Final = (
    "choose a type whose blocks divide the rows of these matrices, or ask for the type that they have"
)
_FLOAT_FIX: Final = "quantize these matrices too, or ask for a float precision"


@dataclass(frozen=True)
class Precision:
    """What the weights lie in; fields as in `edgekiln.validators.report.PrecisionReport`."""

    asked: str | None
    bits_per_weight: float
    weights_by_type: dict[str, int]
    exceptions: tuple[TensorError, ...]


def meant_types(asked: str) -> tuple[str, ...]:
    """Return the types that a precision stands for: `("q4_k",)` for `q4_k_m`, `("int4", "q4_0", "q4_1")` for `int4`."""
    name = asked.lower()
    return _MEANT.get(name, (_SIZE_LETTER.sub("", name),))


def code_bits(name: str) -> int:
    """Return the bits of one code of a type, scales not counted; 0 where its name does not say."""
    found = _CODE_BITS.match(name)
    return int(found[1]) if found else 0


def check_precision(
    weights: Sequence[tuple[Weight, tuple[str, ...]]],
    errors: Mapping[str, TensorError],
    checkpoint: Checkpoint,
    asked: str | None,
) -> tuple[Precision, CheckResult]:
    """Return what the weights lie in, and whether that is what was asked for.

    Args:
        weights: Of the artifact, with the tensors of the checkpoint that each is.
        errors: What was measured of each, by name.
        checkpoint: For the number of its weights.
        asked: A precision; None to take the type that most weights within layers have.
    """
    parts = {place: size for weight, _ in weights for place, size in weight.parts}
    bits = sum(parts.values()) * 8 / checkpoint.weight_count
    matrices = {weight.place: (weight, sources) for weight, sources in reversed(weights) if len(weight.shape) > 1}
    ordered = [matrices[place] for place in reversed(matrices)]
    counts: Counter[str] = Counter()
    inner: Counter[str] = Counter()
    for weight, sources in ordered:
        counts[weight.type] += weight.weights
        inner[weight.type] += 0 if {EMBEDDING, HEAD} & set(sources) else weight.weights
    most = max(inner, key=lambda name: (inner[name], name), default=None)
    meant = (most or "",) if asked is None else meant_types(asked)
    exceptions = sorted((w for w, _ in ordered if w.type not in meant), key=lambda w: (-w.weights, w.name))
    listed = [errors[weight.name] for weight in exceptions if weight.name in errors]
    precision = Precision(asked or most, bits, dict(counts.most_common()), tuple(listed[:_MAX_EXCEPTIONS]))
    return precision, _judge(precision, [weight for weight, _ in ordered], inner, meant)


def _judge(
    precision: Precision, matrices: Sequence[Weight], inner: Counter[str], meant: tuple[str, ...]
) -> CheckResult:
    check, total = "precision/types", sum(inner.values())
    width = max((code_bits(name) for name in meant), default=0)
    quantized = not set(meant) <= FLOAT_TYPES
    findings = []
    for name in precision.weights_by_type:
        if name in meant:
            continue
        found = [weight for weight in matrices if weight.type == name]
        left = quantized and name in FLOAT_TYPES
        share = inner[name] / total if total else 0.0
        severe = share > _MAX_SHARE and (left or code_bits(name) < width)
        detail = (
            f"{len(found)} matrices with {sum(weight.weights for weight in found)} weights are {name}, where "
            f"{precision.asked} was asked for; {share:.0%} of the weights within layers"
        )
        fix = _FLOAT_FIX if left else _FALLBACK_FIX
        kind = "precision/float" if left else "precision/fallback"
        findings.append(Finding(kind, "error" if severe else "warning", found[0].name, detail, fix))
    findings += _too_wide(precision, matrices, inner, meant)
    listed = ", ".join(
        f"{name} {count / sum(precision.weights_by_type.values()):.0%}"
        for name, count in precision.weights_by_type.items()
    )
    detail = f"{precision.bits_per_weight:.2f} bits per weight: {listed}"
    failed = [finding for finding in findings if finding.severity == "error"]
    if failed:
        return CheckResult(check, "fail", failed[0].detail, tuple(findings))
    return CheckResult(check, "pass", detail, tuple(findings))


def _too_wide(
    precision: Precision, matrices: Sequence[Weight], inner: Counter[str], meant: tuple[str, ...]
) -> list[Finding]:
    """Find matrices that together need far more bits than the type that was asked for."""
    asked = [weight for weight in matrices if weight.type in meant]
    width = max((code_bits(name) for name in meant), default=0)
    target = max((weight.bits_per_weight for weight in asked), default=1.125 * width)
    bits: dict[str, float] = {weight.type: weight.bits_per_weight for weight in matrices}
    total = sum(inner.values())
    mean = sum(bits[name] * count for name, count in inner.items()) / total if total else 0.0
    if not target or mean <= _MAX_BITS * target or math.isnan(mean):
        return []
    detail = f"the weights within layers have {mean:.2f} bits each, where {precision.asked} needs {target:.2f}"
    return [Finding("precision/fallback", "error", "all layers", detail, _FALLBACK_FIX)]
