"""SARIF 2.1.0: a subset of its schema with what GitHub code scanning asks for, and fingerprints that last."""

import ast
import json
import re
from pathlib import Path

import jsonschema
import pytest

import sample_reports
from edgekiln.validators.finding_rules import GROUPS, RULES, rule
from edgekiln.validators.report import CheckReport
from edgekiln.validators.sarif import render_sarif

SAMPLES = ("healthy", "failed", "unsupported", "not_measured", "unreadable", "pipeline", "hostile")
VALIDATORS = Path(__file__).parent.parent / "validators"
TEXT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}}
LEVEL = {"enum": ["none", "note", "warning", "error"]}
RULE = {
    "type": "object",
    "required": ["id", "shortDescription", "fullDescription", "help"],
    "additionalProperties": False,
    "properties": {
        "id": {"type": "string"},
        "name": {"type": "string"},
        "shortDescription": TEXT,
        "fullDescription": TEXT,
        "help": TEXT,
        "defaultConfiguration": {"properties": {"level": LEVEL}, "additionalProperties": False},
        "properties": {"type": "object", "properties": {"tags": {"type": "array", "maxItems": 20}}},
    },
}
LOCATION = {
    "type": "object",
    "required": ["physicalLocation"],
    "additionalProperties": False,
    "properties": {
        "physicalLocation": {
            "type": "object",
            "required": ["artifactLocation", "region"],
            "additionalProperties": False,
            "properties": {
                "artifactLocation": {
                    "required": ["uri"],
                    # A relative reference, encoded, with no way up: https://www.rfc-editor.org/rfc/rfc3986#section-4.2
                    "properties": {"uri": {"pattern": r"^(?!.*(^|/)\.\.?(/|$))[\w.~%-]+(/[\w.~%-]+)*$"}},
                },
                "region": {"required": ["startLine"], "properties": {"startLine": {"type": "integer", "minimum": 1}}},
            },
        },
        "logicalLocations": {
            "type": "array",
            "minItems": 1,
            "items": {"required": ["name"], "properties": {"name": {"type": "string"}, "kind": {"const": "resource"}}},
        },
    },
}
RESULT = {
    "type": "object",
    "required": ["ruleId", "message", "locations", "partialFingerprints"],
    "additionalProperties": False,
    "properties": {
        "ruleId": {"type": "string"},
        "ruleIndex": {"type": "integer", "minimum": 0},
        "level": LEVEL,
        "message": TEXT,
        "locations": {"type": "array", "minItems": 1, "maxItems": 10, "items": LOCATION},
        "partialFingerprints": {
            "type": "object",
            "required": ["primaryLocationLineHash"],
            "additionalProperties": {"type": "string"},
        },
    },
}
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": ["version", "runs"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"const": "2.1.0"},
        "runs": {
            "type": "array",
            "maxItems": 20,
            "items": {
                "required": ["tool", "results"],
                "additionalProperties": False,
                "properties": {
                    "tool": {
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "required": ["name", "rules"],
                                "properties": {"rules": {"type": "array", "uniqueItems": True, "items": RULE}},
                            }
                        },
                    },
                    "automationDetails": {"properties": {"id": {"type": "string", "pattern": "/$"}}},
                    "invocations": {
                        "items": {
                            "required": ["executionSuccessful"],
                            "properties": {
                                "toolExecutionNotifications": {
                                    "items": {"required": ["message"], "properties": {"message": TEXT, "level": LEVEL}}
                                }
                            },
                        }
                    },
                    "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
                    "results": {"type": "array", "maxItems": 5000, "items": RESULT},
                },
            },
        },
    },
}


def run(report):
    return json.loads(render_sarif(report))["runs"][0]


