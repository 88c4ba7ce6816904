"""Gates: limits on metrics, and what becomes of them.

A gate reads `METRIC <= LIMIT`, where the limit is a number (`0.05`, `90 %`, `350 MB`) or relative to a baseline
(`0.9 * fp16_artifact`, `1.1 * reference`; the multiplication sign serves as well). In a pipeline the id of another of
its builds is a baseline too (`1.0 * gguf-cpu-int8`), and in `edgekiln compare` so is `old`, the same build in the older
report. Its outcome is pass, fail or not_measured, never anything silent.
"""

from __future__ import annotations

import functools
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, cast

from edgekiln.errors import UsageError, nearest
from edgekiln.units import format_size, parse_size
from edgekiln.validators.spread import middle_half, relative_spread

#: What a relative limit multiplies: a word of `BASELINES`, `OLD`, or the id of a build.
Baseline: TypeAlias = str
Operator: TypeAlias = Literal["<=", ">=", "<", ">"]
Outcome: TypeAlias = Literal["pass", "fail", "not_measured"]
Unit: TypeAlias = Literal[
    "nats", "fraction", "ratio", "tokens", "seconds", "tokens per second", "bytes", "bits", "joules"
]
#: What every artifact is compared with.
BASELINES: Final = ("fp16_artifact", "reference")
#: The same build in an older report.
OLD: Final = "old"
#: Where a gate is written, which decides what it may be relative to.
Place: TypeAlias = Literal["artifact", "pipeline", "comparison"]


@dataclass(frozen=True)
class Metric:
    """What a gate can limit.

    Attributes:
        name: As in reports.
        unit: Of its values.
        better: The direction that is an improvement.
        definition: One line.
    """

    name: str
    unit: Unit
    better: Literal["lower", "higher"]
    definition: str


_KLD: Final = "Kullback-Leibler divergence of the artifact's next-token distribution from the reference's"

METRICS: Final[Mapping[str, Metric]] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric("mean_kld", "nats", "lower", f"{_KLD}, mean over scored tokens"),
            Metric("median_kld", "nats", "lower", f"{_KLD}, median over scored tokens"),
            Metric("p95_kld", "nats", "lower", f"{_KLD}, 95th percentile"),
            Metric("p99_kld", "nats", "lower", f"{_KLD}, 99th percentile"),
            Metric("p999_kld", "nats", "lower", f"{_KLD}, 99.9th percentile"),
            Metric("max_kld", "nats", "lower", f"{_KLD}, worst scored token"),
            Metric("top1_agreement", "fraction", "higher", "share of tokens whose most likely successor is the same"),
            Metric(
                "top1_agreement_clear",
                "fraction",
                "higher",
                "the same without the tokens where the reference's two most likely successors are nearer to each "
                "other than the runtime's own noise",
            ),
            Metric(
                "rms_delta_p",
                "fraction",
                "lower",
                "root mean square difference of the probabilities that the following token has",
            ),
            Metric(
                "decode_mean_kld", "nats", "lower", "mean_kld of the decode path: token by token, through the cache"
            ),
            Metric("long_context_mean_kld", "nats", "lower", "mean_kld at the end of a long context"),
            Metric("perplexity", "ratio", "lower", "exponential of the artifact's mean negative log-likelihood"),
            Metric("reference_perplexity", "ratio", "lower", "the same of the reference"),
            Metric("perplexity_ratio", "ratio", "lower", "perplexity divided by the reference's"),
            Metric(
                "greedy_agreement_tokens", "tokens", "higher", "tokens until greedy decoding leaves the reference's"
            ),
            Metric(
                "load_seconds", "seconds", "lower", "loading, files in the page cache, to a model that can generate"
            ),
            Metric("cold_load_seconds", "seconds", "lower", "the same with the files on the disk alone"),
            Metric("time_to_first_token_seconds", "seconds", "lower", "from a prompt to its first generated token"),
            Metric("prefill_tokens_per_second", "tokens per second", "higher", "prompt tokens processed per second"),
            Metric("decode_tokens_per_second", "tokens per second", "higher", "tokens generated per second"),
            Metric("peak_rss_bytes", "bytes", "lower", "highest resident memory of the runtime's process"),
            Metric("steady_rss_bytes", "bytes", "lower", "its resident memory after generating"),
            Metric("joules_per_token", "joules", "lower", "energy of the processor packages per generated token"),
            Metric(
                "weights_relative_error",
                "ratio",
                "lower",
                "norm of the difference between the artifact's weights and the checkpoint's, over the norm of these",
            ),
            Metric("size_bytes", "bytes", "lower", "all files of the artifact"),
            Metric("weights_bytes", "bytes", "lower", "the artifact's tensors alone"),
            Metric("bits_per_weight", "bits", "lower", "bits of all tensors per stored weight of the checkpoint"),
        )
    }
)

