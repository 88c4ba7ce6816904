from dataclasses import replace

import pytest

from edgekiln.errors import StepError
from edgekiln.pipelines.verdict import (
    Elsewhere,
    Findings,
    Timings,
    judge_gates,
    judged,
    measured,
    missing_reasons,
    verdict,
)
from edgekiln.validators.base import CheckResult, Finding
from edgekiln.validators.gates import combine, parse_gate
from edgekiln.validators.latency import LatencySample, aggregate
from edgekiln.validators.report import BuildReport, CheckReport
from edgekiln.validators.validate import ArtifactMetrics

BASE = BuildReport(
    id="x",
    target=None,
    format="gguf",
    requested=None,
    precision="q4_0",
    container_type=None,
    status="error",
    reason=None,
)
METRICS = ArtifactMetrics("gguf", (), None, 1, 1, 4.5, {}, {})


def timing(*decode):
    samples = [LatencySample({"load_seconds": 1.0, "decode_tokens_per_second": value}, 0.0, None) for value in decode]
    return aggregate(samples, "llama.cpp", no_cold_load="tmpfs")


def findings(gate, decode=(10.0,), baseline=(10.0,), reference=(3.0,), **more):
    fp16 = baseline if isinstance(baseline, StepError) else timing(*baseline)
    artifact = decode if isinstance(decode, StepError) else timing(*decode)
    timings = Timings(artifact, timing(*reference), fp16)
    return Findings(METRICS, timings, (parse_gate(gate, "pipeline"),), 2, 0.1, **more)


def judged_gates(gate, **options):
    found = findings(gate, **options)
    return judge_gates(measured(BASE, found), found, missing_reasons(METRICS, found.timings))


@pytest.mark.parametrize(
    ("gate", "outcome"),
    [
        ("decode_tokens_per_second >= 0.9 * fp16_artifact", "pass"),
        ("decode_tokens_per_second >= 1.1 * fp16_artifact", "fail"),
        ("decode_tokens_per_second >= 3 * reference", "pass"),
        ("decode_tokens_per_second >= 4 * reference", "fail"),
        ("mean_kld <= 1", "not_measured"),
    ],
)
def test_gates_compare_with_the_right_baseline(gate, outcome):
    assert judged_gates(gate)[0].outcome == outcome


def test_a_baseline_that_failed_leaves_its_gates_unmeasured():
    (outcome,) = judged_gates("decode_tokens_per_second >= 0.5 * fp16_artifact", baseline=StepError("no fp16"))
    assert outcome.outcome == "not_measured"


def test_a_speed_that_was_not_measured_says_why():
    (outcome,) = judged_gates("load_seconds <= 5", decode=StepError("the child died"))
    assert (outcome.outcome, outcome.reason) == ("not_measured", "the child died")


def test_a_cold_load_that_could_not_be_arranged_is_not_measured_with_the_reason():
    (outcome,) = judged_gates("cold_load_seconds <= 5")
    assert (outcome.outcome, outcome.reason) == ("not_measured", "tmpfs")


def test_rounds_are_judged_pair_by_pair():
    """The ratio of the medians is 10.2 / 10.1; in the median round the artifact is the slower one."""
    rounds = {"decode": (10.0, 10.2, 10.4), "baseline": (10.1, 10.3, 10.0)}
    (outcome,) = judged_gates("decode_tokens_per_second >= 1 * fp16_artifact", **rounds)
    assert outcome.outcome == "fail"
    assert outcome.reason == "0.99 times the fp16_artifact's, in the median of 3 rounds, is below 1"


def test_a_drift_that_hits_both_alike_is_no_noise():
    """Each scatters by more than a half, their ratios by 5 %: on both sides of the limit, yet near enough to judge."""
    drifting = {"decode": (10.0, 20.0, 40.0), "baseline": (11.0, 21.0, 42.0)}
    (outcome,) = judged_gates("decode_tokens_per_second >= 0.93 * fp16_artifact", **drifting)
    assert outcome.outcome == "pass"


def test_an_absolute_limit_leaves_the_relative_one_in_force():
    defaults = (parse_gate("decode_tokens_per_second >= 0.5 * fp16_artifact"),)
    gates = combine(defaults, [parse_gate("decode_tokens_per_second >= 5")])
    assert [str(gate) for gate in gates] == [
        "decode_tokens_per_second >= 0.5 * fp16_artifact",
        "decode_tokens_per_second >= 5",
    ]


@pytest.mark.parametrize(
    ("decode", "outcome"),
    [
        ((20.0, 40.0, 30.0), "pass"),  # scatters, and every round passes
        ((20.0, 40.0, 30.0, 35.0, 1.0), "pass"),  # one outlier
        ((5.0, 1.0, 3.0), "fail"),  # scatters, and every round fails
        ((5.0, 40.0, 11.0), "not_measured"),
        ((9.9, 10.1, 10.0), "pass"),  # straddles the limit, and scatters by one per cent
    ],
)
def test_what_scatters_is_judged_only_where_the_middle_half_agrees(decode, outcome):
    (found,) = judged_gates("decode_tokens_per_second >= 10", decode=decode)
    assert found.outcome == outcome
    assert ("too noisy" in found.reason) == (outcome == "not_measured")


def test_a_speed_that_scatters_is_named_in_the_report():
    report = judged(BASE, findings("decode_tokens_per_second >= 1", decode=(5.0, 40.0, 11.0)))
    assert "too noisy" in report.not_measured["latency.decode_tokens_per_second"]
    assert report.status == "passed"
    assert report.health.status == "degraded"
    assert any("too noisy" in finding for finding in report.health.findings)


