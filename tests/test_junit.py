"""JUnit XML: what its readers have in common, every gate and check once, and nothing that XML forbids."""

from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sample_reports
from edgekiln.validators.junit import render_junit
from edgekiln.validators.report import GateReport

SAMPLES = ("healthy", "failed", "unsupported", "not_measured", "unreadable", "pipeline", "hostile")
#: By element: the attributes that it must have, those that it may have, and its children. What Jenkins's junit-10.xsd,
#: GitLab and the actions of GitHub have in common.
SCHEMA = {
    "testsuites": ({"name", "tests", "failures", "errors"}, set(), {"testsuite"}),
    "testsuite": ({"name", "tests", "failures", "errors"}, {"skipped"}, {"testcase"}),
    "testcase": ({"name", "classname"}, set(), {"failure", "error", "skipped", "system-out"}),
    "failure": ({"type", "message"}, set(), set()),
    "error": ({"type", "message"}, set(), set()),
    "skipped": ({"type", "message"}, set(), set()),
    "system-out": (set(), set(), set()),
}


def parsed(text):
    return ET.fromstring(text)  # noqa: S314 - our own output


def check(element):
    required, optional, children = SCHEMA[element.tag]
    assert required <= set(element.attrib) <= required | optional
    for child in element:
        assert child.tag in children
        check(child)


def cases(report):
    """Return by build and name what became of each case: its element's tag."""
    root = parsed(render_junit(report))
    return {(case.get("classname"), case.get("name")): case[0] for case in root.iter("testcase")}


@pytest.mark.parametrize("name", SAMPLES)
def test_every_report_is_what_readers_read(name):
    report = getattr(sample_reports, name)()
    text = render_junit(report)
    root = parsed(text.encode())
    check(root)
    assert root.tag == "testsuites"
    for element in (root, *root):
        found = {tag: len(list(element.iter(tag))) for tag in ("testcase", "failure", "error", "skipped")}
        assert element.get("tests") == str(found["testcase"])
        assert element.get("failures") == str(found["failure"])
        assert element.get("errors") == str(found["error"])
        assert element.get("skipped") in {None, str(found["skipped"])}
    expected = sum(1 + len(build.structure) + len(build.gates) for build in report.builds)
    assert root.get("tests") == str(expected)
    assert render_junit(getattr(sample_reports, name)()) == text
    assert "timestamp" not in text


def test_each_case_ends_as_the_verdict_counts_it():
    found = cases(sample_reports.pipeline())
    assert found["gguf-cpu-fp16", "gate mean_kld <= 0.25"].tag == "system-out"
    assert found["onnx-cpu-int4-swapped", "build"].tag == "system-out"
    assert found["onnx-cpu-int4-swapped", "check conservation"].tag == "failure"
    assert found["onnx-cpu-int4-swapped", "gate mean_kld <= 0.25"].get("message") == "2.318 is above the limit of 0.25"
    assert found["onnx-cpu-int4-swapped", "gate decode_tokens_per_second >= 1.0 * fp16_artifact"].tag == "failure"
    assert found["gguf-cpu-fp16", "gate time_to_first_token_seconds <= 0.5"].tag == "skipped"
    assert found["onnx-arm-fp16", "gate mean_kld <= 0.001"].tag == "failure"
    assert found["onnx-arm-fp16", "check onnx/checker"].tag == "skipped"
    assert found["gguf-arm-int8", "build"].tag == "error"
    assert found["foundry-npu-nf4", "build"].tag == "skipped"


def test_a_gate_that_was_not_measured_is_an_error_where_the_build_is_one_and_nothing_where_it_passed():
    gate = GateReport(metric="mean_kld", limit="<= 1", value=None, outcome="not_measured", reason="it crashed")
    for build, tag in ((sample_reports.error_build(), "error"), (sample_reports.healthy_build(), "skipped")):
        report = sample_reports.report(build.model_copy(update={"gates": (gate,)}))
        assert cases(report)[build.id, "gate mean_kld <= 1"].tag == tag


def test_findings_come_with_their_fix_and_a_long_list_is_counted():
    build = sample_reports.failed_build()
    text = cases(sample_reports.report(build))[build.id, "check conservation"].text
    assert "conservation/swapped: model.layers.4.mlp.up_proj" in text
    assert "fix: Export the artifact again" in text
    failed = next(check for check in build.structure if check.check == "conservation")
    many = failed.model_copy(update={"findings": failed.findings * 1000})
    report = sample_reports.report(build.model_copy(update={"structure": (many,)}))
    text = cases(report)[build.id, "check conservation"].text
    assert text.endswith("and 2950 more")
    assert len(text) < 100_000


@given(
    st.text(st.characters(), max_size=50) | st.sampled_from(["\x00\x1f\ufffe\uffff", "\ud800", "]]>", "\r\n\t&<>\"'"])
)
def test_any_text_gives_xml_that_reads_back(text):
    build = sample_reports.unsupported_build().model_copy(update={"id": text, "reason": text})
    root = parsed(render_junit(sample_reports.report(build)).encode())
    kept = root[0].get("name")
    plain = text.isprintable() and text.isascii()
    assert kept == text if plain else not set(kept) & set("\x00\x1f\ufffe\uffff\u202e")