#: How the reason of a gate begins that noise has left open.
TOO_NOISY: Final = "too noisy"
#: What a machine decides as much as the artifact does: latency measures these wherever it runs.
TIMED: Final = (
    "load_seconds",
    "cold_load_seconds",
    "time_to_first_token_seconds",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "peak_rss_bytes",
    "steady_rss_bytes",
)

#: What says something of one machine only: the above, and what only some machines show.
OF_MACHINE: Final = (*TIMED, "joules_per_token")

_GATE: Final = re.compile(r"\s*(\w{1,60})\s*(<=|>=|<(?!=)|>(?!=))\s*(\S.*?)\s*", re.DOTALL)
#: A factor and a name, or a name that cannot be taken for a number.
_RELATIVE: Final = re.compile(r"([^*\u00d7\s]+)\s*[*\u00d7]\s*([\w.-]{1,120})|([A-Za-z_][\w.-]{0,119})", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?([eE][-+]?[0-9]{1,3})?|\.[0-9]{1,20}", re.ASCII)
_MAX_TEXT: Final = 200
_EXAMPLE: Final = "write a gate like 'mean_kld <= 0.05' or 'decode_tokens_per_second >= 0.9 * fp16_artifact'"


@dataclass(frozen=True)
class Gate:
    """A limit on one metric.

    Attributes:
        metric: Key of `METRICS`.
        op: How value and limit compare when the gate passes.
        limit: In the metric's unit, or a factor when the gate is relative.
        relative_to: The baseline whose value the limit multiplies; None for an absolute limit.
        why: The reason for the limit, or where it comes from; gates that differ only here are equal.
    """

    metric: str
    op: Operator
    limit: float
    relative_to: Baseline | None = None
    why: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.metric} {self.limit_text}"

    @property
    def limit_text(self) -> str:
        """Operator and limit, as reports show it: `<= 0.05`, `>= 0.9 * fp16_artifact`, `<= 350 MB`."""
        number = repr(self.limit).removesuffix(".0")
        if self.relative_to is not None:
            return f"{self.op} {number} * {self.relative_to}"
        if METRICS[self.metric].unit == "bytes" and self.limit.is_integer():
            number = format_size(int(self.limit))
        return f"{self.op} {number}"

    @property
    def replaces(self) -> tuple[str, bool, Baseline | None]:
        """Gates with the same key limit the same metric from the same side by the same measure; the later one holds.

        An absolute limit leaves a relative one in force: the first may be judged on the device alone.
        """
        return self.metric, self.op in {"<=", "<"}, self.relative_to


_ALONE: Final = (
    "; one artifact is judged alone here: gates of a pipeline may name its builds, and those of `edgekiln compare` "
    "the old report"
)
#: By place: the words that stand for a baseline there, whether builds do, and what to say of all other names.
_PLACES: Final[Mapping[Place, tuple[tuple[str, ...], bool, str]]] = MappingProxyType(
    {
        "artifact": (BASELINES, False, _ALONE),
        "pipeline": (BASELINES, True, "; only `edgekiln compare` knows an old report"),
        "comparison": ((*BASELINES, OLD), True, ""),
    }
)


