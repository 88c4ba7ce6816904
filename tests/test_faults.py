"""Findings of structural checks: each has a fix, errors come first, and a hostile file fills no report."""

from __future__ import annotations

import re

import pytest

from edgekiln.errors import ArtifactError, CheckpointError, StepError
from edgekiln.validators.faults import FIXES, FaultError, failed, finding, guarded, judged, shown


def test_ids_and_fixes_are_well_formed():
    for name, fix in FIXES.items():
        assert re.fullmatch(r"[a-z]+/[a-z_]+", name)
        assert fix[0].islower()
        assert not fix.endswith(".")


def test_a_check_fails_by_its_errors_alone():
    warning = finding("metadata/eos", "eos", "a second end is missing", "warning")
    error = finding("metadata/heads", "heads", "heads is 3")
    assert judged("c", [], "fine").outcome == "pass"
    passed = judged("c", [warning], "fine")
    assert (passed.outcome, passed.detail, passed.findings) == ("pass", "fine", (warning,))
    wrong = judged("c", [warning, error], "fine")
    assert (wrong.outcome, wrong.detail, wrong.findings) == ("fail", "heads is 3", (error, warning))


def test_any_number_of_faults_makes_a_short_result():
    result = judged("c", [finding("metadata/heads", "s" * 5000, f"fault {n}") for n in range(5000)], "fine")
    assert len(result.findings) == 50
    assert result.detail.endswith("; fault 49; and 4950 more")
    assert len(result.findings[0].subject) == 200


def test_values_are_shown_cut():
    assert shown(3) == "3"
    assert shown("x" * 10_000_000) == "'" + "x" * 199 + "…"


@pytest.mark.parametrize("error", [ArtifactError("a"), CheckpointError("a"), OSError("a"), ValueError("a")])
def test_what_cannot_be_read_fails_its_check_under_the_given_id(error):
    def action():
        raise error

    assert guarded("c", "onnx/data", "file", action) == failed("c", "onnx/data", "file", "a")


def test_a_fault_names_its_own_cause_and_a_bug_is_no_fault():
    def fault():
        raise FaultError("files/outside", "tensor", "it points outside")

    assert guarded("c", "onnx/data", "file", fault) == failed("c", "files/outside", "tensor", "it points outside")
    assert issubclass(FaultError, ArtifactError)
    assert issubclass(FaultError, StepError)
    with pytest.raises(KeyError):
        guarded("c", "onnx/data", "file", lambda: {}["bug"])
