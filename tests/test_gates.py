from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.errors import UsageError
from edgekiln.exporters import EXPORTERS
from edgekiln.validators.gates import (
    BASELINES,
    DEFAULT_GATES,
    METRICS,
    OF_MACHINE,
    OLD,
    Baseline,
    Evidence,
    Figures,
    Gate,
    Operator,
    combine,
    default_gates,
    judge,
    parse_gate,
)


@st.composite
def gates(draw: st.DrawFn) -> Gate:
    metric = METRICS[draw(st.sampled_from(sorted(METRICS)))]
    below: tuple[Operator, ...] = ("<=", "<")
    above: tuple[Operator, ...] = (">=", ">")
    either = metric.unit in {"bytes", "bits"}
    op = draw(st.sampled_from(below + above if either else below if metric.better == "lower" else above))
    build = st.from_regex(r"[a-z0-9]{1,8}([.-][a-z0-9]{1,8}){1,3}", fullmatch=True)
    baseline = draw(st.sampled_from((None, *BASELINES, OLD)) | build)
    highest = 1.0 if metric.unit == "fraction" and baseline is None else 1e15
    limit = draw(st.floats(min_value=0, max_value=highest, allow_subnormal=False))
    if metric.unit == "bytes" and baseline is None:
        limit = float(round(limit))
    return Gate(metric.name, op, limit, baseline)


@given(gates())
def test_a_gate_reads_back_from_its_text(gate: Gate) -> None:
    assert parse_gate(str(gate), "comparison") == gate
    assert str(gate) == f"{gate.metric} {gate.limit_text}"


@given(gates(), st.sampled_from(["", " ", "   "]), st.sampled_from("*\u00d7"))
def test_blanks_and_either_sign_mean_the_same(gate: Gate, blank: str, sign: str) -> None:
    text = str(gate).replace(f" {gate.op} ", f"{blank}{gate.op}{blank}").replace(" * ", f"{blank}{sign}{blank}")
    assert parse_gate(f"{blank}{text}{blank}", "comparison") == gate


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("mean_kld <= 0.05", Gate("mean_kld", "<=", 0.05)),
        ("mean_kld<=1e-4", Gate("mean_kld", "<=", 1e-4)),
        ("top1_agreement >= 0.9", Gate("top1_agreement", ">=", 0.9)),
        ("top1_agreement >= 90 %", Gate("top1_agreement", ">=", 0.9)),
        ("size_bytes <= 350 MB", Gate("size_bytes", "<=", 350e6)),
        ("peak_rss_bytes < 1.5GiB", Gate("peak_rss_bytes", "<", 1.5 * 2**30)),
        ("perplexity_ratio <= 1.1", Gate("perplexity_ratio", "<=", 1.1)),
        (
            "decode_tokens_per_second >= 0.9 * fp16_artifact",
            Gate("decode_tokens_per_second", ">=", 0.9, "fp16_artifact"),
        ),
        (
            "decode_tokens_per_second>=0.9\u00d7fp16_artifact",
            Gate("decode_tokens_per_second", ">=", 0.9, "fp16_artifact"),
        ),
        ("perplexity <= 1.1 * reference", Gate("perplexity", "<=", 1.1, "reference")),
        ("load_seconds <= fp16_artifact", Gate("load_seconds", "<=", 1.0, "fp16_artifact")),
    ],
)
def test_the_grammar(text: str, gate: Gate) -> None:
    assert parse_gate(text) == gate


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("mean_kl <= 0.05", ["unknown metric 'mean_kl'", "did you mean 'mean_kld'?", "top1_agreement"]),
        ("", ["is no gate", "write a gate like"]),
        ("mean_kld", ["'mean_kld' is no gate"]),
        ("mean_kld = 0.05", ["is no gate"]),
        ("mean_kld <= ", ["is no gate"]),
        ("mean_kld <= five", ["unknown baseline 'five'", "fp16_artifact, reference"]),
        ("mean_kld <= 1..2", ["'1..2'", "is no number"]),
        ("mean_kld <= -1", ["'-1'", "is no number"]),
        ("mean_kld <= 1e999", ["not finite"]),
        ("mean_kld <= nan", ["unknown baseline 'nan'"]),
        ("mean_kld <= 0.1 * fp16", ["unknown baseline 'fp16'"]),
        ("mean_kld <= x * reference", ["'x'", "is no number"]),
        ("mean_kld <= 0.05 MB", ["is no number"]),
        ("size_bytes <= 350 Mb/s", ["is no size", "GiB"]),
        ("top1_agreement >= 90", ["can never hold", "between 0 and 1", "90 %"]),
        ("mean_kld >= 0.05", ["would pass a worse artifact", "use <="]),
        ("decode_tokens_per_second <= 5", ["would pass a worse artifact", "use >="]),
        ("mean_kld <= 0.05 " + "x" * 5000, ["is no gate"]),
        ("x" * 5000, ["is no gate"]),
    ],
)
def test_what_is_no_gate_is_refused_in_one_sentence(text: str, parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_gate(text)
    message = str(caught.value)
    assert len(message) < 1000
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "baseline"),
    [
        ("decode_tokens_per_second >= 1.0 * gguf-cpu-int8", "gguf-cpu-int8"),
        ("decode_tokens_per_second >= 0.9×pi.5_x-int4-1a2b3c4d", "pi.5_x-int4-1a2b3c4d"),
        ("mean_kld <= gguf-cpu-int8", "gguf-cpu-int8"),
        ("mean_kld <= 1.1 * 3090-int8", "3090-int8"),
        ("mean_kld <= 1.1 * old", "old"),
        ("mean_kld <= 1.1 * fp16_artifact", "fp16_artifact"),
    ],
)
def test_builds_and_the_old_report_are_baselines_where_they_exist(text: str, baseline: str) -> None:
    assert parse_gate(text, "comparison").relative_to == baseline
    if baseline == OLD:
        with pytest.raises(UsageError, match="only `edgekiln compare` knows an old report"):
            parse_gate(text, "pipeline")
    else:
        assert parse_gate(text, "pipeline").relative_to == baseline
    if baseline in BASELINES:
        assert parse_gate(text).relative_to == baseline
    else:
        with pytest.raises(UsageError, match=f"unknown baseline '{baseline}'.*one artifact is judged alone"):
            parse_gate(text)


