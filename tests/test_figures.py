"""The figures of a report under the names of gates."""

import sample_reports
from edgekiln.validators.figures import baseline_figures, evidence, figures
from edgekiln.validators.gates import METRICS


def test_a_full_report_has_every_metric_that_gates_know():
    found = figures(sample_reports.healthy_build())
    assert set(found) == set(METRICS)
    build = sample_reports.healthy_build()
    assert found["decode_mean_kld"] == build.parity.decode.mean_kld
    assert found["long_context_mean_kld"] == build.parity.long_context.mean_kld
    assert found["weights_relative_error"] == build.conservation.relative_error
    assert found["perplexity_ratio"] == build.parity.perplexity / build.parity.reference_perplexity
    assert found["joules_per_token"] == build.latency.joules_per_token
    assert found["size_bytes"] == build.size_bytes


def test_what_was_not_measured_is_no_figure():
    assert figures(sample_reports.unsupported_build()) == {}
    assert set(figures(sample_reports.unmeasured_build())) == {"size_bytes", "bits_per_weight"}


def test_baselines_are_the_reports_own():
    build = sample_reports.healthy_build()
    found = baseline_figures(build)
    assert found["fp16_artifact"]["decode_tokens_per_second"] == build.latency.fp16_artifact.decode_tokens_per_second
    assert found["reference"]["perplexity"] == build.parity.reference_perplexity
    assert baseline_figures(sample_reports.unsupported_build()) == {"fp16_artifact": {}, "reference": {}}


def test_the_rounds_of_the_fp16_artifact_pair_up_and_no_others_do():
    build = sample_reports.healthy_build()
    behind = evidence(build, 0.1, {"old": build})
    assert behind.paired == {"fp16_artifact"}
    assert behind.baselines["old"] == behind.artifact == build.latency.samples
