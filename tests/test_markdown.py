import re

import pytest

import sample_reports
from edgekiln.validators.markdown import render_markdown
from edgekiln.validators.report import BuildReport, CheckReport, FindingReport, GateReport, HostReport, Report

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


def test_findings_come_with_their_fix_the_gravest_first():
    text = render_markdown(sample_reports.failed())
    table = text[text.index("| severity | finding |") :]
    rows = [row.split(" | ") for row in table.splitlines()[2:] if row.startswith("|")][:5]
    assert [row[0] for row in rows] == ["| error", "| error", "| error", "| warning", "| note"]
    assert "Update onnxruntime to 1.21" in text


@pytest.mark.parametrize(
    "said",
    [
        "Conservation: 218 tensors exported, 1 tied, 72 fused, 1 dropped; relative error 0.07840",
        "- mtp.0.embed.weight: multi-token prediction: no decoder uses it",
        "| blk.4.mlp.up_proj.weight | q4_0 | 4.50 | 1.41000 |",
        "Precision as built: 5.08 bits per weight; int4 was asked for",
        "| token_embd.weight | fp16 | 16.00 |",
        "| mean KLD | 2.31800 (95 %: 2.20210 to 2.45708) |",
        "near ties 0.42 %, without them 21.00 %",
        "| decode path, mean KLD | 2.34118, of the same on prefill 2.31800; 512 positions, context 192 |",
        "| english | 255 | 1.39080 |",
        "| tg32 @ d4096 |",
        "| tg32 × 4 |",
    ],
)
def test_everything_measured_is_there(said):
    assert said in render_markdown(sample_reports.failed())


def test_what_nobody_measured_is_no_row_of_speeds():
    assert "| joules_per_token |" in render_markdown(sample_reports.healthy())
    build = sample_reports.healthy_build()
    none = {"joules_per_token": None}
    latency = build.latency.model_copy(
        update={**none, "fp16_artifact": build.latency.fp16_artifact.model_copy(update=none)}
    )
    text = render_markdown(sample_reports.report(build.model_copy(update={"latency": latency})))
    assert "| joules_per_token |" not in text


def test_lists_are_cut_and_what_is_left_off_is_counted():
    finding = FindingReport(id="files/missing", severity="error", subject="x" * 10**5, detail="y", fix="z")
    check = CheckReport(check="files", outcome="fail", detail="d" * 10**6, findings=(finding,) * 500)
    made = build(
        structure=(check,) * 100, notes=tuple(map(str, range(1000))), not_measured=dict.fromkeys("abc", "n" * 10**5)
    )
    text = render_markdown(report(made))
    assert "… and 49980 more: see report.json." in text
    assert "… and 80 more: see report.json." in text
    assert "… and 980 more: see report.json." in text
    assert len(text) < 60_000


@pytest.mark.parametrize("count", [1, 500, 20_000])
def test_a_job_summary_has_room_for_any_report(count):
    """GitHub takes 1 MiB; what is worse than a build with everything and long names?"""
    (worst,) = sample_reports.hostile().builds
    text = render_markdown(sample_reports.report(*[worst] * count))
    assert len(text.encode()) < 2**20
    shown = text.count("\n## ")
    assert shown == count or f"… and {count - shown} more builds: see report.json." in text


def test_names_of_others_format_link_and_load_nothing():
    text = "](http://x.test) ![p](http://x.test/p.png) `a` **b** <img src=x> &lt;i> \\| \u202e"
    shown = render_markdown(sample_reports.hostile(text))
    outside = re.sub(r"`[^`\n]*`", "", re.sub(r"\\[\\`*\[\]|]", "", shown))
    assert "![" not in outside
    assert "](" not in outside
    assert "**b" not in outside
    assert "<img" not in outside
    assert "\u202e" not in shown