@pytest.mark.parametrize(
    "text", ["mean_kld <= 1 * a/b", "mean_kld <= 1 * ../x", "mean_kld <= 1 * é", "mean_kld <= 1 *"]
)
def test_what_can_be_no_id_is_no_baseline(text: str) -> None:
    with pytest.raises(UsageError):
        parse_gate(text, "comparison")


def test_a_baseline_without_figures_says_why() -> None:
    gate = parse_gate("mean_kld <= 1.1 * old", "comparison")
    result = judge(gate, {"mean_kld": 0.1}, {"old": "the reports compare on different corpora"})
    assert (result.outcome, result.reason) == ("not_measured", "the reports compare on different corpora")
    result = judge(gate, {"mean_kld": 0.1}, {"old": {"mean_kld": 0.05}})
    assert (result.outcome, result.reason) == ("fail", "0.1 is above 0.055, 1.1 times that of the old report")


@pytest.mark.parametrize(
    ("mine", "base", "outcome"),
    [
        ((20.0, 21.0, 22.0), (10.0, 11.0, 12.0), "pass"),
        ((5.0, 6.0, 7.0), (10.0, 11.0, 12.0), "fail"),
        ((8.0, 11.0, 16.0), (8.0, 10.0, 15.0), "not_measured"),
        ((10.1, 10.2, 10.3), (10.0, 10.1, 10.2), "pass"),  # straddles, and scatters by one per cent
    ],
)
def test_rounds_of_different_runs_are_held_against_each_other_by_their_middle_halves(
    mine: tuple[float, ...], base: tuple[float, ...], outcome: str
) -> None:
    name = "decode_tokens_per_second"
    gate = parse_gate(f"{name} >= 1 * old", "comparison")
    evidence = Evidence({name: mine}, {"old": {name: base}}, max_spread=0.1)
    found = judge(gate, {name: mine[1]}, {"old": {name: base[1]}}, evidence=evidence)
    assert found.outcome == outcome


