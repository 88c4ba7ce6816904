from edgekiln.validators.markdown import render_markdown
from edgekiln.validators.report import BuildReport, CheckReport, GateReport, HostReport, Report

HOST = HostReport(system="Linux", machine="x86_64", processor="a processor", logical_cores=2, memory_bytes=1)


def report(*builds):
    return Report(checkpoint=None, tools={}, host=HOST, corpus=None, protocol=None, builds=builds)


def build(**changes):
    fields = {
        "id": "cell",
        "target": "t",
        "format": "gguf",
        "requested": "int4",
        "precision": "q4_0",
        "container_type": "Q4_0",
        "status": "passed",
        "reason": None,
    }
    return BuildReport(**{**fields, **changes})


def test_the_verdict_comes_first():
    lines = render_markdown(
        report(build(), build(id="other", status="failed", reason="mean_kld: too much"))
    ).splitlines()
    assert lines[2] == "**1 passed, 1 failed**"


def test_text_of_others_cannot_break_the_table_or_bring_markup():
    text = render_markdown(
        report(
            build(
                structure=(CheckReport(check="c", outcome="fail", detail="a | b\n<script>"),),
                gates=(GateReport(metric="m", limit="<= 1", value=2.0, outcome="fail", reason="x | y"),),
            )
        )
    )
    assert "<script>" not in text
    assert "a \\| b &lt;script>" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


def test_what_was_not_measured_is_a_dash_not_a_zero():
    row = next(line for line in render_markdown(report(build())).splitlines() if line.startswith("| cell"))
    assert row.count("–") >= 7


def test_a_report_without_builds_says_so():
    assert "**no builds**" in render_markdown(report())


def test_a_report_reads_back_and_ignores_keys_it_does_not_know():
    text = report(build()).to_json()
    assert Report.model_validate_json(text) == report(build())
    assert Report.model_validate_json(text.replace('"builds"', '"later": 1, "builds"', 1)) == report(build())