@pytest.mark.parametrize("name", SAMPLES)
def test_every_report_is_sarif_that_github_takes(name):
    text = render_sarif(getattr(sample_reports, name)())
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(text))
    found = json.loads(text)["runs"][0]
    rules = found["tool"]["driver"]["rules"]
    for result in found["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
    assert {entry["id"] for entry in rules} == {result["ruleId"] for result in found["results"]}
    assert render_sarif(getattr(sample_reports, name)()) == text
    text.encode("ascii")


def test_findings_become_results_with_level_place_and_fix():
    found = run(sample_reports.failed())
    swapped = next(result for result in found["results"] if result["ruleId"] == "conservation/swapped")
    assert swapped["level"] == "error"
    place = swapped["locations"][0]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == "onnx-cpu-int4/3f2a91c07b5e"
    assert place["logicalLocations"][0]["name"] == "model.layers.4.mlp.up_proj.MatMul.weight_Q4"
    assert "Fix: Export the artifact again" in swapped["message"]["text"]
    assert [result["level"] for result in found["results"]] == sorted(
        (result["level"] for result in found["results"]), key=["error", "warning", "note"].index
    )


def fingerprints(build):
    return [
        result["partialFingerprints"]["primaryLocationLineHash"]
        for result in run(sample_reports.report(build))["results"]
    ]


def test_a_finding_keeps_its_fingerprint_while_figures_and_the_digest_of_the_artifact_change():
    build = sample_reports.failed_build()
    before = fingerprints(build)
    structure = tuple(
        check.model_copy(
            update={
                "detail": "x",
                "findings": tuple(f.model_copy(update={"detail": "y", "fix": "z"}) for f in check.findings),
            }
        )
        for check in build.structure
    )
    assert fingerprints(build.model_copy(update={"artifact": "other/1", "structure": structure})) == before
    assert len(set(before)) == len(before)


@pytest.mark.parametrize("field", ["id", "subject"])
def test_another_finding_or_subject_or_build_is_another_fingerprint(field):
    build = sample_reports.failed_build()
    other = tuple(
        check.model_copy(
            update={"findings": tuple(f.model_copy(update={field: f"{getattr(f, field)}-2"}) for f in check.findings)}
        )
        for check in build.structure
    )
    assert not set(fingerprints(build)) & set(fingerprints(build.model_copy(update={"structure": other})))
    assert not set(fingerprints(build)) & set(fingerprints(build.model_copy(update={"id": "other"})))


def test_a_failed_check_without_findings_stands_for_itself():
    check = CheckReport(check="gguf/metadata", outcome="fail", detail="block_count is 5")
    build = sample_reports.healthy_build().model_copy(update={"structure": (check,)})
    (result,) = run(sample_reports.report(build))["results"]
    assert (result["ruleId"], result["level"]) == ("gguf/metadata", "error")
    assert "block_count is 5" in result["message"]["text"]


def test_of_very_many_findings_the_gravest_are_shown_and_the_rest_counted():
    build = sample_reports.failed_build()
    check = next(check for check in build.structure if check.check == "conservation")
    many = check.model_copy(update={"findings": check.findings * 2000})
    found = run(sample_reports.report(build.model_copy(update={"structure": (many,)})))
    assert len(found["results"]) == 5000
    levels = [result["level"] for result in found["results"]]
    assert levels.count("error") == 4000
    notes = found["invocations"][0]["toolExecutionNotifications"]
    assert "1000 more findings" in notes[-1]["message"]["text"]


@pytest.mark.parametrize("path", ["/etc/passwd", "../../x", "C:\\x\\y", "a b/ü%", "", ".", "https://x.test/y"])
def test_no_path_leaves_the_folder_of_the_report(path):
    build = sample_reports.failed_build().model_copy(update={"artifact": path})
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(render_sarif(sample_reports.report(build))))


def test_a_build_that_could_not_be_judged_makes_the_run_unsuccessful():
    invocation = run(sample_reports.report(sample_reports.error_build()))["invocations"][0]
    assert invocation["executionSuccessful"] is False
    assert "signal 11" in invocation["toolExecutionNotifications"][0]["message"]["text"]


def ids():
    """Return every id of a finding or check in the validators' sources."""
    pattern = re.compile(rf"({'|'.join(GROUPS)})/[a-z0-9_-]+")
    for path in sorted(VALIDATORS.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and pattern.fullmatch(node.value):
                yield node.value


def test_every_id_in_the_sources_has_a_rule():
    found = set(ids())
    assert len(found) > 20
    assert found - set(RULES) == set()


def test_every_rule_says_what_why_and_how():
    assert len({known.summary for known in RULES.values()}) == len(RULES)
    for known in (*RULES.values(), *GROUPS.values(), rule("new/thing"), rule("parity/unheard-of")):
        assert all(len(text) > 10 for text in (known.summary, known.meaning, known.help))
        assert known.meaning.endswith(".")
        assert known.help.endswith(".")
        assert not known.summary.endswith(".")
    assert rule("parity/unheard-of") == GROUPS["parity"]