def test_every_metric_of_a_machine_is_known() -> None:
    assert set(OF_MACHINE) <= set(METRICS)


def test_sizes_may_be_bounded_from_both_sides() -> None:
    assert parse_gate("size_bytes >= 100 MB").op == ">="


@pytest.mark.parametrize(
    ("text", "value", "outcome"),
    [
        ("mean_kld <= 0.05", 0.05, "pass"),
        ("mean_kld <= 0.05", math.nextafter(0.05, 1), "fail"),
        ("mean_kld < 0.05", 0.05, "fail"),
        ("top1_agreement >= 0.9", 0.9, "pass"),
        ("top1_agreement > 0.9", 0.9, "fail"),
        ("top1_agreement > 0.9", 0.91, "pass"),
        ("mean_kld <= 0.05", math.nan, "fail"),
        ("mean_kld <= 0.05", -math.inf, "fail"),
        ("decode_tokens_per_second >= 1", math.inf, "fail"),
        ("mean_kld <= 0.05", None, "not_measured"),
        ("decode_tokens_per_second >= 0.5 * fp16_artifact", 5.0, "pass"),
        ("decode_tokens_per_second >= 0.5 * fp16_artifact", 4.9, "fail"),
        ("perplexity <= 1.1 * reference", 11.0, "pass"),
        ("perplexity <= 1.1 * reference", 11.1, "fail"),
        ("load_seconds <= 1 * reference", 1.0, "not_measured"),
        ("size_bytes <= 1 * reference", 1.0, "not_measured"),
        ("peak_rss_bytes <= 1 * reference", 1.0, "not_measured"),
    ],
)
def test_outcomes(text: str, value: float | None, outcome: str) -> None:
    baselines: dict[Baseline, Figures | str] = {
        "fp16_artifact": {"decode_tokens_per_second": 10.0},
        "reference": {"perplexity": 10.0, "load_seconds": None, "peak_rss_bytes": math.nan},
    }
    gate = parse_gate(text)
    result = judge(gate, {gate.metric: value}, baselines)
    assert result.outcome == outcome
    assert result.metric == gate.metric
    assert result.limit == gate.limit_text
    assert result.value is value
    assert bool(result.reason) == (outcome != "pass")


def test_a_metric_that_nobody_measured_says_why() -> None:
    gate = parse_gate("mean_kld <= 1")
    assert judge(gate, {}, {}).outcome == "not_measured"
    assert judge(gate, {}, {}, missing={"mean_kld": "no logits"}).reason == "no logits"


def test_a_missing_baseline_is_named() -> None:
    result = judge(parse_gate("load_seconds <= fp16_artifact"), {"load_seconds": 1.0}, {})
    assert result.outcome == "not_measured"
    assert "fp16_artifact" in result.reason


def test_a_failure_gives_value_limit_and_the_reason_of_the_limit() -> None:
    gate = default_gates("int4")[0]
    result = judge(gate, {"mean_kld": 7.5}, {})
    assert "7.5 is above 0.25" in result.reason
    assert gate.why in result.reason


@given(gates(), st.floats(allow_nan=True, allow_infinity=True))
def test_a_pass_is_always_a_finite_value_within_the_limit(gate: Gate, value: float) -> None:
    baselines: dict[Baseline, Figures | str] = {gate.relative_to: {gate.metric: 2.0}} if gate.relative_to else {}
    result = judge(gate, {gate.metric: value}, baselines)
    limit = gate.limit * (2.0 if gate.relative_to else 1.0)
    holds = value <= limit if gate.op == "<=" else value >= limit if gate.op == ">=" else None
    if not math.isfinite(value):
        assert result.outcome == "fail"
    elif holds is not None:
        assert result.outcome == ("pass" if holds else "fail")


def test_every_precision_of_every_container_has_default_gates_with_reasons() -> None:
    for exporter in EXPORTERS.values():
        for precision in exporter.precisions:
            limits = default_gates(precision)
            assert {"mean_kld", "top1_agreement"} <= {gate.metric for gate in limits}, precision
            assert all(len(gate.why) > 10 for gate in limits), precision


