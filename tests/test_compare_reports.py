"""Two reports side by side: what changed, in which direction, beyond the noise or not, and gates on it."""

import json
import math

import jsonschema
import pytest
from click.testing import CliRunner

import sample_reports
from edgekiln.cli import cli
from edgekiln.errors import UsageError
from edgekiln.pipelines.compare import comparison_text, exit_code, read_report, run_comparison
from edgekiln.pipelines.schemas import json_schema
from edgekiln.validators.compare_reports import Compared, Comparison, compare
from edgekiln.validators.gates import METRICS, parse_gate

NAMES = (Compared(name="old.json", sha256="0", builds=1), Compared(name="new.json", sha256="1", builds=1))


def compared(old, new, *gates):
    return compare(old, new, NAMES, [parse_gate(text, "comparison") for text in gates])


def metrics(comparison, number=0):
    return {change.metric: change for change in comparison.builds[number].metrics if change.section is None}


def build(**parts):
    """Return a healthy build; a part given as a dictionary is a change of that part."""
    base = sample_reports.healthy_build()
    update = {
        name: getattr(base, name).model_copy(update=value) if isinstance(value, dict) else value
        for name, value in parts.items()
    }
    return base.model_copy(update=update)


def report(*builds, **changes):
    return sample_reports.report(*builds).model_copy(update=changes)


OLD = report(build())


def test_a_report_equals_itself():
    found = compared(OLD, OLD, "mean_kld <= 1.0 * old", "decode_tokens_per_second >= 1.0 * old")
    assert found.status == "passed"
    (only,) = found.builds
    assert set(metrics(found)) == set(METRICS)
    assert {change.direction for change in only.metrics} == {"same"}
    assert {change.within_noise for change in only.metrics} == {True}
    assert (only.outcomes, only.findings, found.notes, found.tools) == ((), (), (), {})


@pytest.mark.parametrize("name", ["pipeline", "failed", "hostile", "unsupported", "not_measured", "unreadable"])
def test_any_two_reports_can_be_compared_and_the_result_is_as_published(name, tmp_path):
    found = compared(sample_reports.pipeline(), getattr(sample_reports, name)(), "mean_kld <= 1.1 * old")
    document = json.loads(found.to_json())
    jsonschema.Draft202012Validator(json_schema("comparison")).validate(document)
    assert Comparison.model_validate_json(found.to_json()) == found
    assert "\x1b[31m" not in comparison_text(found)


@pytest.mark.parametrize(
    ("metric", "part", "factor", "direction"),
    [
        ("mean_kld", "parity", 2.0, "worse"),
        ("mean_kld", "parity", 0.5, "better"),
        ("top1_agreement", "parity", 0.5, "worse"),
        ("p999_kld", "parity", 2.0, "worse"),
        ("decode_tokens_per_second", "latency", 2.0, "better"),
        ("joules_per_token", "latency", 2.0, "worse"),
    ],
)
def test_the_direction_is_that_of_the_metric(metric, part, factor, direction):
    old = getattr(getattr(build(), part), metric)
    found = metrics(compared(OLD, report(build(**{part: {metric: old * factor}}))))[metric]
    assert (found.old, found.new, found.delta) == (old, old * factor, old * factor - old)
    assert found.direction == direction


def test_sizes_have_no_noise():
    found = metrics(compared(OLD, report(build(size_bytes=1))))["size_bytes"]
    assert (found.direction, found.within_noise) == ("better", False)


@pytest.mark.parametrize(("interval", "within"), [((0.022, 0.03), True), ((0.04, 0.06), False), (None, None)])
def test_parity_is_within_noise_where_the_confidence_intervals_overlap(interval, within):
    old = report(build(parity={"mean_kld": 0.02, "mean_kld_interval": (0.018, 0.023)}))
    new = report(build(parity={"mean_kld": 0.05, "mean_kld_interval": interval}))
    found = metrics(compared(old, new))["mean_kld"]
    assert (found.direction, found.within_noise) == ("worse", within)