def test_gates_of_a_device_that_is_elsewhere_do_not_bind():
    away = Elsewhere(absolute="another machine", relative=None)
    report = judged(BASE, findings("decode_tokens_per_second >= 99", elsewhere=away))
    (gate,) = report.gates
    assert (report.status, gate.outcome, gate.binding, gate.reason) == (
        "passed",
        "not_measured",
        False,
        "another machine",
    )
    relative = judged(BASE, findings("decode_tokens_per_second >= 2 * fp16_artifact", elsewhere=away))
    assert relative.status == "failed"
    size = judged(BASE, findings("size_bytes <= 0", elsewhere=Elsewhere("elsewhere", "elsewhere")))
    assert size.status == "failed"


def test_a_median_between_two_sizes_is_a_whole_number_of_bytes():
    samples = [LatencySample({"peak_rss_bytes": size}, 0.0, None) for size in (10, 11)]
    timings = Timings(aggregate(samples, "llama.cpp"), None, None)
    report = judged(BASE, Findings(METRICS, timings, (), 2, 0.1))
    assert report.latency.peak_rss_bytes == 10


def test_everything_good_passes():
    check = CheckReport(check="a", outcome="known_divergence", detail="")
    assert verdict([check], judged_gates("decode_tokens_per_second >= 1")) == ("passed", None)


def test_a_failed_check_fails_the_build_whatever_the_gates_say():
    check = CheckReport(check="gguf/metadata", outcome="fail", detail="block_count is 5")
    status, reason = verdict([check], judged_gates("decode_tokens_per_second >= 1"))
    assert status == "failed"
    assert reason == "gguf/metadata: block_count is 5"


def test_not_measured_fails_unless_the_pipeline_allows_it():
    outcomes = judged_gates("mean_kld <= 1")
    assert verdict([], outcomes)[0] == "failed"
    assert verdict([], outcomes, {"mean_kld"}) == ("passed", None)
    assert verdict([], outcomes, {"max_kld"})[0] == "failed"


def other(*decode):
    return measured(BASE, findings("size_bytes <= 1", decode=decode))


@pytest.mark.parametrize(
    ("others", "outcome", "reason"),
    [
        ({"other-int8": other(9.0)}, "pass", ""),
        ({"other-int8": other(11.0)}, "fail", "10 is below 11, 1 times that of other-int8"),
        ({"other-int8": "nothing was measured of other-int8: it crashed"}, "not_measured", "it crashed"),
        ({"other-int4": other(9.0)}, "not_measured", "other-int8 is not part of this run"),
    ],
)
def test_a_gate_compares_with_another_build(others, outcome, reason):
    (gate,) = judged_gates("decode_tokens_per_second >= 1.0 * other-int8", others=others)
    assert gate.outcome == outcome
    assert reason in gate.reason
    assert gate.binding


def test_rounds_of_another_build_do_not_pair_up_and_are_too_noisy_where_they_scatter_across_the_limit():
    """Round by round it would be 1.1 times as fast; the builds were timed apart, so that says nothing."""
    gate, mine = "decode_tokens_per_second >= 1.05 * other-int8", (11.0, 22.0, 44.0)
    (outcome,) = judged_gates(gate, decode=mine, others={"other-int8": other(10.0, 20.0, 40.0)})
    assert outcome.outcome == "not_measured"
    assert "too noisy" in outcome.reason
    (outcome,) = judged_gates(gate, decode=(22.0, 22.1, 22.2), others={"other-int8": other(20.0, 20.1, 20.2)})
    assert outcome.outcome == "pass"


def test_what_may_stay_unmeasured_does_not_bind_and_a_failure_always_does():
    allowed = frozenset({"mean_kld", "size_bytes"})
    report = judged(BASE, findings("mean_kld <= 1", allow_not_measured=allowed))
    assert (report.status, report.gates[0].outcome, report.gates[0].binding) == ("passed", "not_measured", False)
    report = judged(BASE, findings("size_bytes <= 0", allow_not_measured=allowed))
    assert (report.status, report.gates[0].outcome, report.gates[0].binding) == ("failed", "fail", True)


def test_findings_of_checks_come_into_the_report():
    finding = Finding("conservation/swapped", "error", "blk.1", "holds another", "Export again.")
    metrics = replace(METRICS, structure=(CheckResult("conservation", "fail", "1 tensor", (finding,)),))
    report = judged(BASE, replace(findings("size_bytes <= 1"), metrics=metrics))
    assert vars(finding) == report.structure[0].findings[0].model_dump()
    assert report.status == "failed"


def test_speeds_are_told_apart_by_their_names():
    values = {
        "decode_tokens_per_second": 9.0,
        "tg32": 9.0,
        "tg32 @ d512": 8.0,
        "tg32 × 4": 20.0,
        "joules_per_token": 2.0,
    }
    latency = judged(
        BASE, Findings(METRICS, Timings(aggregate([LatencySample(values, 0, None)], "x"), None, None), (), 2, 0.1)
    ).latency
    assert (latency.by_length, latency.by_depth, latency.by_batch) == (
        {"tg32": 9.0},
        {"tg32 @ d512": 8.0},
        {"tg32 × 4": 20.0},
    )
    assert latency.joules_per_token == 2.0


def test_an_error_after_measuring_outweighs_the_gates():
    report = judged(BASE, findings("decode_tokens_per_second >= 1", decode=StepError("the child died")))
    assert (report.status, report.reason) == ("error", "the child died")
    assert report.health.status == "unhealthy"