def test_every_default_gate_is_a_sound_gate_with_a_reason() -> None:
    for precision, limits in DEFAULT_GATES.items():
        for text, reason in limits:
            assert str(parse_gate(text)) == text, precision
            assert reason


#: Measured on artifacts of others: (precision, mean KLD, top-1, perplexity ratio, bits per weight, speed by fp16).
GOOD = [
    ("fp16", 1e-5, 0.999, 7.668 / 7.667, 16.0, 1.0),
    ("int8", 0.00094, 0.9829, 7.663 / 7.667, 9.1, 21 / 9),
    ("q8_0", 0.00089, 0.9888, 7.670 / 7.667, 8.6, 40 / 28),
    ("int4", 0.08507, 0.8701, 8.332 / 7.667, 5.14, 34 / 9),
    ("q4_0", 0.06979, 0.8896, 8.185 / 7.667, 5.7, 57 / 28),
    ("q4_k_m", 0.00459, 0.9712, 7.677 / 7.667, 6.44, 40 / 28),
    ("nf4", 0.05624, 0.8896, 8.148 / 7.667, 6.0, 3.3 / 9),
]


Measured = tuple[str, float, float, float, float, float]


def outcomes(measured: Measured) -> dict[str, str]:
    names = ("mean_kld", "top1_agreement", "perplexity_ratio", "bits_per_weight", "decode_tokens_per_second")
    precision, *values = measured
    metrics = dict(zip(names, values, strict=True))
    baselines: dict[Baseline, Figures | str] = {"fp16_artifact": {"decode_tokens_per_second": 1.0}}
    return {gate.metric: judge(gate, metrics, baselines).outcome for gate in default_gates(precision)}


@pytest.mark.parametrize("measured", GOOD, ids=[row[0] for row in GOOD])
def test_good_artifacts_pass_the_defaults(measured: Measured) -> None:
    assert set(outcomes(measured).values()) == {"pass"}


@pytest.mark.parametrize("precision", sorted(DEFAULT_GATES))
def test_no_limit_lets_figures_of_a_broken_model_pass(precision: str) -> None:
    """Of the limits alone; that broken artifacts have such figures is shown where artifacts are run."""
    verdicts = outcomes((precision, 5.0, 0.1, 100.0, 4.0, 1.0))
    assert verdicts["mean_kld"] == verdicts["top1_agreement"] == verdicts["perplexity_ratio"] == "fail"


def test_int4_that_is_mostly_int8_fails_by_its_size() -> None:
    assert outcomes(("int4", 0.01, 0.97, 1.01, 9.0, 1.0))["bits_per_weight"] == "fail"


def test_nf4_has_a_speed_floor_of_its_own() -> None:
    slow = 0.1
    assert outcomes(("nf4", 0.05, 0.9, 1.05, 5.0, slow))["decode_tokens_per_second"] == "pass"
    assert outcomes(("int4", 0.05, 0.9, 1.05, 5.0, slow))["decode_tokens_per_second"] == "fail"


def test_greedy_agreement_is_reported_not_gated() -> None:
    assert not any("greedy" in text for limits in DEFAULT_GATES.values() for text, _ in limits)


def test_unknown_precisions_get_the_gates_of_their_bits() -> None:
    assert default_gates("q6_k_l") == default_gates("q6_k")
    assert default_gates("Q4_K_M") == default_gates("q4_k_m")
    with pytest.raises(UsageError, match="no default gates"):
        default_gates("precise")


def test_a_later_gate_replaces_one_on_the_same_side_of_the_same_metric() -> None:
    first = (parse_gate("mean_kld <= 1"), parse_gate("size_bytes >= 1 MB"))
    second = (parse_gate("mean_kld < 2"), parse_gate("size_bytes <= 9 MB"))
    assert [str(gate) for gate in combine(first, second)] == [
        "size_bytes >= 1 MB",
        "mean_kld < 2",
        "size_bytes <= 9 MB",
    ]
