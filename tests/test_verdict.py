import pytest

from edgekiln.errors import StepError
from edgekiln.pipelines.verdict import Timings, judge_gates, missing_reasons, verdict
from edgekiln.validators.gates import parse_gate
from edgekiln.validators.latency import LatencySample, aggregate
from edgekiln.validators.report import CheckReport
from edgekiln.validators.validate import ArtifactMetrics

METRICS = ArtifactMetrics("gguf", (), None, 1, 1, 4.5, {}, {})


def timing(decode):
    return aggregate([LatencySample(1.0, (0.1,), (100.0,), (decode,), 10)], "llama.cpp")


def judged(gate, decode=10.0, baseline=10.0, values=None):
    timings = Timings(timing(decode), timing(3.0), baseline if isinstance(baseline, StepError) else timing(baseline))
    measured = {"decode_tokens_per_second": decode} if values is None else values
    return judge_gates([parse_gate(gate)], measured, timings, missing_reasons(METRICS, timings))


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
    assert judged(gate)[0].outcome == outcome


def test_a_baseline_that_failed_leaves_its_gates_unmeasured():
    (outcome,) = judged("decode_tokens_per_second >= 0.5 * fp16_artifact", baseline=StepError("no fp16"))
    assert outcome.outcome == "not_measured"


def test_a_speed_that_was_not_measured_says_why():
    timings = Timings(StepError("the child died"), timing(1.0), timing(1.0))
    (outcome,) = judge_gates([parse_gate("load_seconds <= 5")], {}, timings, missing_reasons(METRICS, timings))
    assert (outcome.outcome, outcome.reason) == ("not_measured", "the child died")


def test_everything_good_passes():
    check = CheckReport(check="a", outcome="known_divergence", detail="")
    assert verdict([check], judged("decode_tokens_per_second >= 1")) == ("passed", None)


def test_a_failed_check_fails_the_build_whatever_the_gates_say():
    check = CheckReport(check="gguf/metadata", outcome="fail", detail="block_count is 5")
    status, reason = verdict([check], judged("decode_tokens_per_second >= 1"))
    assert status == "failed"
    assert reason == "gguf/metadata: block_count is 5"


def test_not_measured_fails_unless_the_pipeline_allows_it():
    outcomes = judged("mean_kld <= 1")
    assert verdict([], outcomes)[0] == "failed"
    assert verdict([], outcomes, {"mean_kld"}) == ("passed", None)
    assert verdict([], outcomes, {"max_kld"})[0] == "failed"