@pytest.mark.parametrize(
    ("rounds", "within"), [((38.0, 40.0, 42.0), True), ((30.0, 31.0, 32.0), False), ((31.0,), None)]
)
def test_speeds_are_within_noise_where_the_middle_halves_of_the_rounds_overlap(rounds, within):
    name = "decode_tokens_per_second"
    old = report(build(latency={"samples": {name: (39.0, 41.0, 43.0)}}))
    new = report(build(latency={name: rounds[len(rounds) // 2], "samples": {name: rounds}}))
    found = metrics(compared(old, new))[name]
    assert (found.direction, found.within_noise) == ("worse", within)


APART = {
    "host": ({"processor": "another"}, "different machines", "decode_tokens_per_second", "mean_kld"),
    "corpus": ({"sha256": "f" * 64}, "different corpora", "mean_kld", "decode_tokens_per_second"),
    "protocol": ({"scored_tokens": 5}, "other parts of the corpus", "mean_kld", "decode_tokens_per_second"),
}


@pytest.mark.parametrize("part", APART)
def test_what_was_measured_on_other_things_is_not_compared(part):
    change, note, apart, together = APART[part]
    worse = build(parity={"mean_kld": 0.5}, latency={"decode_tokens_per_second": 1.0, "samples": {}})
    new = report(worse, **{part: getattr(OLD, part).model_copy(update=change)})
    found = compared(OLD, new, f"{apart} {'<=' if METRICS[apart].better == 'lower' else '>='} 1.0 * old")
    assert note in found.notes[0]
    assert metrics(found)[apart].direction == "unknown"
    assert note in metrics(found)[apart].reason
    assert metrics(found)[together].direction == "worse"
    assert metrics(found)["size_bytes"].direction == "same"
    (gate,) = found.builds[0].gates
    assert (gate.outcome, gate.binding) == ("not_measured", True)
    assert note in gate.reason
    assert exit_code(found) == 1


def test_other_threads_make_speeds_incomparable():
    found = compared(OLD, report(build(latency={"threads": 7, "decode_tokens_per_second": 1.0})))
    assert "2 and 7 threads" in metrics(found)["decode_tokens_per_second"].reason
    assert metrics(found)["mean_kld"].direction == "same"


@pytest.mark.parametrize(
    ("gate", "mean", "outcome"),
    [
        ("mean_kld <= 1.1 * old", 0.0219 * 1.09, "pass"),
        ("mean_kld <= 1.1 * old", 0.0219 * 1.11, "fail"),
        ("mean_kld <= 0.05", 0.04, "pass"),
        ("mean_kld <= 0.05", 0.06, "fail"),
        ("mean_kld <= 0.05", math.nan, "fail"),
    ],
)
def test_gates_on_the_new_report_and_relative_to_the_old(gate, mean, outcome):
    found = compared(OLD, report(build(parity={"mean_kld": mean})), gate)
    assert found.builds[0].gates[0].outcome == outcome
    assert found.status == ("passed" if outcome == "pass" else "failed")


def test_speed_gates_are_open_where_the_rounds_scatter_across_the_limit():
    name = "decode_tokens_per_second"
    old = report(build(latency={name: 41.0, "samples": {name: (20.0, 41.0, 80.0)}}))
    new = report(build(latency={name: 40.0, "samples": {name: (20.0, 40.0, 80.0)}}))
    found = compared(old, new, f"{name} >= 1.0 * old")
    assert "too noisy" in found.builds[0].gates[0].reason
    assert found.status == "failed"


def test_a_figure_that_is_missing_leaves_its_gate_unmeasured():
    for old, new in ((OLD, report(build(parity=None))), (report(build(parity=None)), OLD)):
        found = compared(old, new, "mean_kld <= 1.1 * old")
        assert found.builds[0].gates[0].outcome == "not_measured"
        assert found.status == "failed"


def test_checks_gates_and_findings_that_changed_are_named():
    found = compared(report(build()), sample_reports.failed())
    (only,) = found.builds
    assert (only.old_id, only.id) == ("gguf-cpu-int4", "onnx-cpu-int4")
    changed = {(change.kind, change.name): (change.old, change.new) for change in only.outcomes}
    assert changed["check", "conservation"] == ("pass", "fail")
    assert changed["check", "runtime/operators"] == (None, "fail")
    assert ("check", "files") not in changed
    new = [finding for finding in only.findings if finding.change == "new"]
    assert {finding.id for finding in new} >= {"conservation/swapped", "runtime/operator"}
    back = compared(sample_reports.failed(), report(build())).builds[0].findings
    assert [f.subject for f in back if f.change == "gone"] == [f.subject for f in new]


def test_a_finding_with_other_words_is_the_same_finding():
    bad = sample_reports.failed_build()
    reworded = tuple(
        check.model_copy(update={"findings": tuple(f.model_copy(update={"detail": "x"}) for f in check.findings)})
        for check in bad.structure
    )
    assert compared(report(bad), report(bad.model_copy(update={"structure": reworded}))).builds[0].findings == ()


def test_builds_are_matched_by_id_and_others_added_or_removed():
    names = ("a-int4", "b-int4", "c-int4")
    a, b, c = (build(id=name) for name in names)
    old, new = (report(*builds, pipeline="p") for builds in ((a, b), (c, a)))
    found = compared(old, new, "mean_kld <= 1.1 * old", "size_bytes <= 1")
    assert ([pair.id for pair in found.builds], [each.id for each in found.added]) == (["a-int4"], ["c-int4"])
    assert found.removed == ("b-int4",)
    relative, absolute = found.added[0].gates
    assert (relative.outcome, relative.binding) == ("not_measured", False)
    assert (absolute.outcome, absolute.binding) == ("fail", True)


def test_pipelines_of_one_build_each_are_not_matched_by_force():
    old, new = (report(build(id=name), pipeline="p") for name in ("a-int4", "b-int4"))
    assert compared(old, new).builds == ()
    assert len(compared(old.model_copy(update={"pipeline": None}), new).builds) == 1


def test_a_build_that_was_never_supported_fails_no_gate_and_one_that_no_longer_is_does():
    never = report(sample_reports.unsupported_build())
    assert compared(never, never, "mean_kld <= 1", "mean_kld <= 1 * old").status == "passed"
    assert compared(OLD, never, "mean_kld <= 1").status == "failed"


def test_a_gate_may_name_another_build_of_the_new_report():
    fast, slow = build(id="fast-int4"), build(id="slow-int4", latency={"decode_tokens_per_second": 10.0, "samples": {}})
    both = report(fast, slow, pipeline="p")
    found = compared(both, both, "decode_tokens_per_second >= 0.9 * fast-int4")
    first, second = (each.gates[0] for each in found.builds)
    assert (first.outcome, first.binding) == ("not_measured", False)
    assert second.outcome == "fail"


def test_tools_systems_and_checkpoints_that_differ_are_named():
    host = OLD.host.model_copy(update={"system": "Linux 7"})
    checkpoint = OLD.checkpoint.model_copy(update={"identity": "f" * 64})
    tools = {**OLD.tools, "new-tool": "1"}
    found = compared(OLD, report(build(), host=host, checkpoint=checkpoint, tools=tools))
    assert found.tools == {"new-tool": (None, "1")}
    assert any("Linux 7" in note for note in found.notes)
    assert any("f" * 16 in note for note in found.notes)


def write(path, document):
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


def test_a_report_of_a_broken_model_reads_back_with_what_is_not_finite(tmp_path):
    """JSON writes NaN and infinity as null."""
    path = write(tmp_path / "r.json", report(build(parity={"mean_kld": math.nan, "max_kld": math.inf})).to_json())
    parity = read_report(path).report.builds[0].parity
    assert math.isnan(parity.mean_kld)
    assert math.isnan(parity.max_kld)
    assert run_comparison(path, path, ["mean_kld <= 1"]).status == "failed"


BROKEN = {
    "missing": (None, "does not exist"),
    "empty": ("", "is not JSON"),
    "no JSON": ("# Edgekiln report", "is not JSON"),
    "deep": ("[" * 100_000, "is not JSON.*nested too deeply"),
    "a list": ([], "names no schema"),
    "no schema": ({"builds": []}, "names no schema"),
    "a number": ({"schema": 1}, "names no schema"),
    "another document": ({"schema": "edgekiln.manifest/1"}, "but 'edgekiln.manifest/1'"),
    "a later version": (
        {"schema": "edgekiln.report/2"},
        "'edgekiln.report/2', but this Edgekiln .* 'edgekiln.report/1'",
    ),
    "no version": ({"schema": "edgekiln.report"}, "of version 'edgekiln.report'"),
    "no builds": ({"schema": "edgekiln.report/1"}, "damaged report: checkpoint: Field required"),
    "twice": (sample_reports.report(build(), build()).to_json(), "several builds named 'gguf-cpu-int4'"),
    "a text for a figure": (
        OLD.to_json().replace('"mean_kld": 0.0219', '"mean_kld": "x"', 1),
        "damaged report: builds",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_report_of_this_version_is_refused_in_one_sentence(case, tmp_path):
    content, message = BROKEN[case]
    path = tmp_path / "r.json" if content is None else write(tmp_path / "r.json", content)
    with pytest.raises(UsageError, match=message) as caught:
        read_report(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_report_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "r.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UsageError, match="more than the"):
        read_report(path)


def test_keys_of_a_later_edgekiln_are_passed_over(tmp_path):
    document = json.loads(OLD.to_json())
    document["later"] = document["builds"][0]["later"] = {"x": [1]}
    assert read_report(write(tmp_path / "r.json", document)).report == OLD


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 0, "No figure changed."),
        (("--gate", "mean_kld <= 1.1 * old"), 0, "1 of 1 gates passed"),
        (("--gate", "mean_kld <= 0.001"), 1, "0.0219 is above 0.001"),
        (("--gate", "mean_kld <= 1 * old", "--json"), 0, '"schema": "edgekiln.comparison/1"'),
        (("--gate", "mean_kld <= 1 * nothing"), 2, "unknown baseline 'nothing'"),
        (("--gate", "mean_kl <= 1"), 2, "did you mean 'mean_kld'"),
    ],
)
def test_the_command(arguments, code, said, tmp_path):
    path = str(write(tmp_path / "r.json", OLD.to_json()))
    result = CliRunner().invoke(cli, ["compare", path, path, *arguments], standalone_mode=False)
    if code == 2:
        assert isinstance(result.exception, UsageError)
        assert said in str(result.exception)
    else:
        assert result.return_value == code
        assert said in result.output


def test_the_text_shows_changes_and_leaves_off_what_is_equal():
    new = report(build(parity={"mean_kld": 0.5, "mean_kld_interval": (0.4, 0.6)}, status="failed"))
    text = comparison_text(compared(OLD, new))
    assert "mean_kld" in text
    assert "worse" in text
    assert "size_bytes" not in text
    assert "gguf-cpu-int4: passed before, failed now" in text