def _number(text: str, gate: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise UsageError(f"{text!r} in the gate {gate!r} is no number; {_EXAMPLE}")
    value = float(text)
    if not math.isfinite(value):
        raise UsageError(f"{text!r} in the gate {gate!r} is not finite; {_EXAMPLE}")
    return value


def _absolute(metric: Metric, text: str, gate: str) -> float:
    """Return an absolute limit in the metric's unit."""
    if metric.unit == "bytes" and not _NUMBER.fullmatch(text):
        return float(parse_size(text))
    if metric.unit == "fraction" and text.endswith("%"):
        number = text.removesuffix("%").rstrip()
        _number(number, gate)
        limit = float(Decimal(number) / 100)
    else:
        limit = _number(text, gate)
    if metric.unit == "fraction" and limit > 1:
        raise UsageError(f"the gate {gate!r} can never hold: {metric.name} lies between 0 and 1; write 0.9 or 90 %")
    return limit


def _check_direction(metric: Metric, op: str, gate: str) -> None:
    """Refuse a gate that a worse artifact would pass; sizes may be bounded from both sides."""
    bounds_above = op in {"<=", "<"}
    if metric.unit not in {"bytes", "bits"} and bounds_above != (metric.better == "lower"):
        wanted = "<=" if metric.better == "lower" else ">="
        raise UsageError(
            f"the gate {gate!r} would pass a worse artifact: {metric.name} is better {metric.better}; use {wanted}"
        )


def _baseline(name: str, place: Place, gate: str) -> Baseline:
    """Return what a limit is relative to, if that is known where the gate is written."""
    words, builds, otherwise = _PLACES[place]
    if name in words or (builds and name != OLD):
        return name
    raise UsageError(f"unknown baseline {name!r} in the gate {gate!r}; {nearest(name, words)}{otherwise}")


def parse_gate(text: str, place: Place = "artifact") -> Gate:
    """Return the gate that a text like `mean_kld <= 0.05` describes.

    Args:
        text: Metric, operator and limit.
        place: What the gate is for. That a build exists which it is relative to is checked later.

    Raises:
        UsageError: It is malformed, names no known metric or baseline, or could not tell good from bad.
    """
    shown = text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"
    match = _GATE.fullmatch(text) if len(text) <= _MAX_TEXT else None
    if match is None:
        raise UsageError(f"{shown!r} is no gate; {_EXAMPLE}")
    name, op, right = match.groups()
    if name not in METRICS:
        raise UsageError(f"unknown metric {name!r} in the gate {shown!r}; {nearest(name, METRICS)}")
    metric = METRICS[name]
    _check_direction(metric, op, shown)
    operator = cast("Operator", op)
    if relative := _RELATIVE.fullmatch(right):
        factor, multiplied, alone = relative.groups()
        baseline = _baseline(multiplied or alone, place, shown)
        return Gate(name, operator, _number(factor or "1", shown), baseline)
    return Gate(name, operator, _absolute(metric, right, shown))


def parse_pipeline_gate(text: str) -> Gate:
    """Return the gate of a pipeline or targets file; see `parse_gate`."""
    return parse_gate(text, "pipeline")


@dataclass(frozen=True)
class GateOutcome:
    """What became of a gate.

    Attributes:
        metric: Key of `METRICS`.
        limit: The limit as a text: `<= 0.05`.
        value: The measured value; None when it was not measured.
        outcome: `pass`, `fail` or `not_measured`.
        reason: Why it failed or was not measured; for a pass, why the limit is what it is.
        binding: False where this machine cannot judge it by design, so that a build passes without it.
    """

    metric: str
    limit: str
    value: float | None
    outcome: Outcome
    reason: str
    binding: bool = True


@dataclass(frozen=True)
class Evidence:
    """The samples behind measured values.

    Attributes:
        artifact: By metric, one value per round.
        baselines: The same of the baselines.
        paired: Baselines that were timed in turn with the artifact, so that values of the same round pair up.
        max_spread: Scatter (interquartile range over median) beyond which rounds on both sides of a limit decide
            nothing.
    """

    artifact: Mapping[str, Sequence[float]] = field(default_factory=dict)
    baselines: Mapping[Baseline, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    paired: frozenset[Baseline] = frozenset({"fp16_artifact"})
    max_spread: float = math.inf


NO_EVIDENCE: Final = Evidence()


def _holds(op: Operator, value: float, limit: float) -> bool:
    match op:
        case "<=":
            return value <= limit
        case ">=":
            return value >= limit
        case "<":
            return value < limit
        case ">":
            return value > limit


_MISSED: Final[Mapping[Operator, str]] = MappingProxyType(
    {"<=": "above", ">=": "below", "<": "not below", ">": "not above"}
)


#: What a value or a baseline is: measured figures, or the reason why there are none.
Figures: TypeAlias = Mapping[str, float | None]


def _of(baseline: Baseline) -> str:
    """Return how a sentence names a baseline."""
    return f"the {baseline}" if baseline in BASELINES else "the old report" if baseline == OLD else baseline


def _limit(gate: Gate, baselines: Mapping[Baseline, Figures | str]) -> float | str:
    """Return the limit in the metric's unit, or why there is none."""
    if gate.relative_to is None:
        return gate.limit
    figures = baselines.get(gate.relative_to, {})
    if isinstance(figures, str):
        return figures
    base = figures.get(gate.metric)
    if base is None:
        return f"{gate.metric} of {_of(gate.relative_to)} was not measured"
    if not math.isfinite(base):
        return f"{gate.metric} of {_of(gate.relative_to)} is {base}, which is nothing to compare with"
    return gate.limit * base


def _shares(gate: Gate, evidence: Evidence) -> list[float]:
    """Return how many times the limit the value was in each round; empty where rounds do not pair up.

    The ratio of one round is free of a drift that hits artifact and baseline alike.
    """
    values = evidence.artifact.get(gate.metric, ())
    if gate.relative_to is None:
        bases: Sequence[float] = [1.0] * len(values)
    elif gate.relative_to not in evidence.paired:
        return []
    else:
        bases = evidence.baselines.get(gate.relative_to, {}).get(gate.metric, ())
    if len(bases) != len(values) or not gate.limit or not all(bases):
        return []
    return [value / (base * gate.limit) for value, base in zip(values, bases, strict=True)]


@dataclass(frozen=True)
class _Band:
    """Where the middle half of the rounds lies, in multiples of what the gate asks for.

    Attributes:
        lower: Its lower end.
        upper: Its upper end.
        spread: How much the rounds scatter, as a share.
        rounds: Their number.
    """

    lower: float
    upper: float
    spread: float
    rounds: int

    def is_open(self, gate: Gate, max_spread: float) -> bool:
        """Tell whether the rounds scatter too much and lie on both sides of the limit."""
        return self.spread > max_spread and _holds(gate.op, self.lower, 1.0) != _holds(gate.op, self.upper, 1.0)


def _band(gate: Gate, shares: Sequence[float], evidence: Evidence) -> _Band | None:
    """Return where the rounds lie; None where there are none on one of the sides."""
    if shares:
        return _Band(*middle_half(shares), relative_spread(shares), len(shares))
    values = evidence.artifact.get(gate.metric, ())
    bases = evidence.baselines.get(gate.relative_to or "", {}).get(gate.metric, ())
    if not values or not bases or not gate.limit:
        return None
    (low, high), (base_low, base_high) = middle_half(values), middle_half(bases)
    if base_low <= 0:
        return None
    # Rounds of different runs: the least favourable of one side may have met the most favourable of the other.
    lower, upper = low / (base_high * gate.limit), high / (base_low * gate.limit)
    return _Band(lower, upper, max(relative_spread(values), relative_spread(bases)), len(values))


def judge(
    gate: Gate,
    metrics: Figures,
    baselines: Mapping[Baseline, Figures | str],
    *,
    missing: Mapping[str, str] = MappingProxyType({}),
    evidence: Evidence = NO_EVIDENCE,
) -> GateOutcome:
    """Compare a measured value with its limit.

    Where the rounds behind a value are known, the median of their ratios to the limit decides; where these scatter
    too much and their middle half lies on both sides of the limit, the gate is `not_measured`.

    Args:
        gate: The limit.
        metrics: Measured values by metric; a metric that is absent or None was not measured.
        baselines: The same of the baselines, or why one has no figures.
        missing: Why a metric was not measured, where that is known.
        evidence: The samples behind the values.

    Returns:
        The outcome. NaN and infinity fail, whatever the limit: no sound artifact has them.
    """
    value = metrics.get(gate.metric)
    result = GateOutcome(gate.metric, gate.limit_text, value, "pass", gate.why)
    if value is None:
        return replace(
            result, outcome="not_measured", reason=missing.get(gate.metric, f"{gate.metric} was not measured")
        )
    if not math.isfinite(value):
        return replace(result, outcome="fail", reason=f"{gate.metric} is {value}, not a finite number")
    limit = _limit(gate, baselines)
    if isinstance(limit, str):
        return replace(result, outcome="not_measured", reason=limit)
    shares = _shares(gate, evidence)
    holds = _holds(gate.op, statistics.median(shares), 1.0) if shares else _holds(gate.op, value, limit)
    band = _band(gate, shares, evidence)
    if band is not None and band.is_open(gate, evidence.max_spread):
        reason = (
            f"{TOO_NOISY}: the middle half of {band.rounds} rounds lies between {band.lower:.2f} and {band.upper:.2f} "
            f"times what the gate asks, and they scatter by more than {evidence.max_spread:.0%}; measure on a quiet "
            "machine"
        )
        return replace(result, outcome="not_measured", reason=reason)
    if holds:
        return result
    why = f" ({gate.why})" if gate.why else ""
    shown = f"{_shown(gate, value)} is {_MISSED[gate.op]} {_shown(gate, limit)}"
    if gate.relative_to is not None:
        shown += f", {gate.limit:g} times that of {_of(gate.relative_to)}"
    if shares and gate.relative_to is not None:
        share = statistics.median(shares) * gate.limit
        shown = (
            f"{share:.3g} times the {gate.relative_to}'s, in the median of {len(shares)} rounds, is "
            f"{_MISSED[gate.op]} {gate.limit:g}"
        )
    return replace(result, outcome="fail", reason=f"{shown}{why}")


def _shown(gate: Gate, value: float) -> str:
    """Return a value as a person reads it, sizes as whole bytes with their thousands set apart."""
    return f"{value:,.0f} bytes" if METRICS[gate.metric].unit == "bytes" else f"{value:.6g}"


# The default limits were set before any artifact of ours was measured. They tell a broken artifact from a sound one
# and leave room for small models, which quantization hurts most; a pipeline or target sets tighter ones. The figures
# behind them: Qwen2.5-Coder-0.5B-Instruct, four windows of 512 tokens, against float32, artifacts of the
# onnxruntime-genai builder and of llama.cpp. An artifact with two layers swapped lies far above one nat.
_Limits: TypeAlias = tuple[tuple[str, str], ...]
_SPEED: Final = (
    "decode_tokens_per_second >= 0.5 * fp16_artifact",
    "fewer bytes per token should be faster (1.4 to 3.8 times measured); half, since overhead decides in tiny models",
)
_NF4_SPEED: Final = (
    "decode_tokens_per_second >= 0.05 * fp16_artifact",
    "MatMulBnb4 on a CPU decodes about ten times slower than int4 (3.3 tokens/s measured against 9 of float32)",
)


def _quality(kld: float, top1: float, ratio: float, measured: str) -> _Limits:
    return (
        (f"mean_kld <= {kld:g}", measured),
        (f"top1_agreement >= {top1:g}", measured),
        (f"perplexity_ratio <= {ratio:g}", measured),
    )


def _bits(limit: float, reason: str) -> tuple[str, str]:
    return f"bits_per_weight <= {limit:g}", reason


_BITS_8: Final = _bits(10.5, "8-bit codes with a float32 scale per 32 weights are 9; float32 embeddings would be 18")
_BITS_4: Final = _bits(
    8, "4-bit codes with float32 scales are 5, int8 embeddings and head make 6; more is int8 by another name"
)

_FP16: Final = _quality(1e-4, 0.99, 1.005, "rounding to fp16 alone: KLD 0.00001, top-1 99.9 % measured")
_INT8: Final = (
    *_quality(
        0.005, 0.95, 1.02, "8 bits: KLD 0.0009, top-1 98.3 to 98.9 %, perplexity ratio 1.000 measured; a margin of five"
    ),
    _BITS_8,
    _SPEED,
)
_PER_BIT: Final = "from 8 bits (KLD 0.0009) to 4 (0.085) each bit less costs a factor of three; a margin of three"
_Q6: Final = (*_quality(0.025, 0.92, 1.05, _PER_BIT), _SPEED)
_Q5: Final = (*_quality(0.08, 0.87, 1.1, _PER_BIT), _SPEED)
_INT4: Final = (
    *_quality(
        0.25,
        0.75,
        1.3,
        "4 bits round-to-nearest: KLD 0.085, top-1 87 %, perplexity ratio 1.087 measured; a margin of three",
    ),
    _BITS_4,
    _SPEED,
)
_Q4_BLOCK: Final = (
    *_quality(0.2, 0.78, 1.25, "Q4_0: KLD 0.070, top-1 89 %, perplexity ratio 1.07 measured; a margin of three"),
    _BITS_4,
    _SPEED,
)
_Q4_MIX: Final = (
    *_quality(
        0.15,
        0.8,
        1.2,
        "better than Q4_0 (KLD 0.070) by design, since scales are searched; twice Q4_0's KLD is a defect",
    ),
    _BITS_4,
    _SPEED,
)
_NF4: Final = (
    *_quality(
        0.2, 0.78, 1.25, "NF4 g64: KLD 0.056, top-1 89 %, perplexity ratio 1.06 measured; a margin of three and a half"
    ),
    _BITS_4,
    _NF4_SPEED,
)
_Q3: Final = (*_quality(0.8, 0.5, 2.0, _PER_BIT), _SPEED)
_Q2: Final = (
    *_quality(2.0, 0.3, 6.0, "2 bits hurt small models badly; only the grossly broken is told apart here"),
    _SPEED,
)

#: Default gates by precision, each as (gate, reason).
DEFAULT_GATES: Final[Mapping[str, _Limits]] = MappingProxyType(
    {
        "fp16": _FP16,
        "bf16": _FP16,
        "int8": _INT8,
        "q8_0": _INT8,
        "q6_k": _Q6,
        "q5_0": _Q5,
        "q5_1": _Q5,
        "q5_k_s": _Q5,
        "q5_k_m": _Q5,
        "int4": _INT4,
        "q4_0": _Q4_BLOCK,
        "q4_1": _Q4_BLOCK,
        "q4_k_s": _Q4_MIX,
        "q4_k_m": _Q4_MIX,
        "iq4_nl": _Q4_MIX,
        "iq4_xs": _Q4_MIX,
        "nf4": _NF4,
        "q3_k_s": _Q3,
        "q3_k_m": _Q3,
        "q3_k_l": _Q3,
        "q2_k": _Q2,
    }
)
_BY_BITS: Final[Mapping[int, _Limits]] = MappingProxyType(
    {32: _FP16, 16: _FP16, 8: _INT8, 6: _Q6, 5: _Q5, 4: _INT4, 3: _Q3, 2: _Q2, 1: _Q2}
)


@functools.cache
def default_gates(precision: str) -> tuple[Gate, ...]:
    """Return the gates of a precision; one that the table lacks gets those of the bits that its name begins with.

    Args:
        precision: What the container holds, or what was asked for: `int4`, `q4_k_m`, `q6_k_l`.

    Raises:
        UsageError: The name says no number of bits.
    """
    limits = DEFAULT_GATES.get(precision.lower())
    if limits is None:
        digits = re.search(r"[0-9]{1,2}", precision)
        limits = _BY_BITS.get(int(digits[0])) if digits else None
    if limits is None:
        raise UsageError(f"no default gates for the precision {precision!r}; {nearest(precision, DEFAULT_GATES)}")
    return tuple(replace(parse_gate(text), why=reason) for text, reason in limits)


def combine(*layers: Iterable[Gate]) -> tuple[Gate, ...]:
    """Return all gates, where one of a later layer replaces earlier ones with the same `Gate.replaces`."""
    kept: list[Gate] = []
    for layer in layers:
        gates = tuple(layer)
        replaced = {gate.replaces for gate in gates}
        kept = [gate for gate in kept if gate.replaces not in replaced] + list(gates)
    return tuple(dict.fromkeys(kept))
