import pytest

from edgekiln.errors import StepError
from edgekiln.pipelines.verdict import Elsewhere, Findings, Timings, judge_gates, judged, missing_reasons, verdict
from edgekiln.validators.gates import combine, parse_gate
from edgekiln.validators.latency import Latency, LatencySample, aggregate
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
    return Findings(METRICS, timings, (parse_gate(gate),), 2, 0.1, **more)


def judged_gates(gate, **options):
    found = findings(gate, **options)
    values = dict(found.timings.artifact.values) if isinstance(found.timings.artifact, Latency) else {}
    return judge_gates(found, values, missing_reasons(METRICS, found.timings))


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


def test_an_error_after_measuring_outweighs_the_gates():
    report = judged(BASE, findings("decode_tokens_per_second >= 1", decode=StepError("the child died")))
    assert (report.status, report.reason) == ("error", "the child died")
    assert report.health.status == "unhealthy"
